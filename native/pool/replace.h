/* Replacement: which page goes when room is needed.
 *
 * A policy keeps nodes in an order of its own. It hears of a page that came, of one that was dropped,
 * and is asked for one to evict; of hits it sees what they left in the `access` byte of the node,
 * unless it has a `hit` function. It knows nothing of frames, so it also runs over a trace.
 *
 * Threads: one at a time, but for `access`.
 */
#ifndef ZC_POOL_REPLACE_H
#define ZC_POOL_REPLACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ZC_NO_FRAME UINT32_MAX
#define ZC_ACCESS_MOST 3u    /* hits are counted up to this */
#define ZC_ACCESS_MARK 0x80u  /* the owner's */
#define ZC_ACCESS_AHEAD 0x40u /* nobody asked for the page yet: the first hit is no second use */
#define ZC_ACCESS_COUNT 0x0fu

struct zc_rnode {
	uint32_t prev, next, hash; /* `hash`: of the page's key, set by the owner before insert */
	_Atomic uint8_t access;
	uint8_t queue; /* the policy's; 0: not with it */
	uint8_t class; /* the owner's */
	uint8_t flags; /* the owner's */
};

/* Nodes lie `stride` bytes apart from `base` on; node i is number i. `capacity`: most at a time. */
struct zc_replace_config {
	struct zc_rnode *base;
	size_t stride;
	uint32_t capacity;
};

struct zc_replace;

/* Whether node `i` may go. True: it is gone, and the policy forgets it. */
typedef bool zc_replace_take(void *ctx, uint32_t i);

struct zc_replace_kind {
	const char *name;
	int (*create)(const struct zc_replace_config *config, struct zc_replace **out);
	void (*destroy)(struct zc_replace *r);
	void (*insert)(struct zc_replace *r, uint32_t i);
	void (*remove)(struct zc_replace *r, uint32_t i);
	/* The node that `take` agreed to; ZC_NO_FRAME: none of them may go. */
	uint32_t (*evict)(struct zc_replace *r, zc_replace_take *take, void *ctx);
	void (*hit)(struct zc_replace *r, uint32_t i); /* or NULL */
};

extern const struct zc_replace_kind zc_replace_s3fifo, zc_replace_clock, zc_replace_lru,
	zc_replace_tinylfu;

/* By name, NULL: the default; or by number. NULL: there is none. */
const struct zc_replace_kind *zc_replace_find(const char *name);
const struct zc_replace_kind *zc_replace_number(unsigned number);

/* Lists, for the policies: oldest first ------------------------------------------------------- */

struct zc_rlist {
	uint32_t oldest, newest, count;
};

static inline struct zc_rnode *zc_rnode(const struct zc_replace_config *c, uint32_t i)
{
	return (struct zc_rnode *)(void *)((char *)c->base + (size_t)i * c->stride);
}

static inline uint8_t zc_rnode_access(const struct zc_rnode *n)
{
	return atomic_load_explicit(&n->access, memory_order_relaxed) & ZC_ACCESS_COUNT;
}

static inline bool zc_rnode_is_ahead(const struct zc_rnode *n)
{
	return atomic_load_explicit(&n->access, memory_order_relaxed) & ZC_ACCESS_AHEAD;
}

/* Mark and all. */
static inline void zc_rnode_set_access(struct zc_rnode *n, uint8_t access)
{
	atomic_store_explicit(&n->access, access, memory_order_relaxed);
}

void zc_rlist_init(struct zc_rlist *l);
void zc_rlist_append(const struct zc_replace_config *c, struct zc_rlist *l, uint32_t i);
void zc_rlist_remove(const struct zc_replace_config *c, struct zc_rlist *l, uint32_t i);

/* Which keys were evicted lately: their hashes, with a probability of error of 2^-32 or so. */
struct zc_ghost {
	struct zc_ghost_entry {
		uint32_t hash, time;
	} *entries; /* sets of four */
	uint32_t sets, now;
};

int zc_ghost_create(struct zc_ghost *g, uint32_t capacity);
void zc_ghost_destroy(struct zc_ghost *g);
void zc_ghost_add(struct zc_ghost *g, uint32_t hash);
/* Whether it was among the last `most` that were added; forgets it. */
bool zc_ghost_take(struct zc_ghost *g, uint32_t hash, uint32_t most);

#endif
