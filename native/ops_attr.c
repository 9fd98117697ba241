/* Attributes: GETATTR, STATX, SETATTR, READLINK, ACCESS, STATFS, and the conversions. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ops.h"
#include "sys.h"

void zc_closer_done(struct zc_closer *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
}

struct zc_link zc_link_of(int fd)
{
	struct zc_link l;
	snprintf(l.path, sizeof(l.path), "/proc/self/fd/%d", fd);
	return l;
}

int zc_stat_fd(int fd, struct statx *stx)
{
	return ZC_SYSI("statx", statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, ZC_STATX_MASK, stx));
}

static uint32_t dev_encode(uint32_t major, uint32_t minor)
{
	return (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

void zc_attr_fill(const struct zc_session *s, const struct statx *stx, struct fuse_attr *a)
{
	(void)s;
	*a = (struct fuse_attr){
		.ino = stx->stx_ino,
		.size = stx->stx_size,
		.blocks = stx->stx_blocks,
		.atime = (uint64_t)stx->stx_atime.tv_sec,
		.mtime = (uint64_t)stx->stx_mtime.tv_sec,
		.ctime = (uint64_t)stx->stx_ctime.tv_sec,
		.atimensec = stx->stx_atime.tv_nsec,
		.mtimensec = stx->stx_mtime.tv_nsec,
		.ctimensec = stx->stx_ctime.tv_nsec,
		.mode = stx->stx_mode,
		.nlink = stx->stx_nlink,
		.uid = stx->stx_uid,
		.gid = stx->stx_gid,
		.rdev = dev_encode(stx->stx_rdev_major, stx->stx_rdev_minor),
		.blksize = stx->stx_blksize,
	};
}

/* Never 0, which means that nothing was told. */
uint64_t zc_told_of(const struct statx *stx)
{
	uint64_t h = stx->stx_size * 0x9e3779b97f4a7c15ULL;
	h ^= ((uint64_t)stx->stx_mtime.tv_sec << 30 | stx->stx_mtime.tv_nsec) * 0xc2b2ae3d27d4eb4fULL;
	h = (h << 31 | h >> 33) ^
	    ((uint64_t)stx->stx_ctime.tv_sec << 30 | stx->stx_ctime.tv_nsec) * 0x165667b19e3779f9ULL;
	return h | 1;
}

void zc_timeout_split(double seconds, uint64_t *sec, uint32_t *nsec)
{
	*sec = (uint64_t)seconds;
	*nsec = (uint32_t)((seconds - floor(seconds)) * 1e9);
}

/* While a file is open for writing in the kernel engine, its times and size change without our
 * seeing it (a mapping's writes above all): nothing may be cached then. */
void zc_attr_timeout(const struct zc_session *s, const struct zc_inode *inode, uint64_t *sec,
		     uint32_t *nsec)
{
	*sec = 0;
	*nsec = 0;
	if (!atomic_load(&inode->unseen_writers))
		zc_timeout_split(s->opt.attr_timeout, sec, nsec);
}

static int entry_fill(struct zc_req *r, const struct statx *stx, struct zc_inode *parent,
		      const char *name, struct zc_inode *inode, struct fuse_entry_out *out)
{
	struct zc_session *s = r->s;
	if (s->opt.policies.count)
		zc_policy_found(s, parent, name, inode);
	*out = (struct fuse_entry_out){.nodeid = zc_inode_id(s->inodes, inode),
				       .generation = inode->generation};
	zc_timeout_split(s->opt.entry_timeout, &out->entry_valid, &out->entry_valid_nsec);
	zc_attr_timeout(s, inode, &out->attr_valid, &out->attr_valid_nsec);
	zc_attr_fill(s, stx, &out->attr);
	zc_attr_refresh(s, inode);
	atomic_store(&inode->told, zc_told_of(stx));
	return 0;
}

int zc_entry_of_fd(struct zc_req *r, struct zc_inode *parent, const char *name, int fd,
		   struct fuse_entry_out *out, struct zc_inode **inode)
{
	struct statx stx;
	int err = zc_inode_adopt(r->s->inodes, parent, name, fd, &stx, inode);
	return err ? err : entry_fill(r, &stx, parent, name, *inode, out);
}

int zc_entry_at(struct zc_req *r, struct zc_inode *parent, int dirfd, const char *name,
		struct fuse_entry_out *out, struct zc_inode **inode)
{
	struct statx stx;
	int err = zc_inode_adopt_at(r->s->inodes, parent, dirfd, name, &stx, inode);
	return err ? err : entry_fill(r, &stx, parent, name, *inode, out);
}

/* statx of the inode, by the open file if the kernel named one. */
static int stat_inode(struct zc_req *r, struct zc_inode *inode, const struct zc_file *file,
		      struct statx *stx)
{
	int err, fd = file ? atomic_load(&file->fd) : -1;
	if (fd >= 0) {
		err = zc_stat_fd(fd, stx);
	} else {
		ZC_FD(path);
		err = zc_inode_fd(r->s->inodes, inode, &path);
		if (!err)
			err = zc_stat_fd(path.fd, stx);
	}
	if (err)
		return err;
	zc_attr_refresh(r->s, inode);
	atomic_store(&inode->told, zc_told_of(stx));
	return 0;
}

static int reply_attr(struct zc_req *r, struct zc_inode *inode, const struct statx *stx)
{
	struct fuse_attr_out *out = (void *)r->out;
	*out = (struct fuse_attr_out){0};
	zc_attr_timeout(r->s, inode, &out->attr_valid, &out->attr_valid_nsec);
	zc_attr_fill(r->s, stx, &out->attr);
	return zc_reply(r, sizeof(*out));
}

int zc_op_GETATTR(struct zc_req *r)
{
	const struct fuse_getattr_in *in = r->in;
	struct statx stx;
	ZC_INODE(ino, r->s, r->hdr.nodeid);
	if (!ino.i)
		return -ESTALE;
	int err = stat_inode(r, ino.i,
			     in->getattr_flags & FUSE_GETATTR_FH ? zc_file_of(in->fh) : NULL, &stx);
	return err ? err : reply_attr(r, ino.i, &stx);
}

static void sx_time(const struct statx_timestamp *t, struct fuse_sx_time *out)
{
	*out = (struct fuse_sx_time){.tv_sec = t->tv_sec, .tv_nsec = t->tv_nsec};
}

int zc_op_STATX(struct zc_req *r)
{
	const struct fuse_statx_in *in = r->in;
	struct statx stx;
	ZC_INODE(ino, r->s, r->hdr.nodeid);
	if (!ino.i)
		return -ESTALE;
	int err = stat_inode(r, ino.i,
			     in->getattr_flags & FUSE_GETATTR_FH ? zc_file_of(in->fh) : NULL, &stx);
	if (err)
		return err;
	struct fuse_statx_out *out = (void *)r->out;
	*out = (struct fuse_statx_out){
		.stat = {.mask = stx.stx_mask & ZC_STATX_MASK,
			 .blksize = stx.stx_blksize,
			 .attributes = stx.stx_attributes,
			 .attributes_mask = stx.stx_attributes_mask,
			 .nlink = stx.stx_nlink,
			 .uid = stx.stx_uid,
			 .gid = stx.stx_gid,
			 .mode = stx.stx_mode,
			 .ino = stx.stx_ino,
			 .size = stx.stx_size,
			 .blocks = stx.stx_blocks,
			 .rdev_major = stx.stx_rdev_major,
			 .rdev_minor = stx.stx_rdev_minor}};
	sx_time(&stx.stx_atime, &out->stat.atime);
	sx_time(&stx.stx_mtime, &out->stat.mtime);
	sx_time(&stx.stx_ctime, &out->stat.ctime);
	sx_time(&stx.stx_btime, &out->stat.btime);
	zc_attr_timeout(r->s, ino.i, &out->attr_valid, &out->attr_valid_nsec);
	return zc_reply(r, sizeof(*out));
}

/* SETATTR ---------------------------------------------------------------------------------- */

static int set_mode(int fd, uint32_t mode)
{
	/* no fchmodat on an O_PATH descriptor before Linux 6.6 */
	return ZC_SYSI("chmod", chmod(zc_link_of(fd).path, mode & 07777));
}

static int set_owner(int fd, const struct fuse_setattr_in *in)
{
	uid_t uid = in->valid & FATTR_UID ? in->uid : (uid_t)-1;
	gid_t gid = in->valid & FATTR_GID ? in->gid : (gid_t)-1;
	return ZC_SYSI("fchownat", fchownat(fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW));
}

static int set_size(struct zc_req *r, struct zc_inode *inode, const struct fuse_setattr_in *in)
{
	struct zc_file *file = in->valid & FATTR_FH ? zc_file_of(in->fh) : NULL;
	int fd = file && (file->flags & O_ACCMODE) != O_RDONLY ? atomic_load(&file->fd) : -1;
	ZC_CLOSE(own);
	if (fd < 0)
		fd = own.fd = zc_inode_open(r->s->inodes, inode, O_WRONLY | O_NONBLOCK);
	if (fd < 0)
		return fd;
	if (in->valid & FATTR_KILL_SUIDGID)
		zc_no_privilege(r);
	int err = ZC_SYSI("ftruncate", ftruncate(fd, (off_t)in->size));
	zc_as_self(r);
	zc_fsetid_on(r->w); /* a change of mode may follow */
	return err;
}

static struct timespec time_of(uint32_t valid, uint32_t set, uint32_t now, uint64_t sec, uint32_t ns)
{
	if (valid & now)
		return (struct timespec){.tv_nsec = UTIME_NOW};
	if (valid & set)
		return (struct timespec){.tv_sec = (time_t)sec, .tv_nsec = ns};
	return (struct timespec){.tv_nsec = UTIME_OMIT};
}

static int set_times(int fd, const struct fuse_setattr_in *in)
{
	struct timespec ts[2] = {
		time_of(in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
		time_of(in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec),
	};
	int err = ZC_SYSI("utimensat", utimensat(fd, "", ts, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW));
	if (err == -EINVAL) /* before Linux 5.8 */
		err = ZC_SYSI("utimensat", utimensat(AT_FDCWD, zc_link_of(fd).path, ts, 0));
	return err;
}

/* The order matters: chown drops set-id bits, and a truncation moves the times. */
static int set_attributes(struct zc_req *r, struct zc_inode *inode, int fd,
			  const struct fuse_setattr_in *in)
{
	int err = 0;
	if (in->valid & (FATTR_UID | FATTR_GID))
		err = set_owner(fd, in);
	if (!err && in->valid & FATTR_SIZE)
		err = set_size(r, inode, in);
	if (!err && in->valid & FATTR_MODE)
		err = set_mode(fd, in->mode);
	if (!err && in->valid & (FATTR_ATIME | FATTR_MTIME))
		err = set_times(fd, in);
	return err;
}

int zc_op_SETATTR(struct zc_req *r)
{
	const struct fuse_setattr_in *in = r->in;
	struct statx stx;
	ZC_INODE(ino, r->s, r->hdr.nodeid);
	if (!ino.i)
		return -ESTALE;
	int err = zc_check_writable(r);
	if (err)
		return err;
	ZC_FD(path);
	err = zc_inode_fd(r->s->inodes, ino.i, &path);
	if (err)
		return err;
	int pin = in->valid & FATTR_SIZE ? zc_pin_open(r, ino.i, O_WRONLY) : 0;
	if (pin < 0)
		return pin;
	bool begun = zc_change_begin(r->s, ino.i, path.fd);
	err = set_attributes(r, ino.i, path.fd, in);
	zc_change_end(r->s, ino.i, path.fd, begun);
	if (pin == ZC_PIN_HELD)
		zc_pin_opened(r->s, ino.i);
	if (in->valid & FATTR_SIZE)
		zc_pool_changed(r->s, path.fd, 0, UINT64_MAX);
	if (!err)
		err = zc_stat_fd(path.fd, &stx);
	if (err)
		return err;
	atomic_store(&ino.i->told, zc_told_of(&stx));
	return reply_attr(r, ino.i, &stx);
}

int zc_op_READLINK(struct zc_req *r)
{
	ZC_INODE(ino, r->s, r->hdr.nodeid);
	if (!ino.i)
		return -ESTALE;
	ZC_FD(path);
	int err = zc_inode_fd(r->s->inodes, ino.i, &path);
	if (err)
		return err;
	ssize_t n = ZC_SYS("readlinkat", readlinkat(path.fd, "", r->out, PATH_MAX - 1));
	return n < 0 ? (int)n : zc_reply(r, (size_t)n);
}

/* Asked only without default_permissions, which every mount has; answered all the same. */
int zc_op_ACCESS(struct zc_req *r)
{
	const struct fuse_access_in *in = r->in;
	ZC_INODE(ino, r->s, r->hdr.nodeid);
	if (!ino.i)
		return -ESTALE;
	ZC_FD(path);
	int err = zc_inode_fd(r->s->inodes, ino.i, &path);
	if (!err)
		err = zc_as_caller(r, 0);
	if (!err)
		err = ZC_SYSI("faccessat", faccessat(AT_FDCWD, zc_link_of(path.fd).path,
						     (int)in->mask & 7, AT_EACCESS));
	zc_as_self(r);
	return err;
}

int zc_op_STATFS(struct zc_req *r)
{
	struct statfs st;
	ZC_INODE(ino, r->s, r->hdr.nodeid);
	if (!ino.i)
		return -ESTALE;
	ZC_FD(path);
	int err = zc_inode_fd(r->s->inodes, ino.i, &path);
	if (!err)
		err = ZC_SYSI("fstatfs", fstatfs(path.fd, &st));
	if (err)
		return err;
	struct fuse_statfs_out *out = (void *)r->out;
	*out = (struct fuse_statfs_out){.st = {.blocks = st.f_blocks,
					       .bfree = st.f_bfree,
					       .bavail = st.f_bavail,
					       .files = st.f_files,
					       .ffree = st.f_ffree,
					       .bsize = (uint32_t)st.f_bsize,
					       .namelen = (uint32_t)st.f_namelen,
					       .frsize = (uint32_t)st.f_frsize}};
	return zc_reply(r, sizeof(*out));
}
