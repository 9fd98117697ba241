/* Disk I/O of the pool: three back ends behind one seam.
 *
 * A back end is used by one thread at a time, but may pass from thread to thread: the pool keeps some
 * and lends one to each thread that does I/O. A batch of reads and writes is submitted together and
 * waited for together, or polled.
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
	ssize_t result;	/* bytes, short at the end of the file; or -errno */
	bool done;
	void *user;
	struct zc_io_req *next; /* the back end's */
};

struct zc_io_kind {
	const char *name; /* "io_uring", "aio", "threads" */
	/* `arena`: registered where that is granted; `depth`: requests under way at most. */
	int (*create)(void *arena, size_t arena_len, unsigned depth, struct zc_io **out);
	void (*destroy)(struct zc_io *io);
	/* Hands over `n` requests; more than `depth` waits for earlier ones. 0 or -errno: then none
	 * of those not marked done was started. A request that fails is done with its own error. */
	int (*submit)(struct zc_io *io, struct zc_io_req **reqs, unsigned n);
	/* At least `min` of those under way are done on return (0: whatever is done now). Returns how
	 * many became done, or -errno. Restarts after signals. */
	int (*reap)(struct zc_io *io, unsigned min);
	/* Becomes readable when something is done; -1: there is none. */
	int (*event_fd)(struct zc_io *io);
};

extern const struct zc_io_kind zc_io_uring, zc_io_aio, zc_io_threads;

/* The first of the three that works here, or the one that is named; NULL with the reason in `why`. */
const struct zc_io_kind *zc_io_choose(const char *name, char *why, size_t why_len);

#endif
