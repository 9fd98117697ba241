/* From a request to its handler: routing between the mirror and the computed tree, and counting.
 *
 * A request goes to the tree that its nodeid belongs to. What the header's nodeid does not cover
 * is decided here: .zcfs in the root, and anything that would join the two trees.
 */
#include <string.h>
#include <unistd.h>

#include "ops.h"

#define DAY 86400 /* seconds */

static const zc_op handlers[FUSE_OPCODE_END] = {
#define X(code, name, size, flags) [code] = zc_op_##name,
	ZC_OPCODES(X)
#undef X
};

int zc_op_FORGET(struct zc_req *r)
{
	const struct fuse_forget_in *in = r->in;
	if (!r->s->privileged) /* by path: closes what may have been deleted */
		zc_may_block(r->w);
	zc_inode_forget(r->s->inodes, r->hdr.nodeid, in->nlookup);
	return 0;
}

int zc_op_BATCH_FORGET(struct zc_req *r)
{
	const struct fuse_batch_forget_in *in = r->in;
	const struct fuse_forget_one *one = (const void *)r->arg;
	zc_may_block(r->w);
	for (uint32_t i = 0; i < in->count; i++) {
		if (!(one[i].nodeid & ZC_COMPUTED_BIT))
			zc_inode_forget(r->s->inodes, one[i].nodeid, one[i].nlookup);
		else if (r->s->relay)
			zc_relay_forget(r->s->relay, one[i].nodeid, one[i].nlookup);
	}
	return 0;
}

int zc_op_INTERRUPT(struct zc_req *r)
{
	const struct fuse_interrupt_in *in = r->in;
	zc_may_block(r->w);
	zc_interrupt(r->s, in->unique);
	return 0;
}

/* Once per mount, before the workers start (session.c); never again. */
int zc_op_INIT(struct zc_req *r)
{
	(void)r;
	return -EIO;
}

int zc_op_DESTROY(struct zc_req *r)
{
	(void)r;
	return 0;
}

/* The one name of the computed tree that is answered here: while a LOOKUP in the root waits, the
 * kernel lets nobody create a file there, and after that nobody look anything up. */
static int lookup_zcfs(struct zc_req *r)
{
	struct fuse_entry_out *out = (void *)r->out;
	uint64_t started = r->s->started_s;
	if (!r->s->relay)
		return -ENOENT;
	*out = (struct fuse_entry_out){
		.nodeid = ZC_COMPUTED_ROOT,
		.entry_valid = DAY,
		.attr_valid = DAY,
		.attr = {.ino = ZC_COMPUTED_ROOT, .mode = S_IFDIR | 0555, .nlink = 2, .uid = geteuid(),
			 .gid = getegid(), .blksize = 4096, .atime = started, .mtime = started,
			 .ctime = started}};
	return zc_reply(r, sizeof(*out));
}

static int computed(struct zc_req *r)
{
	if (!r->s->relay)
		return -ESTALE;
	if (r->hdr.opcode == FUSE_FORGET) {
		const struct fuse_forget_in *in = r->in;
		zc_relay_forget(r->s->relay, r->hdr.nodeid, in->nlookup);
		return 0;
	}
	return zc_relay_serve(r);
}

/* The second nodeid of a request that has one. */
static uint64_t other_nodeid(const struct zc_req *r)
{
	switch (r->hdr.opcode) {
	case FUSE_RENAME:
		return ((const struct fuse_rename_in *)r->in)->newdir;
	case FUSE_RENAME2:
		return ((const struct fuse_rename2_in *)r->in)->newdir;
	case FUSE_LINK:
		return ((const struct fuse_link_in *)r->in)->oldnodeid;
	case FUSE_COPY_FILE_RANGE:
	case FUSE_COPY_FILE_RANGE_64:
		return ((const struct fuse_copy_file_range_in *)r->in)->nodeid_out;
	default:
		return r->hdr.nodeid;
	}
}

static bool is_zcfs(uint64_t nodeid, const char *name)
{
	return nodeid == FUSE_ROOT_ID && !strcmp(name, ZC_ZCFS_NAME);
}

/* Whether the request would make, move or remove .zcfs in the root. */
static bool touches_zcfs(const struct zc_req *r)
{
	unsigned flags = zc_opinfo[r->hdr.opcode].flags;
	switch (r->hdr.opcode) {
	case FUSE_SYMLINK: /* its second name is the target */
		return is_zcfs(r->hdr.nodeid, r->arg);
	case FUSE_GETXATTR:
	case FUSE_SETXATTR:
	case FUSE_REMOVEXATTR: /* theirs are no directory entries */
	case FUSE_TMPFILE:
		return false;
	default:
		break;
	}
	if (flags & ZC_F_NAME2)
		return is_zcfs(r->hdr.nodeid, r->arg) || is_zcfs(other_nodeid(r), zc_req_name2(r));
	return flags & ZC_F_NAME1 && is_zcfs(r->hdr.nodeid, r->arg);
}

static int route(struct zc_req *r)
{
	uint64_t other = other_nodeid(r);
	if ((r->hdr.nodeid ^ other) & ZC_COMPUTED_BIT)
		return -EXDEV;
	if (r->hdr.nodeid & ZC_COMPUTED_BIT)
		return computed(r);
	if (touches_zcfs(r))
		return r->hdr.opcode == FUSE_LOOKUP ? lookup_zcfs(r) : -EPERM;
	return handlers[r->hdr.opcode](r);
}

/* A name too long is the application's mistake; a message that makes no sense is not. */
int zc_req_refuse(const struct zc_req *r, int err)
{
	if (err != -EPROTO)
		return err;
	zc_log("opcode %u: a request that cannot be parsed", r->hdr.opcode);
	return -EIO;
}

/* A reading of the clock costs a tenth of a short request: one request in TIMED_OF is timed. */
#define TIMED_OF 16

static void count(struct zc_opstat *stat, uint64_t start, int err)
{
	atomic_fetch_add_explicit(&stat->count, 1, memory_order_relaxed);
	if (start)
		atomic_fetch_add_explicit(&stat->ns, (zc_now_ns() - start) * TIMED_OF,
					  memory_order_relaxed);
	if (err)
		atomic_fetch_add_explicit(&stat->errors, 1, memory_order_relaxed);
}

int zc_req_serve(struct zc_req *r)
{
	const struct zc_opinfo *info = &zc_opinfo[r->hdr.opcode];
	struct zc_opstat *stat = &r->w->ops[r->hdr.opcode];
	uint64_t nth = atomic_load_explicit(&stat->count, memory_order_relaxed);
	uint64_t start = nth % TIMED_OF ? 0 : zc_now_ns();
	r->out_len = 0;
	if (info->flags & ZC_F_BLOCKS)
		zc_may_block(r->w);
	if (!(info->flags & ZC_F_ANYCRED))
		zc_fsetid_on(r->w);
	int err = route(r);
	if (err == -ENOSYS && r->hdr.opcode != FUSE_POLL)
		err = -EOPNOTSUPP; /* or the kernel would never ask again */
	count(stat, start, err);
	return err;
}
