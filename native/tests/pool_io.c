/* A synchronous I/O back end for the tests of the pool: nothing between it and the fault seam. */
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../pool/io.h"
#include "../sys.h"

struct zc_io {
	int unused;
};

static int create(void *arena, size_t arena_len, unsigned depth, struct zc_io **out)
{
	(void)arena;
	(void)arena_len;
	(void)depth;
	*out = calloc(1, sizeof(**out));
	return *out ? 0 : -ENOMEM;
}

static void destroy(struct zc_io *io)
{
	free(io);
}

static ssize_t run(struct zc_io_req *r)
{
	struct iovec iov = {r->buf, r->len};
	if (r->op == ZC_IO_READ)
		return ZC_SYS("pread", pread(r->fd, r->buf, r->len, r->off));
	if (r->op == ZC_IO_WRITE)
		return ZC_SYS("pwritev2", pwritev2(r->fd, &iov, 1, r->off, r->rw_flags));
	return ZC_SYS("fdatasync", fdatasync(r->fd));
}

static int submit(struct zc_io *io, struct zc_io_req **reqs, unsigned n)
{
	(void)io;
	for (unsigned i = 0; i < n; i++) {
		reqs[i]->result = run(reqs[i]);
		reqs[i]->done = true;
	}
	return 0;
}

static int reap(struct zc_io *io, unsigned min)
{
	(void)io;
	(void)min;
	return 0;
}

static int event_fd(struct zc_io *io)
{
	(void)io;
	return -1;
}

static bool registered(const struct zc_io *io)
{
	(void)io;
	return false;
}

#define KIND(symbol, its_name)                                                          \
	const struct zc_io_kind symbol = {its_name, create, destroy, submit, reap, event_fd, \
					  registered}

KIND(zc_io_uring, "io_uring");
KIND(zc_io_aio, "aio");
KIND(zc_io_threads, "threads");

const struct zc_io_kind *zc_io_choose(const char *name, char *why, size_t why_len)
{
	(void)why;
	(void)why_len;
	return !name || !strcmp(name, "threads") ? &zc_io_threads : NULL;
}
