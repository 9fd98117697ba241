/* W-TinyLFU (Einziger et al., 2017), fitted to access bytes.
 *
 * A small window, and a main part of probation and protected pages. A page that leaves the window
 * stays only if its key was seen more often, lately, than the key of the page that it would push out;
 * a sketch of small counters, halved now and then, remembers that. There is no order by recency
 * within a list, since hits leave no more than a count: lists are gone through as CLOCK does, and
 * counts are taken into the sketch when a page is looked at.
 */
#include <errno.h>
#include <stdlib.h>

#include "replace.h"

#define NONE ZC_NO_FRAME
#define WINDOW_PERCENT 1
#define WINDOW_SLACK 64 /* pages that come between two evictions */
#define PROTECTED_PERCENT 80 /* of the main part */
#define ROWS 4
#define COUNT_MOST 15
#define SAMPLE 10 /* additions per node until all counters are halved */

enum { Q_NONE, Q_WINDOW, Q_PROBATION, Q_PROTECTED, Q_COUNT };

struct tinylfu {
	struct zc_replace_config c;
	struct zc_rlist q[Q_COUNT];
	uint8_t *sketch; /* ROWS of `mask` + 1 counters */
	uint32_t mask;
	uint64_t additions;
};

static uint8_t *counter(const struct tinylfu *f, uint32_t hash, unsigned row)
{
	static const uint32_t seeds[ROWS] = {0x9e3779b1u, 0x85ebca6bu, 0xc2b2ae35u, 0x27d4eb2fu};
	uint32_t x = (hash ^ hash >> 15) * seeds[row];
	return &f->sketch[(size_t)row * (f->mask + 1u) + ((x ^ x >> 16) & f->mask)];
}

static unsigned estimate(const struct tinylfu *f, uint32_t hash)
{
	unsigned least = COUNT_MOST;
	for (unsigned r = 0; r < ROWS; r++)
		if (*counter(f, hash, r) < least)
			least = *counter(f, hash, r);
	return least;
}

static void count(struct tinylfu *f, uint32_t hash)
{
	for (unsigned r = 0; r < ROWS; r++)
		if (*counter(f, hash, r) < COUNT_MOST)
			++*counter(f, hash, r);
	if (++f->additions < (uint64_t)SAMPLE * f->c.capacity)
		return;
	f->additions /= 2;
	for (size_t i = 0; i < (size_t)ROWS * (f->mask + 1u); i++)
		f->sketch[i] /= 2;
}

static int tinylfu_create(const struct zc_replace_config *config, struct zc_replace **out)
{
	struct tinylfu *f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->c = *config;
	for (f->mask = 1; f->mask < config->capacity;)
		f->mask = f->mask * 2 + 1;
	f->sketch = calloc(ROWS, f->mask + 1u);
	if (!f->sketch) {
		free(f);
		return -ENOMEM;
	}
	for (int i = 0; i < Q_COUNT; i++)
		zc_rlist_init(&f->q[i]);
	*out = (struct zc_replace *)f;
	return 0;
}

static void tinylfu_destroy(struct zc_replace *r)
{
	struct tinylfu *f = (struct tinylfu *)r;
	free(f->sketch);
	free(f);
}

static void append(struct tinylfu *f, uint32_t i, uint8_t queue)
{
	zc_rnode(&f->c, i)->queue = queue;
	zc_rlist_append(&f->c, &f->q[queue], i);
}

static void tinylfu_remove(struct zc_replace *r, uint32_t i)
{
	struct tinylfu *f = (struct tinylfu *)r;
	zc_rlist_remove(&f->c, &f->q[zc_rnode(&f->c, i)->queue], i);
	zc_rnode(&f->c, i)->queue = Q_NONE;
}

static void tinylfu_insert(struct zc_replace *r, uint32_t i)
{
	struct tinylfu *f = (struct tinylfu *)r;
	if (!zc_rnode_is_ahead(zc_rnode(&f->c, i)))
		count(f, zc_rnode(&f->c, i)->hash);
	append(f, i, Q_WINDOW);
}

/* Takes the hits of a node into the sketch. */
static bool was_used(struct tinylfu *f, uint32_t i)
{
	struct zc_rnode *n = zc_rnode(&f->c, i);
	uint8_t hits = zc_rnode_access(n);
	for (uint8_t k = 0; k < hits; k++)
		count(f, n->hash);
	if (hits)
		zc_rnode_set_access(n, 0);
	return hits > 0;
}

static void move(struct tinylfu *f, uint32_t i, uint8_t queue)
{
	tinylfu_remove((struct zc_replace *)f, i);
	append(f, i, queue);
}

/* The oldest page of probation that was not used; those that were are protected from now on, and
 * push out others there. */
static uint32_t victim_of_main(struct tinylfu *f)
{
	uint64_t looks = 2 * ((uint64_t)f->q[Q_PROBATION].count + f->q[Q_PROTECTED].count);
	while (looks--) {
		uint32_t i = f->q[Q_PROBATION].oldest;
		uint32_t main = f->q[Q_PROBATION].count + f->q[Q_PROTECTED].count;
		if (i != NONE && !was_used(f, i))
			return i;
		if (i != NONE)
			move(f, i, Q_PROTECTED);
		if (i == NONE || f->q[Q_PROTECTED].count > (uint64_t)main * PROTECTED_PERCENT / 100) {
			uint32_t old = f->q[Q_PROTECTED].oldest;
			if (old != NONE)
				move(f, old, was_used(f, old) ? Q_PROTECTED : Q_PROBATION);
		}
	}
	return f->q[Q_PROBATION].oldest;
}

static bool try(struct tinylfu *f, uint32_t i, zc_replace_take *take, void *ctx)
{
	uint8_t queue = zc_rnode(&f->c, i)->queue;
	tinylfu_remove((struct zc_replace *)f, i);
	if (take(ctx, i))
		return true;
	append(f, i, queue);
	return false;
}

static uint32_t evict_any(struct tinylfu *f, zc_replace_take *take, void *ctx)
{
	for (int queue = Q_WINDOW; queue < Q_COUNT; queue++)
		for (uint32_t looks = f->q[queue].count; looks--;) {
			uint32_t i = f->q[queue].oldest;
			if (try(f, i, take, ctx))
				return i;
		}
	return NONE;
}

/* While there was room for all, nobody had to leave the window. */
static void settle(struct tinylfu *f, uint64_t share)
{
	while (f->q[Q_WINDOW].count > 2 * share + WINDOW_SLACK)
		move(f, f->q[Q_WINDOW].oldest, Q_PROBATION);
}

static uint32_t tinylfu_evict(struct zc_replace *r, zc_replace_take *take, void *ctx)
{
	struct tinylfu *f = (struct tinylfu *)r;
	uint32_t pages = f->q[Q_WINDOW].count + f->q[Q_PROBATION].count + f->q[Q_PROTECTED].count;
	uint64_t share = (uint64_t)pages * WINDOW_PERCENT / 100;
	settle(f, share);
	for (uint32_t looks = pages; looks--;) {
		bool window_full = f->q[Q_WINDOW].count > share;
		uint32_t candidate = window_full ? f->q[Q_WINDOW].oldest : NONE;
		uint32_t victim = victim_of_main(f);
		if (candidate != NONE)
			was_used(f, candidate);
		if (victim == NONE && candidate == NONE)
			break;
		uint32_t goes = victim;
		if (candidate != NONE) {
			const struct zc_rnode *c = zc_rnode(&f->c, candidate);
			if (victim == NONE ||
			    estimate(f, c->hash) <= estimate(f, zc_rnode(&f->c, victim)->hash))
				goes = candidate;
			else
				move(f, candidate, Q_PROBATION);
		}
		if (try(f, goes, take, ctx))
			return goes;
	}
	return evict_any(f, take, ctx);
}

const struct zc_replace_kind zc_replace_tinylfu = {
	.name = "wtinylfu",
	.create = tinylfu_create,
	.destroy = tinylfu_destroy,
	.insert = tinylfu_insert,
	.remove = tinylfu_remove,
	.evict = tinylfu_evict,
};
