/* Disk I/O by threads that call pread and pwrite: what is left where neither io_uring nor Linux AIO
 * is allowed.
 *
 * A back end owns its threads, which are started as requests pile up and stay until destroy(). One
 * mutex guards all of it; the calls themselves run without. A thread writes the result of its
 * request and puts it into `ran`; the caller's thread marks it done when it takes it from there.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "io_parts.h"

#define THREADS_MOST 32u
#define STACK (256u << 10)

struct zc_io {
	pthread_mutex_t lock;
	pthread_cond_t work, news;
	struct zc_io_queue waiting, ran;
	unsigned n_waiting, n_running, n_ran;
	unsigned wanted; /* of `ran`: the caller sleeps until there are so many */
	unsigned idle, most, n_threads;
	bool stop;
	int bell;
	pthread_t threads[THREADS_MOST];
};

/* The calls ------------------------------------------------------------------------------- */

static ssize_t call(const struct zc_io_req *r, const struct zc_io_progress *p)
{
	struct iovec iov = {(char *)r->buf + p->got, zc_io_piece(r, p)};
	off_t off = r->off + (off_t)p->got;

	if (r->op == ZC_IO_FDATASYNC)
		return ZC_SYS("fdatasync", fdatasync(r->fd));
	if (r->op == ZC_IO_READ)
		return ZC_SYS("pread", preadv2(r->fd, &iov, 1, off, r->rw_flags));
	return ZC_SYS("pwrite", pwritev2(r->fd, &iov, 1, off, r->rw_flags));
}

static void run(struct zc_io_req *r)
{
	struct zc_io_progress p = {0};

	while (zc_io_step(r, &p, call(r, &p)))
		if (p.again)
			sched_yield();
}

/* With the lock, which is released meanwhile: runs the oldest of those that wait. */
static void run_one(struct zc_io *io)
{
	struct zc_io_req *r = zc_io_pop(&io->waiting);

	io->n_waiting--;
	io->n_running++;
	pthread_mutex_unlock(&io->lock);
	run(r);
	pthread_mutex_lock(&io->lock);
	io->n_running--;
	io->n_ran++;
	zc_io_push(&io->ran, r);
}

/* With the lock, but woken without it: who is woken wants the lock first of all. */
static void wake(struct zc_io *io, pthread_cond_t *cond, unsigned n)
{
	pthread_mutex_unlock(&io->lock);
	while (n--)
		pthread_cond_signal(cond);
	pthread_mutex_lock(&io->lock);
}

static void *thread(void *arg)
{
	struct zc_io *io = arg;

	pthread_mutex_lock(&io->lock);
	while (!io->stop) {
		if (!io->waiting.first) {
			io->idle++;
			pthread_cond_wait(&io->work, &io->lock);
			io->idle--;
			continue;
		}
		run_one(io);
		if (io->bell >= 0)
			zc_io_ring(io->bell);
		if (io->wanted && io->n_ran >= io->wanted) {
			io->wanted = 0;
			wake(io, &io->news, 1);
		}
	}
	pthread_mutex_unlock(&io->lock);
	return NULL;
}

/* With the lock. The thread gets no signals: they are the program's. */
static int add_thread(struct zc_io *io)
{
	pthread_attr_t attr;
	sigset_t all, before;

	sigfillset(&all);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int err = ZC_SYSI("pthread_create", (errno = pthread_create(&io->threads[io->n_threads],
								    &attr, thread, io)) ? -1 : 0);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	io->n_threads += !err;
	return err;
}

/* The back end ---------------------------------------------------------------------------- */

static int threads_create(void *arena, size_t arena_len, unsigned depth, struct zc_io **out)
{
	(void)arena;
	(void)arena_len;
	if (!depth || depth > ZC_IO_DEPTH_MOST)
		return -EINVAL;
	struct zc_io *io = calloc(1, sizeof(*io));
	if (!io)
		return -ENOMEM;
	pthread_mutex_init(&io->lock, NULL);
	pthread_cond_init(&io->work, NULL);
	pthread_cond_init(&io->news, NULL);
	io->most = depth < THREADS_MOST ? depth : THREADS_MOST;
	io->bell = -1;
	pthread_mutex_lock(&io->lock);
	int err = add_thread(io);
	pthread_mutex_unlock(&io->lock);
	if (err) {
		free(io);
		return err;
	}
	*out = io;
	return 0;
}

static int threads_submit(struct zc_io *io, struct zc_io_req **reqs, unsigned n)
{
	pthread_mutex_lock(&io->lock);
	for (unsigned i = 0; i < n; i++) {
		reqs[i]->done = false;
		zc_io_push(&io->waiting, reqs[i]);
	}
	io->n_waiting += n;
	/* those that are idle still while requests wait have been woken for these */
	for (unsigned i = io->idle; i < io->n_waiting && io->n_threads < io->most; i++)
		if (add_thread(io))
			break; /* there is one at least */
	wake(io, &io->work, n < io->idle ? n : io->idle);
	pthread_mutex_unlock(&io->lock);
	return 0;
}

/* Waits until `min` have run. A caller that waits for all of them runs some itself: then nothing
 * waits the longer for it, and one alone needs no thread to wake up. */
static void wait_for(struct zc_io *io, unsigned min)
{
	unsigned all = io->n_waiting + io->n_running + io->n_ran;

	if (min >= all)
		while (io->waiting.first)
			run_one(io);
	while (io->n_ran < min && io->n_ran < all) {
		io->wanted = min < all ? min : all;
		pthread_cond_wait(&io->news, &io->lock);
	}
	io->wanted = 0;
}

/* With the lock. */
static int take(struct zc_io *io)
{
	struct zc_io_req *r;
	int n = (int)io->n_ran;

	while ((r = zc_io_pop(&io->ran)))
		r->done = true;
	io->n_ran = 0;
	if (io->bell >= 0)
		zc_io_hush(io->bell);
	return n;
}

static int threads_reap(struct zc_io *io, unsigned min)
{
	pthread_mutex_lock(&io->lock);
	wait_for(io, min);
	int n = take(io);
	pthread_mutex_unlock(&io->lock);
	return n;
}

static int threads_event_fd(struct zc_io *io)
{
	pthread_mutex_lock(&io->lock);
	int bell = io->bell >= 0 ? io->bell : zc_io_bell();
	if (bell >= 0) {
		io->bell = bell;
		if (io->n_ran)
			zc_io_ring(bell);
	}
	pthread_mutex_unlock(&io->lock);
	return bell;
}

static bool threads_registered(const struct zc_io *io)
{
	(void)io;
	return false;
}

static void threads_destroy(struct zc_io *io)
{
	struct zc_io_req *r;

	pthread_mutex_lock(&io->lock);
	while ((r = zc_io_pop(&io->waiting))) {
		r->result = -ECANCELED;
		r->done = true;
	}
	io->stop = true;
	pthread_cond_broadcast(&io->work);
	pthread_mutex_unlock(&io->lock);
	for (unsigned i = 0; i < io->n_threads; i++)
		pthread_join(io->threads[i], NULL);
	take(io);
	if (io->bell >= 0)
		close(io->bell);
	pthread_cond_destroy(&io->news);
	pthread_cond_destroy(&io->work);
	pthread_mutex_destroy(&io->lock);
	free(io);
}

const struct zc_io_kind zc_io_threads = {
	.name = "threads",
	.create = threads_create,
	.destroy = threads_destroy,
	.submit = threads_submit,
	.reap = threads_reap,
	.event_fd = threads_event_fd,
	.registered = threads_registered,
};
