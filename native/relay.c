/* The relay: the kernel, as far as the control plane can tell.
 *
 * Owns the Python process that serves the computed tree, the two socket pairs to it, and every
 * request that it has in hand. It exists so that a slow, hanging or crashing Python costs EIO in
 * the computed tree and nothing else. What changes in a message on its way is in relay_wire.c.
 *
 * The life of a request: a worker puts a struct call into the list, sends, and sleeps on the
 * call. The service thread receives the reply, takes the call out of the list and wakes the worker,
 * which checks the reply and makes its own out of it. If the worker was interrupted meanwhile, the
 * call stays in the list without it; when the late reply comes, the service thread gives back what
 * the reply handed out (open files, lookups). When the child dies, all calls end with EIO, and the
 * next child starts from nothing: nodeids that it does not know are its to answer (ESTALE).
 *
 * Threads: the workers in zc_relay_serve; the service thread, which starts and reaps children
 * (they die with that thread: PR_SET_PDEATHSIG), receives, and answers the control socket; the
 * notifier, because a notification may wait in the kernel for a lock that a request holds, whose
 * reply only the service thread can receive. `lock` guards everything that more than one of them
 * touches. Nobody sleeps in a send: workers poll in slices, everything else goes through the
 * outbox when the socket is full.
 */
#include "internal.h"

#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "relay_child.h"
#include "relay_wire.h"
#include "sys.h"

#define MS 1000000ULL /* ns */
#define SLICE_MS 100 /* a wait looks up this often, in case a signal came a moment too early */
#define UP_WAIT_MS 5000
#define INIT_WAIT_MS 30000
#define ANSWER_WAIT_MS 30000 /* then the child hangs */
#define BACKOFF_FIRST_MS 100
#define BACKOFF_MOST_MS 5000
#define LIVED_WELL_MS 10000 /* the backoff starts anew after that */
#define END_GRACE_MS 2000
#define EXIT_GRACE_MS 200
#define OUTBOX_MOST 65536
#define NOTIFY_MOST 1024
#define RECEIVE_BATCH 64
#define ERROR_MOST 4095
#define VERB_MOST 64

#define INIT_FLAGS                                                                        \
	(FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_DO_READDIRPLUS |  \
	 FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS)

/* Our end of the relay socket to a child that has answered INIT. */
struct link {
	int fd;
	unsigned refs;
	uint32_t max_data;
};

/* A request that the child has. In the list it belongs to the list; once done, to the waiter. */
struct call {
	struct call *next;
	uint64_t unique, nodeid;
	uint32_t opcode;    /* as sent */
	bool abandoned;	    /* nobody waits */
	_Atomic uint32_t done; /* futex */
	int error;
	char *body; /* of the reply */
	size_t len;
};

struct message {
	struct message *next;
	size_t len;
	char data[];
};

struct queue {
	struct message *first, **last;
	size_t count;
};

struct zc_relay {
	struct zc_session *s;
	char *python;
	pthread_t service, notifier;
	int wake; /* eventfd for the service thread */
	_Atomic bool stopping;
	_Atomic uint32_t changes; /* futex: counts comings and goings of `link` */

	pthread_mutex_t lock; /* guards all below */
	struct link *link;    /* NULL: not up */
	struct call *calls;
	struct queue outbox;
	uint64_t unique; /* the last one given out; even, as the kernel's are */
	pid_t pid;	 /* 0: none now */
	uint64_t hung_until; /* calls up to this one waited for a child that hung */
	uint64_t restarts, requests, outstanding;
	bool complained; /* about this child */

	pthread_mutex_t notify_lock; /* guards the rest */
	pthread_cond_t notify_cond;
	struct queue notifications;
	bool notify_end;
};

/* One life of the control plane; the service thread's own. */
struct life {
	struct zc_child child;
	struct link *link; /* has child.relay */
	bool up;
	uint64_t init_unique, started;
	const char *why; /* it is over */
	char *buffer;	 /* a message */
};

/* Small parts ------------------------------------------------------------------------------ */

static uint64_t now_ms(void)
{
	return zc_now_ns() / MS;
}

/* Sleeps while *word is `seen`, until woken, a signal, or the end of `ms`. */
static void word_wait(_Atomic uint32_t *word, uint32_t seen, long ms)
{
	struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * (long)MS};

	ZC_SYS("futex", syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, &ts, NULL, 0));
}

static void word_wake(_Atomic uint32_t *word)
{
	ZC_SYS("futex", syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0));
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void queue_init(struct queue *q)
{
	*q = (struct queue){.first = NULL, .last = &q->first};
}

static bool queue_put(struct queue *q, const void *data, size_t len)
{
	struct message *m = malloc(sizeof(*m) + len);

	if (!m)
		return false;
	m->next = NULL;
	m->len = len;
	memcpy(m->data, data, len);
	*q->last = m;
	q->last = &m->next;
	q->count++;
	return true;
}

static struct message *queue_take(struct queue *q)
{
	struct message *m = q->first;

	if (!m)
		return NULL;
	q->first = m->next;
	if (!q->first)
		q->last = &q->first;
	q->count--;
	return m;
}

static void queue_empty(struct queue *q)
{
	struct message *m;

	while ((m = queue_take(q)))
		free(m);
}

/* Not behind the seam: this does not fail; an eventfd that is full is readable already. */
static void service_wake(struct zc_relay *relay)
{
	uint64_t one = 1;

	if (write(relay->wake, &one, sizeof(one)) < 0)
		return;
}

/* The service thread and the notifier take no signals: those are the workers' and main's. */
static int thread_start(pthread_t *thread, void *(*run)(void *), void *arg)
{
	sigset_t all, old;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(thread, NULL, run, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -err;
}

/* The link --------------------------------------------------------------------------------- */

static void link_put_locked(struct link *l)
{
	if (--l->refs)
		return;
	close(l->fd);
	free(l);
}

static void link_put(struct zc_relay *relay, struct link *l)
{
	pthread_mutex_lock(&relay->lock);
	link_put_locked(l);
	pthread_mutex_unlock(&relay->lock);
}

static struct link *link_get(struct zc_relay *relay)
{
	struct link *l;

	pthread_mutex_lock(&relay->lock);
	l = relay->link;
	if (l)
		l->refs++;
	pthread_mutex_unlock(&relay->lock);
	return l;
}

/* Why a worker must wait no longer, or 0. */
static int given_up(const struct zc_req *r)
{
	if (r->w->interrupted)
		return -EINTR;
	return r->s->ended || r->s->relay->stopping ? -EIO : 0;
}

static int link_wait(struct zc_req *r, struct link **out)
{
	struct zc_relay *relay = r->s->relay;
	uint64_t end = now_ms() + UP_WAIT_MS;
	struct link *l;

	for (;;) {
		uint32_t seen = relay->changes;
		int err = given_up(r);
		if (err)
			return err;
		l = link_get(relay);
		if (l)
			break;
		if (now_ms() >= end)
			return -EIO;
		word_wait(&relay->changes, seen, SLICE_MS);
	}
	*out = l;
	return 0;
}

/* Calls ------------------------------------------------------------------------------------ */

static void call_free(struct call *c)
{
	free(c->body);
	free(c);
}

static struct call *call_new_locked(struct zc_relay *relay, uint32_t opcode, uint64_t nodeid)
{
	struct call *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->opcode = opcode;
	c->nodeid = nodeid;
	c->unique = relay->unique += 2;
	c->next = relay->calls;
	relay->calls = c;
	return c;
}

static struct call *call_take_locked(struct zc_relay *relay, uint64_t unique)
{
	for (struct call **at = &relay->calls; *at; at = &(*at)->next) {
		struct call *c = *at;
		if (c->unique != unique)
			continue;
		*at = c->next;
		return c;
	}
	return NULL;
}

/* Hands a call that is out of the list to its waiter, who may free it at once. The wake-up may
 * so hit memory that is somebody else's by now: all that it does there is to wake. */
static void call_finish_locked(struct zc_relay *relay, struct call *c, int error)
{
	c->error = error;
	if (c->abandoned) {
		call_free(c);
		return;
	}
	relay->outstanding--;
	c->done = 1;
	word_wake(&c->done);
}

/* Puts the request into the list of calls; fails if the link is not the child's any more. */
static int call_start(struct zc_relay *relay, const struct link *l, struct zc_relay_msg *m,
		      struct call **out)
{
	struct call *c = NULL;
	int err = -EIO;

	pthread_mutex_lock(&relay->lock);
	if (relay->link == l) {
		c = call_new_locked(relay, m->hdr.opcode, m->hdr.nodeid);
		err = c ? 0 : -ENOMEM;
	}
	if (c) {
		m->hdr.unique = c->unique;
		relay->requests++;
		relay->outstanding++;
		*out = c;
	}
	pthread_mutex_unlock(&relay->lock);
	return err;
}

/* The outbox ------------------------------------------------------------------------------- */

static int send_now(int fd, const void *data, size_t len)
{
	ssize_t n = ZC_SYS("send", send(fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL));

	return n < 0 ? (int)n : 0;
}

/* Sends to the child without ever waiting. What cannot be sent is dropped: then the child is as
 * good as dead, and its state with it. */
static void post_locked(struct zc_relay *relay, const void *data, size_t len)
{
	if (!relay->link)
		return;
	if (!relay->outbox.first && send_now(relay->link->fd, data, len) != -EAGAIN)
		return;
	if (relay->outbox.count < OUTBOX_MOST && queue_put(&relay->outbox, data, len))
		service_wake(relay);
}

static void outbox_flush(struct zc_relay *relay)
{
	struct message *m;

	pthread_mutex_lock(&relay->lock);
	while (relay->link && (m = relay->outbox.first)) {
		if (send_now(relay->link->fd, m->data, m->len) == -EAGAIN)
			break;
		free(queue_take(&relay->outbox));
	}
	pthread_mutex_unlock(&relay->lock);
}

static struct fuse_in_header header(uint32_t opcode, uint64_t unique, uint64_t nodeid, size_t len)
{
	return (struct fuse_in_header){.len = (uint32_t)(sizeof(struct fuse_in_header) + len),
				       .opcode = opcode, .unique = unique, .nodeid = nodeid};
}

static void post_interrupt_locked(struct zc_relay *relay, const struct call *c)
{
	struct {
		struct fuse_in_header hdr;
		struct fuse_interrupt_in in;
	} m = {.in.unique = c->unique};

	m.hdr = header(FUSE_INTERRUPT, c->unique | FUSE_INT_REQ_BIT, c->nodeid, sizeof(m.in));
	post_locked(relay, &m, sizeof(m));
}

/* Nobody waits for its reply: there is nothing that could be done about an error. */
static void post_release(struct zc_relay *relay, uint32_t opcode, uint64_t nodeid,
			 const struct fuse_release_in *in)
{
	struct {
		struct fuse_in_header hdr;
		struct fuse_release_in in;
	} m = {.in = *in};
	struct call *c;

	pthread_mutex_lock(&relay->lock);
	c = relay->link ? call_new_locked(relay, opcode, nodeid) : NULL;
	if (c) {
		c->abandoned = true;
		m.hdr = header(opcode, c->unique, nodeid, sizeof(m.in));
		post_locked(relay, &m, sizeof(m));
	}
	pthread_mutex_unlock(&relay->lock);
}

static void post_forgets(struct zc_relay *relay, const struct fuse_forget_one *f, size_t count)
{
	struct fuse_batch_forget_in in = {.count = (uint32_t)count};
	struct fuse_in_header hdr;
	size_t body = sizeof(in) + count * sizeof(*f);
	char *m = malloc(sizeof(hdr) + body);

	if (!m)
		return; /* Python knows some entries for longer than it must */
	memcpy(m + sizeof(hdr), &in, sizeof(in));
	memcpy(m + sizeof(hdr) + sizeof(in), f, count * sizeof(*f));
	pthread_mutex_lock(&relay->lock);
	hdr = header(FUSE_BATCH_FORGET, relay->unique += 2, 0, body);
	memcpy(m, &hdr, sizeof(hdr));
	post_locked(relay, m, sizeof(hdr) + body);
	pthread_mutex_unlock(&relay->lock);
	free(m);
}

/* Gives back what a successful reply handed out and nobody takes. */
static void give_back(struct zc_relay *relay, uint32_t opcode, uint64_t nodeid, const void *body,
		      size_t len)
{
	size_t most = len / sizeof(struct fuse_entry_out);
	struct fuse_forget_one *f;
	struct zc_relay_handle h;

	if (zc_relay_handle_of(opcode, nodeid, body, len, &h))
		post_release(relay, h.dir ? FUSE_RELEASEDIR : FUSE_RELEASE, h.nodeid,
			     &(struct fuse_release_in){.fh = h.fh});
	if (!most)
		return;
	f = calloc(most, sizeof(*f));
	if (!f)
		return;
	size_t count = zc_relay_lookups_of(opcode, body, len, f, most);
	if (count)
		post_forgets(relay, f, count);
	free(f);
}

/* The worker's side ------------------------------------------------------------------------ */

static int send_request(struct zc_req *r, const struct link *l, struct zc_relay_msg *m)
{
	struct iovec iov[3] = {{&m->hdr, sizeof(m->hdr)}, {m->in, m->in_len},
			       {(void *)(uintptr_t)m->data, m->data_len}};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 3};
	struct pollfd pfd = {.fd = l->fd, .events = POLLOUT};

	for (;;) {
		ssize_t n = ZC_SYS("sendmsg", sendmsg(l->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL));
		if (n >= 0)
			return 0;
		if (n != -EAGAIN && n != -EINTR)
			return -EIO;
		int err = given_up(r);
		if (err)
			return err;
		if (n == -EAGAIN)
			ZC_SYS("poll", poll(&pfd, 1, SLICE_MS));
	}
}

/* Leaves the call to the service thread. False: it is done, and the caller's. */
static bool call_abandon(struct zc_relay *relay, struct call *c)
{
	bool waiting;

	pthread_mutex_lock(&relay->lock);
	waiting = !c->done;
	if (waiting) {
		c->abandoned = true;
		relay->outstanding--;
		post_interrupt_locked(relay, c);
	}
	pthread_mutex_unlock(&relay->lock);
	return waiting;
}

/* The request did not get to the child, so that no reply will come. */
static void call_cancel(struct zc_relay *relay, struct call *c)
{
	pthread_mutex_lock(&relay->lock);
	if (!c->done) {
		call_take_locked(relay, c->unique);
		relay->outstanding--;
	}
	pthread_mutex_unlock(&relay->lock);
	call_free(c);
}

/* A child that answers nothing is ended; the next one answers. Callers that were killed may wait in
 * the kernel for one another, and over io_uring it does not always tell us. */
static void child_end_hung(struct zc_relay *relay, uint64_t unique)
{
	pthread_mutex_lock(&relay->lock);
	if (relay->pid > 0 && unique > relay->hung_until) {
		relay->hung_until = relay->unique; /* the others that wait are this child's, too */
		zc_log("control plane: no answer within %d s, it is started again",
		       ANSWER_WAIT_MS / 1000);
		kill(relay->pid, SIGKILL);
	}
	pthread_mutex_unlock(&relay->lock);
}

/* 0: the call is done, and the caller's. */
static int call_wait(struct zc_req *r, struct call *c)
{
	uint64_t end = now_ms() + ANSWER_WAIT_MS;

	while (!c->done) {
		int err = given_up(r);
		if (!err && now_ms() >= end) {
			child_end_hung(r->s->relay, c->unique);
			err = -EIO;
		}
		if (err && call_abandon(r->s->relay, c))
			return err;
		if (!err)
			word_wait(&c->done, 0, SLICE_MS);
	}
	return 0;
}

/* Sends the request; the call is the caller's to wait for. */
static int call_send(struct zc_req *r, struct zc_relay_msg *m, struct call **out)
{
	struct zc_relay *relay = r->s->relay;
	struct call *c = NULL;
	struct link *l;
	int err = link_wait(r, &l);

	if (err)
		return err;
	err = zc_relay_encode(r, l->max_data, m);
	if (!err)
		err = call_start(relay, l, m, &c);
	if (!err)
		err = send_request(r, l, m);
	link_put(relay, l);
	if (!err)
		*out = c;
	else if (c)
		call_cancel(relay, c);
	return err;
}

static void complain(struct zc_relay *relay, const char *what)
{
	bool first;

	pthread_mutex_lock(&relay->lock);
	first = !relay->complained;
	relay->complained = true;
	pthread_mutex_unlock(&relay->lock);
	if (first)
		zc_log("control plane: bad message (%s); no more is said of this process", what);
}

static int take_reply(struct zc_req *r, const struct zc_relay_msg *m, const struct call *c)
{
	int err;

	if (c->error)
		return zc_relay_error(r, c->error);
	err = zc_relay_decode(r, m, c->body, c->len);
	if (err || r->hdr.opcode == FUSE_READDIR)
		give_back(r->s->relay, c->opcode, c->nodeid, c->body, c->len);
	if (err == -EIO)
		complain(r->s->relay, zc_opinfo[r->hdr.opcode].name);
	return err ? zc_relay_error(r, err) : 0;
}

static int ask(struct zc_req *r)
{
	struct zc_relay_msg m;
	struct call *c;
	int err = call_send(r, &m, &c);

	if (!err)
		err = call_wait(r, c);
	if (err)
		return zc_relay_error(r, err);
	err = take_reply(r, &m, c);
	call_free(c);
	return err;
}

/* The kernel does not wait for these two either. */
static int release(struct zc_req *r)
{
	if (r->s->relay)
		post_release(r->s->relay, r->hdr.opcode, r->hdr.nodeid, r->in);
	r->out_len = 0;
	return 0;
}

int zc_relay_serve(struct zc_req *r)
{
	int err;

	if (zc_relay_local(r, &err))
		return err;
	if (r->hdr.opcode == FUSE_RELEASE || r->hdr.opcode == FUSE_RELEASEDIR)
		return release(r);
	if (!r->s->relay)
		return -EIO;
	err = zc_wait_begin(r->w);
	if (err)
		return err;
	err = ask(r);
	zc_wait_end(r->w);
	return err;
}

void zc_relay_forget(struct zc_relay *relay, uint64_t nodeid, uint64_t nlookup)
{
	struct {
		struct fuse_in_header hdr;
		struct fuse_forget_in in;
	} m = {.in.nlookup = nlookup};

	if (!relay)
		return;
	pthread_mutex_lock(&relay->lock);
	m.hdr = header(FUSE_FORGET, relay->unique += 2, nodeid, sizeof(m.in));
	post_locked(relay, &m, sizeof(m));
	pthread_mutex_unlock(&relay->lock);
}

/* Notifications ---------------------------------------------------------------------------- */

static void notify_post(struct zc_relay *relay, const void *msg, size_t len)
{
	pthread_mutex_lock(&relay->notify_lock);
	if (relay->notifications.count < NOTIFY_MOST)
		queue_put(&relay->notifications, msg, len);
	pthread_cond_signal(&relay->notify_cond);
	pthread_mutex_unlock(&relay->notify_lock);
}

static void *notifier_run(void *arg)
{
	struct zc_relay *relay = arg;
	struct message *m;

	pthread_mutex_lock(&relay->notify_lock);
	while (!relay->notify_end) {
		m = queue_take(&relay->notifications);
		if (!m) {
			pthread_cond_wait(&relay->notify_cond, &relay->notify_lock);
			continue;
		}
		pthread_mutex_unlock(&relay->notify_lock);
		/* Fails if the kernel does not know the inode: so much the better. */
		ZC_SYS("write", write(relay->s->fd, m->data, m->len));
		free(m);
		pthread_mutex_lock(&relay->notify_lock);
	}
	pthread_mutex_unlock(&relay->notify_lock);
	return NULL;
}

static void notifier_end(struct zc_relay *relay)
{
	pthread_mutex_lock(&relay->notify_lock);
	relay->notify_end = true;
	pthread_cond_signal(&relay->notify_cond);
	pthread_mutex_unlock(&relay->notify_lock);
	pthread_join(relay->notifier, NULL);
}

/* Messages from the child ------------------------------------------------------------------ */

/* The child has said hello: from here it gets requests. */
static void link_up(struct zc_relay *relay, struct life *l, uint32_t max_data)
{
	pthread_mutex_lock(&relay->lock);
	l->link->max_data = max_data;
	l->link->refs++;
	relay->link = l->link;
	pthread_mutex_unlock(&relay->lock);
	l->up = true;
	relay->changes++;
	word_wake(&relay->changes);
}

static void on_init(struct zc_relay *relay, struct life *l, const struct fuse_out_header *hdr)
{
	const struct fuse_init_out *out = (const void *)(hdr + 1);
	uint32_t max_data;

	if (hdr->error || hdr->len < sizeof(*hdr) + offsetof(struct fuse_init_out, time_gran) ||
	    out->major != FUSE_MAJOR || out->max_write < FUSE_BUFFER_HEADER_SIZE) {
		l->why = "refused INIT";
		return;
	}
	max_data = out->max_write;
	link_up(relay, l, max_data < ZC_RELAY_MAX_DATA ? max_data : ZC_RELAY_MAX_DATA);
}

static int keep_body(struct call *call, const void *body, size_t len)
{
	call->body = malloc(len ? len : 1);
	if (!call->body)
		return -ENOMEM;
	memcpy(call->body, body, len);
	call->len = len;
	return 0;
}

static void on_reply(struct zc_relay *relay, const struct fuse_out_header *hdr, int error)
{
	size_t len = error ? 0 : hdr->len - sizeof(*hdr);
	uint64_t nodeid = 0;
	uint32_t opcode = 0;
	struct call *call;

	pthread_mutex_lock(&relay->lock);
	call = call_take_locked(relay, hdr->unique);
	if (call && call->abandoned && !error) {
		opcode = call->opcode;
		nodeid = call->nodeid;
	} else if (call && !error) {
		error = keep_body(call, hdr + 1, len);
	}
	if (call)
		call_finish_locked(relay, call, error);
	pthread_mutex_unlock(&relay->lock);
	if (!call)
		complain(relay, "a reply to nothing");
	if (opcode)
		give_back(relay, opcode, nodeid, hdr + 1, len);
}

/* Checks what is common to all messages of `len` bytes; a reply that is wrong is EIO for him who
 * waits for it. */
static void on_message(struct zc_relay *relay, struct life *l, size_t len)
{
	const struct fuse_out_header *hdr = (const void *)l->buffer;
	bool good = len >= sizeof(*hdr) && len <= ZC_RELAY_MAX_MESSAGE && hdr->len == len;

	if (good && hdr->unique)
		good = hdr->error <= 0 && hdr->error >= -ERROR_MOST &&
		       (!hdr->error || len == sizeof(*hdr));
	if (!good)
		complain(relay, "its length or error");
	if (len < sizeof(*hdr))
		return;
	if (!hdr->unique) {
		if (good && zc_relay_may_notify(hdr, len))
			notify_post(relay, hdr, len);
		else if (good)
			complain(relay, "a notification");
	} else if (!l->up) {
		if (good && hdr->unique == l->init_unique)
			on_init(relay, l, hdr);
		else
			l->why = "did not answer INIT";
	} else if (!(hdr->unique & FUSE_INT_REQ_BIT)) { /* INTERRUPTs are answered with EAGAIN */
		on_reply(relay, hdr, good ? hdr->error : -EIO);
	}
}

static void receive(struct zc_relay *relay, struct life *l)
{
	for (int i = 0; i < RECEIVE_BATCH && !l->why; i++) {
		ssize_t n = ZC_SYS("recv", recv(l->link->fd, l->buffer, ZC_RELAY_MAX_MESSAGE,
						MSG_DONTWAIT | MSG_TRUNC));
		if (n == -EAGAIN || n == -EINTR)
			return;
		if (n <= 0)
			l->why = "ended";
		else
			on_message(relay, l, (size_t)n);
	}
}

static void answer_control(struct zc_relay *relay, struct life *l)
{
	char verb[VERB_MOST + 1], *answer;
	ssize_t n = ZC_SYS("recv", recv(l->child.control, verb, VERB_MOST, MSG_DONTWAIT));

	if (n == -EAGAIN || n == -EINTR)
		return;
	if (n <= 0) {
		l->why = "ended";
		return;
	}
	verb[n] = 0;
	answer = zc_control_answer(relay->s, verb);
	const char *text = answer ? answer : "{\"error\": \"out of memory\"}";
	send_now(l->child.control, text, strlen(text)); /* never fails: one question at a time */
	free(answer);
}

/* A life -------------------------------------------------------------------------------- */

/* What the kernel would say: the numbers of 7.45 without FUSE_MAX_PAGES, with which libfuse would
 * make its buffer larger than a pipe and messages longer than ours. */
static int send_init(struct zc_relay *relay, struct life *l)
{
	struct {
		struct fuse_in_header hdr;
		struct fuse_init_in in;
	} m = {.in = {.major = FUSE_MAJOR, .minor = FUSE_MINOR,
		      .max_readahead = ZC_RELAY_MAX_DATA, .flags = INIT_FLAGS}};

	pthread_mutex_lock(&relay->lock);
	l->init_unique = relay->unique += 2;
	pthread_mutex_unlock(&relay->lock);
	m.hdr = header(FUSE_INIT, l->init_unique, 0, sizeof(m.in));
	return send_now(l->link->fd, &m, sizeof(m));
}

static void set_pid(struct zc_relay *relay, pid_t pid)
{
	pthread_mutex_lock(&relay->lock);
	relay->pid = pid;
	relay->complained = false;
	pthread_mutex_unlock(&relay->lock);
}

static int life_begin(struct zc_relay *relay, struct life *l)
{
	int err = -ENOMEM;

	*l = (struct life){.started = now_ms()};
	l->buffer = malloc(ZC_RELAY_MAX_MESSAGE);
	l->link = calloc(1, sizeof(*l->link));
	if (l->buffer && l->link)
		err = zc_child_start(relay->python, &l->child);
	if (err) {
		free(l->buffer);
		free(l->link);
		return err;
	}
	*l->link = (struct link){.fd = l->child.relay, .refs = 1};
	set_pid(relay, l->child.pid);
	if (send_init(relay, l))
		l->why = "did not take INIT";
	return 0;
}

/* What is polled; a pidfd < 0 (old kernels) is skipped: then the socket tells. */
enum { ON_WAKE, ON_RELAY, ON_CONTROL, ON_END, POLLED };

static void life_poll(struct zc_relay *relay, struct life *l)
{
	struct pollfd p[POLLED] = {{relay->wake, POLLIN, 0}, {l->link->fd, POLLIN, 0},
				    {l->child.control, POLLIN, 0}, {l->child.pidfd, POLLIN, 0}};
	uint64_t count, lived = now_ms() - l->started;
	int timeout = l->up ? -1 : lived < INIT_WAIT_MS ? (int)(INIT_WAIT_MS - lived) : 0;

	pthread_mutex_lock(&relay->lock);
	if (relay->outbox.first)
		p[ON_RELAY].events |= POLLOUT;
	pthread_mutex_unlock(&relay->lock);
	int n = ZC_SYSI("poll", poll(p, POLLED, timeout));
	if (n < 0)
		return;
	if (!n)
		l->why = "did not answer INIT in time";
	if (p[ON_WAKE].revents)
		ZC_SYS("read", read(relay->wake, &count, sizeof(count)));
	if (p[ON_RELAY].revents & POLLOUT)
		outbox_flush(relay);
	if (p[ON_RELAY].revents & (POLLIN | POLLHUP | POLLERR))
		receive(relay, l);
	if (p[ON_CONTROL].revents && !l->why)
		answer_control(relay, l);
	if (p[ON_END].revents && !l->why)
		l->why = "ended";
}

/* From here there is no child: everybody who waits for it gets EIO. */
static void link_down(struct zc_relay *relay, struct life *l)
{
	struct call *call;

	/* Who is about to send fails at once. */
	ZC_SYS("shutdown", shutdown(l->link->fd, SHUT_RDWR));
	pthread_mutex_lock(&relay->lock);
	if (relay->link)
		link_put_locked(relay->link);
	relay->link = NULL;
	queue_empty(&relay->outbox);
	while ((call = relay->calls)) {
		relay->calls = call->next;
		call_finish_locked(relay, call, -EIO);
	}
	pthread_mutex_unlock(&relay->lock);
	relay->changes++;
	word_wake(&relay->changes);
}

/* Without a session's end in sight, a child that ends is a failure; it is told, until it happens
 * so often that the log would fill with it. */
static void tell(const struct zc_relay *relay, const char *what, long pause)
{
	if (pause < BACKOFF_MOST_MS)
		zc_log("control plane: %s %s; starting it again in %ld.%ld s", relay->python, what,
		       pause / 1000, pause % 1000 / 100);
	else
		zc_log("control plane: %s %s; trying again every %d s", relay->python, what,
		       BACKOFF_MOST_MS / 1000);
}

static void describe_end(const struct life *l, int status, char *out, size_t len)
{
	if (WIFSIGNALED(status))
		snprintf(out, len, "(pid %d) %s: signal %d", (int)l->child.pid, l->why,
			 WTERMSIG(status));
	else
		snprintf(out, len, "(pid %d) %s: exit status %d", (int)l->child.pid, l->why,
			 WEXITSTATUS(status));
}

/* A stopping relay keeps the socket open to the last: libfuse takes its end for an I/O error. */
static int life_end(struct zc_relay *relay, struct life *l)
{
	bool stopping = relay->stopping;
	int status;

	if (!stopping)
		link_down(relay, l);
	status = zc_child_end(&l->child, stopping, stopping ? END_GRACE_MS : EXIT_GRACE_MS);
	if (stopping)
		link_down(relay, l);
	set_pid(relay, 0);
	link_put(relay, l->link);
	free(l->buffer);
	return status;
}

/* One child from start to end. `what` says why it is no more; returns how long it lived, in ms. */
static uint64_t live(struct zc_relay *relay, char *what, size_t len)
{
	struct life l;
	int err = life_begin(relay, &l);

	if (err) {
		snprintf(what, len, "cannot be started: %s", strerror(-err));
		return 0;
	}
	while (!l.why && !relay->stopping)
		life_poll(relay, &l);
	uint64_t lived = now_ms() - l.started;
	int status = life_end(relay, &l);
	if (l.why)
		describe_end(&l, status, what, len);
	return lived;
}

static void pause_for(struct zc_relay *relay, long ms)
{
	struct pollfd p = {relay->wake, POLLIN, 0};
	uint64_t count, end = now_ms() + (uint64_t)ms, now;

	while (!relay->stopping && (now = now_ms()) < end)
		if (ZC_SYSI("poll", poll(&p, 1, (int)(end - now))) > 0)
			ZC_SYS("read", read(relay->wake, &count, sizeof(count)));
}

static void count_restart(struct zc_relay *relay)
{
	pthread_mutex_lock(&relay->lock);
	relay->restarts++;
	pthread_mutex_unlock(&relay->lock);
}

static void *service_run(void *arg)
{
	struct zc_relay *relay = arg;
	long pause = BACKOFF_FIRST_MS, told = 0;
	char what[128];

	for (;;) {
		if (live(relay, what, sizeof(what)) >= LIVED_WELL_MS)
			pause = BACKOFF_FIRST_MS;
		if (relay->stopping)
			break;
		if (pause != told)
			tell(relay, what, pause);
		told = pause;
		pause_for(relay, pause);
		pause = pause * 2 < BACKOFF_MOST_MS ? pause * 2 : BACKOFF_MOST_MS;
		count_restart(relay);
	}
	return NULL;
}

/* Beginning and end ------------------------------------------------------------------------ */

static void relay_free(struct zc_relay *relay)
{
	close_fd(&relay->wake);
	queue_empty(&relay->notifications);
	pthread_mutex_destroy(&relay->lock);
	pthread_mutex_destroy(&relay->notify_lock);
	pthread_cond_destroy(&relay->notify_cond);
	free(relay->python);
	free(relay);
}

static struct zc_relay *relay_new(struct zc_session *s, const char *python)
{
	struct zc_relay *relay = calloc(1, sizeof(*relay));

	if (!relay)
		return NULL;
	relay->s = s;
	relay->python = strdup(python);
	queue_init(&relay->outbox);
	queue_init(&relay->notifications);
	pthread_mutex_init(&relay->lock, NULL);
	pthread_mutex_init(&relay->notify_lock, NULL);
	pthread_cond_init(&relay->notify_cond, NULL);
	relay->wake = ZC_SYSI("eventfd", eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	return relay;
}

static int threads_start(struct zc_relay *relay)
{
	int err = thread_start(&relay->notifier, notifier_run, relay);

	if (err)
		return err;
	err = thread_start(&relay->service, service_run, relay);
	if (err)
		notifier_end(relay);
	return err;
}

/* *out is set before the threads start: they may look at it in the session. */
int zc_relay_create(struct zc_session *s, const char *python, struct zc_relay *_Atomic *out)
{
	struct zc_relay *relay = relay_new(s, python), *before = *out;
	int err = !relay || !relay->python ? -ENOMEM : relay->wake < 0 ? relay->wake : 0;

	if (!err) {
		*out = relay;
		err = threads_start(relay);
	}
	if (err) {
		*out = before;
		if (relay)
			relay_free(relay);
	}
	return err;
}

/* No thread may come into zc_relay_serve any more; who is in there leaves with EIO, and must have
 * left (the workers are joined) before this is called. */
void zc_relay_destroy(struct zc_relay *relay)
{
	if (!relay)
		return;
	relay->stopping = true;
	service_wake(relay);
	pthread_join(relay->service, NULL);
	notifier_end(relay);
	relay_free(relay);
}

void zc_relay_status(struct zc_relay *relay, struct zc_relay_status *out)
{
	pthread_mutex_lock(&relay->lock);
	out->state = relay->link ? "running" : relay->restarts ? "restarting" : "starting";
	out->pid = relay->pid;
	out->restarts = relay->restarts;
	out->requests = relay->requests;
	out->outstanding = relay->outstanding;
	pthread_mutex_unlock(&relay->lock);
}
