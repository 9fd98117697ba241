/* Names: LOOKUP and everything that makes, moves or removes a directory entry.
 *
 * A name is one component without '/', never "." or ".." (checked before we see it), resolved
 * below a descriptor of its directory: nothing here can lead out of the source. Symbolic links are
 * never followed. What is made is made as the caller.
 */
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ops.h"
#include "sys.h"

/* The directory a request names, opened. */
struct dir {
	struct zc_iref ref;
	struct zc_fd fd;
};

static void dir_done(struct dir *d)
{
	zc_fd_done(&d->fd);
	zc_iref_done(&d->ref);
}
#define DIR_OF(name) struct dir name __attribute__((cleanup(dir_done))) = {{NULL, NULL}, {-1, NULL}}

static int dir_open(struct zc_session *s, uint64_t nodeid, struct dir *d)
{
	d->ref = (struct zc_iref){s->inodes, zc_inode_get(s->inodes, nodeid)};
	if (!d->ref.i)
		return -ESTALE;
	if (d->ref.i->fmt != S_IFDIR)
		return -ENOTDIR;
	return zc_inode_fd(s->inodes, d->ref.i, &d->fd);
}

static int reply_entry(struct zc_req *r, const struct dir *d, const char *name)
{
	struct fuse_entry_out out;
	ZC_INODE(ino, r->s, 0);
	int err = zc_entry_at(r, d->ref.i, d->fd.fd, name, &out, &ino.i);
	if (err)
		return err;
	memcpy(r->out, &out, sizeof(out));
	return zc_reply(r, sizeof(out));
}

int zc_op_LOOKUP(struct zc_req *r)
{
	DIR_OF(d);
	int err = dir_open(r->s, r->hdr.nodeid, &d);
	return err ? err : reply_entry(r, &d, r->arg);
}

/* Opens the directory for a change of its entries. */
static int dir_open_rw(struct zc_req *r, struct dir *d)
{
	int err = zc_check_writable(r);
	return err ? err : dir_open(r->s, r->hdr.nodeid, d);
}

int zc_op_MKNOD(struct zc_req *r)
{
	const struct fuse_mknod_in *in = r->in;
	dev_t dev = makedev((in->rdev & 0xfff00) >> 8, (in->rdev & 0xff) | (in->rdev >> 12 & 0xfff00));
	DIR_OF(d);
	int err = dir_open_rw(r, &d);
	if (!err)
		err = ZC_AS_CALLER(r, in->umask,
				   ZC_SYSI("mknodat", mknodat(d.fd.fd, r->arg, in->mode, dev)));
	return err ? err : reply_entry(r, &d, r->arg);
}

int zc_op_MKDIR(struct zc_req *r)
{
	const struct fuse_mkdir_in *in = r->in;
	DIR_OF(d);
	int err = dir_open_rw(r, &d);
	if (!err)
		err = ZC_AS_CALLER(r, in->umask,
				   ZC_SYSI("mkdirat", mkdirat(d.fd.fd, r->arg, in->mode & 07777)));
	return err ? err : reply_entry(r, &d, r->arg);
}

int zc_op_SYMLINK(struct zc_req *r)
{
	DIR_OF(d);
	int err = dir_open_rw(r, &d);
	if (!err)
		err = ZC_AS_CALLER(r, 0, ZC_SYSI("symlinkat", symlinkat(zc_req_name2(r), d.fd.fd, r->arg)));
	return err ? err : reply_entry(r, &d, r->arg);
}

int zc_op_LINK(struct zc_req *r)
{
	const struct fuse_link_in *in = r->in;
	DIR_OF(d);
	ZC_INODE(old, r->s, in->oldnodeid);
	int err = old.i ? dir_open_rw(r, &d) : -ESTALE;
	if (err)
		return err;
	ZC_FD(path);
	err = zc_inode_fd(r->s->inodes, old.i, &path);
	if (!err)
		err = ZC_SYSI("linkat", linkat(AT_FDCWD, zc_link_of(path.fd).path, d.fd.fd, r->arg,
					       AT_SYMLINK_FOLLOW));
	return err ? err : reply_entry(r, &d, r->arg);
}

static int remove_name(struct zc_req *r, int flags)
{
	DIR_OF(d);
	int err = dir_open_rw(r, &d);
	if (err)
		return err;
	err = zc_inode_unlinking(r->s->inodes, d.ref.i, r->arg);
	if (!err)
		err = ZC_SYSI("unlinkat", unlinkat(d.fd.fd, r->arg, flags));
	if (!err)
		zc_pins_removed(r->s);
	return err;
}

int zc_op_UNLINK(struct zc_req *r)
{
	return remove_name(r, 0);
}

int zc_op_RMDIR(struct zc_req *r)
{
	return remove_name(r, AT_REMOVEDIR);
}

static int rename_name(struct zc_req *r, uint64_t newdir, unsigned flags)
{
	struct zc_inode_table *t = r->s->inodes;
	const char *from = r->arg, *to = zc_req_name2(r);
	DIR_OF(d);
	DIR_OF(n);
	ZC_INODE(moving, r->s, 0);
	ZC_INODE(back, r->s, 0);
	int err = dir_open_rw(r, &d);
	if (!err)
		err = dir_open(r->s, newdir, &n);
	if (!err)
		err = zc_inode_moving(t, d.ref.i, from, &moving.i);
	if (!err)
		err = flags & RENAME_EXCHANGE ? zc_inode_moving(t, n.ref.i, to, &back.i)
					      : zc_inode_unlinking(t, n.ref.i, to);
	if (!err)
		err = ZC_SYSI("renameat2", renameat2(d.fd.fd, from, n.fd.fd, to, flags));
	if (err)
		return err;
	if (moving.i)
		zc_inode_moved(t, moving.i, n.ref.i, to);
	if (back.i)
		zc_inode_moved(t, back.i, d.ref.i, from);
	zc_policy_renamed(r->s, n.ref.i, n.fd.fd, to);
	if (flags & RENAME_EXCHANGE)
		zc_policy_renamed(r->s, d.ref.i, d.fd.fd, from);
	zc_pins_removed(r->s);
	return 0;
}

int zc_op_RENAME(struct zc_req *r)
{
	const struct fuse_rename_in *in = r->in;
	return rename_name(r, in->newdir, 0);
}

int zc_op_RENAME2(struct zc_req *r)
{
	const struct fuse_rename2_in *in = r->in;
	return rename_name(r, in->newdir, in->flags);
}

/* CREATE and TMPFILE: the entry and the open file in one reply. Takes `fd`. */
static int reply_create(struct zc_req *r, const struct dir *d, const char *name, int flags, int fd)
{
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} out;
	ZC_INODE(ino, r->s, 0);
	int err = zc_entry_of_fd(r, d->ref.i, name, fd, &out.entry, &ino.i);
	if (err) {
		close(fd);
		return err;
	}
	/* somebody put something else there meanwhile: the kernel would not release it */
	if (ino.i->fmt != S_IFREG) {
		close(fd);
		err = -ESTALE;
	} else {
		if (!*name)
			zc_inode_keep(r->s->inodes, ino.i, fd);
		err = zc_file_open(r, ino.i, flags & ~O_TRUNC, fd, &out.open);
	}
	if (err) {
		zc_inode_forget(r->s->inodes, out.entry.nodeid, 1);
		return err;
	}
	zc_attr_timeout(r->s, ino.i, &out.entry.attr_valid, &out.entry.attr_valid_nsec);
	memcpy(r->out, &out, sizeof(out));
	return zc_reply(r, sizeof(out));
}

/* A second try with permissions overridden must not open what is there already: the caller's right
 * to that was never checked. */
static int create_as_caller(struct zc_req *r, int dirfd, int flags, const struct fuse_create_in *in)
{
	int err = zc_as_caller(r, in->umask);
	int fd = err ? err : ZC_SYSI("openat", openat(dirfd, r->arg, flags, in->mode & 07777));
	if (fd == -EACCES && zc_override(r)) {
		fd = ZC_SYSI("openat", openat(dirfd, r->arg, flags | O_EXCL, in->mode & 07777));
		if (fd == -EEXIST && !(flags & O_EXCL))
			fd = -ESTALE; /* the kernel looks again, and checks */
	}
	zc_as_self(r);
	return fd;
}

int zc_op_CREATE(struct zc_req *r)
{
	const struct fuse_create_in *in = r->in;
	int flags = (int)in->flags;
	DIR_OF(d);
	int err = dir_open_rw(r, &d);
	if (err)
		return err;
	int fd = create_as_caller(r, d.fd.fd,
				  (flags & ~(O_DIRECT | O_NOCTTY)) | O_CREAT | O_NOFOLLOW |
					  O_CLOEXEC | O_NONBLOCK, in);
	return fd < 0 ? fd : reply_create(r, &d, r->arg, flags, fd);
}

int zc_op_TMPFILE(struct zc_req *r)
{
	const struct fuse_create_in *in = r->in;
	int flags = (int)in->flags, keep = O_ACCMODE | O_EXCL | O_SYNC | O_DSYNC | O_APPEND;
	DIR_OF(d);
	int err = dir_open_rw(r, &d);
	if (err)
		return err;
	int fd = ZC_AS_CALLER(r, in->umask,
			      ZC_SYSI("openat", openat(d.fd.fd, ".", (flags & keep) | O_TMPFILE | O_CLOEXEC,
						       in->mode & 07777)));
	return fd < 0 ? fd : reply_create(r, &d, "", flags, fd);
}
