/* Extended attributes and, through them, POSIX ACLs: passed to the source as they are.
 *
 * The calls that take a descriptor refuse O_PATH ones, so they go by /proc/self/fd, which leads to
 * the inode itself, also where that is a symbolic link.
 */
#include <linux/limits.h>
#include <string.h>
#include <sys/xattr.h>

#include "ops.h"
#include "sys.h"

static int inode_link(struct zc_req *r, const struct zc_iref *ino, struct zc_fd *fd,
		      struct zc_link *link)
{
	int err = ino->i ? zc_inode_fd(r->s->inodes, ino->i, fd) : -ESTALE;
	if (!err)
		*link = zc_link_of(fd->fd);
	return err;
}

/* size 0 asks how long the value is. */
static int reply_sized(struct zc_req *r, uint32_t asked, ssize_t n)
{
	if (n < 0)
		return (int)n;
	if (asked)
		return zc_reply(r, (size_t)n);
	struct fuse_getxattr_out *out = (void *)r->out;
	*out = (struct fuse_getxattr_out){.size = (uint32_t)n};
	return zc_reply(r, sizeof(*out));
}

int zc_op_GETXATTR(struct zc_req *r)
{
	const struct fuse_getxattr_in *in = r->in;
	uint32_t size = in->size < r->out_cap ? in->size : (uint32_t)r->out_cap;
	struct zc_link link;
	ZC_INODE(ino, r->s, r->hdr.nodeid);
	ZC_FD(fd);
	int err = inode_link(r, &ino, &fd, &link);
	return err ? err
		   : reply_sized(r, size,
				 ZC_SYS("getxattr", getxattr(link.path, r->arg,
							     size ? r->out : NULL, size)));
}

/* Takes the names out of a list that only a privileged caller would see in place. */
static size_t hide_trusted(char *list, size_t len)
{
	size_t kept = 0;
	for (size_t at = 0, n; at < len; at += n) {
		n = strnlen(list + at, len - at) + 1;
		if (!strncmp(list + at, "trusted.", 8))
			continue;
		memmove(list + kept, list + at, n);
		kept += n;
	}
	return kept;
}

int zc_op_LISTXATTR(struct zc_req *r)
{
	const struct fuse_getxattr_in *in = r->in;
	struct zc_link link;
	ZC_INODE(ino, r->s, r->hdr.nodeid);
	ZC_FD(fd);
	int err = inode_link(r, &ino, &fd, &link);
	if (err)
		return err;
	ssize_t n = ZC_SYS("listxattr", listxattr(link.path, r->out, XATTR_LIST_MAX));
	if (n > 0 && r->hdr.uid)
		n = (ssize_t)hide_trusted(r->out, (size_t)n);
	return in->size && n > (ssize_t)in->size ? -ERANGE : reply_sized(r, in->size, n);
}

/* The kernel has found that the caller may not keep set-gid with this ACL. */
static int drop_sgid(const char *path)
{
	struct stat st;
	int err = ZC_SYSI("stat", stat(path, &st));
	if (err || !(st.st_mode & S_ISGID))
		return err;
	return ZC_SYSI("chmod", chmod(path, st.st_mode & 07777 & ~(mode_t)S_ISGID));
}

int zc_op_SETXATTR(struct zc_req *r)
{
	const struct fuse_setxattr_in *in = r->in;
	const char *value = zc_req_name2(r);
	struct zc_link link;
	ZC_INODE(ino, r->s, r->hdr.nodeid);
	ZC_FD(fd);
	int err = zc_check_writable(r);
	if (!err)
		err = inode_link(r, &ino, &fd, &link);
	if (!err)
		err = ZC_SYSI("setxattr",
			      setxattr(link.path, r->arg, value, in->size, (int)in->flags));
	if (!err && in->setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID)
		err = drop_sgid(link.path);
	return err;
}

int zc_op_REMOVEXATTR(struct zc_req *r)
{
	struct zc_link link;
	ZC_INODE(ino, r->s, r->hdr.nodeid);
	ZC_FD(fd);
	int err = zc_check_writable(r);
	if (!err)
		err = inode_link(r, &ino, &fd, &link);
	return err ? err : ZC_SYSI("removexattr", removexattr(link.path, r->arg));
}
