/* What the I/O back ends share: the order of requests, and what follows from a result. */
#ifndef ZC_POOL_IO_PARTS_H
#define ZC_POOL_IO_PARTS_H

#include "../sys.h"
#include "io.h"

#define ZC_IO_PIECE 0x7ffff000u /* bytes that one call moves at most, as in read(2) */
#define ZC_IO_PAGE 4096u

/* Requests in the order of their submission. */
struct zc_io_queue {
	struct zc_io_req *first, *last;
};

static inline void zc_io_push(struct zc_io_queue *q, struct zc_io_req *r)
{
	r->next = NULL;
	if (q->first)
		q->last->next = r;
	else
		q->first = r;
	q->last = r;
}

static inline struct zc_io_req *zc_io_pop(struct zc_io_queue *q)
{
	struct zc_io_req *r = q->first;

	if (r)
		q->first = r->next;
	return r;
}

/* How far a request has come. */
struct zc_io_progress {
	size_t got;	/* bytes */
	unsigned again; /* times in succession that the system asked to try again */
};

static inline size_t zc_io_piece(const struct zc_io_req *r, const struct zc_io_progress *p)
{
	return r->len - p->got < ZC_IO_PIECE ? r->len - p->got : ZC_IO_PIECE;
}

/* The result of a request that the kernel ran on its own (bytes or -errno), through the seam for
 * faults: "pread", "pwrite", "fdatasync". */
ssize_t zc_io_ran(const struct zc_io_req *r, long long res);

/* Takes in one such result. True: go on from `p->got`. False: that was all, and r->result is set. */
bool zc_io_step(struct zc_io_req *r, struct zc_io_progress *p, ssize_t res);

/* Before a call that asked to be tried again is tried again. False: often enough. */
bool zc_io_nap(unsigned *tries);

/* An eventfd for zc_io_kind.event_fd, or -errno; its bell, and the end of that. */
int zc_io_bell(void);
void zc_io_ring(int bell);
void zc_io_hush(int bell);

#endif
