/* The choice of an I/O back end, and what all of them do alike: going on after a short transfer,
 * trying again, the bell of event_fd().
 *
 * Owns nothing. Any thread.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "io_parts.h"

#define AGAIN_MOST 1000u
#define NAPS_MOST 100u
#define NAP_NS 100000

/* Results --------------------------------------------------------------------------------- */

ssize_t zc_io_ran(const struct zc_io_req *r, long long res)
{
	static const char *const calls[] = {"pread", "pwrite", "fdatasync"};

	(void)calls; /* without fault injection nothing is named */
	(void)r;
	return ZC_SYS(calls[r->op], res < 0 ? (errno = (int)-res, -1) : res);
}

static bool is_direct(int fd)
{
	int flags = ZC_SYSI("fcntl", fcntl(fd, F_GETFL));

	return flags < 0 || flags & O_DIRECT;
}

/* A direct transfer stops at an odd place only where the file ends. If the file has grown since,
 * its rest may be there, but memory that is not page aligned must not go to a device. */
static bool may_continue(const struct zc_io_req *r, size_t got)
{
	return got < r->len && (got % ZC_IO_PAGE == 0 || !is_direct(r->fd));
}

bool zc_io_step(struct zc_io_req *r, struct zc_io_progress *p, ssize_t res)
{
	bool again = res == -EINTR || (res == -EAGAIN && !(r->rw_flags & RWF_NOWAIT));

	if (again && p->again++ < AGAIN_MOST)
		return true;
	if (res > 0) {
		p->got += (size_t)res;
		p->again = 0;
		if (may_continue(r, p->got))
			return true;
	}
	/* a device with blocks of more than a page refuses to read on from the end of the file */
	if (res == -EINVAL && p->got && is_direct(r->fd))
		res = 0;
	r->result = res < 0 ? res : (ssize_t)p->got;
	return false;
}

bool zc_io_nap(unsigned *tries)
{
	if (++*tries > NAPS_MOST)
		return false;
	nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
	return true;
}

/* The bell -------------------------------------------------------------------------------- */

int zc_io_bell(void)
{
	return ZC_SYSI("eventfd", eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

void zc_io_ring(int bell)
{
	(void)!write(bell, &(uint64_t){1}, sizeof(uint64_t)); /* fails if it rings a lot already */
}

void zc_io_hush(int bell)
{
	uint64_t n;

	(void)!read(bell, &n, sizeof(n)); /* fails if it does not ring */
}

/* The choice ------------------------------------------------------------------------------ */

static const struct zc_io_kind *const kinds[] = {&zc_io_uring, &zc_io_aio, &zc_io_threads};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static const char probe_text[] = "zcfs reads this once";

/* A file without a name that holds the text. */
static int probe_file(void)
{
	int fd = ZC_SYSI("memfd_create", memfd_create("zcfs-io-probe", MFD_CLOEXEC));

	if (fd < 0)
		fd = ZC_SYSI("open", open(P_tmpdir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
	if (fd < 0)
		return fd;
	ssize_t n = ZC_SYS("write", write(fd, probe_text, sizeof(probe_text)));
	if (n == sizeof(probe_text))
		return fd;
	close(fd);
	return n < 0 ? (int)n : -ENOSPC;
}

static int read_probe(const struct zc_io_kind *kind, struct zc_io *io, int fd)
{
	char buf[sizeof(probe_text)] = "";
	struct zc_io_req r = {.op = ZC_IO_READ, .fd = fd, .buf = buf, .len = sizeof(buf)};
	int n = kind->submit(io, &(struct zc_io_req *){&r}, 1);

	if (!n)
		n = kind->reap(io, 1);
	/* the request lies on this stack, so it must have ended: destroy() waits for it */
	kind->destroy(io);
	if (n < 0)
		return n;
	if (r.result < 0)
		return (int)r.result;
	return r.result == sizeof(buf) && !memcmp(buf, probe_text, sizeof(buf)) ? 0 : -EBADMSG;
}

static int try_kind(const struct zc_io_kind *kind)
{
	struct zc_io *io;
	int fd = probe_file();

	if (fd < 0)
		return fd;
	int err = kind->create(NULL, 0, 1, &io);
	if (!err)
		err = read_probe(kind, io, fd);
	close(fd);
	return err;
}

static void __attribute__((format(printf, 3, 4))) add(char *why, size_t size, const char *fmt, ...)
{
	size_t used = strlen(why);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why + used, size - used, fmt, ap);
	va_end(ap);
}

const struct zc_io_kind *zc_io_choose(const char *name, char *why, size_t why_len)
{
	bool all = !name || !strcmp(name, "auto"), known = all;

	why[0] = 0;
	for (size_t k = 0; k < KINDS; k++) {
		if (!all && strcmp(name, kinds[k]->name))
			continue;
		known = true;
		int err = try_kind(kinds[k]);
		if (!err)
			return kinds[k];
		add(why, why_len, "%s%s: %s", why[0] ? "; " : "", kinds[k]->name, strerror(-err));
	}
	if (!known)
		add(why, why_len, "%s: no such I/O; there are auto, io_uring, aio, threads", name);
	return NULL;
}
