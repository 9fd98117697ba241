/* /dev/fuse: one read(2) takes a request, one writev(2) answers it. Always works.
 *
 * Each queue has a clone of the descriptor; the kernel keeps one line of requests for all clones
 * and wakes its readers in turn. More readers than needed would cost a switch for each request, so
 * idle threads above `keep_idle` leave the line (worker.c).
 *
 * A worker has one buffer. It is read into so that the data of a WRITE starts on a page; the body
 * of the reply is built at the same place, when the request has been used up.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#define WRITE_HEAD (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))
#define BUFFER (FUSE_BUFFER_HEADER_SIZE + ZC_MAX_WRITE + 4096u)

static int dev_start(struct zc_worker *w)
{
	char *p = mmap(NULL, BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return -ENOMEM;
	w->priv = p;
	w->req.out = p + FUSE_BUFFER_HEADER_SIZE;
	w->req.out_cap = ZC_MAX_WRITE;
	return 0;
}

static void dev_stop(struct zc_worker *w)
{
	munmap(w->priv, BUFFER);
}

static int write_reply(struct zc_worker *w, int error, size_t len)
{
	struct fuse_out_header h = {.unique = w->req.hdr.unique, .error = error};
	struct iovec iov[2] = {{&h, sizeof(h)}, {w->req.out, len}};
	h.len = (uint32_t)(sizeof(h) + len);
	ssize_t n = ZC_SYS("writev", writev(w->q->fd, iov, len ? 2 : 1));
	return n < 0 ? (int)n : 0;
}

static void dev_reply(struct zc_worker *w, int error)
{
	if (w->req.hdr.opcode < FUSE_OPCODE_END &&
	    zc_opinfo[w->req.hdr.opcode].flags & ZC_F_NOREPLY)
		return;
	int err = write_reply(w, error, error ? 0 : w->req.out_len);
	/* -ENOENT: the caller was killed meanwhile, -ENODEV: unmounted */
	if (err && err != -ENOENT && err != -ENODEV) {
		zc_log("a reply to opcode %u was refused: %s", w->req.hdr.opcode, strerror(-err));
		write_reply(w, -EIO, 0);
	}
}

static int dev_next(struct zc_worker *w)
{
	char *at = (char *)w->priv + FUSE_BUFFER_HEADER_SIZE - WRITE_HEAD;
	ssize_t n = ZC_SYS("read", read(w->q->fd, at, BUFFER - FUSE_BUFFER_HEADER_SIZE + WRITE_HEAD));
	if (n < 0)
		return n == -ECONNABORTED ? -ENODEV : n == -ENOENT ? -EAGAIN : (int)n;
	if ((size_t)n < sizeof(struct fuse_in_header))
		return -ENODEV;
	int err = zc_req_parse(at, (size_t)n, &w->req);
	if (err) {
		dev_reply(w, zc_req_refuse(&w->req, err));
		return -EAGAIN;
	}
	memcpy(w->in, w->req.in, zc_opinfo[w->req.hdr.opcode].in_size);
	w->req.in = w->in;
	return 0;
}

const struct zc_transport zc_transport_dev = {
	.name = "dev",
	.keep_idle = 1,
	.start = dev_start,
	.next = dev_next,
	.reply = dev_reply,
	.stop = dev_stop,
};
