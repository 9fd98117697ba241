/* What the operation files share. Each opcode of the mirror is one function, zc_op_<name>. */
#ifndef ZC_OPS_H
#define ZC_OPS_H

#include <sys/statfs.h>
#include <sys/sysmacros.h>

#include "internal.h"

#define X(code, name, size, flags) int zc_op_##name(struct zc_req *r);
ZC_OPCODES(X)
#undef X

/* The request's inode, with a reference; end it with ZC_INODE's clean-up. */
struct zc_iref {
	struct zc_inode_table *t;
	struct zc_inode *i;
};
static inline void zc_iref_done(struct zc_iref *r)
{
	if (r->i)
		zc_inode_put(r->t, r->i);
}
#define ZC_INODE(name, session, nodeid)                                     \
	struct zc_iref name __attribute__((cleanup(zc_iref_done))) = {      \
		(session)->inodes, zc_inode_get((session)->inodes, nodeid)}

struct zc_closer {
	int fd;
};
void zc_closer_done(struct zc_closer *c);
#define ZC_CLOSE(name) struct zc_closer name __attribute__((cleanup(zc_closer_done))) = {-1}

/* A path by which system calls that refuse O_PATH descriptors reach the inode itself. */
struct zc_link {
	char path[40];
};
struct zc_link zc_link_of(int fd);

/* attributes (ops_attr.c) */
int zc_stat_fd(int fd, struct statx *stx);
void zc_attr_fill(const struct zc_session *s, const struct statx *stx, struct fuse_attr *a);
uint64_t zc_told_of(const struct statx *stx);
/* How long the kernel may believe the attributes of this inode. */
void zc_attr_timeout(const struct zc_session *s, const struct zc_inode *inode, uint64_t *sec,
		     uint32_t *nsec);
void zc_timeout_split(double seconds, uint64_t *sec, uint32_t *nsec);
/* Fill `out` for `name` in `parent`, with a lookup added; the inode's reference is the caller's.
 * `fd`: any descriptor of it, kept by the caller; `dirfd`: one of the parent. */
int zc_entry_of_fd(struct zc_req *r, struct zc_inode *parent, const char *name, int fd,
		   struct fuse_entry_out *out, struct zc_inode **inode);
int zc_entry_at(struct zc_req *r, struct zc_inode *parent, int dirfd, const char *name,
		struct fuse_entry_out *out, struct zc_inode **inode);

/* Reply with the first `len` bytes of out. */
static inline int zc_reply(struct zc_req *r, size_t len)
{
	r->out_len = len;
	return 0;
}
/* The source is on a private read-only mount then, but a message without a system call is cheaper
 * and works unprivileged. */
static inline int zc_check_writable(const struct zc_req *r)
{
	return r->s->opt.read_only ? -EROFS : 0;
}

#endif
