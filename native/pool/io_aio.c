/* Disk I/O by Linux AIO, for where io_uring is forbidden, as in most containers.
 *
 * A back end owns one context. The kernel runs a request within io_submit as far as it goes without
 * the disk, so io_submit may block: always for a file that is not open with O_DIRECT, and with it
 * while the filesystem looks for blocks or waits for a lock. Memory cannot be registered.
 *
 * One thread, and no lock.
 */
#include <linux/aio_abi.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "io_parts.h"

struct slot {
	struct iocb cb;
	struct zc_io_req *req;
	struct zc_io_progress progress;
	struct slot *next_free;
};

struct zc_io {
	aio_context_t ctx;
	unsigned depth, under_way;
	unsigned finished; /* done and not yet reported by reap() */
	unsigned ready;	   /* of `order`: not with the kernel yet */
	int bell;
	struct zc_io_queue waiting;
	struct slot *free;
	struct iocb **order;
	struct io_event *events;
	struct slot slots[];
};

static void aio_free(struct zc_io *io)
{
	free(io->order);
	free(io->events);
	free(io);
}

static int aio_create(void *arena, size_t arena_len, unsigned depth, struct zc_io **out)
{
	(void)arena;
	(void)arena_len;
	if (!depth || depth > ZC_IO_DEPTH_MOST)
		return -EINVAL;
	struct zc_io *io = calloc(1, sizeof(*io) + depth * sizeof(io->slots[0]));
	if (!io)
		return -ENOMEM;
	io->depth = depth;
	io->bell = -1;
	io->order = calloc(depth, sizeof(io->order[0]));
	io->events = calloc(depth, sizeof(io->events[0]));
	for (unsigned i = 0; i < depth; i++) {
		io->slots[i].next_free = io->free;
		io->free = &io->slots[i];
	}
	int err = io->order && io->events ?
		  ZC_SYSI("io_setup", syscall(SYS_io_setup, depth, &io->ctx)) : -ENOMEM;
	if (err) {
		aio_free(io);
		return err;
	}
	*out = io;
	return 0;
}

/* Submission ------------------------------------------------------------------------------ */

static void finish(struct zc_io *io, struct slot *s)
{
	s->req->done = true;
	s->req = NULL;
	s->next_free = io->free;
	io->free = s;
	io->finished++;
}

static void fill(const struct zc_io *io, struct slot *s)
{
	static const uint16_t opcodes[] = {IOCB_CMD_PREAD, IOCB_CMD_PWRITE, IOCB_CMD_FDSYNC};
	const struct zc_io_req *r = s->req;

	s->cb = (struct iocb){
		.aio_data = (uintptr_t)s,
		.aio_lio_opcode = opcodes[r->op],
		.aio_fildes = (uint32_t)r->fd,
	};
	if (r->op != ZC_IO_FDATASYNC) {
		s->cb.aio_rw_flags = r->rw_flags;
		s->cb.aio_buf = (uintptr_t)r->buf + s->progress.got;
		s->cb.aio_nbytes = zc_io_piece(r, &s->progress);
		s->cb.aio_offset = r->off + (off_t)s->progress.got;
	}
	if (io->bell >= 0) {
		s->cb.aio_flags = IOCB_FLAG_RESFD;
		s->cb.aio_resfd = (uint32_t)io->bell;
	}
}

static void prepare(struct zc_io *io, struct slot *s)
{
	fill(io, s);
	io->order[io->ready++] = &s->cb;
}

static void start_waiting(struct zc_io *io)
{
	while (io->free && io->waiting.first) {
		struct slot *s = io->free;
		io->free = s->next_free;
		s->req = zc_io_pop(&io->waiting);
		s->progress = (struct zc_io_progress){0};
		prepare(io, s);
	}
}

/* How many from order[at] on were taken, or -errno, which is about the first of them. */
static int submit_from(struct zc_io *io, unsigned at)
{
	unsigned tries = 0;
	int n;

	do
		n = ZC_SYSI("io_submit", syscall(SYS_io_submit, io->ctx, (long)(io->ready - at),
						 io->order + at));
	while (n == -EINTR || (n == -EAGAIN && !io->under_way && zc_io_nap(&tries)));
	return n;
}

/* Hands over what is prepared. What cannot be fails; for what the kernel has no room now, there is
 * something under way that makes room. */
static void flush(struct zc_io *io)
{
	unsigned at = 0;

	while (at < io->ready) {
		int n = submit_from(io, at);
		if (n == -EAGAIN && io->under_way)
			break;
		if (n > 0) {
			at += (unsigned)n;
			io->under_way += (unsigned)n;
			continue;
		}
		struct slot *s = (struct slot *)(uintptr_t)io->order[at++]->aio_data;
		s->req->result = n ? n : -EIO;
		finish(io, s);
	}
	io->ready -= at;
	memmove(io->order, io->order + at, io->ready * sizeof(io->order[0]));
}

/* All that has room is under way then; what fails at once makes more room. */
static void start(struct zc_io *io)
{
	do {
		start_waiting(io);
		flush(io);
	} while (io->free && io->waiting.first && !io->ready);
}

static int aio_submit(struct zc_io *io, struct zc_io_req **reqs, unsigned n)
{
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

static void complete(struct zc_io *io, const struct io_event *e)
{
	struct slot *s = (struct slot *)(uintptr_t)e->data;

	io->under_way--;
	if (zc_io_step(s->req, &s->progress, zc_io_ran(s->req, e->res)))
		prepare(io, s);
	else
		finish(io, s);
}

/* Takes what was completed, waiting for `wait` of them, and starts what has room then. */
static int harvest(struct zc_io *io, unsigned wait)
{
	struct timespec now = {0};
	int n;

	do
		n = ZC_SYSI("io_getevents", syscall(SYS_io_getevents, io->ctx, (long)wait,
						    (long)io->depth, io->events,
						    wait ? NULL : &now));
	while (n == -EINTR);
	for (int i = 0; i < n; i++)
		complete(io, &io->events[i]);
	start(io);
	return n;
}

/* One at a time while others wait for room. */
static unsigned to_wait_for(const struct zc_io *io, unsigned min)
{
	unsigned missing = min - io->finished;

	return io->waiting.first || io->ready ? 1 : missing < io->under_way ? missing : io->under_way;
}

static int aio_reap(struct zc_io *io, unsigned min)
{
	int n = 0;

	if (io->bell >= 0)
		zc_io_hush(io->bell);
	if (io->finished >= min && io->under_way)
		n = harvest(io, 0);
	while (n >= 0 && io->finished < min && io->under_way)
		n = harvest(io, to_wait_for(io, min));
	int done = (int)io->finished;
	io->finished = 0;
	return done || n >= 0 ? done : n;
}

/* A request that is under way rings no bell made later. */
static int aio_event_fd(struct zc_io *io)
{
	int n = 0;

	if (io->bell >= 0)
		return io->bell;
	while (n >= 0 && io->under_way)
		n = harvest(io, 1);
	int bell = n < 0 ? n : zc_io_bell();
	if (bell < 0)
		return bell;
	io->bell = bell;
	if (io->finished)
		zc_io_ring(bell);
	return bell;
}

static bool aio_registered(const struct zc_io *io)
{
	(void)io;
	return false;
}

static void cancel_waiting(struct zc_io *io)
{
	struct zc_io_req *r;

	while ((r = zc_io_pop(&io->waiting))) {
		r->result = -ECANCELED;
		r->done = true;
	}
}

static void aio_destroy(struct zc_io *io)
{
	unsigned tries = 0;

	cancel_waiting(io);
	while (io->under_way && (harvest(io, io->under_way) >= 0 || zc_io_nap(&tries)))
		;
	syscall(SYS_io_destroy, io->ctx); /* waits too, for what could not be taken above */
	for (unsigned i = 0; i < io->depth; i++)
		if (io->slots[i].req) {
			io->slots[i].req->result = -EIO;
			finish(io, &io->slots[i]);
		}
	if (io->bell >= 0)
		close(io->bell);
	aio_free(io);
}

const struct zc_io_kind zc_io_aio = {
	.name = "aio",
	.create = aio_create,
	.destroy = aio_destroy,
	.submit = aio_submit,
	.reap = aio_reap,
	.event_fd = aio_event_fd,
	.registered = aio_registered,
};
