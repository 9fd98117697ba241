/* A pool's life, and its statistics. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../sys.h"
#include "core.h"

#define META_FREE ((size_t)32 << 20) /* bytes of bookkeeping that are not taken from the size */
#define META_PER_UNIT 112u	     /* frame, table, replacement; measured by test_pool */
#define DEFAULT_PAGE 16384u
#define CHUNK_MOST 64

static int check(const struct zc_pool_options *o)
{
	long pages = sysconf(_SC_PHYS_PAGES);
	uint32_t f = o->frame_size;
	if (o->size < ZC_POOL_MIN_SIZE || !zc_replace_find(o->policy))
		return -EINVAL;
	if (f && (f < ZC_PAGE_MIN || f > ZC_PAGE_MAX || f & (f - 1)))
		return -EINVAL;
	if (o->size / (size_t)sysconf(_SC_PAGESIZE) > (size_t)pages)
		return -ENOMEM;
	return 0;
}

static int choose_io(const struct zc_pool_options *o, const struct zc_io_kind **out)
{
	static const struct zc_io_kind *const kinds[] = {&zc_io_uring, &zc_io_aio, &zc_io_threads};
	char why[160];
	bool known = !o->io || !strcmp(o->io, "auto");
	for (unsigned i = 0; o->io && i < sizeof(kinds) / sizeof(kinds[0]); i++)
		known |= !strcmp(kinds[i]->name, o->io);
	if (!known)
		return -EINVAL;
	*out = zc_io_choose(o->io, why, sizeof(why));
	return *out ? 0 : -ENOTSUP;
}

/* The arena, less what its bookkeeping takes beyond its due. */
static size_t arena_size(size_t size)
{
	size_t meta = (size >> ZC_UNIT_SHIFT) * META_PER_UNIT;
	if (meta > META_FREE)
		size -= meta - META_FREE;
	return size & ~(ZC_SLAB_SIZE - 1);
}

static void pool_free(struct zc_pool *p)
{
	zc_ios_destroy(p);
	zc_arena_destroy(p);
	zc_table_destroy(&p->table);
	free(p->sources);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->room);
	pthread_mutex_destroy(&p->io_lock);
	pthread_cond_destroy(&p->io_free);
	pthread_mutex_destroy(&p->ahead_lock);
	pthread_cond_destroy(&p->ahead_cond);
	free(p);
}

static void init_limits(struct zc_pool *p)
{
	p->limit = p->units / 2;
	p->chunk = p->limit / (ZC_SHARDS * 8);
	if (p->chunk > CHUNK_MOST)
		p->chunk = CHUNK_MOST;
}

int zc_pool_create(const struct zc_pool_options *o, struct zc_pool **out)
{
	const struct zc_io_kind *io = NULL;
	void *mem = NULL;
	int err = check(o);
	if (!err)
		err = choose_io(o, &io);
	if (err)
		return err;
	if (posix_memalign(&mem, 128, sizeof(struct zc_pool)))
		return -ENOMEM;
	struct zc_pool *p = memset(mem, 0, sizeof(*p));
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->room, NULL);
	pthread_mutex_init(&p->io_lock, NULL);
	pthread_cond_init(&p->io_free, NULL);
	pthread_mutex_init(&p->ahead_lock, NULL);
	pthread_cond_init(&p->ahead_cond, NULL);
	p->io_kind = io;
	p->policy = zc_replace_find(o->policy);
	p->default_page = o->frame_size ? o->frame_size : DEFAULT_PAGE;
	atomic_init(&p->next_view, 1);
	p->sources = calloc(ZC_SOURCE_CHAINS, sizeof(*p->sources));
	err = p->sources ? zc_arena_create(p, arena_size(o->size)) : -ENOMEM;
	if (!err)
		err = zc_table_create(&p->table, p->units);
	if (!err)
		err = zc_ios_create(p);
	if (err) {
		pool_free(p);
		return err;
	}
	init_limits(p);
	*out = p;
	return 0;
}

/* What is cached is of sources that nobody has open. */
static void drop_all(struct zc_pool *p)
{
	for (unsigned i = 0; i < ZC_SOURCE_CHAINS; i++)
		while (p->sources[i])
			zc_source_drop(p, p->sources[i], 0, UINT64_MAX, NULL);
}

int zc_pool_destroy(struct zc_pool *p)
{
	zc_ahead_stop(p);
	pthread_mutex_lock(&p->lock);
	bool busy = p->handle_count || zc_budget_used(p);
	if (!busy)
		drop_all(p);
	pthread_mutex_unlock(&p->lock);
	if (busy)
		return -EBUSY;
	pool_free(p);
	return 0;
}

const uint8_t *zc_pool_arena(const struct zc_pool *p, size_t *len)
{
	*len = p->arena_len;
	return p->arena;
}

int zc_pool_arena_fd(const struct zc_pool *p)
{
	return p->read_fd;
}

const char *zc_pool_io_name(const struct zc_pool *p)
{
	return p->io_kind->name;
}

const char *zc_pool_policy_name(const struct zc_pool *p)
{
	return p->policy->name;
}

const char *zc_pool_policy(unsigned number)
{
	const struct zc_replace_kind *k = zc_replace_number(number);
	return k ? k->name : NULL;
}

static void add_shard(struct zc_pool_stats *out, struct zc_shard *s)
{
	out->hits += atomic_load_explicit(&s->hits, memory_order_relaxed);
	out->misses += atomic_load_explicit(&s->misses, memory_order_relaxed);
	out->readahead += atomic_load_explicit(&s->readahead, memory_order_relaxed);
	out->bytes_read += atomic_load_explicit(&s->bytes_read, memory_order_relaxed);
	out->bytes_written += atomic_load_explicit(&s->bytes_written, memory_order_relaxed);
	out->bytes_copied += atomic_load_explicit(&s->bytes_copied, memory_order_relaxed);
	out->bypass_bytes += atomic_load_explicit(&s->bypass, memory_order_relaxed);
	out->waits += atomic_load_explicit(&s->waits, memory_order_relaxed);
	out->requests += atomic_load_explicit(&s->requests, memory_order_relaxed);
	out->syscalls += atomic_load_explicit(&s->syscalls, memory_order_relaxed);
}

void zc_pool_statistics(struct zc_pool *p, struct zc_pool_stats *out)
{
	struct zc_pool_stats st = {.size = p->arena_len};
	for (unsigned i = 0; i < ZC_SHARDS; i++)
		add_shard(&st, &p->shards[i]);
	st.borrowed = (uint64_t)zc_budget_used(p) << ZC_UNIT_SHIFT;
	st.borrow_limit = (uint64_t)p->limit << ZC_UNIT_SHIFT;
	pthread_mutex_lock(&p->lock);
	st.evictions = p->evictions;
	for (unsigned c = 0; c < ZC_PAGE_CLASSES; c++) {
		st.frames[c] = (uint64_t)p->classes[c].slabs * (p->slab_units >> c);
		st.used[c] = p->classes[c].used;
	}
	st.free_slabs = p->free_slabs.count;
	st.slab_size = (uint64_t)p->slab_units << ZC_UNIT_SHIFT;
	st.files = p->source_count;
	st.huge_pages = p->huge;
	pthread_mutex_unlock(&p->lock);
	*out = st;
}
