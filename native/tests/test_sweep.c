/* Every operation of the mirror, with every system call failing once: no mount, no threads.
 *
 * A scenario (a table of steps, one request each) runs against a session built by hand: first clean,
 * then with the 1st, 2nd, 3rd … system call of it made to fail, until there are no more. A step
 * whose call failed must either have succeeded all the same or give an error that makes sense; asked
 * again it must succeed, or say that it is done. So every run ends with the same tree on disk, and
 * with nothing held: no inode, descriptor, lock or foreign credentials.
 *
 * Needs a build of the data plane with -DZC_FAULT_INJECTION.
 */
#include <dirent.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "../ops.h"
#include "../sys.h"
#include "harness.h"

#define CROWD 24 /* more files than the table caches descriptors of */
#define USER 1000u
#define GROUP 2000u
#define CONTENT "0123456789"
#define XATTR "user.zc"

enum node { N_ROOT, N_D, N_F, N_LINK, N_MANY, N_SUID, N_G, N_SUB, N_SYM, N_FIFO, N_DIR, N_NEW,
	    N_HARD, N_TMP, N_APPEND, N_THEIRS, N_COUNT };
enum handle { H_F, H_F2, H_NEW, H_TMP, H_APPEND, H_SUID, H_MANY, H_COUNT };

struct run {
	struct zc_session s;
	struct zc_queue q;
	struct zc_worker w;
	int dir;
	bool by_path, as_dev; /* how inodes are located; how messages lie in memory */
	int nth, err, seen;   /* the fault, and the calls before this step */
	uint32_t uid, gid;
	const void *ext;
	size_t ext_len;
	uint64_t unique;
	uint64_t node[N_COUNT], fh[H_COUNT], crowd[CROWD];
	struct fuse_forget_one known[256];
	uint32_t known_count;
	struct zc_cred cred;
};

static char *buffer; /* of one worker, as /dev/fuse has it */
static bool have_xattr, have_flags, is_root;
static bool no_sync; /* on a disk, where it would take long */

/* talking to the data plane ---------------------------------------------------------------- */

#define BODY 4096 /* in the buffer: where the reply is built */
#define ARG(s) s, sizeof(s)
#define OUT(run, type) ((const struct type *)(const void *)(run)->w.req.out)

static bool hit(const struct run *u)
{
	return u->seen < u->nth && zc_fault_seen() >= u->nth;
}

/* As transport_dev.c: one message, parsed where it lies. */
static int place_message(struct run *u, const void *in, const void *arg, size_t arg_len)
{
	struct zc_req *r = &u->w.req;
	size_t in_size = zc_opinfo[r->hdr.opcode].in_size;
	char *at = buffer + BODY - sizeof(struct fuse_in_header) - sizeof(struct fuse_write_in);
	char *p = at + sizeof(r->hdr);
	r->hdr.len = (uint32_t)(sizeof(r->hdr) + in_size + arg_len + u->ext_len);
	memcpy(at, &r->hdr, sizeof(r->hdr));
	memcpy(p, in, in_size);
	memcpy(p + in_size, arg, arg_len);
	if (u->ext_len)
		memcpy(p + in_size + arg_len, u->ext, u->ext_len);
	int err = zc_req_parse(at, r->hdr.len, r);
	memcpy(u->w.in, r->in, in_size);
	r->in = u->w.in;
	return err;
}

/* As transport_uring.c: the fixed part apart, the rest where the reply goes. */
static int place_parts(struct run *u, const void *in, const void *arg, size_t arg_len)
{
	struct zc_req *r = &u->w.req;
	memcpy(u->w.in, in, zc_opinfo[r->hdr.opcode].in_size);
	memcpy(r->out, arg, arg_len);
	if (u->ext_len)
		memcpy(r->out + arg_len, u->ext, u->ext_len);
	r->in = u->w.in;
	r->arg = r->out;
	r->arg_len = arg_len + u->ext_len;
	return zc_req_check(r);
}

static int ask(struct run *u, uint32_t opcode, uint64_t nodeid, const void *in, const void *arg,
	       size_t arg_len)
{
	struct zc_req *r = &u->w.req;
	*r = (struct zc_req){.s = &u->s, .w = &u->w, .out = buffer + BODY, .out_cap = ZC_MAX_WRITE};
	r->hdr = (struct fuse_in_header){.opcode = opcode, .unique = u->unique += 2,
					 .nodeid = nodeid, .uid = u->uid, .gid = u->gid,
					 .pid = (uint32_t)getpid(),
					 .total_extlen = (uint16_t)(u->ext_len / 8)};
	int err = (u->as_dev ? place_message : place_parts)(u, in ? in : "", arg ? arg : "", arg_len);
	EXPECT_IS(err, 0);
	atomic_store(&u->w.interrupted, false);
	atomic_store(&u->w.unique, r->hdr.unique);
	err = zc_req_serve(r);
	atomic_store(&u->w.unique, 0);
	if (!err && u->w.data.size) /* as a transport does */
		EXPECT_IS(zc_bufvec_gather(&u->w.data, r->out, r->out_cap), r->out_len);
	zc_bufvec_end(&u->w.data);
	EXPECT(err <= 0 && err > -4096);
	EXPECT(err != -ENOSYS || opcode == FUSE_POLL);
	EXPECT(r->out_len <= r->out_cap);
	return err;
}

/* Where an error is what must come: 0 then. */
static int want(int err, int expected)
{
	EXPECT(err != 0);
	return err == -expected ? 0 : err;
}

/* checking replies --------------------------------------------------------------------------- */

static void know(struct run *u, uint64_t nodeid)
{
	uint32_t i = 0;
	while (i < u->known_count && u->known[i].nodeid != nodeid)
		i++;
	if (i == u->known_count && i < 256)
		u->known[u->known_count++] = (struct fuse_forget_one){.nodeid = nodeid};
	EXPECT(i < 256);
	if (i < 256)
		u->known[i].nlookup++;
}

static void check_attr(struct run *u, const struct fuse_attr *a, const char *path)
{
	struct stat st;
	EXPECT_IS(fstatat(u->dir, path, &st, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH), 0);
	EXPECT_IS(a->ino, st.st_ino);
	EXPECT_IS(a->size, st.st_size);
	EXPECT_IS(a->blocks, st.st_blocks);
	EXPECT_IS(a->mode, st.st_mode);
	EXPECT_IS(a->nlink, st.st_nlink);
	EXPECT_IS(a->uid, st.st_uid);
	EXPECT_IS(a->gid, st.st_gid);
	EXPECT_IS(a->mtime, st.st_mtim.tv_sec);
	EXPECT_IS(a->mtimensec, st.st_mtim.tv_nsec);
	EXPECT_IS(a->ctimensec, st.st_ctim.tv_nsec);
	EXPECT_IS(a->blksize, st.st_blksize);
}

/* The inode of an entry: the same number each time while the kernel remembers it. */
static void take_entry(struct run *u, enum node n, const struct fuse_entry_out *e, const char *path)
{
	EXPECT(e->nodeid > FUSE_ROOT_ID && !(e->nodeid & ZC_COMPUTED_BIT));
	EXPECT(e->generation != 0);
	EXPECT_IS(e->entry_valid, 2);
	EXPECT_IS(e->attr_valid, 1);
	EXPECT_IS(e->attr_valid_nsec, 500000000);
	if (path)
		check_attr(u, &e->attr, path);
	if (u->node[n])
		EXPECT_IS(e->nodeid, u->node[n]);
	u->node[n] = e->nodeid;
	know(u, e->nodeid);
}

static int lookup(struct run *u, enum node parent, const char *name, enum node n, const char *path)
{
	int err = ask(u, FUSE_LOOKUP, u->node[parent], NULL, name, strlen(name) + 1);
	if (err)
		return err;
	EXPECT_IS(u->w.req.out_len, sizeof(struct fuse_entry_out));
	take_entry(u, n, OUT(u, fuse_entry_out), path);
	return 0;
}

static int made(struct run *u, int err, enum node n, const char *path)
{
	if (err)
		return err;
	EXPECT_IS(u->w.req.out_len, sizeof(struct fuse_entry_out));
	take_entry(u, n, OUT(u, fuse_entry_out), path);
	return 0;
}

static int open_node(struct run *u, enum node n, uint32_t flags, enum handle h)
{
	struct fuse_open_in in = {.flags = flags};
	int err = ask(u, FUSE_OPEN, u->node[n], &in, NULL, 0);
	if (err)
		return err;
	const struct fuse_open_out *out = OUT(u, fuse_open_out);
	EXPECT_IS(u->w.req.out_len, sizeof(*out));
	EXPECT(out->fh != 0);
	EXPECT_IS(out->open_flags & (FOPEN_PASSTHROUGH | FOPEN_DIRECT_IO), 0);
	u->fh[h] = out->fh;
	return 0;
}

static int release(struct run *u, enum node n, enum handle h)
{
	struct fuse_release_in in = {.fh = u->fh[h]};
	u->fh[h] = 0;
	return ask(u, h == H_MANY ? FUSE_RELEASEDIR : FUSE_RELEASE, u->node[n], &in, NULL, 0);
}

/* the scenario: names and attributes ----------------------------------------------------------- */

#define LOOKUP_STEP(fn, parent, name, n, path)                 \
	static int fn(struct run *u)                           \
	{                                                      \
		return lookup(u, parent, name, n, path);       \
	}
LOOKUP_STEP(lookup_d, N_ROOT, "d", N_D, "d")
LOOKUP_STEP(lookup_f, N_ROOT, "f", N_F, "f")
LOOKUP_STEP(lookup_link, N_ROOT, "link", N_LINK, "link")
LOOKUP_STEP(lookup_many, N_ROOT, "many", N_MANY, "many")
LOOKUP_STEP(lookup_suid, N_ROOT, "suid", N_SUID, "suid")
LOOKUP_STEP(lookup_g, N_ROOT, "g", N_G, "g")
LOOKUP_STEP(lookup_sub, N_D, "sub", N_SUB, "d/sub")
LOOKUP_STEP(lookup_sym, N_D, "sym", N_SYM, "d/sym")
LOOKUP_STEP(lookup_fifo, N_D, "fifo", N_FIFO, "d/fifo")
LOOKUP_STEP(lookup_dir, N_G, "dir", N_DIR, "g/dir")
LOOKUP_STEP(lookup_hard, N_D, "hard", N_F, "d/hard")
LOOKUP_STEP(lookup_moved, N_SUB, "moved", N_NEW, "d/sub/moved")
LOOKUP_STEP(lookup_theirs, N_G, "theirs", N_THEIRS, "g/theirs")

static int lookup_missing(struct run *u)
{
	return want(ask(u, FUSE_LOOKUP, FUSE_ROOT_ID, NULL, ARG("nothing")), ENOENT);
}

static int lookup_zcfs(struct run *u)
{
	return want(ask(u, FUSE_LOOKUP, FUSE_ROOT_ID, NULL, ARG(".zcfs")), ENOENT);
}

static int lookup_stale(struct run *u)
{
	return want(ask(u, FUSE_LOOKUP, 1u << 20, NULL, ARG("x")), ESTALE);
}

static int lookup_in_file(struct run *u)
{
	return want(ask(u, FUSE_LOOKUP, u->node[N_F], NULL, ARG("x")), ENOTDIR);
}

static int getattr(struct run *u, enum node n, enum handle h, const char *path)
{
	struct fuse_getattr_in in = {0};
	if (h != H_COUNT)
		in = (struct fuse_getattr_in){.getattr_flags = FUSE_GETATTR_FH, .fh = u->fh[h]};
	int err = ask(u, FUSE_GETATTR, u->node[n], &in, NULL, 0);
	if (err)
		return err;
	EXPECT_IS(u->w.req.out_len, sizeof(struct fuse_attr_out));
	EXPECT_IS(OUT(u, fuse_attr_out)->attr_valid, 1);
	if (path)
		check_attr(u, &OUT(u, fuse_attr_out)->attr, path);
	return 0;
}

static int getattr_root(struct run *u) { return getattr(u, N_ROOT, H_COUNT, ""); }
static int getattr_f(struct run *u) { return getattr(u, N_F, H_COUNT, "f"); }
static int getattr_fh(struct run *u) { return getattr(u, N_F, H_F, "f"); }
static int getattr_link(struct run *u) { return getattr(u, N_LINK, H_COUNT, "link"); }
static int getattr_moved(struct run *u) { return getattr(u, N_NEW, H_COUNT, "d/sub/moved"); }
static int getattr_sub(struct run *u) { return getattr(u, N_SUB, H_COUNT, "d/sub"); }

/* No name is left, but it is open. */
static int getattr_unlinked(struct run *u)
{
	int err = getattr(u, N_APPEND, H_COUNT, NULL);
	if (!err)
		EXPECT_IS(OUT(u, fuse_attr_out)->attr.nlink, 0);
	return err;
}

static int statx_f(struct run *u)
{
	struct fuse_statx_in in = {0};
	struct statx stx;
	int err = ask(u, FUSE_STATX, u->node[N_F], &in, NULL, 0);
	if (err)
		return err;
	const struct fuse_statx *got = &OUT(u, fuse_statx_out)->stat;
	EXPECT_IS(u->w.req.out_len, sizeof(struct fuse_statx_out));
	EXPECT_IS(statx(u->dir, "f", AT_SYMLINK_NOFOLLOW, ZC_STATX_MASK, &stx), 0);
	EXPECT_IS(got->mask, stx.stx_mask & ZC_STATX_MASK);
	EXPECT_IS(got->ino, stx.stx_ino);
	EXPECT_IS(got->size, stx.stx_size);
	EXPECT_IS(got->mode, stx.stx_mode);
	EXPECT_IS(got->btime.tv_sec, stx.stx_btime.tv_sec);
	EXPECT_IS(got->mtime.tv_nsec, stx.stx_mtime.tv_nsec);
	return 0;
}

static int access_f(struct run *u)
{
	struct fuse_access_in in = {.mask = R_OK};
	return ask(u, FUSE_ACCESS, u->node[N_F], &in, NULL, 0);
}

static int statfs_root(struct run *u)
{
	struct statfs st;
	int err = ask(u, FUSE_STATFS, FUSE_ROOT_ID, NULL, NULL, 0);
	if (err)
		return err;
	EXPECT_IS(u->w.req.out_len, sizeof(struct fuse_statfs_out));
	EXPECT_IS(fstatfs(u->dir, &st), 0);
	EXPECT_IS(OUT(u, fuse_statfs_out)->st.blocks, st.f_blocks);
	EXPECT_IS(OUT(u, fuse_statfs_out)->st.bsize, st.f_bsize);
	EXPECT_IS(OUT(u, fuse_statfs_out)->st.namelen, st.f_namelen);
	return 0;
}

static int readlink_link(struct run *u)
{
	int err = ask(u, FUSE_READLINK, u->node[N_LINK], NULL, NULL, 0);
	if (err)
		return err;
	EXPECT_IS(u->w.req.out_len, 1);
	EXPECT_IS(u->w.req.out[0], 'f');
	return 0;
}

static int setattr(struct run *u, enum node n, const struct fuse_setattr_in *in, const char *path)
{
	int err = ask(u, FUSE_SETATTR, u->node[n], in, NULL, 0);
	if (err)
		return err;
	EXPECT_IS(u->w.req.out_len, sizeof(struct fuse_attr_out));
	check_attr(u, &OUT(u, fuse_attr_out)->attr, path);
	return 0;
}

static int setattr_mode(struct run *u)
{
	struct fuse_setattr_in in = {.valid = FATTR_MODE, .mode = S_IFREG | 0640};
	int err = setattr(u, N_F, &in, "f");
	if (!err)
		EXPECT_IS(OUT(u, fuse_attr_out)->attr.mode, S_IFREG | 0640);
	return err;
}

static int setattr_owner(struct run *u)
{
	struct fuse_setattr_in in = {.valid = FATTR_UID | FATTR_GID,
				     .uid = is_root ? USER : getuid(),
				     .gid = is_root ? GROUP : getgid()};
	int err = setattr(u, N_LINK, &in, "link");
	if (!err)
		EXPECT_IS(OUT(u, fuse_attr_out)->attr.uid, in.uid);
	return err;
}

static int setattr_size(struct run *u)
{
	struct fuse_setattr_in in = {.valid = FATTR_SIZE | FATTR_KILL_SUIDGID, .size = 8};
	int err = setattr(u, N_F, &in, "f");
	if (!err)
		EXPECT_IS(OUT(u, fuse_attr_out)->attr.size, 8);
	return err;
}

static int setattr_size_fh(struct run *u)
{
	struct fuse_setattr_in in = {.valid = FATTR_SIZE | FATTR_FH | FATTR_MODE,
				     .fh = u->fh[H_F], .size = 10, .mode = 0644};
	int err = setattr(u, N_F, &in, "f");
	if (!err)
		EXPECT_IS(OUT(u, fuse_attr_out)->attr.size, 10);
	return err;
}

static int setattr_times(struct run *u)
{
	struct fuse_setattr_in in = {.valid = FATTR_ATIME | FATTR_MTIME, .atime = 1000, .mtime = 2000,
				     .atimensec = 1, .mtimensec = 2};
	int err = setattr(u, N_LINK, &in, "link");
	if (!err)
		EXPECT_IS(OUT(u, fuse_attr_out)->attr.mtime, 2000);
	return err;
}

static int setattr_now(struct run *u)
{
	struct fuse_setattr_in in = {.valid = FATTR_ATIME | FATTR_ATIME_NOW | FATTR_MTIME |
					      FATTR_MTIME_NOW};
	int err = setattr(u, N_F, &in, "f");
	if (!err)
		EXPECT(OUT(u, fuse_attr_out)->attr.mtime > 1000000000);
	return err;
}

static int symlink_new(struct run *u)
{
	return made(u, ask(u, FUSE_SYMLINK, u->node[N_D], NULL, ARG("sym\0to/nowhere")), N_SYM,
		    "d/sym");
}

static int mknod_fifo(struct run *u)
{
	struct fuse_mknod_in in = {.mode = S_IFIFO | 0666, .umask = 027};
	int err = made(u, ask(u, FUSE_MKNOD, u->node[N_D], &in, ARG("fifo")), N_FIFO, "d/fifo");
	if (!err && is_root)
		EXPECT_IS(OUT(u, fuse_entry_out)->attr.mode, S_IFIFO | 0640);
	return err;
}

/* From here to as_root what is made is another user's, whose group came with the request. */
static void as_user(struct run *u)
{
	static const struct {
		struct fuse_ext_header h;
		uint32_t count, group, padding[2];
	} ext = {{24, FUSE_EXT_GROUPS}, 1, GROUP, {0, 0}};
	if (!is_root)
		return;
	u->uid = u->gid = USER;
	u->ext = &ext;
	u->ext_len = 24;
}

static void as_root(struct run *u)
{
	u->uid = getuid();
	u->gid = getgid();
	u->ext_len = 0;
}

static void check_theirs(const struct fuse_attr *a)
{
	if (!is_root)
		return;
	EXPECT_IS(a->uid, USER);
	EXPECT_IS(a->gid, GROUP); /* the directory's, which is set-gid */
}

static int mkdir_theirs(struct run *u)
{
	struct fuse_mkdir_in in = {.mode = 0777, .umask = 022};
	as_user(u);
	int err = made(u, ask(u, FUSE_MKDIR, u->node[N_G], &in, ARG("dir")), N_DIR, "g/dir");
	as_root(u);
	if (!err)
		check_theirs(&OUT(u, fuse_entry_out)->attr);
	return err;
}

static int create(struct run *u, enum node parent, const char *name, uint32_t flags, enum node n,
		  enum handle h, const char *path)
{
	struct fuse_create_in in = {.flags = flags, .mode = S_IFREG | 0666, .umask = 022};
	int err = ask(u, *name ? FUSE_CREATE : FUSE_TMPFILE, u->node[parent], &in, name,
		      strlen(name) + 1);
	if (err)
		return err;
	const struct fuse_entry_out *e = OUT(u, fuse_entry_out);
	const struct fuse_open_out *o = (const void *)(e + 1);
	EXPECT_IS(u->w.req.out_len, sizeof(*e) + sizeof(*o));
	take_entry(u, n, e, path);
	if (is_root)
		EXPECT_IS(e->attr.mode, S_IFREG | 0644);
	EXPECT(o->fh != 0);
	u->fh[h] = o->fh;
	return 0;
}

static int create_new(struct run *u)
{
	return create(u, N_D, "new", O_RDWR | O_CREAT | O_EXCL, N_NEW, H_NEW, "d/new");
}

static int create_again(struct run *u) /* it is there, but its reply failed */
{
	int err = lookup(u, N_D, "new", N_NEW, "d/new");
	return err ? err : open_node(u, N_NEW, O_RDWR, H_NEW);
}

static int create_append(struct run *u)
{
	return create(u, N_D, "append", O_WRONLY | O_CREAT | O_APPEND, N_APPEND, H_APPEND, "d/append");
}

static int create_theirs(struct run *u)
{
	struct fuse_mknod_in in = {.mode = S_IFREG | 0666, .umask = 022};
	as_user(u);
	int err = made(u, ask(u, FUSE_MKNOD, u->node[N_G], &in, ARG("theirs")), N_THEIRS, "g/theirs");
	as_root(u);
	if (!err)
		check_theirs(&OUT(u, fuse_entry_out)->attr);
	return err;
}

static int tmpfile_new(struct run *u)
{
	return create(u, N_D, "", O_RDWR, N_TMP, H_TMP, NULL);
}

static int link_f(struct run *u)
{
	struct fuse_link_in in = {.oldnodeid = u->node[N_F]};
	int err = made(u, ask(u, FUSE_LINK, u->node[N_D], &in, ARG("hard")), N_F, "d/hard");
	if (!err)
		EXPECT_IS(OUT(u, fuse_entry_out)->attr.nlink, 2);
	return err;
}

static int rename_new(struct run *u)
{
	struct fuse_rename_in in = {.newdir = u->node[N_SUB]};
	return ask(u, FUSE_RENAME, u->node[N_D], &in, ARG("new\0moved"));
}

static int rename_exchange(struct run *u)
{
	struct fuse_rename2_in in = {.newdir = u->node[N_D], .flags = RENAME_EXCHANGE};
	return ask(u, FUSE_RENAME2, u->node[N_D], &in, ARG("sym\0fifo"));
}

static int rename_noreplace(struct run *u)
{
	struct fuse_rename2_in in = {.newdir = u->node[N_D], .flags = RENAME_NOREPLACE};
	return want(ask(u, FUSE_RENAME2, u->node[N_D], &in, ARG("sym\0fifo")), EEXIST);
}

static int rename_zcfs(struct run *u)
{
	struct fuse_rename_in in = {.newdir = FUSE_ROOT_ID};
	return want(ask(u, FUSE_RENAME, FUSE_ROOT_ID, &in, ARG("f\0.zcfs")), EPERM);
}

static int unlink_hard(struct run *u)
{
	return ask(u, FUSE_UNLINK, u->node[N_D], NULL, ARG("hard"));
}

static int unlink_open(struct run *u)
{
	return ask(u, FUSE_UNLINK, u->node[N_D], NULL, ARG("append"));
}

static int rmdir_full(struct run *u)
{
	return want(ask(u, FUSE_RMDIR, u->node[N_D], NULL, ARG("sub")), ENOTEMPTY);
}

static int rmdir_dir(struct run *u)
{
	return ask(u, FUSE_RMDIR, u->node[N_G], NULL, ARG("dir"));
}

static int done(struct run *u)
{
	(void)u;
	return 0;
}

/* the scenario: directories ---------------------------------------------------------------------- */

static int opendir_many(struct run *u)
{
	struct fuse_open_in in = {.flags = O_RDONLY};
	int err = ask(u, FUSE_OPENDIR, u->node[N_MANY], &in, NULL, 0);
	if (!err)
		u->fh[H_MANY] = OUT(u, fuse_open_out)->fh;
	return err;
}

/* Reads on from `*offset`; how many entries there were, or an error. */
static int readdir_some(struct run *u, bool plus, uint64_t *offset, uint32_t size)
{
	struct fuse_read_in in = {.fh = u->fh[H_MANY], .offset = *offset, .size = size};
	int err = ask(u, plus ? FUSE_READDIRPLUS : FUSE_READDIR, u->node[N_MANY], &in, NULL, 0);
	if (err)
		return err;
	int n = 0;
	EXPECT(u->w.req.out_len <= size);
	for (size_t at = 0; at < u->w.req.out_len; n++) {
		const char *p = u->w.req.out + at;
		const struct fuse_entry_out *e = (const void *)p;
		const struct fuse_dirent *d = (const void *)(p + (plus ? sizeof(*e) : 0));
		bool dots = d->name[0] == '.';
		EXPECT(dots ? d->namelen <= 2 : d->namelen == 3 && d->name[0] == 'm');
		EXPECT_IS(d->type, dots ? DT_DIR : DT_REG);
		if (plus && !dots && e->nodeid) {
			int i = atoi((char[3]){d->name[1], d->name[2], 0});
			EXPECT(i < CROWD);
			EXPECT_IS(e->attr.ino, d->ino);
			if (u->crowd[i % CROWD])
				EXPECT_IS(u->crowd[i % CROWD], e->nodeid);
			u->crowd[i % CROWD] = e->nodeid;
			know(u, e->nodeid);
		} else if (plus && !dots) {
			EXPECT(hit(u)); /* else why was it not looked up? */
		}
		*offset = d->off;
		at += (plus ? sizeof(*e) : 0) + ((sizeof(*d) + d->namelen + 7) & ~7u);
	}
	return n;
}

static int readdir_all(struct run *u, bool plus, uint64_t from, uint32_t size, int entries)
{
	int n, total = 0;
	while ((n = readdir_some(u, plus, &from, size)) > 0)
		total += n;
	if (!n)
		EXPECT_IS(total, entries);
	return n;
}

static int readdir_small(struct run *u) { return readdir_all(u, false, 0, 120, CROWD + 2); }
/* The descriptor stands at the end now. */
static int readdir_again(struct run *u) { return readdir_all(u, false, 0, 4096, CROWD + 2); }
static int readdirplus(struct run *u) { return readdir_all(u, true, 0, 1000, CROWD + 2); }

/* Uses as many inodes as drive all others from the cache of descriptors. */
static int crowd(struct run *u)
{
	struct fuse_getattr_in in = {0};
	int err = 0;
	for (int i = 0; !err && i < CROWD; i++)
		if (u->crowd[i])
			err = ask(u, FUSE_GETATTR, u->crowd[i], &in, NULL, 0);
	return err;
}

static int fsyncdir_many(struct run *u)
{
	struct fuse_fsync_in in = {.fh = u->fh[H_MANY]};
	return no_sync ? 0 : ask(u, FUSE_FSYNCDIR, u->node[N_MANY], &in, NULL, 0);
}

static int releasedir_many(struct run *u) { return release(u, N_MANY, H_MANY); }

/* the scenario: open files ------------------------------------------------------------------------- */

static int open_f(struct run *u) { return open_node(u, N_F, O_RDWR, H_F); }
static int open_f2(struct run *u) { return open_node(u, N_F, O_RDONLY, H_F2); }
static int open_suid(struct run *u) { return open_node(u, N_SUID, O_WRONLY, H_SUID); }
static int open_suid_trunc(struct run *u) { return open_node(u, N_SUID, O_WRONLY | O_TRUNC, H_SUID); }
static int release_f(struct run *u) { return release(u, N_F, H_F); }
static int release_f2(struct run *u) { return release(u, N_F, H_F2); }
static int release_new(struct run *u) { return release(u, N_NEW, H_NEW); }
static int release_tmp(struct run *u) { return release(u, N_TMP, H_TMP); }
static int release_append(struct run *u) { return release(u, N_APPEND, H_APPEND); }
static int release_suid(struct run *u) { return release(u, N_SUID, H_SUID); }

static int read_f(struct run *u)
{
	struct fuse_read_in in = {.fh = u->fh[H_F2], .offset = 2, .size = 4096};
	int err = ask(u, FUSE_READ, u->node[N_F], &in, NULL, 0);
	if (err)
		return err;
	EXPECT_IS(u->w.req.out_len, 8);
	EXPECT(!memcmp(u->w.req.out, CONTENT + 2, 8));
	return 0;
}

static int write_at(struct run *u, enum node n, enum handle h, uint64_t at, uint32_t flags,
		    const char *text)
{
	struct fuse_write_in in = {.fh = u->fh[h], .offset = at, .size = (uint32_t)strlen(text),
				   .write_flags = flags};
	int err = ask(u, FUSE_WRITE, u->node[n], &in, text, in.size);
	if (err)
		return err;
	EXPECT_IS(u->w.req.out_len, sizeof(struct fuse_write_out));
	EXPECT_IS(OUT(u, fuse_write_out)->size, in.size);
	return 0;
}

static int write_new(struct run *u) { return write_at(u, N_NEW, H_NEW, 100, 0, "written"); }
static int write_tmp(struct run *u) { return write_at(u, N_TMP, H_TMP, 0, 0, "temporary"); }
static int write_append(struct run *u) { return write_at(u, N_APPEND, H_APPEND, 0, 0, "first"); }
static int write_page(struct run *u)
{
	int err = write_at(u, N_APPEND, H_APPEND, 1, FUSE_WRITE_CACHE, "I");
	struct stat st;
	if (!err && !fstatat(u->dir, "d/append", &st, 0))
		EXPECT_IS(st.st_size, 5);
	return err;
}

/* A write by somebody else: the set-id bits go. */
static int write_suid(struct run *u)
{
	as_user(u);
	u->ext_len = 0;
	int err = write_at(u, N_SUID, H_SUID, 0, FUSE_WRITE_KILL_SUIDGID, "x");
	as_root(u);
	struct stat st;
	if (!err && !fstatat(u->dir, "suid", &st, 0))
		EXPECT_IS(st.st_mode & 07777, 0755);
	return err;
}

static int fsync_new(struct run *u)
{
	struct fuse_fsync_in in = {.fh = u->fh[H_NEW]};
	return no_sync ? 0 : ask(u, FUSE_FSYNC, u->node[N_NEW], &in, NULL, 0);
}

static int fdatasync_new(struct run *u)
{
	struct fuse_fsync_in in = {.fh = u->fh[H_NEW], .fsync_flags = FUSE_FSYNC_FDATASYNC};
	return no_sync ? 0 : ask(u, FUSE_FSYNC, u->node[N_NEW], &in, NULL, 0);
}

static int syncfs_root(struct run *u)
{
	struct fuse_syncfs_in in = {0};
	return no_sync ? 0 : ask(u, FUSE_SYNCFS, FUSE_ROOT_ID, &in, NULL, 0);
}

static int fallocate_new(struct run *u)
{
	struct fuse_fallocate_in in = {.fh = u->fh[H_NEW], .offset = 4096, .length = 4096};
	int err = ask(u, FUSE_FALLOCATE, u->node[N_NEW], &in, NULL, 0);
	struct stat st;
	if (!err && !fstatat(u->dir, "d/new", &st, 0))
		EXPECT_IS(st.st_size, 8192);
	return err;
}

static int lseek_new(struct run *u)
{
	struct fuse_lseek_in in = {.fh = u->fh[H_NEW], .offset = 0, .whence = SEEK_DATA};
	int err = ask(u, FUSE_LSEEK, u->node[N_NEW], &in, NULL, 0);
	if (err)
		return err;
	EXPECT_IS(u->w.req.out_len, sizeof(struct fuse_lseek_out));
	EXPECT_IS(OUT(u, fuse_lseek_out)->offset, 0);
	return 0;
}

static int copy(struct run *u, uint32_t opcode)
{
	struct fuse_copy_file_range_in in = {.fh_in = u->fh[H_F2], .nodeid_out = u->node[N_NEW],
					     .fh_out = u->fh[H_NEW], .off_out = 200, .len = 10};
	int err = ask(u, opcode, u->node[N_F], &in, NULL, 0);
	if (err)
		return err;
	EXPECT_IS(u->w.req.out_len, 8);
	EXPECT_IS(opcode == FUSE_COPY_FILE_RANGE ? OUT(u, fuse_write_out)->size
			    : OUT(u, fuse_copy_file_range_out)->bytes_copied, 10);
	return 0;
}

static int copy_32(struct run *u) { return copy(u, FUSE_COPY_FILE_RANGE); }
static int copy_64(struct run *u) { return copy(u, FUSE_COPY_FILE_RANGE_64); }

static int read_new(struct run *u)
{
	struct fuse_read_in in = {.fh = u->fh[H_NEW], .offset = 100, .size = 110};
	int err = ask(u, FUSE_READ, u->node[N_NEW], &in, NULL, 0);
	if (err)
		return err;
	EXPECT_IS(u->w.req.out_len, 110);
	EXPECT(!memcmp(u->w.req.out, "written", 8));
	EXPECT(!memcmp(u->w.req.out + 100, CONTENT, 10));
	return 0;
}

static int ioctl_getflags(struct run *u)
{
	struct fuse_ioctl_in in = {.fh = u->fh[H_F], .cmd = FS_IOC_GETFLAGS, .out_size = 8};
	int err = have_flags ? ask(u, FUSE_IOCTL, u->node[N_F], &in, NULL, 0) : 0;
	if (err || !have_flags)
		return err;
	EXPECT_IS(u->w.req.out_len, sizeof(struct fuse_ioctl_out) + 8);
	EXPECT_IS(OUT(u, fuse_ioctl_out)->result, 0);
	return 0;
}

static int ioctl_unknown(struct run *u)
{
	struct fuse_ioctl_in in = {.fh = u->fh[H_F], .cmd = 0x12345678};
	return want(ask(u, FUSE_IOCTL, u->node[N_F], &in, NULL, 0), ENOTTY);
}

/* A regular file is always ready, and the kernel need not ask again. */
static int poll_f(struct run *u)
{
	struct fuse_poll_in in = {.fh = u->fh[H_F], .events = POLLIN | POLLPRI};
	return want(ask(u, FUSE_POLL, u->node[N_F], &in, NULL, 0), ENOSYS);
}

/* the scenario: extended attributes -------------------------------------------------------------- */

static int setxattr_f(struct run *u)
{
	struct fuse_setxattr_in in = {.size = 5};
	return have_xattr ? ask(u, FUSE_SETXATTR, u->node[N_F], &in, ARG(XATTR "\0value") - 1) : 0;
}

static int getxattr_sized(struct run *u, uint32_t size)
{
	struct fuse_getxattr_in in = {.size = size};
	int err = have_xattr ? ask(u, FUSE_GETXATTR, u->node[N_F], &in, ARG(XATTR)) : 0;
	if (err || !have_xattr)
		return err;
	EXPECT_IS(u->w.req.out_len, size ? 5 : sizeof(struct fuse_getxattr_out));
	if (size)
		EXPECT(!memcmp(u->w.req.out, "value", 5));
	else
		EXPECT_IS(OUT(u, fuse_getxattr_out)->size, 5);
	return 0;
}

static int getxattr_length(struct run *u) { return getxattr_sized(u, 0); }
static int getxattr_value(struct run *u) { return getxattr_sized(u, 64); }

static int listxattr_f(struct run *u)
{
	struct fuse_getxattr_in in = {.size = 1024};
	int err = have_xattr ? ask(u, FUSE_LISTXATTR, u->node[N_F], &in, NULL, 0) : 0;
	if (!err && have_xattr)
		EXPECT(memmem(u->w.req.out, u->w.req.out_len, ARG(XATTR)) != NULL);
	return err;
}

static int removexattr_f(struct run *u)
{
	return have_xattr ? ask(u, FUSE_REMOVEXATTR, u->node[N_F], NULL, ARG(XATTR)) : 0;
}

/* the scenario: locks ------------------------------------------------------------------------------ */

static int lock(struct run *u, uint32_t opcode, enum handle h, uint64_t owner, uint32_t type,
		uint32_t flags)
{
	struct fuse_lk_in in = {.fh = u->fh[h], .owner = owner, .lk_flags = flags,
				.lk = {.start = 0, .end = 9, .type = type, .pid = 4000 + (uint32_t)owner}};
	return ask(u, opcode, u->node[N_F], &in, NULL, 0);
}

static int setlk_first(struct run *u) { return lock(u, FUSE_SETLK, H_F, 1, F_WRLCK, 0); }
static int setlk_second(struct run *u)
{
	return want(lock(u, FUSE_SETLK, H_F2, 2, F_RDLCK, 0), EAGAIN);
}

static int getlk_second(struct run *u)
{
	int err = lock(u, FUSE_GETLK, H_F2, 2, F_RDLCK, 0);
	if (err)
		return err;
	const struct fuse_file_lock *lk = &OUT(u, fuse_lk_out)->lk;
	EXPECT_IS(u->w.req.out_len, sizeof(*lk));
	EXPECT_IS(lk->type, F_WRLCK);
	EXPECT_IS(lk->start, 0);
	EXPECT_IS(lk->end, 9);
	EXPECT_IS(lk->pid, 4001);
	return 0;
}

static int flush_owner(struct run *u, enum handle h, uint64_t owner)
{
	struct fuse_flush_in in = {.fh = u->fh[h], .lock_owner = owner};
	return ask(u, FUSE_FLUSH, u->node[N_F], &in, NULL, 0);
}

/* The interrupt overtakes the request that would wait for ever. */
static int setlkw_interrupted(struct run *u)
{
	struct fuse_interrupt_in in = {.unique = u->unique + 4};
	int err = ask(u, FUSE_INTERRUPT, 0, &in, NULL, 0);
	return err ? err : want(lock(u, FUSE_SETLKW, H_F2, 2, F_RDLCK, 0), EINTR);
}

static int flush_first(struct run *u) { return flush_owner(u, H_F, 1); }
static int setlkw_second(struct run *u) { return lock(u, FUSE_SETLKW, H_F, 2, F_WRLCK, 0); }
static int unlock_second(struct run *u) { return lock(u, FUSE_SETLK, H_F, 2, F_UNLCK, 0); }
static int flock_first(struct run *u) { return lock(u, FUSE_SETLKW, H_F, 3, F_WRLCK, FUSE_LK_FLOCK); }
static int flock_second(struct run *u)
{
	return want(lock(u, FUSE_SETLK, H_F2, 4, F_RDLCK, FUSE_LK_FLOCK), EAGAIN);
}
static int flock_end(struct run *u) { return lock(u, FUSE_SETLK, H_F, 3, F_UNLCK, FUSE_LK_FLOCK); }
/* Goes with the last open file. */
static int setlk_left(struct run *u) { return lock(u, FUSE_SETLK, H_F, 5, F_WRLCK, 0); }

static int forget_one(struct run *u)
{
	struct fuse_forget_in in = {.nlookup = 1};
	uint64_t before = zc_inodes_count(u->s.inodes);
	for (uint32_t i = 0; i < u->known_count; i++)
		if (u->known[i].nodeid == u->node[N_F] && u->known[i].nlookup > 1) {
			u->known[i].nlookup--;
			int err = ask(u, FUSE_FORGET, u->node[N_F], &in, NULL, 0);
			EXPECT_IS(zc_inodes_count(u->s.inodes), before);
			return err;
		}
	return 0;
}

/* the table ------------------------------------------------------------------------------------------ */

struct step {
	const char *name;
	int (*run)(struct run *u);
	int again;		     /* what a repetition may say: the first did it */
	int (*recover)(struct run *u); /* then */
};
#define S(fn) {#fn, fn, 0, NULL}

static const struct step steps[] = {
	S(getattr_root), S(lookup_d), S(lookup_f), S(lookup_link), S(lookup_many), S(lookup_suid),
	S(lookup_g), S(lookup_sub), S(lookup_missing), S(lookup_zcfs), S(lookup_stale), S(lookup_f),
	S(lookup_in_file), S(getattr_f), S(statx_f), S(access_f), S(statfs_root), S(readlink_link),
	{"symlink", symlink_new, EEXIST, lookup_sym},
	{"mknod", mknod_fifo, EEXIST, lookup_fifo},
	{"mkdir", mkdir_theirs, EEXIST, lookup_dir},
	{"mknod for a user", create_theirs, EEXIST, lookup_theirs},
	{"create", create_new, EEXIST, create_again},
	S(write_new), S(fsync_new), S(fdatasync_new), S(fallocate_new), S(lseek_new), S(create_append),
	S(write_append), S(write_page), S(tmpfile_new), S(write_tmp), S(open_f), S(open_f2),
	S(getattr_fh), S(read_f), S(copy_32), S(copy_64), S(read_new), S(ioctl_getflags),
	S(ioctl_unknown), S(poll_f), S(setattr_mode), S(setattr_owner), S(setattr_size),
	S(setattr_size_fh), S(setattr_times), S(setattr_now), S(setxattr_f), S(getxattr_length),
	S(getxattr_value), S(listxattr_f), S(removexattr_f), S(opendir_many), S(readdir_small),
	S(readdir_again), S(readdirplus), S(fsyncdir_many), S(releasedir_many), S(crowd),
	S(setlk_first), S(setlk_second), S(getlk_second), S(setlkw_interrupted), S(flush_first),
	S(setlkw_second), S(unlock_second), S(flock_first), S(flock_second), S(flock_end),
	S(setlk_left),
	{"link", link_f, EEXIST, lookup_hard},
	{"rename", rename_new, ENOENT, done},
	S(rename_exchange), S(rename_noreplace), S(rename_zcfs), S(crowd), S(getattr_moved),
	S(lookup_moved), S(getattr_link), S(getattr_sub),
	{"unlink a hard link", unlink_hard, ENOENT, done},
	S(crowd), S(getattr_f),
	{"unlink an open file", unlink_open, ENOENT, done},
	S(crowd), S(getattr_unlinked), S(rmdir_full),
	{"rmdir", rmdir_dir, ENOENT, done},
	S(open_suid), S(write_suid), S(release_suid), S(open_suid_trunc), S(release_suid),
	S(forget_one), S(syncfs_root), S(release_f), S(release_f2), S(release_new), S(release_tmp),
	S(release_append), S(statfs_root),
};

/* one run ------------------------------------------------------------------------------------------ */

static bool sensible(const struct run *u, int err)
{
	return err == -u->err || err == -EIO || err == -ESTALE;
}

static void run_step(struct run *u, const struct step *step)
{
	u->seen = zc_fault_seen();
	snprintf(harness_context, sizeof(harness_context), "%s, %s, call %d, %s",
		 u->by_path ? "by path" : "by handle", u->err ? strerrorname_np(u->err) : "clean",
		 u->nth, step->name);
	int err = step->run(u);
	if (!err)
		return;
	if (!hit(u)) {
		EXPECT_IS(err, 0);
		return;
	}
	if (!sensible(u, err))
		EXPECT_IS(err, -u->err);
	u->seen = zc_fault_seen();
	strncat(harness_context, ", repeated", sizeof(harness_context) - strlen(harness_context) - 1);
	err = step->run(u);
	if (err && err == -step->again)
		err = step->recover(u);
	EXPECT_IS(err, 0);
}

static void tree_make(int dir)
{
	umask(0); /* the worker's own, left as the last creation had it */
	harness_file(dir, "f", 0644, CONTENT);
	harness_file(dir, "suid", 06755, CONTENT);
	EXPECT(!symlinkat("f", dir, "link"));
	EXPECT(!mkdirat(dir, "d", 0777) && !mkdirat(dir, "d/sub", 0777));
	EXPECT(!mkdirat(dir, "g", 0777) && !mkdirat(dir, "many", 0777));
	if (is_root)
		EXPECT(!fchownat(dir, "g", 0, GROUP, 0) && !fchmodat(dir, "g", 02775, 0));
	for (int i = 0; i < CROWD; i++) {
		char name[16];
		snprintf(name, sizeof(name), "many/m%02d", i);
		harness_file(dir, name, 0644, "");
	}
}

static int session_make(struct run *u)
{
	static const struct zc_transport stub = {.name = "stub"};
	u->q = (struct zc_queue){.s = &u->s, .transport = &stub, .max = 8, .threads = 1, .idle = 1};
	u->w.q = &u->q;
	u->w.cred = u->cred;
	u->s.workers = &u->w;
	u->s.queues = &u->q;
	u->s.queue_count = 1;
	u->s.transport = &stub;
	u->s.engine = &zc_engine_buffered;
	u->s.opt.engine = "buffered";
	u->s.opt.locks = "source";
	u->s.opt.attr_timeout = 1.5;
	u->s.opt.entry_timeout = 2;
	u->s.source_fd = u->dir;
	u->s.privileged = is_root;
	u->s.fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	u->node[N_ROOT] = FUSE_ROOT_ID;
	u->unique = 2;
	as_root(u);
	pthread_mutex_init(&u->s.degr_lock, NULL);
	return zc_inodes_create(u->dir, 16, !u->by_path, &u->s.inodes);
}

static void check_credentials(struct run *u)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct now[2];
	EXPECT_IS(setfsuid((uid_t)-1), geteuid());
	EXPECT_IS(setfsgid((gid_t)-1), getegid());
	if (!u->cred.can)
		return;
	EXPECT_IS(getgroups(0, NULL), 0);
	EXPECT(!u->w.cred.no_fsetid && !u->w.cred.as_other && !u->w.cred.as_user);
	EXPECT(!syscall(SYS_capget, &h, now));
	EXPECT_IS(now[0].effective, u->cred.caps[0].effective);
}

static void check_unlocked(struct run *u)
{
	int fd = openat(u->dir, "f", O_RDWR | O_CLOEXEC);
	struct flock fl = {.l_type = F_WRLCK};
	EXPECT_IS(fcntl(fd, F_OFD_SETLK, &fl), 0);
	EXPECT_IS(flock(fd, LOCK_EX | LOCK_NB), 0);
	close(fd);
}

static void forget_all(struct run *u)
{
	struct fuse_batch_forget_in in = {.count = u->known_count};
	ask(u, FUSE_BATCH_FORGET, 0, &in, u->known, u->known_count * sizeof(u->known[0]));
	EXPECT_IS(zc_inodes_count(u->s.inodes), 1);
	EXPECT_IS(zc_inodes_descriptors(u->s.inodes), 1);
	EXPECT_IS(u->s.open_files[0] + u->s.open_files[1], 0);
}

/* Whether the fault was met. */
static bool run_once(struct run *u, unsigned long long *digest)
{
	int fds = harness_fds();
	tree_make(u->dir);
	snprintf(harness_context, sizeof(harness_context), "the table, call %d", u->nth);
	zc_fault_arm("*", u->nth, u->err, 0);
	int err = session_make(u);
	if (!err) {
		int held = harness_fds();
		for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
			run_step(u, &steps[i]);
		bool met = zc_fault_seen() >= u->nth;
		zc_fault_arm("", 0, 0, 0);
		strcpy(strrchr(harness_context, ',') + 1, " at the end");
		for (int h = 0; h < H_COUNT; h++)
			EXPECT_IS(u->fh[h], 0);
		forget_all(u);
		check_credentials(u);
		check_unlocked(u);
		EXPECT_IS(harness_fds(), held);
		zc_inodes_destroy(u->s.inodes);
		if (!*digest)
			*digest = harness_digest(u->dir);
		EXPECT(harness_digest(u->dir) == *digest);
		err = !met;
	} else {
		EXPECT(sensible(u, err));
		zc_fault_arm("", 0, 0, 0);
		err = 0;
	}
	close(u->s.fd);
	EXPECT_IS(harness_fds(), fds);
	harness_empty(u->dir);
	return !err;
}

static void sweep(int dir, bool by_path, int err, const struct zc_cred *cred,
		  unsigned long long *digest)
{
	bool met = true;
	int nth = err ? 1 : 0;
	for (; met; nth++) {
		static struct run u;
		u = (struct run){.dir = dir, .by_path = by_path, .as_dev = by_path, .nth = nth,
				 .err = err, .cred = *cred};
		met = run_once(&u, digest);
		if (!err)
			return;
	}
	printf("%s, %s: %d calls failed\n", by_path ? "by path" : "by handle", strerrorname_np(err),
	       nth - 2);
	fflush(stdout);
}

/* A READ that fails half-way must not look like the end of the file -------------------------------- */

static void test_half_read(int dir, const struct zc_cred *cred)
{
	static struct run u;
	static char big[1 << 18];
	u = (struct run){.dir = dir, .cred = *cred};
	snprintf(harness_context, sizeof(harness_context), "half a read");
	memset(big, 'x', sizeof(big) - 1);
	harness_file(dir, "big", 0644, big);
	int fd = openat(dir, "big", O_RDONLY | O_CLOEXEC);
	EXPECT_IS(fsync(fd), 0);
	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	EXPECT_IS(pread(fd, big, 4096, 0), 4096);
	zc_fault_arm("", 0, 0, 0);
	EXPECT_IS(session_make(&u), 0);
	EXPECT_IS(lookup(&u, N_ROOT, "big", N_F, "big"), 0);
	EXPECT_IS(open_node(&u, N_F, O_RDONLY, H_F), 0);
	struct fuse_read_in in = {.fh = u.fh[H_F], .size = 65536};
	zc_fault_arm("pread", 1, EIO, 0);
	int err = ask(&u, FUSE_READ, u.node[N_F], &in, NULL, 0);
	if (zc_fault_seen())
		EXPECT_IS(err, -EIO);
	else
		printf("half a read: skipped, all of the file was in the page cache\n");
	zc_fault_arm("", 0, 0, 0);
	EXPECT_IS(release(&u, N_F, H_F), 0);
	forget_all(&u);
	zc_inodes_destroy(u.s.inodes);
	close(u.s.fd);
	close(fd);
	harness_empty(dir);
}

/* ----------------------------------------------------------------------------------------------------- */

/* What the filesystem below the test has. */
static void look_around(int dir)
{
	long flags;
	harness_file(dir, "probe", 0644, "");
	int fd = openat(dir, "probe", O_RDWR | O_CLOEXEC);
	have_xattr = !fsetxattr(fd, XATTR, "v", 1, 0);
	have_flags = !ioctl(fd, FS_IOC_GETFLAGS, &flags);
	close(fd);
	harness_empty(dir);
	if (!have_xattr || !have_flags)
		printf("skipped: %s%s\n", have_xattr ? "" : "xattrs ", have_flags ? "" : "flags");
}

/* In memory, where a sync costs nothing; and once on a disk, whose handles say more. */
int main(int argc, char **argv)
{
	static const int errnos[] = {EIO, ENOMEM, EMFILE, ENOSPC, EINTR};
	struct zc_cred cred = {0};
	char path[64], disk_path[64];
	bool only_path = argc > 1 && !strcmp(argv[1], "path");
	bool only_handle = argc > 1 && !strcmp(argv[1], "handle");
	is_root = geteuid() == 0;
	alarm(harness_sanitized() ? 300 : 250); /* whatever hangs */
	buffer = aligned_alloc(4096, BODY + ZC_MAX_WRITE + 4096);
	int log = open("/dev/null", O_WRONLY | O_CLOEXEC);
	zc_log_to(log);
	zc_cred_init(&cred);
	umask(0);
	int disk = harness_dir("/var/tmp", disk_path, sizeof(disk_path));
	int dir = harness_dir(access("/dev/shm", W_OK) ? "/var/tmp" : "/dev/shm", path, sizeof(path));
	look_around(dir);
	test_half_read(disk, &cred);
	for (int by_path = 0; by_path < 2; by_path++) {
		unsigned long long digest = 0, disk_digest = 0;
		if ((by_path && only_handle) || (!by_path && (only_path || !is_root)))
			continue;
		sweep(dir, by_path, 0, &cred, &digest);
		for (size_t i = 0; i < sizeof(errnos) / sizeof(errnos[0]); i++)
			sweep(dir, by_path, errnos[i], &cred, &digest);
		no_sync = true;
		sweep(disk, by_path, 0, &cred, &disk_digest);
		sweep(disk, by_path, EIO, &cred, &disk_digest);
		no_sync = false;
	}
	harness_dir_end(dir, path);
	harness_dir_end(disk, disk_path);
	free(buffer);
	return harness_end();
}
