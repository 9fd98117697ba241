/* Bytes for the mount: any offset and length, from the frames of the pages around them. Any thread. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../sys.h"
#include "core.h"

#define BOUNCE ((size_t)256 << 10)

/* How much of off … off + len - 1 the file has. */
static ssize_t clamp_len(struct zc_pool_file *f, uint64_t off, size_t len)
{
	struct zc_source *s = f->view->source;
	if (off > INT64_MAX)
		return -EINVAL;
	if (len > SSIZE_MAX)
		len = SSIZE_MAX;
	if (len > INT64_MAX - off)
		len = INT64_MAX - off;
	if (off + len > atomic_load(&s->size)) {
		int err = zc_file_refresh(f);
		if (err)
			return err;
	}
	uint64_t size = atomic_load(&s->size);
	if (off >= size)
		return 0;
	return (ssize_t)(len < size - off ? len : size - off);
}

/* Past the pool, through memory of its own. */
static ssize_t bypass(struct zc_pool_file *f, uint64_t off, char *buf, size_t len)
{
	uint64_t block = f->offset_align, at = off & ~(block - 1);
	size_t before = (size_t)(off - at);
	size_t whole = (before + len + block - 1) & ~(block - 1);
	void *mem;
	if (whole > BOUNCE)
		whole = BOUNCE;
	if (posix_memalign(&mem, f->mem_align, whole))
		return -ENOMEM;
	int fd = zc_file_io_fd(f);
	ZC_COUNT(f->pool, syscalls, 1);
	ssize_t n = fd < 0 ? fd : ZC_SYS("pread", pread(fd, mem, whole, (off_t)at));
	if (n > 0) {
		size_t got = (size_t)n > before ? (size_t)n - before : 0;
		n = (ssize_t)(got < len ? got : len);
		memcpy(buf, (char *)mem + before, (size_t)n);
		ZC_COUNT(f->pool, bytes_copied, n);
		ZC_COUNT(f->pool, bypass, n);
	}
	free(mem);
	return n;
}

/* A pinned page that was asked for `in` … in + len - 1, which the file has. How much it can give. If
 * that is less, it was read when the file was shorter, and is dropped. */
static size_t page_part(struct zc_pool_file *f, const struct zc_want *w, size_t in, size_t len)
{
	struct zc_pool *p = f->pool;
	struct zc_view *v = f->view;
	uint32_t valid = atomic_load_explicit(&p->frames[w->frame].valid, memory_order_relaxed);
	if (in + len <= valid)
		return len;
	pthread_mutex_lock(&p->lock);
	if (zc_table_find(p, v->id, w->page, zc_hash(v->id, w->page)) == w->frame)
		zc_frame_detach(p, w->frame);
	pthread_mutex_unlock(&p->lock);
	return in < valid ? valid - in : 0;
}

/* For the replacement and for readahead. Reading on in the same page is no new use of it. */
static void note_use(struct zc_pool_file *f, const struct zc_want *w)
{
	if (atomic_load_explicit(&f->last_page, memory_order_relaxed) == w->page)
		return;
	atomic_store_explicit(&f->last_page, w->page, memory_order_relaxed);
	if (!w->fresh && zc_touch(f->pool, w->frame))
		zc_ahead_marked(f);
}

/* One page that is there: the common case. False: it is not. */
static bool read_hit(struct zc_pool_file *f, uint64_t off, char *buf, size_t len, size_t *done)
{
	struct zc_pool *p = f->pool;
	struct zc_view *v = f->view;
	struct zc_want w = {.page = off >> v->shift};
	size_t in = (size_t)(off & (v->page_size - 1)), n = v->page_size - in;

	if (zc_pin(p, v->id, w.page, zc_hash(v->id, w.page), &w.frame, &w.state) != ZC_PINNED)
		return false;
	if (!(w.state & S_SHARED))
		zc_budget_take(p, zc_units(v->class), true);
	n = page_part(f, &w, in, n < len ? n : len);
	memcpy(buf, zc_frame_data(p, w.frame) + in, n);
	if (n) {
		note_use(f, &w);
		ZC_COUNT(p, hits, 1);
	}
	zc_unpin(p, w.frame);
	*done = n;
	return n > 0;
}

static unsigned make_wants(struct zc_pool_file *f, uint64_t off, size_t len, struct zc_want *w,
			   unsigned most)
{
	struct zc_view *v = f->view;
	uint64_t first = off >> v->shift, last = (off + len - 1) >> v->shift;
	unsigned n = last - first < most ? (unsigned)(last - first + 1) : most;
	if (n > ZC_BATCH)
		n = ZC_BATCH;
	if (n > f->pool->units / 16 >> v->class) /* a sixteenth of the pool */
		n = f->pool->units / 16 >> v->class;
	for (unsigned i = 0; i < n; i++)
		w[i] = (struct zc_want){.page = first + i};
	return n;
}

/* Several pages, some of which are missing. Bytes, short after a page that has less than it should;
 * or -errno. */
static ssize_t read_batch(struct zc_pool_file *f, uint64_t off, char *buf, size_t len)
{
	struct zc_want w[ZC_BATCH];
	struct zc_pool *p = f->pool;
	struct zc_view *v = f->view;
	unsigned n = make_wants(f, off, len, w, ZC_BATCH);
	size_t done = 0;
	ssize_t err = 0;
	bool on = true;

	zc_pages_get(f, w, n, ZC_GET_READ);
	for (unsigned i = 0; i < n; i++) {
		size_t in = (size_t)((off + done) & (v->page_size - 1)), part = v->page_size - in;
		part = part < len - done ? part : len - done;
		if (on && !w[i].error) {
			size_t got = page_part(f, &w[i], in, part);
			memcpy(buf + done, zc_frame_data(p, w[i].frame) + in, got);
			ZC_COUNT(p, bytes_copied, got);
			note_use(f, &w[i]);
			done += got;
			on = got == part;
		} else if (on && w[i].error != -ERANGE) {
			ssize_t got = bypass(f, off + done, buf + done, part);
			err = got < 0 ? got : 0;
			done += got > 0 ? (size_t)got : 0;
			on = got == (ssize_t)part;
		} else {
			on = false;
		}
		if (!w[i].error)
			zc_unpin(p, w[i].frame);
	}
	return done ? (ssize_t)done : err;
}

ssize_t zc_pool_read(struct zc_pool_file *f, uint64_t off, void *buf, size_t len)
{
	ssize_t want = clamp_len(f, off, len);
	size_t done = 0, hit = 0;
	unsigned empty = 0;
	if (want <= 0)
		return want;
	while (done < (size_t)want) {
		char *at = (char *)buf + done;
		size_t n = 0;
		if (read_hit(f, off + done, at, (size_t)want - done, &n)) {
			hit += n;
			done += n;
			continue;
		}
		ssize_t got = read_batch(f, off + done, at, (size_t)want - done);
		if (got < 0) {
			if (!done)
				return got;
			break;
		}
		if (!got && empty++) /* a page of the old end is dropped by the first attempt */
			break;
		done += (size_t)got;
	}
	if (hit)
		ZC_COUNT(f->pool, bytes_copied, hit);
	return (ssize_t)done;
}

ssize_t zc_pool_read_segments(struct zc_pool_file *f, uint64_t off, size_t len,
			      struct zc_segment *segments, unsigned *count)
{
	struct zc_pool *p = f->pool;
	struct zc_view *v = f->view;
	struct zc_want w[ZC_BATCH];
	ssize_t want = clamp_len(f, off, len);
	size_t done = 0;
	unsigned used = 0, most = *count, empty = 0;
	int err = 0;
	bool on = true;

	if (want < 0)
		return want;
	while (on && done < (size_t)want && used < most) {
		unsigned n = make_wants(f, off + done, (size_t)want - done, w, most - used);
		size_t before = done;
		zc_pages_get(f, w, n, ZC_GET_BORROW);
		for (unsigned i = 0; i < n; i++) {
			size_t in = (size_t)((off + done) & (v->page_size - 1));
			size_t part = v->page_size - in, got = 0;
			part = part < (size_t)want - done ? part : (size_t)want - done;
			if (on && !w[i].error)
				got = page_part(f, &w[i], in, part);
			if (got) {
				note_use(f, &w[i]);
				segments[used++] = (struct zc_segment){
					zc_frame_data(p, w[i].frame) + in, got, w[i].frame};
			} else if (!w[i].error) {
				zc_unpin(p, w[i].frame);
			} else if (on && w[i].error != -ERANGE) {
				err = w[i].error;
			}
			done += got;
			on = on && got == part;
		}
		if (!on && !err && done < (size_t)want && (done > before || !empty++))
			on = true; /* as in zc_pool_read */
	}
	if (err && !done)
		return err;
	*count = used;
	return (ssize_t)done;
}

/* All wanted pages are pinned; whether they have all the bytes, which are in `segments` then. */
static bool take_cached(struct zc_pool_file *f, uint64_t off, size_t want, const struct zc_want *w,
			unsigned n, struct zc_segment *segments)
{
	size_t done = 0, size = f->view->page_size;
	for (unsigned i = 0; i < n; i++) {
		size_t in = (size_t)((off + done) & (size - 1)), part = size - in;
		part = part < want - done ? part : want - done;
		if (page_part(f, &w[i], in, part) < part)
			return false;
		segments[i] = (struct zc_segment){zc_frame_data(f->pool, w[i].frame) + in, part,
						  w[i].frame};
		done += part;
	}
	for (unsigned i = 0; i < n; i++)
		note_use(f, &w[i]);
	return true;
}

ssize_t zc_pool_read_cached(struct zc_pool_file *f, uint64_t off, size_t len,
			    struct zc_segment *segments, unsigned *count)
{
	struct zc_want w[ZC_BATCH];
	ssize_t want = clamp_len(f, off, len);
	bool all = true;
	if (want <= 0) {
		*count = want < 0 ? *count : 0;
		return want;
	}
	unsigned n = make_wants(f, off, (size_t)want, w, *count);
	if ((w[n - 1].page + 1) << f->view->shift < off + (size_t)want) /* for one batch too many */
		return -EAGAIN;
	zc_pages_get(f, w, n, ZC_GET_CACHED);
	for (unsigned i = 0; i < n; i++)
		all &= !w[i].error;
	if (all && take_cached(f, off, (size_t)want, w, n, segments)) {
		*count = n;
		return want;
	}
	for (unsigned i = 0; i < n; i++)
		if (!w[i].error)
			zc_unpin(f->pool, w[i].frame);
	return -EAGAIN;
}

void zc_segments_release(struct zc_pool *p, struct zc_segment *segments, unsigned count)
{
	int64_t units = 0;
	for (unsigned i = 0; i < count; i++)
		zc_unpin_raw(p, segments[i].frame, &units);
	zc_budget_give(p, units);
}
