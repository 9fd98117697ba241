/* Segments of file data, and the pipes that they are spliced through (bufvec.h).
 *
 * A system call may do less than it was asked for; whatever is left is asked for again here, so that
 * nobody else has to think of it. Bytes in a pipe can be had only once and in order: what a call has
 * taken is gone from the vector.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "bufvec.h"
#include "sys.h"

#define PAGE 4096u
#define IOV_AT_ONCE 64
#define TRIES 3 /* of a read from our own pipe, which has no reason to fail */

void zc_bufvec_begin(struct zc_bufvec *v, struct zc_ledger *ledger)
{
	v->first = v->count = v->pins = 0;
	v->size = 0;
	v->ledger = ledger;
}

void zc_bufvec_end(struct zc_bufvec *v)
{
	if (v->pins)
		zc_segments_release(v->pool, v->pin, v->pins);
	zc_bufvec_begin(v, NULL);
}

static int add(struct zc_bufvec *v, struct zc_seg seg)
{
	if (!seg.len)
		return 0;
	if (v->count == ZC_SEGS)
		return -ENOBUFS;
	v->seg[v->count++] = seg;
	v->size += seg.len;
	return 0;
}

int zc_bufvec_add_memory(struct zc_bufvec *v, const char *ptr, size_t len)
{
	return add(v, (struct zc_seg){.kind = ZC_SEG_MEMORY, .fd = -1, .ptr = ptr, .len = len});
}

int zc_bufvec_add_file(struct zc_bufvec *v, int fd, off_t off, size_t len)
{
	return add(v, (struct zc_seg){.kind = ZC_SEG_FILE, .fd = fd, .off = off, .len = len});
}

int zc_bufvec_add_pipe(struct zc_bufvec *v, int fd, size_t len)
{
	return add(v, (struct zc_seg){.kind = ZC_SEG_PIPE, .fd = fd, .len = len});
}

int zc_bufvec_add_pins(struct zc_bufvec *v, struct zc_pool *pool, unsigned count)
{
	int err = 0;
	v->pool = pool;
	for (unsigned end = v->pins + count; v->pins < end; v->pins++) {
		const struct zc_segment *pin = &v->pin[v->pins];
		int failed = zc_bufvec_add_memory(v, (const char *)pin->ptr, pin->len);
		err = err ? err : failed;
	}
	return err;
}

void zc_bufvec_advance(struct zc_bufvec *v, size_t n)
{
	v->size -= n;
	while (n) {
		struct zc_seg *seg = &v->seg[v->first];
		size_t part = n < seg->len ? n : seg->len;
		if (seg->kind == ZC_SEG_MEMORY)
			seg->ptr += part;
		seg->off += (off_t)part;
		seg->len -= part;
		n -= part;
		v->first += !seg->len;
	}
}

bool zc_bufvec_has_descriptor(const struct zc_bufvec *v)
{
	for (unsigned i = v->first; i < v->count; i++)
		if (v->seg[i].kind != ZC_SEG_MEMORY)
			return true;
	return false;
}

int zc_bufvec_iov(const struct zc_bufvec *v, struct iovec *iov, int most)
{
	int n = 0;
	for (unsigned i = v->first; i < v->count && n < most; i++) {
		const struct zc_seg *seg = &v->seg[i];
		if (seg->kind != ZC_SEG_MEMORY)
			break;
		iov[n++] = (struct iovec){(void *)(uintptr_t)seg->ptr, seg->len};
	}
	return n;
}

/* Up to the end of the file. */
static ssize_t gather_file(struct zc_bufvec *v, const struct zc_seg *seg, char *buf)
{
	size_t done = 0;
	while (done < seg->len) {
		ssize_t n = ZC_SYS("pread", pread(seg->fd, buf + done, seg->len - done,
						  seg->off + (off_t)done));
		zc_ledger_add(&v->ledger->syscalls, 1);
		if (n < 0)
			return n;
		if (n == 0)
			break;
		zc_ledger_add(&v->ledger->copied_kernel, (uint64_t)n);
		done += (size_t)n;
	}
	return (ssize_t)done;
}

static ssize_t gather_one(struct zc_bufvec *v, const struct zc_seg *seg, char *buf)
{
	struct zc_pipe pipe = {.out = seg->fd};
	int err;
	switch (seg->kind) {
	case ZC_SEG_FILE:
		return gather_file(v, seg, buf);
	case ZC_SEG_PIPE:
		err = zc_pipe_read(&pipe, buf, seg->len, v->ledger);
		return err ? err : (ssize_t)seg->len;
	case ZC_SEG_MEMORY:
		break;
	}
	if (seg->ptr != buf) {
		memcpy(buf, seg->ptr, seg->len);
		zc_ledger_add(&v->ledger->copied_user, seg->len);
	}
	return (ssize_t)seg->len;
}

ssize_t zc_bufvec_gather(struct zc_bufvec *v, char *buf, size_t cap)
{
	size_t done = 0;
	if (v->size > cap)
		return -EMSGSIZE;
	for (unsigned i = v->first; i < v->count; i++) {
		ssize_t n = gather_one(v, &v->seg[i], buf + done);
		if (n < 0)
			return n;
		done += (size_t)n;
		if ((size_t)n < v->seg[i].len)
			break;
	}
	v->first = v->count = 0;
	v->size = 0;
	(void)zc_bufvec_add_memory(v, buf, done);
	return (ssize_t)done;
}

/* One call's worth, from the first segment on. */
static ssize_t write_some(struct zc_bufvec *v, int fd, off_t at, int rw_flags)
{
	const struct zc_seg *seg = &v->seg[v->first];
	struct iovec iov[IOV_AT_ONCE];
	zc_ledger_add(&v->ledger->syscalls, 1);
	if (seg->kind == ZC_SEG_PIPE)
		return ZC_SYS("splice", splice(seg->fd, NULL, fd, &at, seg->len, 0));
	int count = zc_bufvec_iov(v, iov, IOV_AT_ONCE);
	return ZC_SYS("pwritev2", pwritev2(fd, iov, count, at, rw_flags));
}

ssize_t zc_bufvec_to_file(struct zc_bufvec *v, int fd, off_t at, int rw_flags)
{
	size_t done = 0;
	while (v->size) {
		ssize_t n = write_some(v, fd, at + (off_t)done, rw_flags);
		if (n <= 0)
			return done ? (ssize_t)done : n;
		zc_ledger_add(&v->ledger->copied_kernel, (uint64_t)n);
		zc_bufvec_advance(v, (size_t)n);
		done += (size_t)n;
	}
	return (ssize_t)done;
}

/* pipes ------------------------------------------------------------------------------------- */

int zc_pipe_open(struct zc_pipe *p, size_t bytes)
{
	int fd[2];
	int err = ZC_SYSI("pipe2", pipe2(fd, O_CLOEXEC | O_NONBLOCK));
	if (err)
		return err;
	int size = -EPERM;
	for (; size < 0 && bytes >= PAGE; bytes /= 2) {
		size = ZC_SYSI("fcntl", fcntl(fd[1], F_SETPIPE_SZ, (int)bytes));
		if (size < 0 && size != -EPERM)
			break;
	}
	if (size < 0) {
		close(fd[0]);
		close(fd[1]);
		return size;
	}
	*p = (struct zc_pipe){.out = fd[0], .in = fd[1], .slots = (unsigned)size / PAGE};
	return 0;
}

void zc_pipe_close(struct zc_pipe *p)
{
	if (!p->slots)
		return;
	close(p->in);
	close(p->out);
	p->slots = 0;
	p->dirty = false;
}

void zc_pipe_empty(struct zc_pipe *p, char *scratch, size_t cap)
{
	ssize_t n = 1;
	if (!p->slots || !p->dirty)
		return;
	while (n > 0)
		n = ZC_SYS("read", read(p->out, scratch, cap));
	if (n != -EAGAIN)
		zc_pipe_close(p);
	p->dirty = false;
}

int zc_pipe_read(struct zc_pipe *p, char *buf, size_t len, struct zc_ledger *ledger)
{
	unsigned failed = 0;
	for (size_t done = 0; done < len;) {
		ssize_t n = ZC_SYS("read", read(p->out, buf + done, len - done));
		if (n <= 0 && ++failed == TRIES)
			return n ? (int)n : -EIO;
		if (n <= 0)
			continue;
		done += (size_t)n;
		if (ledger) {
			zc_ledger_add(&ledger->syscalls, 1);
			zc_ledger_add(&ledger->copied_kernel, (uint64_t)n);
		}
	}
	return 0;
}

bool zc_pipe_fits(const struct zc_pipe *p, off_t off, size_t len, unsigned more)
{
	size_t pages = ((size_t)off % PAGE + len + PAGE - 1) / PAGE;
	return pages + more <= p->slots;
}
