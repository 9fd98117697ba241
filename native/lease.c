/* Page leases: other processes borrow pages of the session's pool, by the protocol of lease_wire.h.
 *
 * Owns <runtime dir>/<minor>.lease and what its clients hold: open files of the pool and borrowed
 * pages. A client maps the arena for reading only (the descriptor that it gets allows no more), so
 * all that it can do wrong is send nonsense, and then it is disconnected. The end of a connection,
 * however it came about, gives back everything.
 *
 * Only root and the daemon's own user are served: the arena has pages of all files, whoever may
 * read them. They could open those files in the source as well, so the daemon's rights serve.
 *
 * Threading: one thread accepts, and one for each client serves it, for a lease may wait for the
 * disk; so no client waits for another, and no request of the mount for any of them. What a client
 * holds is its thread's alone. The lock is for the list of clients, and to shut down their sockets
 * at the end.
 */
#include "internal.h"

#include <assert.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "lease_wire.h"
#include "ops.h"
#include "pool/pool.h"
#include "sys.h"

#define RETRY_MS 100
#define END_MS 2000
#define STACK_SIZE ((size_t)256 << 10)
#define FIRST_CAP 1024u
#define FREE (1u << 31) /* in a slot: nothing is leased; the rest is the next free one */
#define FDS_PER_FILE 2	/* the pool's, with O_DIRECT and without */

/* A number for each borrowed frame: slot[lease] is the frame. */
struct slots {
	uint32_t *slot;
	uint32_t cap, first_free; /* cap: none is free */
};

struct client {
	struct zc_leases *l;
	struct client *next, **link; /* in the list of them, under the lock */
	int fd;
	pid_t pid;
	struct slots held;
	struct zc_pool_file *files[ZC_LEASE_FILES];
	char in[sizeof(struct zc_lease_request) + ZC_LEASE_PATH + 1] __attribute__((aligned(8)));
	struct {
		struct zc_lease_reply head;
		struct zc_lease_page pages[ZC_LEASE_BATCH];
	} out;
};

struct zc_leases {
	struct zc_session *s;
	pthread_t thread;
	struct zc_listener at;
	int end; /* an eventfd, readable when the accepting thread has to end */
	pthread_mutex_t lock;
	pthread_cond_t gone; /* a client's thread has ended */
	struct client *clients;
	unsigned count;
	_Atomic uint64_t files, leases, pages, refused, dropped;
};

static_assert(sizeof(struct zc_lease_hello) == 256, "the protocol has no padding");
static_assert(sizeof(struct zc_lease_reply) == 32, "the protocol has no padding");
static_assert(sizeof(struct zc_lease_page) == 24, "the protocol has no padding");
static_assert(ZC_LEASE_BATCH * 8 <= ZC_LEASE_PATH, "all requests fit where the longest path does");

/* What a client holds ---------------------------------------------------------------------- */

static int slots_grow(struct slots *h)
{
	uint32_t cap = h->cap ? 2 * h->cap : FIRST_CAP;
	uint32_t *slot;

	if (h->cap >= ZC_LEASE_MOST)
		return -ENOBUFS;
	slot = realloc(h->slot, cap * sizeof(*slot));
	if (!slot)
		return -ENOMEM;
	for (uint32_t i = h->cap; i < cap; i++)
		slot[i] = FREE | (i + 1);
	h->slot = slot;
	h->cap = cap; /* where the free ones ended, the new ones begin */
	return 0;
}

/* Room for `count` more; -ENOBUFS and -ENOMEM. */
static int slots_room(struct slots *h, uint32_t count)
{
	uint32_t at = h->first_free, n = 0;

	for (; n < count && at < h->cap; n++)
		at = h->slot[at] & ~FREE;
	return n == count ? 0 : slots_grow(h);
}

static int32_t slots_take(struct slots *h, uint32_t frame)
{
	uint32_t lease = h->first_free;

	h->first_free = h->slot[lease] & ~FREE;
	h->slot[lease] = frame;
	return (int32_t)lease;
}

/* The frame that was leased; FREE: none was. */
static uint32_t slots_give(struct slots *h, uint32_t lease)
{
	uint32_t frame;

	if (lease >= h->cap || h->slot[lease] & FREE)
		return FREE;
	frame = h->slot[lease];
	h->slot[lease] = FREE | h->first_free;
	h->first_free = lease;
	return frame;
}

/* A shared borrow is known by its frame; `data` just says that there is one. */
static struct zc_page page_of(uint32_t frame)
{
	static uint8_t something;

	return (struct zc_page){.data = frame == FREE ? NULL : &something, .frame = frame};
}

/* Ends `count` leases, at most a batch. False: one of them was none. */
static bool give_back(struct client *c, const uint32_t *leases, uint32_t count)
{
	struct zc_page pages[ZC_LEASE_BATCH];
	uint32_t real = 0;

	for (uint32_t i = 0; i < count; i++) {
		pages[i] = page_of(slots_give(&c->held, leases[i]));
		real += pages[i].data != NULL;
	}
	zc_page_release_many(c->l->s->pool, pages, count);
	atomic_fetch_sub(&c->l->leases, real);
	return real == count;
}

static void give_back_all(struct client *c)
{
	for (uint32_t i = 0; i < c->held.cap; i++)
		if (!(c->held.slot[i] & FREE))
			give_back(c, &i, 1);
	free(c->held.slot);
}

static void close_file(struct client *c, uint32_t number)
{
	zc_pool_close(c->files[number]);
	c->files[number] = NULL;
	atomic_fetch_sub(&c->l->s->open_fds, FDS_PER_FILE);
	atomic_fetch_sub(&c->l->files, 1);
}

/* Opening by path -------------------------------------------------------------------------- */

/* One name below `dir`, as the mount would look it up: no way out of the source, no symbolic
 * link. */
static int step(int dir, const char *name)
{
	if (!*name || !strcmp(name, ".") || !strcmp(name, ".."))
		return -EINVAL;
	return ZC_SYSI("openat", openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC));
}

/* An O_PATH descriptor of what is at `path` (which this takes apart) below the source. */
static int walk(int source, char *path)
{
	char *rest = path, *name = strsep(&rest, "/");
	int fd;

	if (!strcmp(name, ZC_ZCFS_NAME))
		return -EOPNOTSUPP;
	fd = step(source, name);
	while (fd >= 0 && rest) {
		int dir = fd;
		fd = step(dir, strsep(&rest, "/"));
		close(dir);
	}
	return fd;
}

/* Only a regular file is opened: to open anything else may do something. */
static int open_regular(int path_fd)
{
	struct stat st;
	int err = ZC_SYSI("fstat", fstat(path_fd, &st));

	if (!err && !S_ISREG(st.st_mode))
		err = S_ISLNK(st.st_mode) ? -ELOOP : S_ISDIR(st.st_mode) ? -EISDIR : -EOPNOTSUPP;
	if (err)
		return err;
	return ZC_SYSI("open", open(zc_link_of(path_fd).path, O_RDONLY | O_NONBLOCK | O_CLOEXEC));
}

static int open_in_pool(struct zc_session *s, char *path, uint32_t page_size,
			struct zc_pool_file **out)
{
	ZC_CLOSE(at);
	ZC_CLOSE(file);

	at.fd = walk(s->source_fd, path);
	file.fd = at.fd < 0 ? at.fd : open_regular(at.fd);
	return file.fd < 0 ? file.fd : zc_pool_open(s->pool, file.fd, page_size, out);
}

/* Requests --------------------------------------------------------------------------------- */

/* Each returns the bytes of its reply, 0 for none, or NONSENSE. */
#define NONSENSE (-1)

static int reply(struct client *c, const struct zc_lease_request *r, int error)
{
	c->out.head = (struct zc_lease_reply){.op = r->op, .error = error, .file = r->file};
	return sizeof(c->out.head);
}

/* Of a file that is open; `out` is the reply's. */
static int fill_info(struct client *c, struct zc_lease_reply *out)
{
	struct zc_pool_file_info info;
	int err = zc_pool_file_info(c->files[out->file], &info);

	if (err)
		return err;
	out->size = info.size;
	out->page_size = info.page_size;
	return 0;
}

static int free_number(struct client *c)
{
	struct zc_session *s = c->l->s;

	if (s->open_fds_most && atomic_load(&s->open_fds) + FDS_PER_FILE > s->open_fds_most)
		return -ENFILE;
	for (unsigned i = 0; i < ZC_LEASE_FILES; i++)
		if (!c->files[i])
			return (int)i;
	return -EMFILE;
}

static int serve_open(struct client *c, const struct zc_lease_request *r, size_t len)
{
	char *path = c->in + sizeof(*r);
	int number, err;

	if (!r->count || r->count > ZC_LEASE_PATH || len != r->count || memchr(path, 0, len))
		return NONSENSE;
	path[len] = 0;
	number = free_number(c);
	err = number < 0 ? number : open_in_pool(c->l->s, path, r->arg, &c->files[number]);
	if (err)
		return reply(c, r, err);
	atomic_fetch_add(&c->l->s->open_fds, FDS_PER_FILE);
	atomic_fetch_add(&c->l->files, 1);
	reply(c, r, 0);
	c->out.head.file = (uint32_t)number;
	err = fill_info(c, &c->out.head);
	if (err) {
		close_file(c, (uint32_t)number);
		return reply(c, r, err);
	}
	return sizeof(c->out.head);
}

static bool is_open(const struct client *c, uint32_t number)
{
	return number < ZC_LEASE_FILES && c->files[number];
}

static int serve_close(struct client *c, const struct zc_lease_request *r, size_t len)
{
	if (len || r->count)
		return NONSENSE;
	if (!is_open(c, r->file))
		return reply(c, r, -EBADF);
	close_file(c, r->file);
	return reply(c, r, 0);
}

static int serve_size(struct client *c, const struct zc_lease_request *r, size_t len)
{
	if (len || r->count)
		return NONSENSE;
	if (!is_open(c, r->file))
		return reply(c, r, -EBADF);
	reply(c, r, 0);
	c->out.head.error = fill_info(c, &c->out.head);
	return sizeof(c->out.head);
}

/* What has been borrowed, as leases. */
static void fill_pages(struct client *c, const struct zc_page *pages, uint32_t count)
{
	size_t arena_len;
	const uint8_t *arena = zc_pool_arena(c->l->s->pool, &arena_len);

	for (uint32_t i = 0; i < count; i++) {
		struct zc_lease_page *out = &c->out.pages[i];

		*out = (struct zc_lease_page){.lease = pages[i].error};
		if (!pages[i].data)
			continue;
		out->offset = (uint64_t)(pages[i].data - arena);
		out->version = pages[i].version;
		out->valid = pages[i].valid;
		out->lease = slots_take(&c->held, pages[i].frame);
	}
}

static int serve_pages(struct client *c, const struct zc_lease_request *r, size_t len)
{
	const uint64_t *numbers = (const void *)(c->in + sizeof(*r));
	struct zc_page pages[ZC_LEASE_BATCH];
	ssize_t got;
	int err;

	if (!r->count || r->count > ZC_LEASE_BATCH || len != r->count * sizeof(*numbers))
		return NONSENSE;
	if (!is_open(c, r->file))
		return reply(c, r, -EBADF);
	err = slots_room(&c->held, r->count);
	if (err)
		return reply(c, r, err);
	got = zc_page_borrow_many(c->files[r->file], numbers, r->count, pages);
	if (got < 0)
		return reply(c, r, (int)got);
	atomic_fetch_add(&c->l->leases, (uint64_t)got);
	atomic_fetch_add(&c->l->pages, (uint64_t)got);
	fill_pages(c, pages, r->count);
	reply(c, r, 0);
	c->out.head.count = r->count;
	return (int)(sizeof(c->out.head) + r->count * sizeof(*c->out.pages));
}

static int serve_release(struct client *c, const struct zc_lease_request *r, size_t len)
{
	const uint32_t *leases = (const void *)(c->in + sizeof(*r));

	if (!r->count || r->count > ZC_LEASE_BATCH || len != r->count * sizeof(*leases))
		return NONSENSE;
	return give_back(c, leases, r->count) ? 0 : NONSENSE;
}

static int (*const ops[])(struct client *c, const struct zc_lease_request *r, size_t len) = {
	[ZC_LEASE_OPEN] = serve_open,	    [ZC_LEASE_CLOSE] = serve_close,
	[ZC_LEASE_SIZE] = serve_size,	    [ZC_LEASE_PAGES] = serve_pages,
	[ZC_LEASE_RELEASE] = serve_release,
};

static int serve(struct client *c, size_t len)
{
	const struct zc_lease_request *r = (const void *)c->in;

	if (len < sizeof(*r) || len >= sizeof(c->in) || r->op >= sizeof(ops) / sizeof(*ops) ||
	    !ops[r->op])
		return NONSENSE;
	return ops[r->op](c, r, len - sizeof(*r));
}

/* Clients ---------------------------------------------------------------------------------- */

/* The arena's descriptor goes with a welcome only. */
static int say_hello(struct zc_leases *l, int fd, int error, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
static int say_hello(struct zc_leases *l, int fd, int error, const char *fmt, ...)
{
	struct zc_lease_hello hello = {
		.magic = ZC_LEASE_MAGIC, .version = ZC_LEASE_VERSION, .error = error,
		.frame_size = l->s->opt.frame_size};
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {&hello, sizeof(hello)};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
	struct zc_pool_stats st;
	va_list ap;
	ssize_t n;

	va_start(ap, fmt);
	vsnprintf(hello.text, sizeof(hello.text), fmt, ap);
	va_end(ap);
	if (!error) {
		int arena = zc_pool_arena_fd(l->s->pool);

		zc_pool_statistics(l->s->pool, &st);
		hello.arena = st.size;
		hello.page_limit = st.borrow_limit;
		m.msg_control = &control;
		m.msg_controllen = sizeof(control);
		control.head = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
						.cmsg_len = CMSG_LEN(sizeof(arena))};
		memcpy(CMSG_DATA(&control.head), &arena, sizeof(arena));
	}
	n = ZC_SYS("sendmsg", sendmsg(fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT));
	return n < 0 ? (int)n : 0;
}

static bool send_all(struct client *c, int len)
{
	ssize_t n;

	do
		n = ZC_SYS("send", send(c->fd, &c->out, (size_t)len, MSG_NOSIGNAL));
	while (n == -EINTR);
	return n == len;
}

/* Serves until the connection ends. */
static void talk(struct client *c)
{
	for (;;) {
		ssize_t n = ZC_SYS("recv", recv(c->fd, c->in, sizeof(c->in), MSG_TRUNC));
		int len;

		if (n == -EINTR)
			continue;
		if (n <= 0)
			return;
		len = serve(c, (size_t)n);
		if (len == NONSENSE) {
			atomic_fetch_add(&c->l->dropped, 1);
			zc_log("leases: pid %d sent what is no request; it was disconnected",
			       (int)c->pid);
			return;
		}
		if (len && !send_all(c, len))
			return;
	}
}

static void client_end(struct client *c)
{
	struct zc_leases *l = c->l;

	give_back_all(c);
	for (uint32_t i = 0; i < ZC_LEASE_FILES; i++)
		if (c->files[i])
			close_file(c, i);
	pthread_mutex_lock(&l->lock);
	*c->link = c->next;
	if (c->next)
		c->next->link = c->link;
	l->count--;
	close(c->fd);
	pthread_cond_signal(&l->gone);
	pthread_mutex_unlock(&l->lock);
	free(c);
}

static void *client_run(void *arg)
{
	struct client *c = arg;

	if (!say_hello(c->l, c->fd, 0, "zcfs " ZC_VERSION))
		talk(c);
	client_end(c);
	return NULL;
}

/* All threads here take no signals: those are main's and the workers'. */
static int thread_start(pthread_t *thread, bool detached, void *(*run)(void *), void *arg)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int err = pthread_attr_init(&attr);

	if (err)
		return -err;
	pthread_attr_setstacksize(&attr, STACK_SIZE);
	if (detached)
		pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(thread, &attr, run, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return -err;
}

/* Takes the connection over; -errno: it is still the caller's. */
static int client_start(struct zc_leases *l, int fd, pid_t pid)
{
	struct client *c = calloc(1, sizeof(*c));
	pthread_t thread;
	int err;

	if (!c)
		return -ENOMEM;
	c->l = l;
	c->fd = fd;
	c->pid = pid;
	pthread_mutex_lock(&l->lock);
	err = l->count == ZC_LEASE_CLIENTS ? -EUSERS : thread_start(&thread, true, client_run, c);
	if (!err) {
		c->next = l->clients;
		c->link = &l->clients;
		if (c->next)
			c->next->link = &c->next;
		l->clients = c;
		l->count++;
	}
	pthread_mutex_unlock(&l->lock);
	if (err)
		free(c);
	return err;
}

static void refuse(struct zc_leases *l, int fd, int err)
{
	atomic_fetch_add(&l->refused, 1);
	if (err == -EACCES)
		say_hello(l, fd, err, "only root and user %u, who mounted it, may borrow pages: "
			  "they come from all files; read through the mount", (unsigned)geteuid());
	else if (err == -EUSERS)
		say_hello(l, fd, err, "%u clients borrow pages already", ZC_LEASE_CLIENTS);
	else
		say_hello(l, fd, err, "no client can be taken: %s", strerror(-err));
	close(fd);
}

static void welcome(struct zc_leases *l, int fd)
{
	pid_t pid;
	int err = zc_peer_is_welcome(fd, &pid) ? client_start(l, fd, pid) : -EACCES;

	if (err)
		refuse(l, fd, err);
}

/* Until something comes, or `ms` have passed (-1: never). False: the end. */
static bool wait_for(const struct zc_leases *l, int fd, int ms)
{
	struct pollfd p[2] = {{l->end, POLLIN, 0}, {fd, POLLIN, 0}};

	ZC_SYS("poll", poll(p, 2, ms));
	return !p[0].revents;
}

static void *leases_run(void *arg)
{
	struct zc_leases *l = arg;

	while (wait_for(l, l->at.fd, -1)) {
		int fd = ZC_SYSI("accept", accept4(l->at.fd, NULL, NULL, SOCK_CLOEXEC));
		if (fd >= 0)
			welcome(l, fd);
		else if (fd != -EAGAIN) /* out of descriptors: try again later, and not hot */
			wait_for(l, -1, RETRY_MS);
	}
	return NULL;
}

/* Beginning and end ------------------------------------------------------------------------ */

static void leases_free(struct zc_leases *l)
{
	zc_unlisten(&l->at);
	if (l->end >= 0)
		close(l->end);
	pthread_cond_destroy(&l->gone);
	pthread_mutex_destroy(&l->lock);
	free(l);
}

static void init_gone(struct zc_leases *l)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&l->gone, &attr);
	pthread_condattr_destroy(&attr);
}

int zc_leases_create(struct zc_session *s, struct zc_leases **out)
{
	struct zc_leases *l;
	int err;

	if (!s->pool) {
		zc_listen_clean(s, "lease");
		return 0;
	}
	l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	l->s = s;
	l->at.fd = -1;
	pthread_mutex_init(&l->lock, NULL);
	init_gone(l);
	l->end = ZC_SYSI("eventfd", eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	err = l->end < 0 ? l->end : zc_listen(s, "lease", SOCK_SEQPACKET, &l->at);
	if (!err)
		err = thread_start(&l->thread, false, leases_run, l);
	if (err)
		leases_free(l);
	else
		*out = l;
	return err;
}

/* True: all clients have gone. */
static bool disconnect_all(struct zc_leases *l)
{
	struct timespec end;
	bool none;
	int err = 0;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += END_MS / 1000;
	pthread_mutex_lock(&l->lock);
	for (struct client *c = l->clients; c; c = c->next)
		shutdown(c->fd, SHUT_RDWR);
	while (l->count && !err)
		err = pthread_cond_timedwait(&l->gone, &l->lock, &end);
	none = !l->count;
	pthread_mutex_unlock(&l->lock);
	return none;
}

int zc_leases_destroy(struct zc_leases *l)
{
	uint64_t one = 1;

	if (!l)
		return 0;
	if (write(l->end, &one, sizeof(one)) < 0)
		assert(!"an eventfd takes eight bytes");
	pthread_join(l->thread, NULL);
	if (!disconnect_all(l)) {
		zc_unlisten(&l->at);
		return -ETIMEDOUT;
	}
	leases_free(l);
	return 0;
}

void zc_leases_status(struct zc_leases *l, struct zc_lease_status *out)
{
	struct zc_pool_stats st;

	zc_pool_statistics(l->s->pool, &st);
	pthread_mutex_lock(&l->lock);
	*out = (struct zc_lease_status){
		.socket = l->at.path, .clients = l->count, .files = l->files, .leases = l->leases,
		.borrowed = st.borrowed, .borrow_limit = st.borrow_limit, .pages = l->pages,
		.refused = l->refused, .dropped = l->dropped};
	pthread_mutex_unlock(&l->lock);
}
