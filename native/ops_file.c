/* Open files: OPEN, READ, WRITE, FLUSH, RELEASE, FSYNC, FALLOCATE, LSEEK, COPY_FILE_RANGE, IOCTL,
 * POLL, SYNCFS.
 *
 * READ and WRITE are the hot path; what moves the bytes is the file's engine (engine_*.c).
 */
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ops.h"
#include "sys.h"

int zc_op_OPEN(struct zc_req *r)
{
	const struct fuse_open_in *in = r->in;
	int flags = (int)in->flags;
	struct fuse_open_out out;
	ZC_INODE(ino, r->s, r->hdr.nodeid);
	if (!ino.i)
		return -ESTALE;
	if ((flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC) {
		int err = zc_check_writable(r);
		if (err)
			return err;
	}
	int err = zc_file_open(r, ino.i, flags, -1, &out);
	if (err)
		return err;
	memcpy(r->out, &out, sizeof(out));
	return zc_reply(r, sizeof(out));
}

int zc_op_RELEASE(struct zc_req *r)
{
	const struct fuse_release_in *in = r->in;
	zc_file_close(r->s, zc_file_of(in->fh));
	return 0;
}

int zc_op_FLUSH(struct zc_req *r)
{
	const struct fuse_flush_in *in = r->in;
	zc_locks_release(r->s, zc_file_of(in->fh)->inode, in->lock_owner);
	return 0;
}

int zc_op_READ(struct zc_req *r)
{
	const struct fuse_read_in *in = r->in;
	struct zc_file *file = zc_file_of(in->fh);
	size_t size = in->size < r->out_cap ? in->size : r->out_cap;
	struct zc_bufvec *data = &r->w->data;
	struct zc_ledger *ledger = r->w->moves = &r->w->ledger[file->engine->index][0];
	zc_ledger_add(&ledger->requests, 1);
	zc_bufvec_begin(data, ledger);
	int err = file->engine->read(r, file, size, (off_t)in->offset, data);
	return err ? err : zc_reply(r, data->size);
}

/* Over /dev/fuse and io_uring the kernel has copied it; into a pipe it moves its pages. */
static int write_data(struct zc_req *r, size_t size, struct zc_ledger *ledger)
{
	struct zc_bufvec *data = &r->w->data;
	zc_ledger_add(&ledger->requests, 1);
	zc_ledger_add(r->piped ? &ledger->moved : &ledger->copied_kernel, size);
	zc_bufvec_begin(data, ledger);
	return r->piped ? zc_bufvec_add_pipe(data, r->w->pipe.out, size)
			: zc_bufvec_add_memory(data, r->arg, size);
}

int zc_op_WRITE(struct zc_req *r)
{
	const struct fuse_write_in *in = r->in;
	struct zc_file *file = zc_file_of(in->fh);
	struct zc_ledger *ledger = r->w->moves = &r->w->ledger[file->engine->index][1];
	int fd = zc_file_fd(r->s, file);
	ssize_t n = fd < 0 ? fd : zc_check_writable(r);
	if (!n)
		n = write_data(r, in->size, ledger);
	if (n < 0)
		return (int)n;
	bool kill = in->write_flags & FUSE_WRITE_KILL_SUIDGID;
	bool begun = zc_change_begin(r->s, file->inode, fd);
	if (kill)
		zc_no_privilege(r);
	else
		zc_fsetid_on(r->w);
	n = file->engine->write(r, file, &r->w->data, (off_t)in->offset);
	zc_bufvec_end(&r->w->data);
	if (kill)
		zc_as_self(r);
	zc_change_end(r->s, file->inode, fd, begun);
	if (n < 0)
		return (int)n;
	zc_ledger_add(&ledger->delivered, (uint64_t)n);
	struct fuse_write_out *out = (void *)r->out;
	*out = (struct fuse_write_out){.size = (uint32_t)n};
	return zc_reply(r, sizeof(*out));
}

int zc_op_FSYNC(struct zc_req *r)
{
	const struct fuse_fsync_in *in = r->in;
	int fd = zc_file_fd(r->s, zc_file_of(in->fh));
	if (fd < 0)
		return fd;
	return in->fsync_flags & FUSE_FSYNC_FDATASYNC ? ZC_SYSI("fdatasync", fdatasync(fd))
						      : ZC_SYSI("fsync", fsync(fd));
}

int zc_op_SYNCFS(struct zc_req *r)
{
	return ZC_SYSI("syncfs", syncfs(r->s->source_fd));
}

int zc_op_FALLOCATE(struct zc_req *r)
{
	const struct fuse_fallocate_in *in = r->in;
	struct zc_file *file = zc_file_of(in->fh);
	int fd = zc_file_fd(r->s, file);
	int err = fd < 0 ? fd : zc_check_writable(r);
	if (err)
		return err;
	if (r->hdr.uid) /* no flag comes with this one */
		zc_fsetid_off(r->w);
	bool begun = zc_change_begin(r->s, file->inode, fd);
	err = ZC_SYSI("fallocate",
		      fallocate(fd, (int)in->mode, (off_t)in->offset, (off_t)in->length));
	zc_change_end(r->s, file->inode, fd, begun);
	zc_pool_changed(r->s, fd, in->offset, UINT64_MAX); /* some modes move what comes after */
	return err;
}

int zc_op_LSEEK(struct zc_req *r)
{
	const struct fuse_lseek_in *in = r->in;
	int fd = zc_file_fd(r->s, zc_file_of(in->fh));
	if (fd < 0)
		return fd;
	/* SEEK_DATA and SEEK_HOLE only; the descriptor's position means nothing to us */
	off_t at = ZC_SYS("lseek", lseek(fd, (off_t)in->offset, (int)in->whence));
	if (at < 0)
		return (int)at;
	struct fuse_lseek_out *out = (void *)r->out;
	out->offset = (uint64_t)at;
	return zc_reply(r, sizeof(*out));
}

static ssize_t copy_range(struct zc_req *r)
{
	const struct fuse_copy_file_range_in *in = r->in;
	struct zc_file *out = zc_file_of(in->fh_out);
	int from = zc_file_fd(r->s, zc_file_of(in->fh_in)), to = zc_file_fd(r->s, out);
	off_t off_in = (off_t)in->off_in, off_out = (off_t)in->off_out;
	int err = from < 0 ? from : to < 0 ? to : zc_check_writable(r);
	if (err)
		return err;
	if (r->hdr.uid) /* no flag comes with this one */
		zc_fsetid_off(r->w);
	bool begun = zc_change_begin(r->s, out->inode, to);
	ssize_t n = ZC_SYS("copy_file_range",
			   copy_file_range(from, &off_in, to, &off_out, in->len, 0));
	zc_change_end(r->s, out->inode, to, begun);
	zc_pool_changed(r->s, to, in->off_out, in->off_out + in->len);
	return n;
}

int zc_op_COPY_FILE_RANGE(struct zc_req *r)
{
	ssize_t n = copy_range(r);
	if (n < 0)
		return (int)n;
	struct fuse_write_out *out = (void *)r->out;
	*out = (struct fuse_write_out){.size = (uint32_t)n};
	return zc_reply(r, sizeof(*out));
}

int zc_op_COPY_FILE_RANGE_64(struct zc_req *r)
{
	ssize_t n = copy_range(r);
	if (n < 0)
		return (int)n;
	struct fuse_copy_file_range_out *out = (void *)r->out;
	out->bytes_copied = (uint64_t)n;
	return zc_reply(r, sizeof(*out));
}

/* The ioctls that mean something on a file behind a mount: fixed size, no pointers within. */
static const uint32_t known_ioctls[] = {
	FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, FS_IOC_GETVERSION,
};

int zc_op_IOCTL(struct zc_req *r)
{
	const struct fuse_ioctl_in *in = r->in;
	uint64_t buf[32] = {0};
	bool known = false;
	for (size_t i = 0; i < sizeof(known_ioctls) / sizeof(*known_ioctls); i++)
		known |= in->cmd == known_ioctls[i];
	if (!known || in->in_size > sizeof(buf) || in->out_size > sizeof(buf) ||
	    r->arg_len < in->in_size)
		return -ENOTTY;
	bool sets = in->cmd == FS_IOC_SETFLAGS || in->cmd == FS_IOC_FSSETXATTR;
	int fd = zc_file_fd(r->s, zc_file_of(in->fh));
	int err = fd < 0 ? fd : sets ? zc_check_writable(r) : 0;
	if (err)
		return err;
	memcpy(buf, r->arg, in->in_size);
	int result = ZC_SYSI("ioctl", ioctl(fd, in->cmd, buf));
	if (result < 0)
		return result;
	struct fuse_ioctl_out *out = (void *)r->out;
	*out = (struct fuse_ioctl_out){.result = result};
	memcpy(out + 1, buf, in->out_size);
	return zc_reply(r, sizeof(*out) + in->out_size);
}

/* The one ENOSYS that is meant: the kernel then answers poll itself, always ready, as it is right for
 * files, for as long as it is mounted. io_uring polls before every read of a FUSE file, which would
 * otherwise be a round trip each. */
int zc_op_POLL(struct zc_req *r)
{
	(void)r;
	return -ENOSYS;
}
