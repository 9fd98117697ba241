/* Writing through.
 *
 * A write makes new frames for its pages, whole: the bytes around an unaligned edge come from the
 * cached page or the disk. From these it goes to the disk, and only then do they take the place of the
 * old ones in the table; so readers and borrowers see the old page until the new one is on the disk, and
 * keep what they have borrowed.
 *
 * O_DIRECT writes whole blocks. Blocks that lie within the file are written so; of a block with
 * the end of the file in it, or behind it, whose bytes we have not all been given, just these are written
 * through the page cache: so the end comes out exact, whoever else extends the file. The kernel keeps the
 * two consistent, block by block.
 *
 * Threads: any. Writers of the same page of the file wait for one another (zc_change_enter).
 */
#include <limits.h>
#include <string.h>
#include <sys/uio.h>

#include "../sys.h"
#include "core.h"

#define NONE ZC_NO_FRAME
#define IOV 64
#define PIECE_PART 16 /* of the arena, in the new frames of one write */

/* extents ------------------------------------------------------------------------------------- */

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Where the byte at `at` lies, and how many follow in one piece of memory. */
static char *place(struct zc_pool_file *f, const struct zc_extent *e, uint64_t at, size_t *len)
{
	struct zc_view *v = f->view;
	uint64_t page = at >> v->shift, in = at & (v->page_size - 1);
	const uint32_t *frame = &e->frames[page - e->first];
	uint64_t last = (e->to - 1) >> v->shift;
	*len = v->page_size - in;
	for (; page < last && frame[1] == frame[0] + zc_units(v->class); page++, frame++)
		*len += v->page_size;
	return (char *)zc_frame_data(f->pool, e->frames[(at >> v->shift) - e->first]) + in;
}

/* Through the page cache. How far it came, beginning at `at`; -errno: nowhere. */
static int64_t write_plain(struct zc_pool_file *f, const struct zc_extent *e, uint64_t at, uint64_t to)
{
	uint64_t from = at;
	int fd = zc_file_plain_fd(f);
	if (fd < 0)
		return fd;
	while (at < to) {
		struct iovec iov[IOV];
		int n = 0;
		for (uint64_t next = at; n < IOV && next < to; n++) {
			iov[n].iov_base = place(f, e, next, &iov[n].iov_len);
			iov[n].iov_len = least(iov[n].iov_len, to - next);
			next += iov[n].iov_len;
		}
		ZC_COUNT(f->pool, syscalls, 1);
		ssize_t done = ZC_SYS("pwritev2", pwritev2(fd, iov, n, (off_t)at, e->rw_flags));
		if (done == -EINTR)
			continue;
		if (done <= 0)
			return at > from ? (int64_t)(at - from) : done < 0 ? done : -EIO;
		at += (uint64_t)done;
	}
	return (int64_t)(at - from);
}

/* One batch. */
static int64_t write_batch(struct zc_pool_file *f, const struct zc_extent *e, uint64_t at, uint64_t to)
{
	struct zc_io_req reqs[ZC_BATCH];
	uint64_t next = at, done = 0, block = f->offset_align;
	unsigned n = 0;
	for (; n < ZC_BATCH && next < to; n++) {
		size_t len;
		char *mem = place(f, e, next, &len);
		len = least(least(len, to - next), ZC_IO_MOST);
		reqs[n] = (struct zc_io_req){.op = ZC_IO_WRITE, .fd = f->fd, .buf = mem, .len = len,
					     .off = (off_t)next, .rw_flags = e->rw_flags};
		next += len;
	}
	zc_io_run(f->pool, reqs, n);
	for (unsigned i = 0; i < n; i++) {
		if (reqs[i].result < 0 && !done)
			return reqs[i].result;
		if (reqs[i].result < 0)
			break;
		done += (uint64_t)reqs[i].result;
		if ((size_t)reqs[i].result < reqs[i].len)
			break;
	}
	return (int64_t)(done & ~(block - 1));
}

/* Whole blocks. */
static int64_t write_direct(struct zc_pool_file *f, const struct zc_extent *e, uint64_t at, uint64_t to)
{
	uint64_t from = at;
	while (at < to) {
		int64_t done = atomic_load(&f->direct) ? write_batch(f, e, at, to)
						       : write_plain(f, e, at, to);
		if (done == -EINVAL && atomic_load(&f->direct)) {
			zc_file_not_direct(f);
			continue;
		}
		if (done <= 0)
			return at > from ? (int64_t)(at - from) : done < 0 ? done : -EIO;
		at += (uint64_t)done;
	}
	return (int64_t)(at - from);
}

struct part {
	uint64_t from, to;
	int64_t (*write)(struct zc_pool_file *f, const struct zc_extent *e, uint64_t at, uint64_t to);
};

ssize_t zc_extent_write(struct zc_pool_file *f, const struct zc_extent *e)
{
	uint64_t block = f->offset_align;
	uint64_t a = e->from & ~(block - 1), b = (e->to + block - 1) & ~(block - 1);
	uint64_t at = e->from;

	if (a < e->from && a + block > e->size)
		a += block;
	if (b > e->to && b > e->size)
		b -= block;
	if (a >= b || !atomic_load(&f->direct))
		a = b = e->to;
	const struct part parts[] = {
		{e->from, a, write_plain},
		{a, b, write_direct},
		{b, e->to, write_plain},
	};
	for (unsigned i = 0; i < 3; i++) {
		if (parts[i].from >= parts[i].to)
			continue;
		int64_t done = parts[i].write(f, e, parts[i].from, parts[i].to);
		if (done > 0) {
			at = parts[i].from + (uint64_t)done;
			ZC_COUNT(f->pool, bytes_written, done);
		} else if (at <= e->from) {
			return done;
		}
		if (done < (int64_t)(parts[i].to - parts[i].from))
			break;
	}
	return at > e->from ? (ssize_t)(least(at, e->to) - e->from) : -EIO;
}

/* writes -------------------------------------------------------------------------------------- */

struct write {
	struct zc_pool_file *f;
	uint64_t off, end;
	const char *buf;
	int rw_flags;
	uint64_t first;
	unsigned pages;
	uint32_t frames[ZC_BATCH];
};

/* Under the lock. */
static void give_back(struct write *w, unsigned n)
{
	struct zc_pool *p = w->f->pool;
	for (unsigned i = 0; i < n; i++)
		zc_frame_discard(p, w->frames[i]);
	zc_flight(p, -(int)(n * zc_units(w->f->view->class)));
}

static bool get_frames(struct write *w)
{
	struct zc_pool *p = w->f->pool;
	unsigned n = 0, class = w->f->view->class;
	pthread_mutex_lock(&p->lock);
	for (; n < w->pages; n++) {
		w->frames[n] = zc_frame_alloc(p, class);
		if (w->frames[n] == NONE)
			break;
		zc_flight(p, (int)zc_units(class));
	}
	if (n < w->pages)
		give_back(w, n);
	pthread_mutex_unlock(&p->lock);
	return n == w->pages;
}

/* The page as it is cached, if that is the whole of it. */
static bool copy_cached(struct write *w, uint64_t page, uint32_t to, uint64_t valid)
{
	struct zc_pool *p = w->f->pool;
	struct zc_view *v = w->f->view;
	uint32_t from;
	uint64_t state;
	if (zc_pin(p, v->id, page, zc_hash(v->id, page), &from, &state) != ZC_PINNED)
		return false;
	if (!(state & S_SHARED))
		zc_budget_take(p, zc_units(v->class), true);
	bool whole = atomic_load_explicit(&p->frames[from].valid, memory_order_relaxed) == valid;
	if (whole) {
		memcpy(zc_frame_data(p, to), zc_frame_data(p, from), v->page_size);
		ZC_COUNT(p, bytes_copied, v->page_size);
	}
	zc_unpin(p, from);
	return whole;
}

/* Sets up the first or last page, of which not all is given. True: it has to be read from the disk. */
static bool edge_missing(struct write *w, unsigned i)
{
	struct zc_view *v = w->f->view;
	uint64_t page = w->first + i, start = page << v->shift, end = start + v->page_size;
	uint64_t size = atomic_load(&v->source->size), has = least(size, end);
	uint8_t *data = zc_frame_data(w->f->pool, w->frames[i]);
	bool before = start < w->off && start < size, after = w->end < has;

	if ((before || after) && copy_cached(w, page, w->frames[i], has - start))
		return false;
	if (before || after)
		return true;
	if (start < w->off)
		memset(data, 0, w->off - start);
	if (w->end < end)
		memset(data + (w->end - start), 0, end - w->end);
	return false;
}

static int load_edges(struct write *w)
{
	struct zc_view *v = w->f->view;
	struct zc_fill fills[2];
	unsigned n = 0;
	if (edge_missing(w, 0))
		fills[n++] = (struct zc_fill){.page = w->first, .frame = w->frames[0]};
	if (w->pages > 1 && edge_missing(w, w->pages - 1))
		fills[n++] = (struct zc_fill){.page = w->first + w->pages - 1,
					      .frame = w->frames[w->pages - 1]};
	if (n)
		zc_fill_read(w->f, fills, n);
	for (unsigned i = 0; i < n; i++) {
		if (fills[i].error == -ERANGE) /* the file became shorter: as a hole */
			memset(zc_frame_data(w->f->pool, fills[i].frame), 0, v->page_size);
		else if (fills[i].error)
			return fills[i].error;
	}
	return 0;
}

static void copy_in(struct write *w)
{
	struct zc_view *v = w->f->view;
	for (uint64_t at = w->off; at < w->end;) {
		uint64_t in = at & (v->page_size - 1), n = least(v->page_size - in, w->end - at);
		uint32_t frame = w->frames[(at >> v->shift) - w->first];
		memcpy(zc_frame_data(w->f->pool, frame) + in, w->buf + (at - w->off), n);
		at += n;
	}
	ZC_COUNT(w->f->pool, bytes_copied, w->end - w->off);
}

static void drop_cached(struct zc_pool *p, struct zc_view *v, uint64_t page)
{
	uint32_t old = zc_table_find(p, v->id, page, zc_hash(v->id, page));
	if (old != NONE)
		zc_frame_detach(p, old);
}

static void grow(struct zc_source *s, uint64_t end)
{
	if (end > atomic_load(&s->size))
		atomic_store(&s->size, end);
}

/* The new pages take the place of the old, as far as they are on the disk; of the others nobody knows. */
static void publish(struct write *w, uint64_t written_to)
{
	struct zc_pool *p = w->f->pool;
	struct zc_view *v = w->f->view;
	pthread_mutex_lock(&p->lock);
	grow(v->source, written_to);
	uint64_t size = atomic_load(&v->source->size);
	for (unsigned i = 0; i < w->pages; i++) {
		uint64_t page = w->first + i, start = page << v->shift;
		drop_cached(p, v, page);
		if (least(w->end, start + v->page_size) > written_to) {
			zc_frame_discard(p, w->frames[i]);
			continue;
		}
		zc_frame_claim(p, w->frames[i], v, page);
		zc_frame_publish(p, w->frames[i], (uint32_t)least(v->page_size, size - start), 0);
	}
	zc_flight(p, -(int)(w->pages * zc_units(v->class)));
	zc_source_drop(p, v->source, w->first << v->shift, (w->first + w->pages) << v->shift, v);
	pthread_mutex_unlock(&p->lock);
}

/* Past the pool, when it has no room. */
static ssize_t write_past(struct write *w)
{
	struct zc_pool *p = w->f->pool;
	struct zc_view *v = w->f->view;
	struct iovec iov = {(void *)(uintptr_t)w->buf, w->end - w->off};
	int fd = zc_file_plain_fd(w->f);
	ZC_COUNT(p, syscalls, 1);
	ssize_t n = fd < 0 ? fd
			   : ZC_SYS("pwritev2", pwritev2(fd, &iov, 1, (off_t)w->off, w->rw_flags));
	pthread_mutex_lock(&p->lock);
	if (n > 0)
		grow(v->source, w->off + (uint64_t)n);
	zc_source_drop(p, v->source, w->off, w->end, NULL);
	pthread_mutex_unlock(&p->lock);
	if (n > 0) {
		ZC_COUNT(p, bypass, n);
		ZC_COUNT(p, bytes_written, n);
	}
	return n;
}

static ssize_t write_piece(struct write *w)
{
	struct zc_view *v = w->f->view;
	w->first = w->off >> v->shift;
	w->pages = (unsigned)(((w->end - 1) >> v->shift) - w->first + 1);
	if (!get_frames(w))
		return write_past(w);
	int err = load_edges(w);
	if (err) {
		pthread_mutex_lock(&w->f->pool->lock);
		give_back(w, w->pages);
		pthread_mutex_unlock(&w->f->pool->lock);
		return err;
	}
	copy_in(w);
	struct zc_extent e = {.first = w->first, .from = w->off, .to = w->end,
			      .size = atomic_load(&v->source->size), .frames = w->frames,
			      .rw_flags = w->rw_flags};
	ssize_t n = zc_extent_write(w->f, &e);
	publish(w, n > 0 ? w->off + (uint64_t)n : 0);
	return n;
}

/* End of the pages that are written together with the one at `off`. */
static uint64_t piece_end(struct zc_pool_file *f, uint64_t off)
{
	struct zc_view *v = f->view;
	uint64_t most = least(ZC_IO_MOST, f->pool->arena_len / PIECE_PART);
	most = least(most, (uint64_t)ZC_BATCH << v->shift) & ~(uint64_t)(v->page_size - 1);
	return (off & ~(uint64_t)(v->page_size - 1)) + most;
}

ssize_t zc_pool_write(struct zc_pool_file *f, uint64_t off, const void *buf, size_t len, int rw_flags)
{
	struct zc_view *v = f->view;
	struct write w = {.f = f, .rw_flags = rw_flags};
	ssize_t err = 0;
	uint64_t at = off;

	if (!f->writable)
		return -EBADF;
	if (rw_flags & ~(RWF_DSYNC | RWF_SYNC))
		return -EINVAL;
	if (off > INT64_MAX || len > SSIZE_MAX || len > INT64_MAX - off - ZC_PAGE_MAX)
		return -EFBIG;
	if (!len)
		return 0;
	uint64_t end = off + len, mask = v->page_size - 1;
	struct zc_range r = {.from = off & ~mask, .to = (end + mask) & ~mask};
	zc_change_enter(f, &r);
	while (at < end) {
		w.off = at;
		w.end = least(end, piece_end(f, at));
		w.buf = (const char *)buf + (at - off);
		ssize_t n = write_piece(&w);
		if (n < 0)
			err = n;
		if (n <= 0)
			break;
		at += (uint64_t)n;
		if (at < w.end)
			break;
	}
	zc_change_leave(f, &r);
	return at > off ? (ssize_t)(at - off) : err;
}
