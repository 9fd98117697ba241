/* The seam of file data: a vector of segments, each memory, a range of a file, or what lies in a pipe.
 *
 * The data of every READ's reply and of every WRITE is one of these. An engine says where the bytes
 * of a READ are, the transport brings them to the kernel as it can, and ends the vector when they
 * are sent; with a WRITE the transport says where they are, and the engine takes them.
 *
 * Whoever moves bytes counts how, in the ledger that the vector was begun with.
 *
 * Threads: a vector, a pipe and a ledger belong to one worker. Ledgers are read by others, any time.
 */
#ifndef ZC_BUFVEC_H
#define ZC_BUFVEC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "pool/pool.h"

#define ZC_SEGS 258u /* 1 MiB in pages of 4 KiB, at any offset, and one more */

/* The copy ledger, of one worker, for one engine and direction. Bytes, but for the first and last. */
struct zc_ledger {
	_Atomic uint64_t requests;
	_Atomic uint64_t delivered;   /* to the kernel (READ) or to the file (WRITE) */
	_Atomic uint64_t copied_user; /* by our own code */
	_Atomic uint64_t copied_kernel; /* by the kernel, in our calls */
	_Atomic uint64_t moved;	      /* as references to pages, uncopied */
	_Atomic uint64_t passthrough; /* sizes of files at their opens that we do not see the reads of */
	_Atomic uint64_t syscalls;
};

/* Only its worker writes it: no locked instruction is needed. */
static inline void zc_ledger_add(_Atomic uint64_t *to, uint64_t n)
{
	uint64_t was = atomic_load_explicit(to, memory_order_relaxed);
	atomic_store_explicit(to, was + n, memory_order_relaxed);
}

enum zc_seg_kind { ZC_SEG_MEMORY, ZC_SEG_FILE, ZC_SEG_PIPE };

struct zc_seg {
	enum zc_seg_kind kind;
	int fd;		 /* file, or the end of the pipe to read */
	const char *ptr; /* memory */
	off_t off;	 /* file */
	size_t len;
};

struct zc_bufvec {
	unsigned first, count; /* segments that are left: first … count - 1 */
	size_t size;	       /* bytes that are left; a file may turn out to be shorter */
	struct zc_ledger *ledger;
	struct zc_pool *pool; /* of the pinned frames */
	unsigned pins;
	struct zc_seg seg[ZC_SEGS];
	struct zc_segment pin[ZC_SEGS];
};

void zc_bufvec_begin(struct zc_bufvec *v, struct zc_ledger *ledger);
/* Lets go of what the segments need. Begun or not. */
void zc_bufvec_end(struct zc_bufvec *v);
/* -ENOBUFS: there are ZC_SEGS already. Nothing is added of a length of 0. */
int zc_bufvec_add_memory(struct zc_bufvec *v, const char *ptr, size_t len);
int zc_bufvec_add_file(struct zc_bufvec *v, int fd, off_t off, size_t len);
int zc_bufvec_add_pipe(struct zc_bufvec *v, int fd, size_t len);
/* Adds the `count` segments in v->pin, from the first that is not counted in v->pins on: they are
 * released by zc_bufvec_end. */
int zc_bufvec_add_pins(struct zc_bufvec *v, struct zc_pool *pool, unsigned count);
/* The first `n` bytes are dealt with. */
void zc_bufvec_advance(struct zc_bufvec *v, size_t n);
/* Whether a segment is in a pipe or a file. */
bool zc_bufvec_has_descriptor(const struct zc_bufvec *v);
/* Memory segments from the first on; how many. */
int zc_bufvec_iov(const struct zc_bufvec *v, struct iovec *iov, int most);
/* Brings all bytes to `buf`; they are one segment then. What lies in `buf` already must lie at its
 * place. Bytes, fewer at the end of a file; -errno: the vector is not to be used any more. */
ssize_t zc_bufvec_gather(struct zc_bufvec *v, char *buf, size_t cap);
/* Writes to a file as pwritev2(2), in as many calls as it takes. Bytes, fewer where an error came
 * after some. What was written has left the vector. */
ssize_t zc_bufvec_to_file(struct zc_bufvec *v, int fd, off_t at, int rw_flags);

/* A pipe to splice through. */
struct zc_pipe {
	int in, out;	/* the ends to write and to read; valid while slots is not 0 */
	unsigned slots; /* pages that it takes */
	bool dirty;	/* something may be in it */
};

/* One of `bytes`, or of the most that is granted. -errno: none. */
int zc_pipe_open(struct zc_pipe *p, size_t bytes);
void zc_pipe_close(struct zc_pipe *p);
/* Throws away what is left in it; one that cannot be emptied is closed. */
void zc_pipe_empty(struct zc_pipe *p, char *scratch, size_t cap);
/* All `len` bytes, or -errno. */
int zc_pipe_read(struct zc_pipe *p, char *buf, size_t len, struct zc_ledger *ledger);
/* Whether a range of a file fits beside `more` pages. */
bool zc_pipe_fits(const struct zc_pipe *p, off_t off, size_t len, unsigned more);

#endif
