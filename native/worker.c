/* The threads that serve requests.
 *
 * A thread takes a request, runs its handler to the end, blocking where the source blocks, and
 * sends the reply: no hand-over, no queue of our own. What keeps a slow disk, a slow fsync or a
 * lock from delaying anybody else is one rule: before a handler may block, there must be another
 * idle thread in the line of the same queue (zc_may_block), made on the spot if need be. Handlers
 * that cannot block (a READ of cached data) skip that, so a burst of them is answered by one
 * thread without a single switch.
 *
 * Threading: each worker touches only its own struct; counters are atomic because control.c reads
 * them. A worker is never freed before the session ends.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#define STACK_BYTES (256u << 10)
#define BUFFER_KEPT (16u << 10)
#define BUFFERS_MOST (16u << 20)

uint64_t zc_now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ULL + (uint64_t)ts.tv_nsec;
}

void zc_buffer_touched(struct zc_worker *w, size_t bytes)
{
	if (bytes <= w->touched)
		return;
	atomic_fetch_add_explicit(&w->q->s->buffers, bytes - w->touched, memory_order_relaxed);
	w->touched = bytes;
}

bool zc_buffers_full(const struct zc_worker *w)
{
	const struct zc_session *s = w->q->s;
	return s->pool && w->touched > BUFFER_KEPT &&
	       atomic_load_explicit(&s->buffers, memory_order_relaxed) > BUFFERS_MOST;
}

void zc_buffer_done(struct zc_worker *w)
{
	if (!zc_buffers_full(w))
		return;
	madvise(w->req.out, w->touched, MADV_DONTNEED);
	atomic_fetch_sub_explicit(&w->q->s->buffers, w->touched, memory_order_relaxed);
	w->touched = 0;
}

/* For the thread sanitizer: the kernel sends a request that depends on another when that is answered,
 * which cannot be seen from here. */
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define ANSWERED(s) __tsan_release(s)
#define TAKEN(s) __tsan_acquire(s)
#else
#define ANSWERED(s) ((void)(s))
#define TAKEN(s) ((void)(s))
#endif

/* Leaves the line while enough others stand in it; false when the session has ended. */
static bool park(struct zc_queue *q)
{
	pthread_mutex_lock(&q->lock);
	q->parked++;
	while (!q->wanted && !atomic_load(&q->s->ended))
		pthread_cond_wait(&q->unpark, &q->lock);
	q->parked--;
	if (q->wanted)
		q->wanted--;
	pthread_mutex_unlock(&q->lock);
	return !atomic_load(&q->s->ended);
}

static int take(struct zc_worker *w)
{
	atomic_fetch_add(&w->q->idle, 1);
	int err = w->q->transport->next(w);
	atomic_fetch_sub(&w->q->idle, 1);
	return err;
}

static void serve(struct zc_worker *w)
{
	struct zc_queue *q = w->q;
	unsigned keep = q->transport->keep_idle;
	for (;;) {
		int err = take(w);
		if (err == -ENODEV)
			break;
		if (err && err != -EINTR && err != -EAGAIN) {
			zc_log("a request cannot be taken: %s", strerror(-err));
			usleep(10000);
		}
		if (err)
			continue;
		TAKEN(q->s);
		atomic_store(&w->interrupted, false);
		atomic_store(&w->unique, w->req.hdr.unique);
		int error = zc_req_serve(&w->req);
		atomic_store(&w->unique, 0);
		ANSWERED(q->s);
		q->transport->reply(w, error);
		if (keep && atomic_load(&q->idle) >= keep && !park(q))
			break;
	}
}

static void enlist(struct zc_worker *w)
{
	struct zc_session *s = w->q->s;
	w->next = atomic_load(&s->workers);
	while (!atomic_compare_exchange_weak(&s->workers, &w->next, w))
		;
}

static void *worker_main(void *arg)
{
	struct zc_worker *w = arg;
	prctl(PR_SET_NAME, "zcfs-worker");
	w->thread = pthread_self();
	zc_cred_init(&w->cred);
	int err = w->q->transport->start(w);
	if (!err)
		enlist(w);
	atomic_store(&w->started, err ? err : 1);
	if (!err) {
		serve(w);
		w->q->transport->stop(w);
		zc_session_end(w->q->s);
	}
	return NULL;
}

static int worker_start(struct zc_worker *w)
{
	pthread_attr_t attr;
	pthread_t thread;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	int err = -pthread_create(&thread, &attr, worker_main, w);
	pthread_attr_destroy(&attr);
	while (!err && !atomic_load(&w->started))
		usleep(20);
	if (!err && atomic_load(&w->started) < 0) {
		err = atomic_load(&w->started);
		pthread_join(thread, NULL);
	} else if (!err) {
		pthread_detach(thread);
	}
	return err;
}

/* Returns when the thread stands in the line, or cannot be had. */
static int worker_spawn(struct zc_queue *q, bool stand_in)
{
	struct zc_worker *w = calloc(1, sizeof(*w));
	int err = -ENOMEM;
	if (w) {
		w->q = q;
		w->stand_in = stand_in;
		w->req.s = q->s;
		w->req.w = w;
		err = worker_start(w);
	}
	if (err)
		free(w);
	return err;
}

int zc_queue_start(struct zc_queue *q, unsigned threads)
{
	int err = 0;
	for (unsigned i = 0; i < threads && !err; i++) {
		err = worker_spawn(q, false);
		if (!err)
			atomic_fetch_add(&q->threads, 1);
	}
	return err;
}

/* Calls a parked thread back into the line; false if there is none. */
static bool unpark(struct zc_queue *q)
{
	pthread_mutex_lock(&q->lock);
	bool any = q->parked > q->wanted;
	if (any) {
		q->wanted++;
		pthread_cond_signal(&q->unpark);
	}
	pthread_mutex_unlock(&q->lock);
	return any;
}

bool zc_may_block(struct zc_worker *w)
{
	struct zc_queue *q = w->q;
	if (atomic_load(&q->idle) || (q->transport->keep_idle && unpark(q)))
		return true;
	int err = -EAGAIN;
	if (atomic_fetch_add(&q->threads, 1) < q->max)
		err = worker_spawn(q, true);
	if (!err)
		return true;
	atomic_fetch_sub(&q->threads, 1);
	if (err != -EAGAIN)
		zc_degrade(q->s, "threads", "no more can be started (%s): slow requests delay others",
			   strerror(-err));
	return false;
}

static bool was_interrupted_early(const struct zc_worker *w)
{
	for (unsigned i = 0; i < EARLY_INTERRUPTS; i++)
		if (atomic_load(&w->q->s->early_interrupts[i]) == w->req.hdr.unique)
			return true;
	return false;
}

int zc_wait_begin(struct zc_worker *w)
{
	struct zc_queue *q = w->q;
	if (atomic_fetch_add(&q->waiting, 1) >= q->max / 2 || !zc_may_block(w)) {
		atomic_fetch_sub(&q->waiting, 1);
		return -EAGAIN;
	}
	if (was_interrupted_early(w))
		atomic_store(&w->interrupted, true);
	return 0;
}

void zc_wait_end(struct zc_worker *w)
{
	atomic_fetch_sub(&w->q->waiting, 1);
}

/* The signal may fall just before the call that it is to interrupt: repeated until the request is
 * done. It also interrupts calls that nobody meant to wait in; they are done again or fail with
 * EINTR, as the caller asked. */
static void interrupt(struct zc_worker *w, uint64_t unique)
{
	unsigned pause = 100;
	while (atomic_load(&w->unique) == unique && !atomic_load(&w->q->s->ended)) {
		atomic_store(&w->interrupted, true);
		if (atomic_load(&w->unique) != unique)
			atomic_store(&w->interrupted, false); /* it has gone on to another */
		else
			pthread_kill(w->thread, SIGUSR1);
		usleep(pause);
		pause = pause < 20000 ? pause * 2 : pause;
	}
}

/* First written down, then looked for: whoever takes the request up meanwhile sees one or the other. */
bool zc_interrupt(struct zc_session *s, uint64_t unique)
{
	unsigned at = atomic_fetch_add(&s->early_next, 1) % EARLY_INTERRUPTS;
	atomic_store(&s->early_interrupts[at], unique);
	for (struct zc_worker *w = atomic_load(&s->workers); w; w = w->next) {
		if (atomic_load(&w->unique) != unique)
			continue;
		interrupt(w, unique);
		return true;
	}
	return false;
}
