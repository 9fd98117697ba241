/* The buffered engine: the daemon reads and writes the source through the source's page cache.
 * Always works.
 *
 * No allocation, data straight between the transport's buffer and the source. A READ first asks for
 * what is in the page cache, so that a batch of hits is answered by one thread; only what has to
 * wait for the disk costs another. Where splicing is chosen a READ names the range of the file, and
 * the transport moves it.
 */
#include <sys/uio.h>
#include <unistd.h>

#include "ops.h"
#include "sys.h"

#ifndef RWF_NOAPPEND
#define RWF_NOAPPEND 0x20
#endif

/* As much as can be read from `fd`; stops at the end of the file. An error counts even if some came
 * before it: the kernel takes a short reply for the end of the file. */
static ssize_t read_full(int fd, char *buf, size_t size, off_t at, struct zc_ledger *ledger)
{
	size_t done = 0;
	while (done < size) {
		ssize_t n = ZC_SYS("pread", pread(fd, buf + done, size - done, at + (off_t)done));
		zc_ledger_add(&ledger->syscalls, 1);
		if (n < 0)
			return n;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

int zc_buffered_read(struct zc_req *r, struct zc_file *file, size_t size, off_t at,
		     struct zc_bufvec *to)
{
	int fd = zc_file_fd(r->s, file);
	if (fd < 0)
		return fd;
	if (zc_splice_read(r->w, file->flags & O_DIRECT, at, size)) {
		zc_may_block(r->w);
		return zc_bufvec_add_file(to, fd, at, size);
	}
	struct iovec iov = {r->out, size};
	ssize_t n = ZC_SYS("preadv2", preadv2(fd, &iov, 1, at, RWF_NOWAIT));
	zc_ledger_add(&to->ledger->syscalls, 1);
	size_t got = n > 0 ? (size_t)n : 0;
	if (got < size) {
		zc_may_block(r->w);
		n = read_full(fd, r->out + got, size - got, at + (off_t)got, to->ledger);
		if (n < 0)
			return (int)n;
		got += (size_t)n;
	}
	zc_buffer_touched(r->w, got);
	zc_ledger_add(&to->ledger->copied_kernel, got);
	return zc_bufvec_add_memory(to, r->out, got);
}

/* Neither RWF_ flags nor O_APPEND go with splice(2), nor does every file system. */
static ssize_t write_full(struct zc_req *r, int fd, struct zc_bufvec *from, off_t at, int flags,
			  bool append)
{
	size_t whole = from->size;
	ssize_t n = -EINVAL;
	if (!zc_bufvec_has_descriptor(from) || (!flags && !append))
		n = zc_bufvec_to_file(from, fd, at, flags);
	if (n != -EINVAL || from->size != whole || !zc_bufvec_has_descriptor(from))
		return n;
	n = zc_bufvec_gather(from, r->out, r->out_cap);
	return n < 0 ? n : zc_bufvec_to_file(from, fd, at, flags);
}

/* A page of a shared mapping comes with the descriptor of any writer; where that appends, the page
 * must still go to its own place. */
static ssize_t write_page(struct zc_req *r, struct zc_file *file, struct zc_bufvec *from, off_t at)
{
	ssize_t n = write_full(r, zc_file_fd(r->s, file), from, at, RWF_NOAPPEND, false);
	if (n != -EOPNOTSUPP)
		return n;
	ZC_CLOSE(own);
	own.fd = zc_inode_open(r->s->inodes, file->inode, O_WRONLY);
	return own.fd < 0 ? own.fd : write_full(r, own.fd, from, at, 0, false);
}

ssize_t zc_buffered_write(struct zc_req *r, struct zc_file *file, struct zc_bufvec *from, off_t at)
{
	const struct fuse_write_in *in = r->in;
	if (in->write_flags & FUSE_WRITE_CACHE && file->flags & O_APPEND)
		return write_page(r, file, from, at);
	return write_full(r, zc_file_fd(r->s, file), from, at, 0, file->flags & O_APPEND);
}

static int buffered_open(struct zc_req *r, struct zc_file *file, struct zc_opened *o, int fd,
			 struct fuse_open_out *out)
{
	(void)r;
	(void)o;
	if (fd < 0)
		return -EAGAIN;
	if (file->flags & O_DIRECT)
		out->open_flags |= FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
	return 0;
}

static void buffered_last_close(struct zc_session *s, struct zc_opened *o)
{
	(void)s;
	(void)o;
}

const struct zc_engine zc_engine_buffered = {
	.name = "buffered",
	.index = 1,
	.needs_fd = true,
	.sees_data = true,
	.open = buffered_open,
	.read = zc_buffered_read,
	.write = zc_buffered_write,
	.last_close = buffered_last_close,
};
