/* Borrowed pages: shared and exclusive. Any thread; a hit takes no lock. */
#include <sched.h>

#include "core.h"

#define FLAG_MUT 1u
#define COPY_TRIES 50 /* a page that is only being copied from is free soon */

static void describe(struct zc_pool *p, const struct zc_want *w, struct zc_page *page)
{
	*page = (struct zc_page){
		.data = zc_frame_data(p, w->frame),
		.version = w->state >> S_VERSION,
		.valid = atomic_load_explicit(&p->frames[w->frame].valid, memory_order_relaxed),
		.frame = w->frame,
	};
}

/* The last page of a file, as it was when it was read: is that still the end? If not, it is dropped
 * and has to be asked for again. */
static bool still_last(struct zc_pool_file *f, const struct zc_want *w, uint32_t valid)
{
	struct zc_pool *p = f->pool;
	struct zc_view *v = f->view;
	if (w->fresh || valid == v->page_size)
		return true;
	if (!zc_file_refresh(f) &&
	    atomic_load(&v->source->size) == (w->page << v->shift) + valid)
		return true;
	pthread_mutex_lock(&p->lock);
	if (zc_table_find(p, v->id, w->page, zc_hash(v->id, w->page)) == w->frame)
		zc_frame_detach(p, w->frame);
	pthread_mutex_unlock(&p->lock);
	zc_unpin(p, w->frame);
	return false;
}

static void borrow_batch(struct zc_pool_file *f, struct zc_want *w, unsigned n, struct zc_page *pages)
{
	bool marked = false;
	zc_pages_get(f, w, n, ZC_GET_BORROW);
	for (unsigned i = 0; i < n; i++) {
		for (;;) {
			pages[i] = (struct zc_page){.error = w[i].error};
			if (w[i].error)
				break;
			describe(f->pool, &w[i], &pages[i]);
			if (still_last(f, &w[i], pages[i].valid))
				break;
			zc_pages_get(f, &w[i], 1, ZC_GET_BORROW);
		}
		if (!w[i].error && !w[i].fresh)
			marked |= zc_touch(f->pool, w[i].frame);
	}
	if (marked)
		zc_ahead_marked(f);
}

/* Pins the page if it is there. -EAGAIN: it is not; -ENOBUFS. */
static int pin_cached(struct zc_pool_file *f, struct zc_want *w, struct zc_page *page)
{
	struct zc_pool *p = f->pool;
	struct zc_view *v = f->view;

	if (zc_pin(p, v->id, w->page, zc_hash(v->id, w->page), &w->frame, &w->state) != ZC_PINNED)
		return -EAGAIN;
	if (!(w->state & S_SHARED) && zc_budget_take(p, zc_units(v->class), false)) {
		zc_unpin_refused(p, w->frame);
		return -ENOBUFS;
	}
	describe(p, w, page);
	return 0;
}

static void count_hit(struct zc_pool_file *f, uint32_t frame)
{
	ZC_COUNT(f->pool, hits, 1);
	if (zc_touch(f->pool, frame))
		zc_ahead_marked(f);
}

int zc_page_borrow_cached(struct zc_pool_file *f, uint64_t number, struct zc_page *page)
{
	struct zc_want w = {.page = number};
	struct zc_page out;
	int err = pin_cached(f, &w, &out);

	if (err)
		return -EAGAIN;
	if (out.valid < f->view->page_size) { /* the file may be longer now: that is the disk's to say */
		zc_unpin(f->pool, w.frame);
		return -EAGAIN;
	}
	count_hit(f, w.frame);
	*page = out;
	return 0;
}

int zc_page_borrow(struct zc_pool_file *f, uint64_t number, struct zc_page *page)
{
	struct zc_want w = {.page = number};
	struct zc_page out;
	int err = pin_cached(f, &w, &out);

	if (err == -ENOBUFS)
		return err;
	if (!err && still_last(f, &w, out.valid)) {
		count_hit(f, w.frame);
		*page = out;
		return 0;
	}
	borrow_batch(f, &w, 1, &out);
	if (!out.error)
		*page = out;
	return out.error;
}

/* `numbers` NULL: first, first + 1, … */
static ssize_t borrow(struct zc_pool_file *f, const uint64_t *numbers, uint64_t first, size_t count,
		      struct zc_page *pages)
{
	struct zc_want w[ZC_BATCH];
	ssize_t got = 0;
	for (size_t done = 0; done < count;) {
		unsigned n = count - done < ZC_BATCH ? (unsigned)(count - done) : ZC_BATCH;
		for (unsigned i = 0; i < n; i++)
			w[i].page = numbers ? numbers[done + i] : first + done + i;
		borrow_batch(f, w, n, pages + done);
		for (unsigned i = 0; i < n; i++)
			got += !w[i].error;
		done += n;
	}
	return got;
}

ssize_t zc_page_borrow_many(struct zc_pool_file *f, const uint64_t *numbers, size_t count,
			    struct zc_page *pages)
{
	return borrow(f, numbers, 0, count, pages);
}

ssize_t zc_page_borrow_run(struct zc_pool_file *f, uint64_t first, size_t count,
			   struct zc_page *pages)
{
	return borrow(f, NULL, first, count, pages);
}

void zc_page_release_many(struct zc_pool *p, struct zc_page *pages, size_t count)
{
	int64_t units = 0;
	for (size_t i = 0; i < count; i++) {
		if (!pages[i].data)
			continue;
		if (pages[i].flags & FLAG_MUT) {
			zc_page_abandon(p, &pages[i]);
			continue;
		}
		pages[i].data = NULL;
		zc_unpin_raw(p, pages[i].frame, &units);
	}
	zc_budget_give(p, units);
}

void zc_page_release(struct zc_pool *p, struct zc_page *page)
{
	zc_page_release_many(p, page, 1);
}

/* exclusive ----------------------------------------------------------------------------------- */

/* From our shared borrow to an exclusive one: if it is the only one, and of the page still. */
static int make_exclusive(struct zc_pool *p, uint32_t frame)
{
	struct zc_frame *f = &p->frames[frame];
	uint64_t s = atomic_load(&f->state);
	for (;;) {
		if (s & S_ORPHAN)
			return -ESTALE;
		if ((s & S_SHARED) != 1)
			return -EBUSY;
		if (atomic_compare_exchange_weak(&f->state, &s, s | S_EXCL | S_MUT))
			return 0;
	}
}

int zc_page_borrow_mut(struct zc_pool_file *f, uint64_t number, struct zc_page *page)
{
	struct zc_page out;
	if (!f->writable)
		return -EBADF;
	for (unsigned tries = 0;;) {
		int err = zc_page_borrow(f, number, &out);
		if (err)
			return err;
		err = make_exclusive(f->pool, out.frame);
		if (!err)
			break;
		zc_page_release(f->pool, &out);
		if (err == -EBUSY && tries++ == COPY_TRIES)
			return err;
		sched_yield();
	}
	out.flags = FLAG_MUT;
	*page = out;
	return 0;
}

static void end_exclusive(struct zc_pool *p, struct zc_page *page)
{
	zc_budget_give(p, zc_units(p->frames[page->frame].r.class));
	page->data = NULL;
	page->flags = 0;
}

static int commit_in_range(struct zc_pool_file *f, struct zc_page *page, int rw_flags)
{
	struct zc_pool *p = f->pool;
	struct zc_frame *frame = &p->frames[page->frame];
	struct zc_view *v = f->view;
	uint64_t n = atomic_load(&frame->page), start = n << v->shift;
	if (atomic_load(&frame->state) & S_ORPHAN)
		return -ESTALE;
	struct zc_extent e = {.first = n, .from = start, .to = start + page->valid,
			      .size = atomic_load(&v->source->size), .frames = &page->frame,
			      .rw_flags = rw_flags};
	ssize_t done = zc_extent_write(f, &e);
	if (done < (ssize_t)page->valid)
		return done < 0 ? (int)done : -EIO;
	uint32_t valid = page->valid;
	end_exclusive(p, page);
	pthread_mutex_lock(&p->lock);
	zc_source_drop(p, v->source, start, start + v->page_size, v);
	if (atomic_load(&frame->state) & S_ORPHAN)
		zc_frame_discard(p, page->frame);
	else
		zc_frame_publish(p, page->frame, valid, 0);
	pthread_mutex_unlock(&p->lock);
	return 0;
}

int zc_page_commit(struct zc_pool_file *f, struct zc_page *page, int rw_flags)
{
	struct zc_view *v = f->view;
	struct zc_frame *frame = &f->pool->frames[page->frame];
	if (!page->data || !(page->flags & FLAG_MUT) || atomic_load(&frame->view_id) != v->id)
		return -EINVAL;
	if (!f->writable)
		return -EBADF;
	uint64_t start = atomic_load(&frame->page) << v->shift;
	struct zc_range r = {.from = start, .to = start + v->page_size};
	zc_change_enter(f, &r);
	int err = commit_in_range(f, page, rw_flags);
	zc_change_leave(f, &r);
	return err;
}

void zc_page_abandon(struct zc_pool *p, struct zc_page *page)
{
	if (!page->data || !(page->flags & FLAG_MUT))
		return;
	end_exclusive(p, page);
	pthread_mutex_lock(&p->lock);
	zc_frame_discard(p, page->frame);
	pthread_mutex_unlock(&p->lock);
}
