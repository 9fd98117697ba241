/* The kernel engine, passthrough: the kernel reads and writes the source file itself. One backing id per inode, from
 * its first open to its last release. The kernel keeps the file; our descriptor may go. It also
 * keeps our credentials for all later I/O, hence without CAP_FSETID, or set-id bits would survive
 * everybody's writes.
 */
#include <string.h>
#include <sys/ioctl.h>

#include "ops.h"
#include "sys.h"

int zc_backing_open(struct zc_req *r, struct zc_opened *o, int fd)
{
	struct fuse_backing_map map = {.fd = fd};
	zc_fsetid_off(r->w);
	int id = ZC_SYSI("backing_open", ioctl(r->s->fd, FUSE_DEV_IOC_BACKING_OPEN, &map));
	if (id <= 0)
		return id ? id : -EOPNOTSUPP;
	o->backing_id = id;
	atomic_fetch_add(&r->s->backing_ids, 1);
	return 0;
}

void zc_backing_close(struct zc_session *s, struct zc_opened *o)
{
	uint32_t id = (uint32_t)o->backing_id;
	if (!id)
		return;
	(void)ZC_SYSI("backing_close", ioctl(s->fd, FUSE_DEV_IOC_BACKING_CLOSE, &id));
	atomic_fetch_sub(&s->backing_ids, 1);
}

static int kernel_open(struct zc_req *r, struct zc_file *file, struct zc_opened *o, int fd,
		       struct fuse_open_out *out)
{
	if (o->backing_id == 0) {
		if (fd < 0)
			return -EAGAIN;
		int err = file->inode->fmt == S_IFREG ? zc_backing_open(r, o, fd) : -EOPNOTSUPP;
		if (err) {
			zc_degrade(r->s, "passthrough", "a file cannot be registered (%s): "
				   "served through the daemon", strerror(-err));
			return -EOPNOTSUPP;
		}
	}
	out->open_flags |= FOPEN_PASSTHROUGH;
	out->backing_id = o->backing_id;
	return 0;
}

const struct zc_engine zc_engine_kernel = {
	.name = "kernel",
	.index = 0,
	.open = kernel_open,
	.read = zc_buffered_read, /* a file that the kernel reads through us all the same */
	.write = zc_buffered_write,
	.last_close = zc_backing_close,
};
