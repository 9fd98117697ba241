/* Readahead: finds sequential readers, and reads for them in the background.
 *
 * A miss that begins where the last one of this open ended makes a stream; what follows is asked for,
 * twice as much each time. The first page of what was asked for carries a mark, and whoever
 * hits it asks for the next; so a stream that is served from the pool costs nothing.
 *
 * Owns one thread, made at the first request, and its queue. Any thread may ask. The fields of the
 * open file are hints: two readers of one file may confuse them, which costs no more than that.
 */
#include <stdlib.h>

#include "core.h"

#define WINDOW_MOST (1u << 20)
#define WINDOW_PART 16 /* of the arena at most */

static uint32_t clamp_window(const struct zc_pool_file *f, uint64_t window)
{
	uint64_t most = f->pool->arena_len / WINDOW_PART;
	if (most > WINDOW_MOST)
		most = WINDOW_MOST;
	if (window > most)
		window = most;
	return (uint32_t)(window & ~(uint64_t)(f->view->page_size - 1));
}

static void ask(struct zc_pool_file *f, uint64_t from, uint32_t window)
{
	uint64_t size = atomic_load(&f->view->source->size);
	if (from >= size || !window)
		return;
	uint64_t count = window >> f->view->shift;
	uint64_t left = (size - from + f->view->page_size - 1) >> f->view->shift;
	atomic_store(&f->ahead_window, window);
	atomic_store(&f->ahead_end, from + window);
	zc_ahead_push(f, from >> f->view->shift, count < left ? count : left, true);
}

void zc_ahead_missed(struct zc_pool_file *f, uint64_t from, uint64_t to)
{
	uint64_t next = atomic_exchange(&f->ahead_next, to);
	if (from != next) {
		atomic_store(&f->ahead_window, 0);
		return;
	}
	uint64_t window = 2 * (uint64_t)atomic_load(&f->ahead_window);
	if (window < 2 * (to - from))
		window = 2 * (to - from);
	ask(f, to, clamp_window(f, window));
}

void zc_ahead_marked(struct zc_pool_file *f)
{
	uint64_t from = atomic_load(&f->ahead_end);
	atomic_store(&f->ahead_next, from);
	ask(f, from, clamp_window(f, 2 * (uint64_t)atomic_load(&f->ahead_window)));
}

/* What a stream had asked for, less what it came to by itself meanwhile. */
static uint64_t overtaken(const struct zc_ahead *a)
{
	uint64_t at = atomic_load(&a->file->ahead_next) >> a->file->view->shift;
	if (!a->marked || at <= a->first)
		return 0;
	return at - a->first < a->count ? at - a->first : a->count;
}

static void serve(struct zc_pool *p, const struct zc_ahead *a)
{
	struct zc_want w[ZC_BATCH];
	enum zc_get how = a->marked ? ZC_GET_STREAM : ZC_GET_AHEAD;
	for (uint64_t done = overtaken(a); done < a->count; how = ZC_GET_AHEAD) {
		unsigned n = 0;
		for (; n < ZC_BATCH && done < a->count; n++, done++)
			w[n] = (struct zc_want){.page = a->first + done};
		zc_pages_get(a->file, w, n, how);
		pthread_mutex_lock(&p->ahead_lock);
		bool stop = p->ahead_stop;
		pthread_mutex_unlock(&p->ahead_lock);
		if (stop || w[n - 1].error == -ERANGE || w[n - 1].error == -ENOBUFS)
			return;
	}
}

static void *run(void *arg)
{
	struct zc_pool *p = arg;
	pthread_mutex_lock(&p->ahead_lock);
	for (;;) {
		while (!p->ahead_count && !p->ahead_stop)
			pthread_cond_wait(&p->ahead_cond, &p->ahead_lock);
		if (p->ahead_stop)
			break;
		struct zc_ahead a = p->ahead[p->ahead_head];
		p->ahead_head = (p->ahead_head + 1) % ZC_AHEAD_QUEUE;
		p->ahead_count--;
		pthread_mutex_unlock(&p->ahead_lock);
		serve(p, &a);
		zc_file_put(a.file);
		pthread_mutex_lock(&p->ahead_lock);
	}
	pthread_mutex_unlock(&p->ahead_lock);
	return NULL;
}

/* A stream has one request at a time in the queue: its last. NULL: none. */
static struct zc_ahead *queued_stream(struct zc_pool *p, const struct zc_pool_file *f)
{
	for (unsigned i = 0; i < p->ahead_count; i++) {
		struct zc_ahead *a = &p->ahead[(p->ahead_head + i) % ZC_AHEAD_QUEUE];
		if (a->file == f && a->marked)
			return a;
	}
	return NULL;
}

int zc_ahead_push(struct zc_pool_file *f, uint64_t first, uint64_t count, bool marked)
{
	struct zc_pool *p = f->pool;
	int err = 0;
	pthread_mutex_lock(&p->ahead_lock);
	if (!p->ahead_running) {
		err = -pthread_create(&p->ahead_thread, NULL, run, p);
		p->ahead_running = !err;
	}
	struct zc_ahead *queued = marked ? queued_stream(p, f) : NULL;
	if (queued) {
		queued->first = first;
		queued->count = count;
	} else if (!err && p->ahead_count < ZC_AHEAD_QUEUE) {
		unsigned at = (p->ahead_head + p->ahead_count++) % ZC_AHEAD_QUEUE;
		atomic_fetch_add(&f->refs, 1);
		p->ahead[at] = (struct zc_ahead){f, first, count, marked};
		pthread_cond_signal(&p->ahead_cond);
	}
	pthread_mutex_unlock(&p->ahead_lock);
	return err;
}

int zc_pool_prefetch(struct zc_pool_file *f, uint64_t first, uint64_t count)
{
	return zc_ahead_push(f, first, count, false);
}

void zc_ahead_stop(struct zc_pool *p)
{
	pthread_mutex_lock(&p->ahead_lock);
	bool running = p->ahead_running;
	p->ahead_stop = true;
	pthread_cond_signal(&p->ahead_cond);
	pthread_mutex_unlock(&p->ahead_lock);
	if (running)
		pthread_join(p->ahead_thread, NULL);
	while (p->ahead_count) {
		struct zc_pool_file *f = p->ahead[p->ahead_head].file;
		p->ahead_head = (p->ahead_head + 1) % ZC_AHEAD_QUEUE;
		p->ahead_count--;
		zc_file_put(f);
	}
	p->ahead_stop = p->ahead_running = false;
}
