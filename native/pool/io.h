/* Disk I/O of the pool: three back ends behind one seam.
 *
 * A batch of reads and writes is submitted together and waited for together, or polled.
 *
 * A back end is used by one thread at a time: the thread that submitted reaps, until nothing is
 * under way; then another may have it. Creation and, with nothing under way, destruction are any
 * thread's. One that stays with its thread is the fastest (io_uring can bind a ring to a thread).
 *
 * A registered arena is pinned: all of its memory is there from create() on. Until the last back
 * end that was created with it is destroyed it must stay mapped where it is, and no hole may be
 * punched into it, or the disk writes to pages that nobody sees.
 */
#ifndef ZC_POOL_IO_H
#define ZC_POOL_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct zc_io;

enum zc_io_op { ZC_IO_READ, ZC_IO_WRITE, ZC_IO_FDATASYNC };

/* One request, in memory of the caller until it is done. Buffer, length and offset follow the
 * alignment of the file where `fd` is open with O_DIRECT. */
struct zc_io_req {
	enum zc_io_op op;
	int fd;
	int rw_flags;	/* RWF_DSYNC and the like */
	void *buf;	/* in the arena, for registered buffers; anything else also works */
	size_t len;
	off_t off;
	ssize_t result;	/* when done: bytes or -errno. A short read is the end of the file (O_DIRECT
			 * also stops at a place that is not page aligned, which is the end of it);
			 * a short write could not be continued. */
	bool done;	/* set by submit(), reap() and destroy() only, in the caller's thread */
	void *user;
	struct zc_io_req *next; /* the back end's, until it is done */
};

struct zc_io_kind {
	const char *name; /* "io_uring", "aio", "threads" */
	/* `arena`: registered where that is granted (may be NULL); `depth`: requests under way at
	 * most, from 1 to ZC_IO_DEPTH_MOST. */
	int (*create)(void *arena, size_t arena_len, unsigned depth, struct zc_io **out);
	/* Waits for what is under way; what still waited for that is done with -ECANCELED. */
	void (*destroy)(struct zc_io *io);
	/* Hands over `n` requests, which may be done at once; those over `depth` are kept, and start
	 * from reap() when others are done. 0 or -errno: then none was taken. A request that fails
	 * is done with its own error. */
	int (*submit)(struct zc_io *io, struct zc_io_req **reqs, unsigned n);
	/* At least `min` of those handed over are done on return, or all (0: whatever is done now).
	 * Returns how many became done, each counted once even if submit() finished it; or -errno.
	 * Restarts after signals. */
	int (*reap)(struct zc_io *io, unsigned min);
	/* Becomes readable when something is to be reaped, and sometimes when nothing is; reap()
	 * resets it. Made by the first call, which may wait for what is under way. -errno: there is
	 * none. */
	int (*event_fd)(struct zc_io *io);
	/* Whether the arena is registered. */
	bool (*registered)(const struct zc_io *io);
};

#define ZC_IO_DEPTH_MOST 4096u

extern const struct zc_io_kind zc_io_uring, zc_io_aio, zc_io_threads;

/* The first of the three that works here (`name` NULL or "auto"), or the one that is named; NULL if
 * there is none. `why` says what was refused and the reason, also of those passed over. */
const struct zc_io_kind *zc_io_choose(const char *name, char *why, size_t why_len);

#endif
