/* Disk I/O by io_uring, with the arena as registered buffers where memlock or CAP_IPC_LOCK allows.
 *
 * A back end owns one ring. The ring starts disabled; the thread that submits first enables it, and
 * it is bound to that thread, where the kernel can do so: then completions are posted when the
 * thread enters the kernel, and nowhere else (DEFER_TASKRUN). When another thread submits, the ring
 * is replaced, once, by one that any thread may use. Polling looks at the ring's flags and enters
 * the kernel only if something is there.
 *
 * The ring's descriptor is not registered (IORING_REGISTER_RING_FDS): that belongs to the thread,
 * and would keep the ring and the pinned arena until it ends.
 *
 * Pinning an arena takes long and counts against memlock, so it is done once: a ring that does
 * nothing else holds the registration, and the others clone it (Linux 6.12; before, each pins for
 * itself). The list of these is shared by all threads, under a mutex.
 */
#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io_parts.h"

/* For system headers that lack them. */
#ifndef IORING_SETUP_COOP_TASKRUN
#define IORING_SETUP_COOP_TASKRUN (1u << 8) /* Linux 5.19 */
#define IORING_SETUP_TASKRUN_FLAG (1u << 9)
#endif
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1u << 12) /* 6.0 */
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1u << 13) /* 6.1 */
#endif
#ifndef IORING_SQ_TASKRUN
#define IORING_SQ_TASKRUN (1u << 2)
#endif
#define REGISTER_CLONE_BUFFERS 30 /* 6.12 */

#define KERNEL_THREADS 4u
#define CHUNK (1ull << 30) /* bytes of one registered buffer at most, says the kernel */
#define CHUNKS_MOST 1024u  /* and so many buffers, in the older kernels */

struct clone_buffers {
	uint32_t src_fd, flags, src_off, dst_off, nr, pad[3];
};

/* An arena that is pinned. */
struct pinned {
	struct io_uring ring; /* holds the registration; never entered */
	void *arena;
	size_t len;
	unsigned users;
	struct pinned *next;
};

static pthread_mutex_t pinned_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pinned *pinned_list;

struct slot {
	struct zc_io_req *req;
	struct zc_io_progress progress;
	struct io_uring_sqe *sqe; /* until the kernel has fetched it */
	struct slot *next_free;
};

struct zc_io {
	struct io_uring ring;
	unsigned entries;     /* of the submission queue, a power of two */
	unsigned depth, used; /* slots */
	unsigned finished;    /* done and not yet reported by reap() */
	unsigned prepared;    /* entries ever filled in */
	unsigned owner;	      /* thread that submitted last; 0: none yet */
	bool bound;	      /* ... and nobody else may use the ring */
	int bell;
	char *arena; /* NULL: not registered */
	size_t arena_len;
	struct pinned *pinned; /* NULL: registered with our own ring */
	struct zc_io_queue waiting;
	struct slot *free;
	struct slot **order; /* of entry i at i % entries; NULL: one that does nothing */
	struct slot slots[];
};

/* liburing returns -errno; the seam wants errno. */
static int in_errno(int ret)
{
	if (ret >= 0)
		return ret;
	errno = -ret;
	return -1;
}

/* The arena ------------------------------------------------------------------------------- */

static int register_chunks(struct io_uring *ring, char *arena, size_t len)
{
	struct iovec iov[CHUNKS_MOST];
	unsigned n = 0;

	if (len > CHUNK * CHUNKS_MOST)
		return -E2BIG;
	for (size_t at = 0; at < len; at += CHUNK, n++)
		iov[n] = (struct iovec){arena + at, len - at < CHUNK ? len - at : CHUNK};
	return ZC_SYSI("io_uring_register", in_errno(io_uring_register_buffers(ring, iov, n)));
}

static int pin(void *arena, size_t len, struct pinned **out)
{
	struct pinned *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	int err = ZC_SYSI("io_uring_setup", in_errno(io_uring_queue_init(1, &p->ring, 0)));
	if (err) {
		free(p);
		return err;
	}
	err = register_chunks(&p->ring, arena, len);
	if (err) {
		io_uring_queue_exit(&p->ring);
		free(p);
		return err;
	}
	p->arena = arena;
	p->len = len;
	p->next = pinned_list;
	*out = pinned_list = p;
	return 0;
}

static void unpin(struct pinned *p)
{
	struct pinned **at = &pinned_list;

	if (p->users)
		return;
	while (*at != p)
		at = &(*at)->next;
	*at = p->next;
	io_uring_queue_exit(&p->ring);
	free(p);
}

static int clone_from(struct pinned *p, struct io_uring *ring)
{
	struct clone_buffers arg = {.src_fd = (uint32_t)p->ring.ring_fd};

	return ZC_SYSI("io_uring_register", syscall(SYS_io_uring_register, ring->ring_fd,
						    REGISTER_CLONE_BUFFERS, &arg, 1));
}

/* The lock is held. */
static void share(struct zc_io *io, void *arena, size_t len)
{
	struct pinned *p = pinned_list;

	while (p && (p->arena != arena || p->len != len))
		p = p->next;
	if (!p && pin(arena, len, &p))
		return;
	if (!clone_from(p, &io->ring)) {
		p->users++;
		io->pinned = p;
	} else {
		unpin(p);
		if (register_chunks(&io->ring, arena, len))
			return;
	}
	io->arena = arena;
	io->arena_len = len;
}

static void register_arena(struct zc_io *io, void *arena, size_t len)
{
	if (!arena || !len)
		return;
	pthread_mutex_lock(&pinned_lock);
	share(io, arena, len);
	pthread_mutex_unlock(&pinned_lock);
}

static void release_arena(struct zc_io *io)
{
	if (!io->pinned)
		return;
	pthread_mutex_lock(&pinned_lock);
	io->pinned->users--;
	unpin(io->pinned);
	pthread_mutex_unlock(&pinned_lock);
}

static bool uring_registered(const struct zc_io *io)
{
	return io->arena;
}

/* The index of the registered buffer that holds all of it, or -1. */
static int buffer_index(const struct zc_io *io, const char *buf, size_t len)
{
	uintptr_t at = (uintptr_t)buf - (uintptr_t)io->arena;

	if (!io->arena || at >= io->arena_len || len > io->arena_len - at ||
	    at % CHUNK + len > CHUNK)
		return -1;
	return (int)(at / CHUNK);
}

/* Creation -------------------------------------------------------------------------------- */

/* What cannot be begun at once (a write to a file that another writes to) waits in threads of the
 * kernel's, for each thread of ours that asks. */
static void limit_kernel_threads(struct io_uring *ring)
{
	unsigned most[2] = {KERNEL_THREADS, KERNEL_THREADS};
	(void)io_uring_register_iowq_max_workers(ring, most); /* Linux 5.15 */
}

/* From the first wish that the kernel grants. */
static int setup(struct zc_io *io, struct io_uring *ring, bool may_bind)
{
	static const unsigned wishes[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		0,
	};
	int err = -EINVAL;

	for (size_t k = !may_bind; k < sizeof(wishes) / sizeof(wishes[0]) && err == -EINVAL; k++) {
		struct io_uring_params p = {.flags = wishes[k] | IORING_SETUP_R_DISABLED};
		err = ZC_SYSI("io_uring_setup",
			      in_errno(io_uring_queue_init_params(io->depth, ring, &p)));
		if (err)
			continue;
		io->entries = p.sq_entries;
		io->bound = k == 0;
	}
	if (!err)
		limit_kernel_threads(ring);
	return err;
}

static int uring_create(void *arena, size_t arena_len, unsigned depth, struct zc_io **out)
{
	if (!depth || depth > ZC_IO_DEPTH_MOST)
		return -EINVAL;
	struct zc_io *io = calloc(1, sizeof(*io) + depth * sizeof(io->slots[0]));
	if (!io)
		return -ENOMEM;
	io->depth = depth;
	io->bell = -1;
	for (unsigned i = 0; i < depth; i++) {
		io->slots[i].next_free = io->free;
		io->free = &io->slots[i];
	}
	int err = setup(io, &io->ring, true);
	if (err) {
		free(io);
		return err;
	}
	io->order = calloc(io->entries, sizeof(struct slot *));
	if (!io->order) {
		io_uring_queue_exit(&io->ring);
		free(io);
		return -ENOMEM;
	}
	register_arena(io, arena, arena_len);
	*out = io;
	return 0;
}

/* Threads --------------------------------------------------------------------------------- */

/* A number for the calling thread that no other ever has. */
static unsigned self(void)
{
	static atomic_uint last;
	static _Thread_local unsigned me;

	if (!me)
		me = atomic_fetch_add(&last, 1) + 1;
	return me;
}

/* A ring that is bound is bound to the thread that does this. */
static int enable(struct io_uring *ring)
{
	/* liburing has a function for it, which its 2.1 to 2.3 do not export */
	return ZC_SYSI("io_uring_register", syscall(SYS_io_uring_register, ring->ring_fd,
						    IORING_REGISTER_ENABLE_RINGS, NULL, 0));
}

/* The arena too is registered with the new ring, or with none. */
static void move_arena(struct zc_io *io, struct io_uring *to)
{
	if (!io->arena)
		return;
	if (io->pinned ? clone_from(io->pinned, to) : register_chunks(to, io->arena, io->arena_len))
		io->arena = NULL;
}

static int ring_bell_of(const struct zc_io *io, struct io_uring *ring)
{
	return io->bell < 0 ? 0 : ZC_SYSI("io_uring_register",
					  in_errno(io_uring_register_eventfd(ring, io->bell)));
}

/* A ring for all threads in place of one that is bound to another. */
static int replace(struct zc_io *io)
{
	struct io_uring ring;
	int err = io->used ? -EBUSY : setup(io, &ring, false);

	if (err)
		return err;
	err = ring_bell_of(io, &ring);
	if (!err)
		err = enable(&ring);
	if (err) {
		io_uring_queue_exit(&ring);
		io->bound = true;
		return err;
	}
	move_arena(io, &ring);
	io_uring_queue_exit(&io->ring);
	io->ring = ring;
	return 0;
}

/* Makes the ring the calling thread's. */
static int take_over(struct zc_io *io)
{
	int err = !io->owner ? enable(&io->ring) : io->bound ? replace(io) : 0;

	if (!err)
		io->owner = self();
	return err;
}

/* Submission ------------------------------------------------------------------------------ */

static void finish(struct zc_io *io, struct slot *s)
{
	s->req->done = true;
	s->next_free = io->free;
	io->free = s;
	io->used--;
	io->finished++;
}

/* Hands over what is prepared, and waits for `wait` completions. */
static int enter(struct zc_io *io, unsigned wait)
{
	unsigned tries = 0;
	int n;

	do
		n = ZC_SYSI("io_uring_enter", in_errno(io_uring_submit_and_wait(&io->ring, wait)));
	while (n == -EINTR || ((n == -EAGAIN || n == -EBUSY) && zc_io_nap(&tries)));
	return n < 0 ? n : 0;
}

/* What the kernel did not fetch fails, and does nothing when it is fetched some day. */
static void back_out(struct zc_io *io, int err)
{
	for (unsigned n = io_uring_sq_ready(&io->ring); n; n--) {
		struct slot **at = &io->order[(io->prepared - n) & (io->entries - 1)];
		struct slot *s = *at;
		if (!s)
			continue;
		*at = NULL;
		io_uring_prep_nop(s->sqe);
		io_uring_sqe_set_data(s->sqe, NULL);
		s->req->result = err;
		finish(io, s);
	}
}

/* Hands over all that is prepared; what cannot be fails. */
static int flush(struct zc_io *io)
{
	int err = 0;

	while (!err && io_uring_sq_ready(&io->ring))
		err = enter(io, 0);
	if (err)
		back_out(io, err);
	return err;
}

static void fill(struct zc_io *io, struct slot *s)
{
	const struct zc_io_req *r = s->req;
	char *buf = (char *)r->buf + s->progress.got;
	unsigned len = (unsigned)zc_io_piece(r, &s->progress);
	__u64 off = (__u64)r->off + s->progress.got;
	int index = r->op == ZC_IO_FDATASYNC ? -1 : buffer_index(io, buf, len);

	if (r->op == ZC_IO_FDATASYNC)
		io_uring_prep_fsync(s->sqe, r->fd, IORING_FSYNC_DATASYNC);
	else if (r->op == ZC_IO_READ && index >= 0)
		io_uring_prep_read_fixed(s->sqe, r->fd, buf, len, off, index);
	else if (r->op == ZC_IO_READ)
		io_uring_prep_read(s->sqe, r->fd, buf, len, off);
	else if (index >= 0)
		io_uring_prep_write_fixed(s->sqe, r->fd, buf, len, off, index);
	else
		io_uring_prep_write(s->sqe, r->fd, buf, len, off);
	if (r->op != ZC_IO_FDATASYNC)
		s->sqe->rw_flags = r->rw_flags;
	if (s->progress.again)
		s->sqe->flags |= IOSQE_ASYNC; /* a thread of the kernel may block */
	io_uring_sqe_set_data(s->sqe, s);
}

static void prepare(struct zc_io *io, struct slot *s)
{
	s->sqe = io_uring_get_sqe(&io->ring);
	if (!s->sqe) { /* full of what was backed out */
		int err = flush(io);
		s->sqe = io_uring_get_sqe(&io->ring);
		if (!s->sqe) {
			s->req->result = err;
			finish(io, s);
			return;
		}
	}
	fill(io, s);
	io->order[io->prepared++ & (io->entries - 1)] = s;
}

static void start_waiting(struct zc_io *io)
{
	while (io->free && io->waiting.first) {
		struct slot *s = io->free;
		io->free = s->next_free;
		io->used++;
		s->req = zc_io_pop(&io->waiting);
		s->progress = (struct zc_io_progress){0};
		prepare(io, s);
	}
}

/* All that has room is under way then; what fails at once makes more room. */
static void start(struct zc_io *io)
{
	do {
		start_waiting(io);
		flush(io);
	} while (io->free && io->waiting.first);
}

static int uring_submit(struct zc_io *io, struct zc_io_req **reqs, unsigned n)
{
	int err = io->owner == self() ? 0 : take_over(io);

	if (err)
		return err;
	for (unsigned i = 0; i < n; i++) {
		reqs[i]->done = false;
		zc_io_push(&io->waiting, reqs[i]);
	}
	start(io);
	if (io->finished && io->bell >= 0)
		zc_io_ring(io->bell);
	return 0;
}

/* Completion ------------------------------------------------------------------------------ */

/* Has the kernel post what it holds back for us. */
static void get_events(struct zc_io *io)
{
	unsigned flags = __atomic_load_n(io->ring.sq.kflags, __ATOMIC_ACQUIRE);

	if (flags & (IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN))
		(void)ZC_SYSI("io_uring_enter", syscall(SYS_io_uring_enter, io->ring.ring_fd, 0, 0,
							IORING_ENTER_GETEVENTS, NULL, 0));
}

static void complete(struct zc_io *io, struct slot *s, int res)
{
	if (zc_io_step(s->req, &s->progress, zc_io_ran(s->req, res)))
		prepare(io, s);
	else
		finish(io, s);
}

/* Takes what was completed, without waiting; the number of completions. */
static unsigned harvest(struct zc_io *io)
{
	struct io_uring_cqe *cqe;
	unsigned head, n = 0;

	get_events(io);
	io_uring_for_each_cqe(&io->ring, head, cqe) {
		struct slot *s = io_uring_cqe_get_data(cqe);
		n++;
		if (s)
			complete(io, s, cqe->res);
	}
	io_uring_cq_advance(&io->ring, n);
	start_waiting(io);
	return n;
}

/* One at a time while others wait for room. */
static unsigned to_wait_for(const struct zc_io *io, unsigned min)
{
	unsigned missing = min - io->finished;

	return io->waiting.first ? 1 : missing < io->used ? missing : io->used;
}

/* Rings still, or again, if something came after it was hushed. */
static void hush(struct zc_io *io)
{
	do {
		zc_io_hush(io->bell);
		start(io);
	} while (harvest(io));
}

static int uring_reap(struct zc_io *io, unsigned min)
{
	int err = 0;

	if (!io->owner)
		return 0;
	harvest(io);
	while (!err && io->finished < min && io->used) {
		err = enter(io, to_wait_for(io, min));
		if (err)
			back_out(io, err);
		harvest(io);
	}
	start(io);
	if (io->bell >= 0)
		hush(io);
	int n = (int)io->finished;
	io->finished = 0;
	return n || !err ? n : err;
}

static int uring_event_fd(struct zc_io *io)
{
	if (io->bell >= 0)
		return io->bell;
	int bell = zc_io_bell();
	if (bell < 0)
		return bell;
	int err = ZC_SYSI("io_uring_register",
			  in_errno(io_uring_register_eventfd(&io->ring, bell)));
	if (err) {
		close(bell);
		return err;
	}
	io->bell = bell;
	zc_io_ring(bell); /* something may have come before */
	return bell;
}

/* The kernel writes to the caller's memory until the last one is done. */
static void uring_destroy(struct zc_io *io)
{
	struct zc_io_req *r;
	unsigned tries = 0;

	while ((r = zc_io_pop(&io->waiting))) {
		r->result = -ECANCELED;
		r->done = true;
	}
	while (io->used && (uring_reap(io, io->used) >= 0 || zc_io_nap(&tries)))
		;
	io_uring_queue_exit(&io->ring);
	release_arena(io);
	if (io->bell >= 0)
		close(io->bell);
	free(io->order);
	free(io);
}

const struct zc_io_kind zc_io_uring = {
	.name = "io_uring",
	.create = uring_create,
	.destroy = uring_destroy,
	.submit = uring_submit,
	.reap = uring_reap,
	.event_fd = uring_event_fd,
	.registered = uring_registered,
};
