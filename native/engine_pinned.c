/* The pinned engine: the whole file is in a memfd (pin.c), which the kernel reads in place of
 * the source, by passthrough. For reading only: a shared mapping that may be written to could be
 * neither refused once it is there, nor written back; so an open for writing fails (ETXTBSY, as
 * for a running program) while somebody reads the file here, and else goes to another engine.
 */
#include "ops.h"

static int pinned_open(struct zc_req *r, struct zc_file *file, struct zc_opened *o, int fd,
		       struct fuse_open_out *out)
{
	(void)fd;
	if (zc_is_writer(file->flags))
		return -ETXTBSY;
	if (o->backing_id == 0) {
		int err = zc_backing_open(r, o, zc_pin_memfd(file->inode));
		if (err) {
			zc_pin_unusable(r->s, file->inode, err);
			return -EOPNOTSUPP;
		}
	}
	out->open_flags |= FOPEN_PASSTHROUGH;
	out->backing_id = o->backing_id;
	return 0;
}

const struct zc_engine zc_engine_pinned = {
	.name = "pinned",
	.index = 3,
	.open = pinned_open,
	.read = zc_buffered_read, /* a file that the kernel reads through us all the same */
	.write = zc_buffered_write,
	.last_close = zc_backing_close,
};
