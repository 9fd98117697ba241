/* The pool as Python borrows from it (zcfs.h): lifetimes over pool/pool.h.
 *
 * Owns a pool and, for each 4 KiB of its arena, a slot that says what is borrowed there. Shared borrows
 * of a page are all alike, so the address of the data is enough to end one; which lets Python hang the
 * borrow on the buffer object that its views refer to.
 *
 * Threads: any. The pool and each file are counted by their users: "open" is one, each call under
 * way another, and for the pool each file and each borrow. Who drops the last use ends the thing
 * itself; so closing waits for nobody, and a borrow that ends after the pool was closed takes the arena
 * with it. `owners` keeps the memory of the struct for the address that Python holds.
 *
 * The child of a fork has the memory and none of the threads: there every call fails, and what ends
 * ends without a word to the pool.
 *
 * A slot is written by whoever has just borrowed the page. Two who borrow the same page at a time write
 * the same values, for it cannot change while it is borrowed; hence relaxed atomics are enough.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "pool/pool.h"
#include "zcfs.h"

#define BATCH 256u
#define SLOT_SHIFT 12
#define EXCLUSIVE (1u << 31) /* in a slot's count */

struct slot {
	_Atomic uint64_t number, version;
	_Atomic uint32_t valid, frame, flags;
	_Atomic uint32_t file;
	_Atomic uint32_t count; /* shared borrows, or EXCLUSIVE */
};

struct zcfs_pool {
	struct zc_pool *core;
	const uint8_t *arena;
	struct slot *slots;
	size_t slot_count;
	uint32_t process; /* that made it */
	_Atomic uint64_t uses;
	_Atomic int64_t leaked; /* pages */
	_Atomic uint32_t owners;
	_Atomic bool closed;
};

struct zcfs_file {
	struct zc_pool_file *core;
	struct zcfs_pool *pool;
	uint32_t id, page_size;
	_Atomic uint64_t uses;
	_Atomic uint32_t owners;
	_Atomic bool closed;
};

/* Forks ------------------------------------------------------------------------------------------- */

static _Atomic uint32_t process; /* grows with each fork, in the child */

static void in_child(void)
{
	atomic_fetch_add(&process, 1);
}

static void watch_forks(void)
{
	pthread_atfork(NULL, NULL, in_child);
}

static bool forked(const struct zcfs_pool *p)
{
	return p->process != atomic_load_explicit(&process, memory_order_relaxed);
}

/* Uses -------------------------------------------------------------------------------------------- */

/* False: it was closed. */
static bool use(_Atomic uint64_t *uses, const _Atomic bool *closed)
{
	uint64_t n = atomic_load_explicit(uses, memory_order_relaxed);

	do {
		if (!n || atomic_load_explicit(closed, memory_order_relaxed))
			return false;
	} while (!atomic_compare_exchange_weak_explicit(uses, &n, n + 1, memory_order_acquire,
							memory_order_relaxed));
	return true;
}

static void pool_disown(struct zcfs_pool *p)
{
	if (atomic_fetch_sub(&p->owners, 1) == 1)
		free(p);
}

static void pool_unuse(struct zcfs_pool *p)
{
	if (atomic_fetch_sub_explicit(&p->uses, 1, memory_order_acq_rel) != 1 || forked(p))
		return;
	zc_pool_destroy(p->core);
	munmap(p->slots, p->slot_count * sizeof(*p->slots));
	pool_disown(p);
}

static bool pool_use(struct zcfs_pool *p)
{
	return !forked(p) && use(&p->uses, &p->closed);
}

static bool file_use(struct zcfs_file *f)
{
	return !forked(f->pool) && use(&f->uses, &f->closed);
}

static void file_disown(struct zcfs_file *f)
{
	if (atomic_fetch_sub(&f->owners, 1) == 1)
		free(f);
}

static void file_unuse(struct zcfs_file *f)
{
	if (atomic_fetch_sub_explicit(&f->uses, 1, memory_order_acq_rel) != 1 || forked(f->pool))
		return;
	zc_pool_close(f->core);
	pool_unuse(f->pool);
	file_disown(f);
}

/* The pool ---------------------------------------------------------------------------------------- */

uint64_t zcfs_pool_min_size(void)
{
	return ZC_POOL_MIN_SIZE;
}

/* Slots are touched as they are used: most of them never, where pages are larger than 4 KiB. */
static int slots_create(struct zcfs_pool *p)
{
	size_t len;

	p->arena = zc_pool_arena(p->core, &len);
	p->slot_count = len >> SLOT_SHIFT;
	p->slots = mmap(NULL, p->slot_count * sizeof(*p->slots), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p->slots == MAP_FAILED)
		return -ENOMEM;
	madvise(p->slots, p->slot_count * sizeof(*p->slots), MADV_HUGEPAGE);
	return 0;
}

int zcfs_pool_create(uint64_t size, uint32_t frame_size, const char *io, const char *policy,
		     struct zcfs_pool **out)
{
	struct zc_pool_options options = {
		.size = size, .frame_size = frame_size, .io = io, .policy = policy};
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct zcfs_pool *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	pthread_once(&once, watch_forks);
	p->process = atomic_load(&process);
	int err = zc_pool_create(&options, &p->core);
	if (!err) {
		err = slots_create(p);
		if (err)
			zc_pool_destroy(p->core);
	}
	if (err) {
		free(p);
		return err;
	}
	atomic_store(&p->uses, 1);
	atomic_store(&p->owners, 2); /* the caller, and the uses */
	*out = p;
	return 0;
}

void zcfs_pool_close(struct zcfs_pool *p)
{
	if (!atomic_exchange(&p->closed, true))
		pool_unuse(p);
}

void zcfs_pool_free(struct zcfs_pool *p)
{
	zcfs_pool_close(p);
	pool_disown(p);
}

int zcfs_pool_closed(const struct zcfs_pool *p)
{
	return forked(p) || atomic_load_explicit(&p->closed, memory_order_relaxed);
}

void zcfs_pool_leak(struct zcfs_pool *p, int64_t pages)
{
	atomic_fetch_add_explicit(&p->leaked, pages, memory_order_relaxed);
}

const char *zcfs_pool_io(struct zcfs_pool *p)
{
	if (!pool_use(p))
		return NULL;
	const char *name = zc_pool_io_name(p->core);
	pool_unuse(p);
	return name;
}

const char *zcfs_pool_policy(struct zcfs_pool *p)
{
	if (!pool_use(p))
		return NULL;
	const char *name = zc_pool_policy_name(p->core);
	pool_unuse(p);
	return name;
}

#define FIGURE(field) {#field, offsetof(struct zc_pool_stats, field)}
#define CLASSES(field) \
	{#field "_4k", offsetof(struct zc_pool_stats, field[0])}, \
	{#field "_8k", offsetof(struct zc_pool_stats, field[1])}, \
	{#field "_16k", offsetof(struct zc_pool_stats, field[2])}, \
	{#field "_32k", offsetof(struct zc_pool_stats, field[3])}, \
	{#field "_64k", offsetof(struct zc_pool_stats, field[4])}

static const struct figure {
	const char *name;
	size_t at;
} figures[] = {
	FIGURE(hits), FIGURE(misses), FIGURE(readahead), FIGURE(evictions), FIGURE(bytes_read),
	FIGURE(bytes_written), FIGURE(bytes_copied), FIGURE(bypass_bytes), FIGURE(waits),
	FIGURE(requests), FIGURE(syscalls), FIGURE(borrowed), FIGURE(borrow_limit), FIGURE(size),
	FIGURE(free_slabs), FIGURE(files), CLASSES(frames), CLASSES(used),
};

int zcfs_pool_statistics(struct zcfs_pool *p, const char **names, uint64_t *values, int max)
{
	struct zc_pool_stats stats;
	int n = (int)(sizeof(figures) / sizeof(*figures));

	if (!pool_use(p))
		return -ESHUTDOWN;
	zc_pool_statistics(p->core, &stats);
	int64_t leaked = atomic_load(&p->leaked);
	pool_unuse(p);
	if (max < n + 2)
		return -EINVAL;
	for (int i = 0; i < n; i++) {
		names[i] = figures[i].name;
		memcpy(&values[i], (const char *)&stats + figures[i].at, sizeof(*values));
	}
	names[n] = "huge_pages";
	values[n++] = stats.huge_pages;
	names[n] = "leaked";
	values[n++] = (uint64_t)leaked;
	return n;
}

uint64_t zcfs_pool_borrowed(struct zcfs_pool *p, struct zcfs_borrowed *out, uint64_t max)
{
	uint64_t found = 0;

	if (!pool_use(p))
		return 0;
	for (size_t i = 0; i < p->slot_count; i++) {
		uint32_t count = atomic_load(&p->slots[i].count);

		if (!count)
			continue;
		if (found < max)
			out[found] = (struct zcfs_borrowed){
				.number = atomic_load(&p->slots[i].number),
				.file = atomic_load(&p->slots[i].file),
				.shared = count & EXCLUSIVE ? 0 : count};
		found++;
	}
	pool_unuse(p);
	return found;
}

/* Slots ------------------------------------------------------------------------------------------- */

#define GET(slot, field) atomic_load_explicit(&(slot)->field, memory_order_relaxed)
#define SET(slot, field, value) atomic_store_explicit(&(slot)->field, value, memory_order_relaxed)

static struct slot *slot_of(struct zcfs_pool *p, const unsigned char *data)
{
	return &p->slots[(size_t)(data - p->arena) >> SLOT_SHIFT];
}

/* Enters a page that was borrowed through a file that is in use. */
static void slot_enter(struct zcfs_file *f, uint64_t number, const struct zc_page *page,
		       uint32_t count)
{
	struct slot *s = slot_of(f->pool, page->data);

	SET(s, number, number);
	SET(s, version, page->version);
	SET(s, valid, page->valid);
	SET(s, frame, page->frame);
	SET(s, flags, page->flags);
	SET(s, file, f->id);
	atomic_fetch_add_explicit(&s->count, count, memory_order_relaxed);
}

static struct zc_page slot_page(struct zcfs_pool *p, unsigned char *data)
{
	struct slot *s = slot_of(p, data);

	return (struct zc_page){.data = data,
				.version = GET(s, version),
				.valid = GET(s, valid),
				.frame = GET(s, frame),
				.flags = GET(s, flags)};
}

static struct zc_page slot_leave(struct zcfs_pool *p, unsigned char *data, uint32_t count)
{
	atomic_fetch_sub_explicit(&slot_of(p, data)->count, count, memory_order_relaxed);
	return slot_page(p, data);
}

/* Each borrow is a use of the pool, which the file's own use keeps from being the last. */
static void pool_borrowed(struct zcfs_pool *p, uint64_t count)
{
	atomic_fetch_add_explicit(&p->uses, count, memory_order_relaxed);
}

/* Files ------------------------------------------------------------------------------------------- */

/* Of a file that has just been opened in the pool, and has used it since. */
static int file_init(struct zcfs_file *f, struct zcfs_pool *p, uint32_t id)
{
	struct zc_pool_file_info info;
	int err = zc_pool_file_info(f->core, &info);

	if (err)
		return err;
	f->pool = p;
	f->id = id;
	f->page_size = info.page_size;
	atomic_store(&f->uses, 1);
	atomic_store(&f->owners, 2);
	return 0;
}

static int file_open(struct zcfs_file *f, struct zcfs_pool *p, int fd, uint32_t page_size,
		     uint32_t id)
{
	int err = zc_pool_open(p->core, fd, page_size, &f->core);

	if (err)
		return err;
	err = file_init(f, p, id);
	if (err)
		zc_pool_close(f->core);
	return err;
}

int zcfs_file_open(struct zcfs_pool *p, int fd, uint32_t page_size, uint32_t id,
		   struct zcfs_file **out)
{
	struct zcfs_file *f = calloc(1, sizeof(*f));

	if (!f)
		return -ENOMEM;
	if (!pool_use(p)) {
		free(f);
		return -ESHUTDOWN;
	}
	int err = file_open(f, p, fd, page_size, id);
	if (err) {
		pool_unuse(p);
		free(f);
		return err;
	}
	*out = f;
	return 0;
}

void zcfs_file_close(struct zcfs_file *f)
{
	if (!atomic_exchange(&f->closed, true))
		file_unuse(f);
}

void zcfs_file_free(struct zcfs_file *f)
{
	zcfs_file_close(f);
	file_disown(f);
}

static int file_info(struct zcfs_file *f, struct zc_pool_file_info *info)
{
	if (!file_use(f))
		return -ESHUTDOWN;
	int err = zc_pool_file_info(f->core, info);
	file_unuse(f);
	return err;
}

int64_t zcfs_file_size(struct zcfs_file *f)
{
	struct zc_pool_file_info info;
	int err = file_info(f, &info);

	return err ? err : (int64_t)info.size;
}

int zcfs_file_direct(struct zcfs_file *f)
{
	struct zc_pool_file_info info;
	int err = file_info(f, &info);

	return err ? err : info.direct;
}

int zcfs_file_prefetch(struct zcfs_file *f, uint64_t first, uint64_t count)
{
	if (!file_use(f))
		return -ESHUTDOWN;
	int err = zc_pool_prefetch(f->core, first, count);
	file_unuse(f);
	return err;
}

int zcfs_file_sync(struct zcfs_file *f, int data_only)
{
	if (!file_use(f))
		return -ESHUTDOWN;
	int err = zc_pool_fsync(f->core, data_only);
	file_unuse(f);
	return err;
}

/* Pages ------------------------------------------------------------------------------------------- */

/* How a page is borrowed. */
typedef int borrow_how(struct zc_pool_file *file, uint64_t number, struct zc_page *page);

static unsigned char *borrow_one(struct zcfs_file *f, uint64_t number, uint32_t count,
				 borrow_how *how)
{
	struct zc_page page;
	int err = -ESHUTDOWN;

	if (file_use(f)) {
		err = how(f->core, number, &page);
		if (!err) {
			slot_enter(f, number, &page, count);
			pool_borrowed(f->pool, 1);
		}
		file_unuse(f);
	}
	if (!err)
		return page.data;
	errno = -err;
	return NULL;
}

unsigned char *zcfs_page_borrow(struct zcfs_file *f, uint64_t number)
{
	return borrow_one(f, number, 1, zc_page_borrow);
}

unsigned char *zcfs_page_borrow_cached(struct zcfs_file *f, uint64_t number)
{
	return borrow_one(f, number, 1, zc_page_borrow_cached);
}

void zcfs_page_put(struct zcfs_pool *p, unsigned char *data)
{
	if (forked(p))
		return;
	struct zc_page page = slot_leave(p, data, 1);
	zc_page_release(p->core, &page);
	pool_unuse(p);
}

uint32_t zcfs_page_valid(struct zcfs_pool *p, const unsigned char *data)
{
	return GET(slot_of(p, data), valid);
}

uint64_t zcfs_page_version(struct zcfs_pool *p, const unsigned char *data)
{
	return GET(slot_of(p, data), version);
}

unsigned char *zcfs_page_borrow_mut(struct zcfs_file *f, uint64_t number)
{
	return borrow_one(f, number, EXCLUSIVE, zc_page_borrow_mut);
}

int zcfs_page_commit(struct zcfs_file *f, unsigned char *data, int durable)
{
	struct zcfs_pool *p = f->pool;

	if (!file_use(f))
		return -ESHUTDOWN;
	/* The slot is another's as soon as the borrow has ended. */
	struct zc_page page = slot_leave(p, data, EXCLUSIVE);
	int err = zc_page_commit(f->core, &page, durable ? RWF_DSYNC : 0);
	if (err)
		atomic_fetch_add_explicit(&slot_of(p, data)->count, EXCLUSIVE,
					  memory_order_relaxed);
	else
		pool_unuse(p);
	file_unuse(f);
	return err;
}

int zcfs_page_write_back(struct zcfs_file *f, unsigned char *data, int durable)
{
	struct slot *s = slot_of(f->pool, data);

	if (!file_use(f))
		return -ESHUTDOWN;
	size_t len = GET(s, valid);
	ssize_t n = zc_pool_write(f->core, GET(s, number) * f->page_size, data, len,
				  durable ? RWF_DSYNC : 0);
	file_unuse(f);
	return n < 0 ? (int)n : (size_t)n < len ? -EIO : 0;
}

int zcfs_page_detach(struct zcfs_file *f, const unsigned char *data)
{
	uint64_t from = GET(slot_of(f->pool, data), number) * f->page_size;

	if (!file_use(f))
		return -ESHUTDOWN;
	zc_pool_invalidate(f->core, from, from + f->page_size);
	file_unuse(f);
	return 0;
}

void zcfs_page_abandon(struct zcfs_pool *p, unsigned char *data)
{
	if (forked(p))
		return;
	struct zc_page page = slot_leave(p, data, EXCLUSIVE);
	zc_page_abandon(p->core, &page);
	pool_unuse(p);
}

/* Runs -------------------------------------------------------------------------------------------- */

/* Borrows in order up to the first failure. Returns how many, or its -errno if it is the first. */
static ssize_t borrow_prefix(struct zcfs_file *f, const uint64_t *numbers, uint64_t first,
			     uint32_t count, struct zc_page *pages)
{
	ssize_t got = numbers ? zc_page_borrow_many(f->core, numbers, count, pages)
			      : zc_page_borrow_run(f->core, first, count, pages);
	uint32_t n = 0;

	if (got < 0)
		return got;
	while (n < count && pages[n].data)
		n++;
	zc_page_release_many(f->pool->core, pages + n, count - n);
	return n || !count ? (ssize_t)n : pages[0].error;
}

static bool follows(const struct zcfs_run *run, uint64_t number, const struct zc_page *page,
		    uint32_t page_size)
{
	return number == run->first + run->pages &&
	       run->bytes == (uint64_t)run->pages * page_size &&
	       page->data == run->data + run->bytes;
}

/* Enters the pages, and makes runs of them. */
static int make_runs(struct zcfs_file *f, const uint64_t *numbers, uint64_t first,
		     const struct zc_page *pages, ssize_t count, bool join, struct zcfs_run *runs)
{
	int n = 0;

	for (ssize_t i = 0; i < count; i++) {
		uint64_t number = numbers ? numbers[i] : first + (uint64_t)i;

		slot_enter(f, number, &pages[i], 1);
		if (!join || !n || !follows(&runs[n - 1], number, &pages[i], f->page_size))
			runs[n++] = (struct zcfs_run){.data = pages[i].data, .first = number};
		runs[n - 1].pages++;
		runs[n - 1].bytes += pages[i].valid;
	}
	return n;
}

int zcfs_run_borrow(struct zcfs_file *f, const uint64_t *numbers, uint64_t first, uint32_t count,
		    int join, struct zcfs_run *runs)
{
	struct zc_page pages[BATCH];

	if (count > BATCH)
		return -EINVAL;
	if (!file_use(f))
		return -ESHUTDOWN;
	ssize_t n = borrow_prefix(f, numbers, first, count, pages);
	if (n > 0) {
		pool_borrowed(f->pool, (uint64_t)n);
		n = make_runs(f, numbers, first, pages, n, join, runs);
	}
	file_unuse(f);
	return (int)n;
}

void zcfs_run_put(struct zcfs_pool *p, uint32_t page_size, uint32_t pages, unsigned char *data)
{
	for (uint32_t i = 0; i < pages; i++)
		zcfs_page_put(p, data + (size_t)i * page_size);
}

/* Gather ------------------------------------------------------------------------------------------ */

/* What is to be copied, and where to. */
struct gather {
	const uint64_t *pages, *offsets;
	uint64_t offset;
	uint32_t item;
	char *out;
};

/* The offset of item i in its page, of which `size` bytes are there; UINT32_MAX: it does not fit. */
static uint32_t place(const struct gather *g, uint64_t i, uint32_t size)
{
	uint64_t at = g->offset;

	if (g->offsets && __builtin_add_overflow(at, g->offsets[i], &at))
		return UINT32_MAX;
	return g->item <= size && at <= size - g->item ? (uint32_t)at : UINT32_MAX;
}

/* Past the borrow limit. */
static int gather_read(struct zcfs_file *f, const struct gather *g, uint64_t i)
{
	uint32_t at = place(g, i, f->page_size);

	if (at == UINT32_MAX)
		return -EOVERFLOW;
	ssize_t n = zc_pool_read(f->core, g->pages[i] * f->page_size + at, g->out + i * g->item,
				 g->item);
	return n < 0 ? (int)n : (size_t)n < g->item ? -EOVERFLOW : 0;
}

static int gather_page(struct zcfs_file *f, const struct gather *g, uint64_t i,
		       const struct zc_page *page)
{
	if (!page->data)
		return page->error == -ENOBUFS ? gather_read(f, g, i) : page->error;
	uint32_t at = place(g, i, page->valid);
	if (at == UINT32_MAX)
		return -EOVERFLOW;
	memcpy(g->out + i * g->item, page->data + at, g->item);
	return 0;
}

/* Items are all over the arena: their cache lines are asked for all at once. */
static void gather_ahead(const struct gather *g, uint64_t i, uint32_t n,
			 const struct zc_page *pages)
{
	for (uint32_t k = 0; k < n; k++) {
		uint32_t at = pages[k].data ? place(g, i + k, pages[k].valid) : UINT32_MAX;

		if (at != UINT32_MAX)
			__builtin_prefetch(pages[k].data + at);
	}
}

static int gather_batch(struct zcfs_file *f, const struct gather *g, uint64_t i, uint32_t n,
			uint64_t *failed)
{
	struct zc_page pages[BATCH];
	ssize_t got = zc_page_borrow_many(f->core, g->pages + i, n, pages);
	int err = 0;

	if (got < 0)
		return (int)got;
	gather_ahead(g, i, n, pages);
	for (uint32_t k = 0; k < n && !err; k++) {
		err = gather_page(f, g, i + k, &pages[k]);
		*failed = i + k;
	}
	zc_page_release_many(f->pool->core, pages, n);
	return err;
}

int zcfs_gather(struct zcfs_file *f, const uint64_t *pages, const uint64_t *offsets,
		uint64_t offset, uint64_t count, uint32_t item, void *out, uint64_t *at)
{
	struct gather g = {
		.pages = pages, .offsets = offsets, .offset = offset, .item = item, .out = out};
	int err = 0;

	if (!file_use(f))
		return -ESHUTDOWN;
	for (uint64_t i = 0; i < count && !err; i += BATCH) {
		uint32_t n = count - i < BATCH ? (uint32_t)(count - i) : BATCH;

		*at = i;
		err = gather_batch(f, &g, i, n, at);
	}
	file_unuse(f);
	return err;
}
