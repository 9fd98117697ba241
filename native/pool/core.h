/* What the files of the pool share: frames, the page table, views of files, and the rules between
 * them.
 *
 * A frame is memory for one page, in a slab of its size class. Frames are numbered in units of
 * 4 KiB of the arena, so a frame of 16 KiB has every fourth number. The page table finds the frame of
 * (view, page number); a view is a file with a page size.
 *
 * The state word of a frame: { version:44, flags, shared:16 }.
 *   shared   borrows and pins
 *   EXCL     nobody may pin it: free, being read from the disk, private to a writer, or
 *   MUT      exclusively borrowed (with EXCL, and one shared count)
 *   WAIT     somebody sleeps on the word
 *   ORPHAN   no longer in the table; whoever ends the last borrow frees it
 *
 * Why a hit takes no lock. It finds a frame number in the table, loads the state word s, compares the
 * frame's key with the one it wants, and swaps s for s + 1. Keys are written only under EXCL, and each
 * time EXCL ends the frame has a version that was never used before in this pool; so s does not come
 * back, and a swap that succeeds proves that the frame was the wanted page, whole and in the table, from
 * the load to the swap. After it no EXCL or eviction can succeed, for both need shared == 0. The
 * loads of the key cannot have seen a later owner's: that owner's swap to EXCL would have come after
 * ours in the order of the word, and ours releases. Frames are never unmapped, so looking at the
 * wrong one is harmless; and what a reader of the table misses while it changes, it finds under the
 * lock.
 *
 * Locks: `lock` of the pool guards all that has no atomic type: slabs, the table's changes, the
 * replacement, views, sources, write ranges. It is never held over I/O or a copy. `io_lock` and
 * `ahead_lock` are leaves.
 *
 * Whoever claims pages for reading never waits for anything before those are read and published,
 * so waiting for a page that is being read always ends. A writer holds a range of bytes of the file,
 * across views. Pages that overlap it are not published while it is held: readers see the bytes from
 * before or from after the write, never a mixture.
 */
#ifndef ZC_POOL_CORE_H
#define ZC_POOL_CORE_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "io.h"
#include "pool.h"
#include "replace.h"

#define ZC_SLAB_SIZE ((size_t)2 << 20)
#define ZC_SLAB_UNITS 512u /* of 4 KiB, at most */
#define ZC_UNIT_SHIFT 12
#define ZC_IO_MOST ((size_t)1 << 20) /* bytes of one disk request */
#define ZC_BATCH 256		     /* pages of one batch at most */
#define ZC_IO_DEPTH 64
#define ZC_SHARDS 32
#define ZC_AHEAD_QUEUE 64
#define ZC_SOURCE_CHAINS 4096u

#define S_SHARED 0xffffULL
#define S_EXCL (1ULL << 16)
#define S_MUT (1ULL << 17)
#define S_WAIT (1ULL << 18)
#define S_ORPHAN (1ULL << 19)
#define S_VERSION 20

struct zc_frame {
	_Atomic uint64_t state;
	_Atomic uint64_t view_id, page; /* the key; view_id 0: none */
	_Atomic uint32_t valid;
	uint32_t view_prev, view_next; /* the frames of a view */
	struct zc_rnode r;
	struct zc_view *view; /* while in the table */
} __attribute__((aligned(64)));

struct zc_slab {
	uint64_t bits[ZC_SLAB_UNITS / 64]; /* free frames */
	uint32_t prev, next;		   /* slabs of the class with free frames, or free slabs */
	uint16_t free, total;
	uint8_t class;
	bool listed; /* in one of the lists */
};

struct zc_slab_list {
	uint32_t head, count;
};

struct zc_class {
	struct zc_slab_list partial;
	uint32_t slabs;
	uint32_t used;
	uint64_t pressure; /* bytes evicted since the classes were last compared */
	struct zc_replace *replace;
};

/* One cache line. `slot`: tag << 32 | frame + 1. */
struct zc_bucket {
	_Atomic uint32_t passed; /* entries of this or an earlier bucket that lie further on */
	uint32_t unused;
	_Atomic uint64_t slot[7];
} __attribute__((aligned(64)));

struct zc_table {
	struct zc_bucket *buckets;
	uint64_t mask;
};

/* Counters, and credit of the borrow limit: a share of the threads each. */
struct zc_shard {
	_Atomic int64_t credit; /* units that may be borrowed without asking the pool */
	_Atomic uint64_t hits, misses, readahead, bytes_read, bytes_written, bytes_copied, bypass,
		waits, requests, syscalls;
} __attribute__((aligned(128)));

struct zc_range {
	uint64_t from, to; /* bytes; `to` not included */
	struct zc_range *next;
};

struct zc_signature {
	uint64_t size;
	struct timespec mtime, ctime;
};

/* A file as the disk has it. */
struct zc_source {
	uint64_t dev, ino;
	struct statx_timestamp born;
	struct zc_source *next;		   /* in its hash chain */
	struct zc_source *older, *younger; /* among those that nobody has open */
	struct zc_view *views;
	uint32_t handles;
	bool idle_listed;
	_Atomic uint64_t size; /* as last seen or made */
	uint64_t changes;      /* of our own, begun and ended */
	uint32_t writers;      /* of them, under way */
	struct zc_signature seen;
	struct zc_range *ranges; /* being written */
	pthread_cond_t calm;	 /* one of them ended */
};

struct zc_view {
	uint64_t id; /* never used again */
	struct zc_source *source;
	struct zc_view *next;
	uint32_t page_size, frames, first_frame, handles;
	uint8_t shift, class;
};

struct zc_pool_file {
	struct zc_pool *pool;
	struct zc_view *view;
	int fd;			/* with O_DIRECT, unless: */
	bool fd_plain;
	_Atomic int plain_fd;	/* without; -1 until needed */
	_Atomic bool direct;
	bool writable;
	uint32_t mem_align, offset_align;
	_Atomic uint32_t refs;
	_Atomic uint64_t last_page; /* read most recently: further reads of it are no sign of use */
	/* readahead: end of the last miss, end of what was asked for, bytes asked for at a time */
	_Atomic uint64_t ahead_next, ahead_end;
	_Atomic uint32_t ahead_window;
};

struct zc_ahead {
	struct zc_pool_file *file; /* holds a reference */
	uint64_t first, count;
	bool marked; /* the first page read gets the mark */
};

struct zc_pool {
	uint8_t *arena;
	size_t arena_len;
	struct zc_frame *frames; /* of the arena's units */
	struct zc_table table;
	const struct zc_replace_kind *policy;
	const struct zc_io_kind *io_kind;
	uint32_t units, default_page;
	_Atomic int64_t reserved; /* units borrowed, and the credit of all shards */
	int64_t limit, chunk;	  /* units */
	_Atomic uint64_t next_view;
	struct zc_shard shards[ZC_SHARDS];

	pthread_mutex_t lock;
	pthread_cond_t room; /* frames came free, or could now */
	uint32_t room_waiters;
	uint32_t in_flight; /* units being read or written */
	uint64_t version;
	uint64_t evictions;
	struct zc_slab *slabs;
	uint32_t slab_count, slab_units;
	struct zc_slab_list free_slabs;
	struct zc_class classes[ZC_PAGE_CLASSES];
	struct zc_source **sources; /* hash chains */
	struct zc_source *idle_oldest, *idle_youngest;
	uint32_t idle_count, source_count, handle_count;

	pthread_mutex_t io_lock;
	pthread_cond_t io_free;
	struct zc_io **ios; /* those that nobody uses */
	uint32_t io_idle, io_count, io_cap;

	pthread_mutex_t ahead_lock;
	pthread_cond_t ahead_cond;
	struct zc_ahead ahead[ZC_AHEAD_QUEUE];
	uint32_t ahead_head, ahead_count;
	bool ahead_running, ahead_stop, ahead_busy;
	pthread_t ahead_thread;

	int arena_fd, read_fd;
	void *mapping;
	size_t mapping_len;
	bool huge; /* huge pages were granted */
};

/* helpers ---------------------------------------------------------------------------------- */

unsigned zc_shard_of_thread(void);

static inline struct zc_shard *zc_shard(struct zc_pool *p)
{
	return &p->shards[zc_shard_of_thread()];
}

#define ZC_COUNT(pool, what, n) \
	atomic_fetch_add_explicit(&zc_shard(pool)->what, (uint64_t)(n), memory_order_relaxed)

static inline uint8_t *zc_frame_data(const struct zc_pool *p, uint32_t frame)
{
	return p->arena + ((size_t)frame << ZC_UNIT_SHIFT);
}

static inline uint32_t zc_units(unsigned class)
{
	return 1u << class;
}

static inline uint64_t zc_hash(uint64_t view_id, uint64_t page)
{
	uint64_t x = page * 0x9e3779b97f4a7c15ULL + view_id * 0xd1b54a32d192ed03ULL;
	x = (x ^ (x >> 32)) * 0xff51afd7ed558ccdULL;
	return x ^ (x >> 29);
}

/* arena.c ------------------------------------------------------------------------------------ */

int zc_arena_create(struct zc_pool *p, size_t len);
void zc_arena_destroy(struct zc_pool *p);
/* A free frame, in state EXCL, evicting if need be; ZC_NO_FRAME: none. Under the lock. */
uint32_t zc_frame_alloc(struct zc_pool *p, unsigned class);
/* Under the lock; the frame is EXCL and in no table. */
void zc_frame_free(struct zc_pool *p, uint32_t frame);

/* table.c ------------------------------------------------------------------------------------ */

int zc_table_create(struct zc_table *t, uint64_t entries);
void zc_table_destroy(struct zc_table *t);
/* Under the lock. The key is the frame's. */
void zc_table_insert(struct zc_table *t, uint64_t hash, uint32_t frame);
void zc_table_remove(struct zc_table *t, uint64_t hash, uint32_t frame);
/* The frame in the table that has this key, whatever its state. Under the lock. */
uint32_t zc_table_find(const struct zc_pool *p, uint64_t view_id, uint64_t page, uint64_t hash);

enum zc_pinned { ZC_PINNED, ZC_NOT_PINNED, ZC_PIN_FULL };

/* One more shared count on the frame of the page, if it is there. No lock. `state`: the word before. */
enum zc_pinned zc_pin(struct zc_pool *p, uint64_t view_id, uint64_t page, uint64_t hash,
		      uint32_t *frame, uint64_t *state);

static inline void zc_table_prefetch(const struct zc_table *t, uint64_t hash)
{
	__builtin_prefetch(&t->buckets[hash & t->mask]);
}

/* frame.c ------------------------------------------------------------------------------------ */

/* Without its effect on the borrow limit. */
void zc_unpin_raw(struct zc_pool *p, uint32_t frame, int64_t *units);
void zc_unpin(struct zc_pool *p, uint32_t frame);
/* A first pin that the limit refused: whoever has pinned the frame since goes on with its units. */
void zc_unpin_refused(struct zc_pool *p, uint32_t frame);
/* Takes `units` of the borrow limit: -ENOBUFS. `force`: beyond it too. */
int zc_budget_take(struct zc_pool *p, int64_t units, bool force);
void zc_budget_give(struct zc_pool *p, int64_t units);
int64_t zc_budget_used(struct zc_pool *p);
/* The frame that the page is likely to be in, for prefetching it; or any. */
uint32_t zc_table_guess(const struct zc_table *t, uint64_t hash);
/* For the replacement: the page was used. True: it was the mark of readahead. */
bool zc_touch(struct zc_pool *p, uint32_t frame);

/* All under the lock: */
void zc_frame_claim(struct zc_pool *p, uint32_t frame, struct zc_view *v, uint64_t page);
/* The claimed or private frame has its bytes; `shared` counts for the caller. */
void zc_frame_publish(struct zc_pool *p, uint32_t frame, uint32_t valid, uint32_t shared);
/* Out of the table; freed now, or by whoever has it. */
void zc_frame_detach(struct zc_pool *p, uint32_t frame);
/* Ends a claim or a private frame. */
void zc_frame_discard(struct zc_pool *p, uint32_t frame);
/* Takes an idle frame for eviction: false: it is in use. */
bool zc_frame_take(struct zc_pool *p, uint32_t frame);
/* Out of the table and its view, its state untouched. */
void zc_frame_unlink(struct zc_pool *p, uint32_t frame);
void zc_flight(struct zc_pool *p, int units); /* so many units more are read or written */
/* Sleeps until the claimed frame is published or given up. Leaves the lock and does not retake it. */
void zc_frame_wait_unlock(struct zc_pool *p, uint32_t frame);

/* file.c ------------------------------------------------------------------------------------- */

/* The descriptor to read and write whole pages by. */
int zc_file_io_fd(struct zc_pool_file *f);
/* One without O_DIRECT, or -errno. */
int zc_file_plain_fd(struct zc_pool_file *f);
/* O_DIRECT turned out not to work. */
void zc_file_not_direct(struct zc_pool_file *f);
/* Looks at the file's size: that is in the source then. */
int zc_file_refresh(struct zc_pool_file *f);
void zc_file_put(struct zc_pool_file *f);
/* Under the lock: */
void zc_source_drop(struct zc_pool *p, struct zc_source *s, uint64_t from, uint64_t to,
		    const struct zc_view *but);
bool zc_range_busy(const struct zc_source *s, uint64_t from, uint64_t to);
void zc_view_gone(struct zc_pool *p, struct zc_view *v); /* one of its frames left */
/* Takes the lock. A change of our own, of these bytes: waits for others that overlap. */
void zc_change_enter(struct zc_pool_file *f, struct zc_range *r);
void zc_change_leave(struct zc_pool_file *f, struct zc_range *r);

/* fill.c ------------------------------------------------------------------------------------- */

struct zc_want {
	uint64_t page;
	uint32_t frame;
	int32_t error; /* 0: pinned */
	uint64_t state;
	bool fresh; /* read just now */
};

enum zc_get {
	ZC_GET_BORROW, /* within the borrow limit; -EBUSY where exclusively borrowed */
	ZC_GET_READ,   /* beyond it */
	ZC_GET_CACHED, /* the same, and waits for nothing: all or none, which is -EAGAIN */
	ZC_GET_AHEAD,  /* only what is missing, not pinned, waiting for nothing */
	ZC_GET_STREAM, /* the same, and the first page read gets the mark of readahead */
};

/* Pins the pages; at most ZC_BATCH. Each has its `error`. */
void zc_pages_get(struct zc_pool_file *f, struct zc_want *w, unsigned n, enum zc_get how);
/* Reads pages into private frames. */
struct zc_fill {
	uint64_t page;
	uint32_t frame, valid;
	int32_t error;
	uint32_t user;
};
void zc_fill_read(struct zc_pool_file *f, struct zc_fill *fills, unsigned n);
/* Runs requests to their end; each has its result. */
void zc_io_run(struct zc_pool *p, struct zc_io_req *reqs, unsigned n);
int zc_ios_create(struct zc_pool *p);
void zc_ios_destroy(struct zc_pool *p);

/* write.c ------------------------------------------------------------------------------------ */

/* Bytes of a file, and the frames of whole pages that they are to be taken from. */
struct zc_extent {
	uint64_t first;	     /* page number of frames[0] */
	uint64_t from, to;   /* bytes of the file, `to` not included */
	uint64_t size;	     /* of the file: it is no smaller */
	const uint32_t *frames;
	int rw_flags;
};
/* To the disk, whoever asks holds the range. Bytes written from `from` on; -errno: none. */
ssize_t zc_extent_write(struct zc_pool_file *f, const struct zc_extent *e);

/* ahead.c ------------------------------------------------------------------------------------ */

void zc_ahead_missed(struct zc_pool_file *f, uint64_t from, uint64_t to);
void zc_ahead_marked(struct zc_pool_file *f);
int zc_ahead_push(struct zc_pool_file *f, uint64_t first, uint64_t count, bool marked);
void zc_ahead_stop(struct zc_pool *p);

#endif
