/* /dev/fuse: one read(2) takes a request, one writev(2) answers it. Always works.
 *
 * Each queue has a clone of the descriptor; the kernel keeps one line of requests for all clones
 * and wakes its readers in turn. More readers than needed would cost a switch for each request, so
 * idle threads above `keep_idle` leave the line (worker.c).
 *
 * Where splicing is chosen, requests are spliced into the worker's pipe, from which the data of a WRITE
 * goes on to the file, and the data of a READ goes from the file through the same pipe to the kernel.
 * A spliced reply must be whole: one that does not come together (the file ends early, the pipe is
 * full, an error) is taken back out of the pipe and sent from memory. Whatever is left in the pipe after
 * a request is thrown away.
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
	zc_pipe_close(&w->pipe);
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

/* All of w->data is in memory: one call sends it from where it lies. */
static int write_data(struct zc_worker *w)
{
	struct fuse_out_header h = {.unique = w->req.hdr.unique};
	struct iovec iov[1 + ZC_SEGS] = {{&h, sizeof(h)}};
	int count = zc_bufvec_iov(&w->data, iov + 1, ZC_SEGS);
	h.len = (uint32_t)(sizeof(h) + w->data.size);
	zc_ledger_add(&w->moves->syscalls, 1);
	ssize_t n = ZC_SYS("writev", writev(w->q->fd, iov, count + 1));
	if (n < 0)
		return (int)n;
	zc_ledger_add(&w->moves->copied_kernel, w->data.size);
	zc_ledger_add(&w->moves->delivered, w->data.size);
	return 0;
}

/* The header and as much of the file's range as there is into the pipe: bytes of the range, and in
 * `err` why there are not more (0: the file ends). */
static size_t fill_pipe(struct zc_worker *w, const struct zc_seg *seg, int *err)
{
	struct fuse_out_header h = {.unique = w->req.hdr.unique};
	off_t at = seg->off;
	size_t done = 0;
	h.len = (uint32_t)(sizeof(h) + seg->len);
	w->pipe.dirty = true;
	ssize_t n = ZC_SYS("write", write(w->pipe.in, &h, sizeof(h)));
	zc_ledger_add(&w->moves->syscalls, 1);
	if (n == (ssize_t)sizeof(h))
		n = 1;
	else
		n = n < 0 ? n : -EAGAIN;
	while (n > 0 && done < seg->len) {
		n = ZC_SYS("splice", splice(seg->fd, &at, w->pipe.in, NULL, seg->len - done,
					    SPLICE_F_NONBLOCK));
		zc_ledger_add(&w->moves->syscalls, 1);
		done += n > 0 ? (size_t)n : 0;
	}
	*err = n < 0 ? (int)n : 0;
	return done;
}

/* A reply that did not come together: `done` bytes of it are behind the header in the pipe. */
static int send_from_memory(struct zc_worker *w, size_t done, int err)
{
	char h[sizeof(struct fuse_out_header)];
	bool ended = !err;
	int lost = done ? zc_pipe_read(&w->pipe, h, sizeof(h), NULL) : 0;
	if (done && !lost)
		lost = zc_pipe_read(&w->pipe, w->req.out, done, w->moves);
	if (lost) /* all of it once more */
		done = 0;
	zc_bufvec_advance(&w->data, done);
	if (ended && !lost)
		w->data.size = 0;
	err = 0;
	if (w->data.size) {
		ssize_t n = zc_bufvec_gather(&w->data, w->req.out + done, ZC_MAX_WRITE - done);
		err = n < 0 ? (int)n : 0;
		done += n > 0 ? (size_t)n : 0;
	}
	if (err)
		return write_reply(w, err, 0);
	zc_bufvec_begin(&w->data, w->moves);
	(void)zc_bufvec_add_memory(&w->data, w->req.out, done);
	return write_data(w);
}

/* The kernel copies from the pages in the pipe, or takes them; we are not told. */
static int splice_data(struct zc_worker *w)
{
	const struct zc_seg *seg = &w->data.seg[w->data.first];
	size_t len = seg->len;
	int err;
	size_t done = fill_pipe(w, seg, &err);
	zc_ledger_add(&w->moves->moved, done);
	if (done < len)
		return send_from_memory(w, done, err);
	ssize_t n = ZC_SYS("splice", splice(w->pipe.out, NULL, w->q->fd, NULL,
					    sizeof(struct fuse_out_header) + len, 0));
	zc_ledger_add(&w->moves->syscalls, 1);
	if (n < 0)
		return (int)n;
	w->pipe.dirty = (size_t)n < sizeof(struct fuse_out_header) + len;
	zc_ledger_add(&w->moves->copied_kernel, len);
	zc_ledger_add(&w->moves->delivered, len);
	return 0;
}

static int send_data(struct zc_worker *w)
{
	const struct zc_bufvec *v = &w->data;
	if (!zc_bufvec_has_descriptor(v))
		return write_data(w);
	if (v->count == v->first + 1 && v->seg[v->first].kind == ZC_SEG_FILE && w->pipe.slots)
		return splice_data(w);
	ssize_t n = zc_bufvec_gather(&w->data, w->req.out, w->req.out_cap);
	return n < 0 ? write_reply(w, (int)n, 0) : write_data(w);
}

static void dev_reply(struct zc_worker *w, int error)
{
	if (w->req.hdr.opcode < FUSE_OPCODE_END &&
	    zc_opinfo[w->req.hdr.opcode].flags & ZC_F_NOREPLY)
		return;
	bool data = !error && w->data.size;
	int err = data ? send_data(w) : write_reply(w, error, error ? 0 : w->req.out_len);
	/* -ENOENT: the caller was killed meanwhile, -ENODEV: unmounted */
	if (err && err != -ENOENT && err != -ENODEV) {
		zc_log("a reply to opcode %u was refused: %s", w->req.hdr.opcode, strerror(-err));
		write_reply(w, -EIO, 0);
	}
	if (w->moves)
		zc_ledger_add(&w->moves->syscalls, data ? 1 : 2); /* taken; and answered */
	w->moves = NULL;
	zc_bufvec_end(&w->data);
	zc_pipe_empty(&w->pipe, w->req.out, ZC_MAX_WRITE);
	zc_buffer_done(w);
}

/* The whole message but for the data of a WRITE, which stays in the pipe. */
static int unpack(struct zc_worker *w, char *at, size_t len)
{
	const struct fuse_in_header *h = (const void *)at;
	size_t head = len < WRITE_HEAD ? len : WRITE_HEAD;
	int err = zc_pipe_read(&w->pipe, at, head, NULL);
	if (err)
		return err;
	w->req.piped = len > WRITE_HEAD && h->opcode == FUSE_WRITE && !h->total_extlen &&
		       !(h->nodeid & ZC_COMPUTED_BIT);
	return w->req.piped ? 0 : zc_pipe_read(&w->pipe, at + head, len - head, NULL);
}

static ssize_t take_spliced(struct zc_worker *w, char *at, size_t cap)
{
	ssize_t n = ZC_SYS("splice", splice(w->q->fd, NULL, w->pipe.in, NULL, cap, 0));
	if (n <= 0)
		return n;
	w->pipe.dirty = true;
	int err = unpack(w, at, (size_t)n);
	if (!err) {
		w->pipe.dirty = w->req.piped;
		return n;
	}
	zc_log("a request was lost in a pipe: %s", strerror(-err));
	zc_pipe_empty(&w->pipe, w->req.out, ZC_MAX_WRITE);
	return -EAGAIN;
}

static int dev_next(struct zc_worker *w)
{
	char *at = (char *)w->priv + FUSE_BUFFER_HEADER_SIZE - WRITE_HEAD;
	size_t cap = BUFFER - FUSE_BUFFER_HEADER_SIZE + WRITE_HEAD;
	w->req.piped = false;
	ssize_t n = zc_splice_take(w) ? take_spliced(w, at, cap)
				      : ZC_SYS("read", read(w->q->fd, at, cap));
	if (n < 0)
		return n == -ECONNABORTED ? -ENODEV : n == -ENOENT ? -EAGAIN : (int)n;
	if ((size_t)n < sizeof(struct fuse_in_header))
		return -ENODEV;
	zc_buffer_touched(w, w->req.piped ? 0 : (size_t)n);
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
