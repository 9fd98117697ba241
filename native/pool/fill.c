/* Getting pages: those that are there by a pin, those that are missing from the disk, in one batch.
 *
 * Owns the I/O back ends, which it lends to whoever has a batch. Any thread. A batch goes: look at all
 * pages under the lock and claim the missing ones, read without it, publish under it. See core.h for why
 * waiting here always ends.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core.h"

#define NONE ZC_NO_FRAME
#define TODO 1 /* an `error` that is none yet */
#define IOS_MOST 32 /* batches on the way at a time */
#define ROUNDS 4     /* of reading what came back short or failed together with others */
#define CLAIM_PART 16 /* of the arena, claimed at once at most */
#define PREFETCH 16   /* pages whose memory is asked for before it is looked at */

/* I/O ----------------------------------------------------------------------------------------- */

static struct zc_io *io_make(struct zc_pool *p, int *err)
{
	struct zc_io *io = NULL;
	*err = p->io_kind->create(p->arena, p->arena_len, ZC_IO_DEPTH, &io);
	return *err ? NULL : io;
}

int zc_ios_create(struct zc_pool *p)
{
	int err;
	p->ios = calloc(IOS_MOST, sizeof(struct zc_io *));
	if (!p->ios)
		return -ENOMEM;
	struct zc_io *io = io_make(p, &err);
	if (!io)
		return err;
	p->ios[p->io_idle++] = io;
	p->io_count = 1;
	return 0;
}

void zc_ios_destroy(struct zc_pool *p)
{
	while (p->io_idle)
		p->io_kind->destroy(p->ios[--p->io_idle]);
	free(p->ios);
}

/* One that nobody uses. There is always one at least, if only after a while. */
static struct zc_io *io_borrow(struct zc_pool *p)
{
	int err;
	pthread_mutex_lock(&p->io_lock);
	if (!p->io_idle && p->io_count < IOS_MOST) {
		p->io_count++;
		pthread_mutex_unlock(&p->io_lock);
		struct zc_io *io = io_make(p, &err);
		if (io)
			return io;
		pthread_mutex_lock(&p->io_lock);
		p->io_count--;
	}
	while (!p->io_idle)
		pthread_cond_wait(&p->io_free, &p->io_lock);
	struct zc_io *io = p->ios[--p->io_idle];
	pthread_mutex_unlock(&p->io_lock);
	return io;
}

static void io_return(struct zc_pool *p, struct zc_io *io)
{
	pthread_mutex_lock(&p->io_lock);
	p->ios[p->io_idle++] = io;
	pthread_cond_signal(&p->io_free);
	pthread_mutex_unlock(&p->io_lock);
}

static unsigned undone(const struct zc_io_req *reqs, unsigned n)
{
	unsigned count = 0;
	for (unsigned i = 0; i < n; i++)
		count += !reqs[i].done;
	return count;
}

void zc_io_run(struct zc_pool *p, struct zc_io_req *reqs, unsigned n)
{
	static const struct timespec a_while = {.tv_nsec = 1000000};
	struct zc_io_req *list[ZC_BATCH];
	for (unsigned i = 0; i < n; i++)
		list[i] = &reqs[i];
	struct zc_io *io = io_borrow(p);
	int err = p->io_kind->submit(io, list, n);
	unsigned calls = 1;
	for (unsigned i = 0; err && i < n; i++)
		if (!reqs[i].done) {
			reqs[i].result = err;
			reqs[i].done = true;
		}
	for (unsigned left; (left = undone(reqs, n)) > 0; calls++)
		if (p->io_kind->reap(io, left) < 0) /* the disk still has our memory: no way but on */
			nanosleep(&a_while, NULL);
	io_return(p, io);
	ZC_COUNT(p, requests, n);
	ZC_COUNT(p, syscalls, calls);
}

/* reading ------------------------------------------------------------------------------------- */

/* How many of the fills from `at` on are one piece of the file and of the arena. */
static unsigned run_length(const struct zc_fill *at, unsigned n, const struct zc_view *v)
{
	unsigned most = (unsigned)(ZC_IO_MOST >> v->shift), k = 1;
	while (k < n && k < most && at[k].error == TODO && at[k].page == at[0].page + k &&
	       at[k].frame == at[0].frame + k * zc_units(v->class))
		k++;
	return k;
}

/* What is there of a page that `got` bytes were read of. False: it should have been more. */
static bool accept_short(struct zc_pool_file *f, struct zc_fill *fill, size_t got, bool final)
{
	struct zc_view *v = f->view;
	uint64_t start = fill->page << v->shift;
	if (got < v->page_size) {
		int err = final ? 0 : zc_file_refresh(f);
		if (err) {
			fill->error = err;
			return true;
		}
		uint64_t size = atomic_load(&v->source->size);
		uint64_t want = size > start ? size - start : 0;
		if (!final && got < want)
			return false;
		memset(zc_frame_data(f->pool, fill->frame) + got, 0, v->page_size - got);
	}
	fill->valid = (uint32_t)got;
	fill->error = got ? 0 : -ERANGE;
	return true;
}

static void take_result(struct zc_pool_file *f, const struct zc_io_req *req, struct zc_fill *fills,
			unsigned k, bool final)
{
	size_t page_size = f->view->page_size;
	ssize_t r = req->result;
	if (r == -EINVAL && req->fd == f->fd && !f->fd_plain && !final) {
		zc_file_not_direct(f);
		return;
	}
	if (r < 0) {
		if (k == 1)
			fills[0].error = (int32_t)r;
		return; /* else each by itself */
	}
	ZC_COUNT(f->pool, bytes_read, r);
	for (unsigned i = 0; i < k; i++) {
		size_t before = i * page_size, all = (size_t)r;
		size_t got = all > before ? all - before : 0;
		accept_short(f, &fills[i], got < page_size ? got : page_size, final);
	}
}

void zc_fill_read(struct zc_pool_file *f, struct zc_fill *fills, unsigned n)
{
	struct zc_io_req reqs[ZC_BATCH];
	struct zc_view *v = f->view;
	unsigned start[ZC_BATCH], len[ZC_BATCH];

	for (unsigned i = 0; i < n; i++)
		fills[i].error = TODO;
	for (unsigned round = 0; round < ROUNDS; round++) {
		unsigned count = 0;
		int fd = zc_file_io_fd(f);
		for (unsigned i = 0; i < n; i++) {
			if (fills[i].error != TODO)
				continue;
			if (fd < 0) {
				fills[i].error = fd;
				continue;
			}
			unsigned k = round ? 1 : run_length(&fills[i], n - i, v);
			start[count] = i;
			len[count] = k;
			reqs[count++] = (struct zc_io_req){
				.op = ZC_IO_READ,
				.fd = fd,
				.buf = zc_frame_data(f->pool, fills[i].frame),
				.len = (size_t)k << v->shift,
				.off = (off_t)(fills[i].page << v->shift),
			};
			i += k - 1;
		}
		if (!count)
			return;
		zc_io_run(f->pool, reqs, count);
		for (unsigned i = 0; i < count; i++)
			take_result(f, &reqs[i], &fills[start[i]], len[i], round == ROUNDS - 1);
	}
}

/* getting ------------------------------------------------------------------------------------- */

static bool is_ahead(enum zc_get how)
{
	return how == ZC_GET_AHEAD || how == ZC_GET_STREAM;
}

struct round {
	struct zc_pool_file *f;
	enum zc_get how;
	struct zc_want *w;
	struct zc_fill fills[ZC_BATCH];
	unsigned claimed;
	uint32_t wait_for; /* a frame that another thread fills */
	bool writing, no_room;
};

static void pinned(struct zc_want *w, uint32_t frame, uint64_t state)
{
	w->frame = frame;
	w->state = state;
	w->error = 0;
}

/* It is in the table. */
static void look_at(struct round *r, struct zc_want *w, uint32_t frame, uint64_t hash)
{
	struct zc_pool *p = r->f->pool;
	uint64_t s = atomic_load(&p->frames[frame].state);
	if (is_ahead(r->how)) {
		w->error = -EEXIST;
	} else if (s & S_MUT) {
		w->error = -EBUSY;
	} else if (s & S_EXCL) {
		r->wait_for = frame;
	} else {
		enum zc_pinned got = zc_pin(p, r->f->view->id, w->page, hash, &frame, &s);
		if (got == ZC_PIN_FULL)
			w->error = -EAGAIN;
		if (got != ZC_PINNED) /* became exclusively borrowed just now */
			return;
		int64_t units = s & S_SHARED ? 0 : zc_units(r->f->view->class);
		if (units && zc_budget_take(p, units, r->how != ZC_GET_BORROW)) {
			zc_unpin_refused(p, frame);
			w->error = -ENOBUFS;
			return;
		}
		pinned(w, frame, s);
		ZC_COUNT(p, hits, 1);
	}
}

/* It is not. False: no more of them now. */
static bool claim(struct round *r, struct zc_want *w)
{
	struct zc_pool *p = r->f->pool;
	struct zc_view *v = r->f->view;
	uint64_t start = w->page << v->shift;
	int64_t units = zc_units(v->class);
	if (start >= atomic_load(&v->source->size)) {
		w->error = -ERANGE;
		return true;
	}
	if (zc_range_busy(v->source, start, start + v->page_size)) {
		r->writing = true;
		return true;
	}
	if (((size_t)r->claimed + 1) << v->shift > p->arena_len / CLAIM_PART)
		return false;
	if (!is_ahead(r->how) && zc_budget_take(p, units, r->how == ZC_GET_READ)) {
		w->error = -ENOBUFS;
		return true;
	}
	uint32_t frame = zc_frame_alloc(p, v->class);
	if (frame == NONE) {
		if (!is_ahead(r->how))
			zc_budget_give(p, units);
		r->no_room = true;
		return false;
	}
	zc_frame_claim(p, frame, v, w->page);
	zc_flight(p, (int)units);
	r->fills[r->claimed++] = (struct zc_fill){.page = w->page, .frame = frame,
						  .user = (uint32_t)(w - r->w)};
	return true;
}

static void claim_missing(struct round *r, unsigned n)
{
	struct zc_view *v = r->f->view;
	for (unsigned i = 0; i < n; i++) {
		struct zc_want *w = &r->w[i];
		if (w->error != TODO)
			continue;
		uint64_t hash = zc_hash(v->id, w->page);
		uint32_t frame = zc_table_find(r->f->pool, v->id, w->page, hash);
		if (frame != NONE)
			look_at(r, w, frame, hash);
		else if (!claim(r, w))
			break;
	}
}

/* Under the lock. */
static void publish(struct round *r, struct zc_fill *fill)
{
	struct zc_pool *p = r->f->pool;
	struct zc_view *v = r->f->view;
	struct zc_want *w = &r->w[fill->user];
	struct zc_frame *frame = &p->frames[fill->frame];
	uint64_t start = fill->page << v->shift;
	bool pin = !is_ahead(r->how);

	/* a writer, or one who dropped the page, came between: what was read may be a mixture */
	bool stale = atomic_load(&frame->state) & S_ORPHAN ||
		     zc_range_busy(v->source, start, start + v->page_size);
	zc_flight(p, -(int)zc_units(v->class));
	if (fill->error || stale) {
		zc_frame_discard(p, fill->frame);
		if (pin)
			zc_budget_give(p, zc_units(v->class));
		w->error = !stale ? fill->error : pin ? TODO : -EAGAIN;
		return;
	}
	if (!pin)
		zc_rnode_set_access(&frame->r, ZC_ACCESS_AHEAD);
	zc_frame_publish(p, fill->frame, fill->valid, pin);
	pinned(w, fill->frame, atomic_load(&frame->state));
	w->fresh = true;
}

static void fill_claimed(struct round *r, bool mark)
{
	struct zc_pool *p = r->f->pool;
	struct zc_fill *first = &r->fills[0], *last = &r->fills[r->claimed - 1];
	uint8_t shift = r->f->view->shift;
	if (is_ahead(r->how)) {
		ZC_COUNT(p, readahead, r->claimed);
	} else {
		ZC_COUNT(p, misses, r->claimed);
		if (last->page - first->page == r->claimed - 1)
			zc_ahead_missed(r->f, first->page << shift, (last->page + 1) << shift);
	}
	zc_fill_read(r->f, r->fills, r->claimed);
	pthread_mutex_lock(&p->lock);
	for (unsigned i = 0; i < r->claimed; i++)
		publish(r, &r->fills[i]);
	if (mark && !r->w[first->user].error)
		atomic_fetch_or_explicit(&p->frames[first->frame].r.access, ZC_ACCESS_MARK,
					 memory_order_relaxed);
	pthread_mutex_unlock(&p->lock);
}

static void give_up(struct zc_want *w, unsigned n, int error)
{
	for (unsigned i = 0; i < n; i++)
		if (w[i].error == TODO)
			w[i].error = error;
}

/* Nothing could be claimed: waits for what stands in the way. Called with the lock; leaves it. */
static void wait_unlock(struct round *r, unsigned n)
{
	struct zc_pool *p = r->f->pool;
	if (r->wait_for != NONE) {
		zc_frame_wait_unlock(p, r->wait_for);
		return;
	}
	if (is_ahead(r->how) || (r->no_room && !p->in_flight)) {
		give_up(r->w, n, -ENOBUFS);
	} else if (r->writing) {
		pthread_cond_wait(&r->f->view->source->calm, &p->lock);
		ZC_COUNT(p, waits, 1);
	} else if (r->no_room) {
		p->room_waiters++;
		pthread_cond_wait(&p->room, &p->lock);
		p->room_waiters--;
		ZC_COUNT(p, waits, 1);
	}
	pthread_mutex_unlock(&p->lock);
}

static bool any_todo(const struct zc_want *w, unsigned n)
{
	while (n && w[n - 1].error != TODO)
		n--;
	return n > 0;
}

static void get_missing(struct zc_pool_file *f, struct zc_want *w, unsigned n, enum zc_get how,
			bool mark)
{
	struct round r;
	while (any_todo(w, n)) {
		r.f = f;
		r.how = how;
		r.w = w;
		r.claimed = 0;
		r.wait_for = NONE;
		r.writing = r.no_room = false;
		pthread_mutex_lock(&f->pool->lock);
		claim_missing(&r, n);
		if (!r.claimed) {
			wait_unlock(&r, n);
			continue;
		}
		pthread_mutex_unlock(&f->pool->lock);
		fill_claimed(&r, mark);
		mark = false;
	}
}

static int by_page(const void *a, const void *b)
{
	const struct zc_want *x = a, *y = b;
	return (x->page > y->page) - (x->page < y->page);
}

/* Those that are not there, in the order of the file; then back to their places. */
static void get_sorted(struct zc_pool_file *f, struct zc_want *w, unsigned n, enum zc_get how)
{
	struct zc_want sorted[ZC_BATCH];
	unsigned place[ZC_BATCH], count = 0;
	bool in_order = true;
	uint64_t end = 0;
	for (unsigned i = 0; i < n; i++) {
		if (w[i].error != TODO)
			continue;
		if (w[i].page > (uint64_t)INT64_MAX >> f->view->shift) {
			w[i].error = -ERANGE;
			continue;
		}
		in_order &= !count || sorted[count - 1].page <= w[i].page;
		sorted[count] = w[i];
		sorted[count].frame = i; /* until it has one */
		end = w[i].page >= end ? w[i].page + 1 : end;
		count++;
	}
	if (!count)
		return;
	int err = end << f->view->shift > atomic_load(&f->view->source->size) ? zc_file_refresh(f) : 0;
	if (!in_order)
		qsort(sorted, count, sizeof(sorted[0]), by_page);
	for (unsigned i = 0; i < count; i++)
		place[i] = sorted[i].frame;
	if (err)
		give_up(sorted, count, err);
	get_missing(f, sorted, count, how, how == ZC_GET_STREAM);
	for (unsigned i = 0; i < count; i++)
		w[place[i]] = sorted[i];
}

/* Pins those that are there; returns how many are not. */
static unsigned pin_present(struct zc_pool_file *f, struct zc_want *w, unsigned n, int64_t *units)
{
	struct zc_pool *p = f->pool;
	struct zc_view *v = f->view;
	uint64_t hash[PREFETCH];
	unsigned missing = 0;
	for (unsigned i = 0; i < n; i++) {
		hash[i] = zc_hash(v->id, w[i].page);
		zc_table_prefetch(&p->table, hash[i]);
	}
	for (unsigned i = 0; i < n; i++)
		__builtin_prefetch(&p->frames[zc_table_guess(&p->table, hash[i])], 1);
	for (unsigned i = 0; i < n; i++) {
		enum zc_pinned got = zc_pin(p, v->id, w[i].page, hash[i], &w[i].frame, &w[i].state);
		w[i].fresh = false;
		w[i].error = got == ZC_PINNED ? 0 : got == ZC_PIN_FULL ? -EAGAIN : TODO;
		missing += w[i].error == TODO;
		if (!w[i].error && !(w[i].state & S_SHARED))
			*units += zc_units(v->class);
	}
	return missing;
}

/* The limit was reached by the pins of this batch: one at a time, as far as it goes. */
static void keep_some(struct zc_pool *p, struct zc_want *w, unsigned n, int64_t each)
{
	for (unsigned i = 0; i < n; i++)
		if (!w[i].error && !(w[i].state & S_SHARED) && zc_budget_take(p, each, false)) {
			w[i].error = -ENOBUFS;
			zc_unpin_refused(p, w[i].frame);
		}
}

static void unpin_all(struct zc_pool *p, struct zc_want *w, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		if (!w[i].error)
			zc_unpin(p, w[i].frame);
		w[i].error = -EAGAIN;
	}
}

void zc_pages_get(struct zc_pool_file *f, struct zc_want *w, unsigned n, enum zc_get how)
{
	struct zc_pool *p = f->pool;
	unsigned missing = 0, hits = 0;
	int64_t units = 0;
	if (is_ahead(how)) {
		for (unsigned i = 0; i < n; i++)
			w[i].error = TODO;
		get_sorted(f, w, n, how);
		return;
	}
	for (unsigned i = 0; i < n; i += PREFETCH)
		missing += pin_present(f, w + i, n - i < PREFETCH ? n - i : PREFETCH, &units);
	if (units && zc_budget_take(p, units, how == ZC_GET_READ || how == ZC_GET_CACHED))
		keep_some(p, w, n, zc_units(f->view->class));
	if (how == ZC_GET_CACHED && missing) {
		unpin_all(p, w, n);
		return;
	}
	for (unsigned i = 0; i < n; i++)
		hits += !w[i].error;
	ZC_COUNT(p, hits, hits);
	if (missing)
		get_sorted(f, w, n, how);
}
