/* The page table: from the hash of (view, page number) to frames.
 *
 * Owns the buckets. A bucket is a cache line of seven entries; what finds no place in its own goes on
 * to the next, and `passed` counts in each bucket how many went past it. Changes happen under the
 * pool's lock; lookups without one read entries atomically and check the frame's own key (core.h).
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core.h"

#define SLOTS 7
#define PER_BUCKET 4 /* entries expected: then few find no place */

static uint64_t slot_value(uint64_t hash, uint32_t frame)
{
	return (hash >> 32) << 32 | (frame + 1);
}

int zc_table_create(struct zc_table *t, uint64_t entries)
{
	uint64_t count = 1;
	while (count * PER_BUCKET < entries)
		count *= 2;
	void *mem = NULL;
	if (posix_memalign(&mem, ZC_SLAB_SIZE, count * sizeof(struct zc_bucket)))
		return -ENOMEM;
	madvise(mem, count * sizeof(struct zc_bucket), MADV_HUGEPAGE);
	memset(mem, 0, count * sizeof(struct zc_bucket));
	t->buckets = mem;
	t->mask = count - 1;
	return 0;
}

void zc_table_destroy(struct zc_table *t)
{
	free(t->buckets);
	t->buckets = NULL;
}

static int find_slot(const struct zc_bucket *b, uint64_t value)
{
	for (int i = 0; i < SLOTS; i++)
		if (atomic_load_explicit(&b->slot[i], memory_order_relaxed) == value)
			return i;
	return -1;
}

void zc_table_insert(struct zc_table *t, uint64_t hash, uint32_t frame)
{
	for (uint64_t at = hash;; at++) {
		struct zc_bucket *b = &t->buckets[at & t->mask];
		int i = find_slot(b, 0);
		if (i >= 0) {
			atomic_store_explicit(&b->slot[i], slot_value(hash, frame),
					      memory_order_release);
			return;
		}
		atomic_fetch_add_explicit(&b->passed, 1, memory_order_relaxed);
	}
}

void zc_table_remove(struct zc_table *t, uint64_t hash, uint32_t frame)
{
	for (uint64_t at = hash;; at++) {
		struct zc_bucket *b = &t->buckets[at & t->mask];
		int i = find_slot(b, slot_value(hash, frame));
		if (i >= 0) {
			atomic_store_explicit(&b->slot[i], 0, memory_order_release);
			return;
		}
		atomic_fetch_sub_explicit(&b->passed, 1, memory_order_relaxed);
	}
}

static bool has_key(const struct zc_frame *f, uint64_t view_id, uint64_t page)
{
	return atomic_load_explicit(&f->page, memory_order_relaxed) == page &&
	       atomic_load_explicit(&f->view_id, memory_order_relaxed) == view_id;
}

uint32_t zc_table_find(const struct zc_pool *p, uint64_t view_id, uint64_t page, uint64_t hash)
{
	uint32_t tag = (uint32_t)(hash >> 32);
	for (uint64_t at = hash;; at++) {
		const struct zc_bucket *b = &p->table.buckets[at & p->table.mask];
		for (int i = 0; i < SLOTS; i++) {
			uint64_t v = atomic_load_explicit(&b->slot[i], memory_order_relaxed);
			uint32_t frame = (uint32_t)v - 1;
			if (v && (uint32_t)(v >> 32) == tag &&
			    has_key(&p->frames[frame], view_id, page))
				return frame;
		}
		if (!atomic_load_explicit(&b->passed, memory_order_relaxed))
			return ZC_NO_FRAME;
	}
}

uint32_t zc_table_guess(const struct zc_table *t, uint64_t hash)
{
	const struct zc_bucket *b = &t->buckets[hash & t->mask];
	for (int i = 0; i < SLOTS; i++) {
		uint64_t v = atomic_load_explicit(&b->slot[i], memory_order_relaxed);
		if (v && v >> 32 == hash >> 32)
			return (uint32_t)v - 1;
	}
	return 0;
}

/* As zc_table_find, and pins. Bounded, since `passed` may change under it. */
enum zc_pinned zc_pin(struct zc_pool *p, uint64_t view_id, uint64_t page, uint64_t hash,
		      uint32_t *frame, uint64_t *state)
{
	uint32_t tag = (uint32_t)(hash >> 32);
	for (uint64_t at = hash; at - hash < 16; at++) {
		const struct zc_bucket *b = &p->table.buckets[at & p->table.mask];
		for (int i = 0; i < SLOTS; i++) {
			uint64_t v = atomic_load_explicit(&b->slot[i], memory_order_acquire);
			if ((uint32_t)(v >> 32) != tag || !v)
				continue;
			struct zc_frame *f = &p->frames[(uint32_t)v - 1];
			uint64_t s = atomic_load_explicit(&f->state, memory_order_acquire);
			for (;;) {
				if (!has_key(f, view_id, page))
					break;
				if (s & (S_EXCL | S_ORPHAN))
					return ZC_NOT_PINNED;
				if ((s & S_SHARED) == S_SHARED)
					return ZC_PIN_FULL;
				if (atomic_compare_exchange_weak_explicit(
					    &f->state, &s, s + 1, memory_order_acq_rel,
					    memory_order_acquire)) {
					*frame = (uint32_t)v - 1;
					*state = s;
					return ZC_PINNED;
				}
			}
		}
		if (!atomic_load_explicit(&b->passed, memory_order_relaxed))
			break;
	}
	return ZC_NOT_PINNED;
}
