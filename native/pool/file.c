/* Open files: what is behind a descriptor, its views, and what changed there.
 *
 * Owns sources (a file as the disk has it, by device, inode and time of birth), views (a source with
 * a page size) and handles (one open). Sources and views live as long as somebody has them open or
 * a frame is of them; so what is opened again finds its pages. Those that nobody has open are bounded.
 *
 * Threads: any. Sources and views are under the pool's lock; system calls are made outside of it.
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../sys.h"
#include "core.h"

#define NONE ZC_NO_FRAME
#define IDLE_MOST 16384u /* sources that nobody has open */

#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x2000U
#endif

/* struct statx by offset, for system headers that lack it (before Linux 6.1). */
#define DIOALIGN_MEM 0x98
#define DIOALIGN_OFFSET 0x9c

/* sources ------------------------------------------------------------------------------------- */

static struct zc_source **chain(struct zc_pool *p, uint64_t dev, uint64_t ino)
{
	return &p->sources[zc_hash(dev, ino) % ZC_SOURCE_CHAINS];
}

static void idle_remove(struct zc_pool *p, struct zc_source *s)
{
	if (!s->idle_listed)
		return;
	*(s->older ? &s->older->younger : &p->idle_oldest) = s->younger;
	*(s->younger ? &s->younger->older : &p->idle_youngest) = s->older;
	s->idle_listed = false;
	p->idle_count--;
}

static void source_free(struct zc_pool *p, struct zc_source *s)
{
	struct zc_source **at = chain(p, s->dev, s->ino);
	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
	idle_remove(p, s);
	p->source_count--;
	pthread_cond_destroy(&s->calm);
	free(s);
}

void zc_view_gone(struct zc_pool *p, struct zc_view *v)
{
	struct zc_source *s = v->source;
	if (v->frames || v->handles)
		return;
	struct zc_view **at = &s->views;
	while (*at != v)
		at = &(*at)->next;
	*at = v->next;
	free(v);
	if (!s->views)
		source_free(p, s);
}

static void view_drop(struct zc_pool *p, struct zc_view *v, uint64_t from, uint64_t to)
{
	uint64_t first = from >> v->shift;
	uint64_t end = to == UINT64_MAX ? UINT64_MAX : (to + v->page_size - 1) >> v->shift;
	v->handles++; /* it stays while we look */
	if (end - first < v->frames) {
		for (uint64_t n = first; n < end; n++) {
			uint32_t frame = zc_table_find(p, v->id, n, zc_hash(v->id, n));
			if (frame != NONE)
				zc_frame_detach(p, frame);
		}
	} else {
		for (uint32_t i = v->first_frame, next; i != NONE; i = next) {
			uint64_t n = atomic_load_explicit(&p->frames[i].page, memory_order_relaxed);
			next = p->frames[i].view_next;
			if (n >= first && n < end)
				zc_frame_detach(p, i);
		}
	}
	v->handles--;
}

void zc_source_drop(struct zc_pool *p, struct zc_source *s, uint64_t from, uint64_t to,
		    const struct zc_view *but)
{
	struct zc_view *next;
	for (struct zc_view *v = s->views; v; v = next) {
		next = v->next;
		if (v == but || from >= to)
			continue;
		view_drop(p, v, from, to);
		zc_view_gone(p, v); /* with the last view the source goes too */
	}
}

static void source_idle(struct zc_pool *p, struct zc_source *s)
{
	s->younger = NULL;
	s->older = p->idle_youngest;
	*(s->older ? &s->older->younger : &p->idle_oldest) = s;
	p->idle_youngest = s;
	s->idle_listed = true;
	if (++p->idle_count <= IDLE_MOST)
		return;
	struct zc_source *oldest = p->idle_oldest;
	zc_source_drop(p, oldest, 0, UINT64_MAX, NULL);
}

static struct zc_source *source_find(struct zc_pool *p, const struct statx *st, uint64_t dev)
{
	for (struct zc_source *s = *chain(p, dev, st->stx_ino); s; s = s->next)
		if (s->dev == dev && s->ino == st->stx_ino && s->born.tv_sec == st->stx_btime.tv_sec &&
		    s->born.tv_nsec == st->stx_btime.tv_nsec)
			return s;
	return NULL;
}

static struct zc_source *source_get(struct zc_pool *p, const struct statx *st)
{
	uint64_t dev = (uint64_t)st->stx_dev_major << 32 | st->stx_dev_minor;
	struct zc_source *s = source_find(p, st, dev);
	if (s)
		return s;
	s = calloc(1, sizeof(*s));
	if (!s)
		return NULL;
	s->dev = dev;
	s->ino = st->stx_ino;
	s->born = st->stx_btime;
	pthread_cond_init(&s->calm, NULL);
	struct zc_source **at = chain(p, dev, s->ino);
	s->next = *at;
	*at = s;
	p->source_count++;
	return s;
}

static struct zc_view *view_get(struct zc_pool *p, struct zc_source *s, uint32_t page_size)
{
	for (struct zc_view *v = s->views; v; v = v->next)
		if (v->page_size == page_size)
			return v;
	struct zc_view *v = calloc(1, sizeof(*v));
	if (!v)
		return NULL;
	v->id = atomic_fetch_add(&p->next_view, 1);
	v->source = s;
	v->page_size = page_size;
	v->shift = (uint8_t)__builtin_ctz(page_size);
	v->class = (uint8_t)(v->shift - ZC_UNIT_SHIFT);
	v->first_frame = NONE;
	v->next = s->views;
	s->views = v;
	return v;
}

/* what the disk says -------------------------------------------------------------------------- */

static int look(struct zc_pool *p, int fd, struct zc_signature *out)
{
	struct stat st;
	ZC_COUNT(p, syscalls, 1);
	int err = ZC_SYSI("fstat", fstat(fd, &st));
	if (err)
		return err;
	*out = (struct zc_signature){.size = (uint64_t)st.st_size, .mtime = st.st_mtim,
				     .ctime = st.st_ctim};
	if (S_ISBLK(st.st_mode))
		return ZC_SYSI("blkgetsize", ioctl(fd, BLKGETSIZE64, &out->size));
	return 0;
}

static bool same(const struct zc_signature *a, const struct zc_signature *b)
{
	return a->size == b->size && a->mtime.tv_sec == b->mtime.tv_sec &&
	       a->mtime.tv_nsec == b->mtime.tv_nsec && a->ctime.tv_sec == b->ctime.tv_sec &&
	       a->ctime.tv_nsec == b->ctime.tv_nsec;
}

/* `now` was looked at when there had been `changes`. Under the lock. 1: others had changed it. */
static int compare(struct zc_pool *p, struct zc_source *s, const struct zc_signature *now,
		   uint64_t changes)
{
	if (s->writers || s->changes != changes || same(now, &s->seen))
		return 0;
	s->seen = *now;
	atomic_store(&s->size, now->size);
	zc_source_drop(p, s, 0, UINT64_MAX, NULL);
	return 1;
}

static uint64_t changes_of(struct zc_pool_file *f)
{
	pthread_mutex_lock(&f->pool->lock);
	uint64_t changes = f->view->source->changes;
	pthread_mutex_unlock(&f->pool->lock);
	return changes;
}

int zc_pool_revalidate(struct zc_pool_file *f)
{
	struct zc_signature now;
	uint64_t changes = changes_of(f);
	int err = look(f->pool, f->fd, &now);
	if (err)
		return err;
	pthread_mutex_lock(&f->pool->lock);
	int changed = compare(f->pool, f->view->source, &now, changes);
	pthread_mutex_unlock(&f->pool->lock);
	return changed;
}

int zc_file_refresh(struct zc_pool_file *f)
{
	struct zc_source *s = f->view->source;
	struct zc_signature now;
	uint64_t changes = changes_of(f);
	int err = look(f->pool, f->fd, &now);
	if (err)
		return err;
	pthread_mutex_lock(&f->pool->lock);
	if (!s->writers && s->changes == changes)
		atomic_store(&s->size, now.size);
	else if (now.size > atomic_load(&s->size)) /* ours may be larger by now, not smaller */
		atomic_store(&s->size, now.size);
	pthread_mutex_unlock(&f->pool->lock);
	return 0;
}

/* changes of our own -------------------------------------------------------------------------- */

bool zc_range_busy(const struct zc_source *s, uint64_t from, uint64_t to)
{
	for (const struct zc_range *r = s->ranges; r; r = r->next)
		if (from < r->to && r->from < to)
			return true;
	return false;
}

void zc_change_enter(struct zc_pool_file *f, struct zc_range *r)
{
	struct zc_pool *p = f->pool;
	struct zc_source *s = f->view->source;
	struct zc_signature now;
	uint64_t changes = changes_of(f);
	bool looked = !look(p, f->fd, &now);

	pthread_mutex_lock(&p->lock);
	if (looked)
		compare(p, s, &now, changes);
	while (zc_range_busy(s, r->from, r->to))
		pthread_cond_wait(&s->calm, &p->lock);
	r->next = s->ranges;
	s->ranges = r;
	s->writers++;
	s->changes++;
	pthread_mutex_unlock(&p->lock);
}

void zc_change_leave(struct zc_pool_file *f, struct zc_range *r)
{
	struct zc_pool *p = f->pool;
	struct zc_source *s = f->view->source;
	struct zc_range **at = &s->ranges;
	struct zc_signature now;

	pthread_mutex_lock(&p->lock);
	while (*at != r)
		at = &(*at)->next;
	*at = r->next;
	pthread_cond_broadcast(&s->calm);
	uint64_t changes = ++s->changes;
	bool last = --s->writers == 0;
	pthread_mutex_unlock(&p->lock);
	if (!last || look(p, f->fd, &now))
		return;
	pthread_mutex_lock(&p->lock);
	if (s->changes == changes) {
		s->seen = now;
		atomic_store(&s->size, now.size);
	}
	pthread_mutex_unlock(&p->lock);
}

void zc_pool_invalidate(struct zc_pool_file *f, uint64_t from, uint64_t to)
{
	pthread_mutex_lock(&f->pool->lock);
	zc_source_drop(f->pool, f->view->source, from, to, NULL);
	pthread_mutex_unlock(&f->pool->lock);
}

/* Drops what a change of size to `size` made wrong. Under the lock. */
static void resized(struct zc_pool *p, struct zc_source *s, uint64_t size)
{
	uint64_t old = atomic_load(&s->size);
	atomic_store(&s->size, size);
	zc_source_drop(p, s, size < old ? size : old, UINT64_MAX, NULL);
}

int zc_pool_truncated(struct zc_pool_file *f)
{
	struct zc_source *s = f->view->source;
	struct zc_signature now;
	int err = look(f->pool, f->fd, &now);
	if (err)
		return err;
	pthread_mutex_lock(&f->pool->lock);
	resized(f->pool, s, now.size);
	s->changes++;
	if (!s->writers)
		s->seen = now;
	pthread_mutex_unlock(&f->pool->lock);
	return 0;
}

int zc_pool_truncate(struct zc_pool_file *f, uint64_t size)
{
	struct zc_source *s = f->view->source;
	if (!f->writable)
		return -EBADF;
	if (size > INT64_MAX)
		return -EFBIG;
	int err = zc_file_refresh(f);
	if (err)
		return err;
	uint64_t old = atomic_load(&s->size);
	struct zc_range r = {.from = (size < old ? size : old) & ~(uint64_t)(ZC_PAGE_MAX - 1),
			     .to = UINT64_MAX};
	zc_change_enter(f, &r);
	ZC_COUNT(f->pool, syscalls, 1);
	err = ZC_SYSI("ftruncate", ftruncate(f->fd, (off_t)size));
	pthread_mutex_lock(&f->pool->lock);
	if (!err)
		resized(f->pool, s, size);
	pthread_mutex_unlock(&f->pool->lock);
	zc_change_leave(f, &r);
	return err;
}

int zc_pool_fsync(struct zc_pool_file *f, bool data_only)
{
	ZC_COUNT(f->pool, syscalls, 1);
	return data_only ? ZC_SYSI("fdatasync", fdatasync(f->fd)) : ZC_SYSI("fsync", fsync(f->fd));
}

/* handles ------------------------------------------------------------------------------------- */

static int reopen(int fd, int flags)
{
	char path[48];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return ZC_SYSI("open", open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
}

/* Reads of ours are no access: an edge that is read before it is written, or readahead. */
static int reopen_quietly(int fd, int flags)
{
	int own = reopen(fd, flags | O_NOATIME);
	return own == -EPERM ? reopen(fd, flags) : own; /* the owner's right alone */
}

int zc_file_io_fd(struct zc_pool_file *f)
{
	return atomic_load(&f->direct) ? f->fd : zc_file_plain_fd(f);
}

int zc_file_plain_fd(struct zc_pool_file *f)
{
	int fd = f->fd_plain ? f->fd : atomic_load(&f->plain_fd), none = -1;
	if (fd >= 0)
		return fd;
	fd = reopen_quietly(f->fd, f->writable ? O_RDWR : O_RDONLY);
	if (fd < 0 || atomic_compare_exchange_strong(&f->plain_fd, &none, fd))
		return fd;
	close(fd);
	return none;
}

void zc_file_not_direct(struct zc_pool_file *f)
{
	atomic_store(&f->direct, false);
}

static void read_alignment(const struct statx *st, struct zc_pool_file *f)
{
	const char *raw = (const char *)st;
	f->mem_align = f->offset_align = ZC_PAGE_MIN;
	if (!(st->stx_mask & STATX_DIOALIGN))
		return;
	uint32_t mem, offset;
	memcpy(&mem, raw + DIOALIGN_MEM, sizeof(mem));
	memcpy(&offset, raw + DIOALIGN_OFFSET, sizeof(offset));
	if (!mem || !offset)
		atomic_store(&f->direct, false);
	if (mem > f->mem_align)
		f->mem_align = mem;
	if (offset > f->offset_align)
		f->offset_align = offset;
}

/* Our own descriptor of the file behind `fd`. */
static int open_own(struct zc_pool_file *f, int fd)
{
	int flags = ZC_SYSI("fcntl", fcntl(fd, F_GETFL));
	if (flags < 0)
		return flags;
	f->writable = (flags & O_ACCMODE) != O_RDONLY;
	int mode = f->writable ? O_RDWR : O_RDONLY;
	int own = reopen_quietly(fd, mode | O_DIRECT);
	atomic_store(&f->direct, own >= 0);
	if (own == -EINVAL) {
		own = reopen_quietly(fd, mode);
		f->fd_plain = true;
	}
	f->fd = own;
	return own < 0 ? own : 0;
}

static int identify(struct zc_pool_file *f, uint32_t page_size, struct statx *st)
{
	int err = ZC_SYSI("statx", statx(f->fd, "", AT_EMPTY_PATH,
					 STATX_BASIC_STATS | STATX_BTIME | STATX_DIOALIGN, st));
	if (err)
		return err;
	if (!S_ISREG(st->stx_mode) && !S_ISBLK(st->stx_mode))
		return -EINVAL;
	read_alignment(st, f);
	if (f->mem_align > page_size || f->offset_align > page_size)
		atomic_store(&f->direct, false);
	return 0;
}

/* Under the lock. */
static int attach(struct zc_pool *p, struct zc_pool_file *f, const struct statx *st,
		  uint32_t page_size)
{
	struct zc_source *s = source_get(p, st);
	if (!s)
		return -ENOMEM;
	struct zc_view *v = view_get(p, s, page_size);
	if (!v) {
		if (!s->views)
			source_free(p, s);
		return -ENOMEM;
	}
	idle_remove(p, s);
	f->view = v;
	v->handles++;
	s->handles++;
	p->handle_count++;
	return 0;
}

static void detach(struct zc_pool *p, struct zc_view *v)
{
	struct zc_source *s = v->source;
	p->handle_count--;
	v->handles--;
	bool idle = --s->handles == 0;
	bool gone = !v->frames && !v->handles && s->views == v && !v->next;
	zc_view_gone(p, v);
	if (idle && !gone)
		source_idle(p, s);
}

static void file_end(struct zc_pool_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	if (atomic_load(&f->plain_fd) >= 0)
		close(atomic_load(&f->plain_fd));
	free(f);
}

int zc_pool_open(struct zc_pool *p, int fd, uint32_t page_size, struct zc_pool_file **out)
{
	if (!page_size)
		page_size = p->default_page;
	if (page_size < ZC_PAGE_MIN || page_size > ZC_PAGE_MAX || page_size & (page_size - 1))
		return -EINVAL;
	struct zc_pool_file *f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->pool = p;
	f->fd = -1;
	atomic_init(&f->plain_fd, -1);
	atomic_init(&f->refs, 1);
	atomic_init(&f->last_page, UINT64_MAX);
	struct statx st;
	int err = open_own(f, fd);
	if (!err)
		err = identify(f, page_size, &st);
	if (!err) {
		pthread_mutex_lock(&p->lock);
		err = attach(p, f, &st, page_size);
		pthread_mutex_unlock(&p->lock);
	}
	if (err) {
		file_end(f);
		return err;
	}
	err = zc_pool_revalidate(f);
	if (err < 0) {
		zc_pool_close(f);
		return err;
	}
	*out = f;
	return 0;
}

void zc_file_put(struct zc_pool_file *f)
{
	struct zc_pool *p = f->pool;
	if (atomic_fetch_sub(&f->refs, 1) != 1)
		return;
	pthread_mutex_lock(&p->lock);
	detach(p, f->view);
	pthread_mutex_unlock(&p->lock);
	file_end(f);
}

void zc_pool_close(struct zc_pool_file *f)
{
	zc_file_put(f);
}

int zc_pool_file_info(struct zc_pool_file *f, struct zc_pool_file_info *out)
{
	int err = zc_file_refresh(f);
	if (err)
		return err;
	*out = (struct zc_pool_file_info){
		.size = atomic_load(&f->view->source->size),
		.page_size = f->view->page_size,
		.mem_align = f->mem_align,
		.offset_align = f->offset_align,
		.direct = atomic_load(&f->direct),
		.writable = f->writable,
	};
	return 0;
}
