/* What changes between the kernel and the control plane: pure functions over bytes.
 *
 * Owns the rules, one for each opcode: what is answered here because pyfuse3 cannot, how a request
 * is rewritten for a libfuse of the INIT that relay.c sends, and what a reply must look like. It
 * exists apart from relay.c so that all of it can be tested without a process.
 *
 * Nothing that Python says is believed: sizes, nodeids (bit 63) and names are checked, and ENOSYS
 * never leaves, because the kernel remembers it for the whole connection, the mirror included.
 *
 * No state: any thread.
 */
#include "relay_wire.h"

#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/sysmacros.h>

#define NAME_MOST 255
#define PAGE 4096u
#define ERROR_MOST 511 /* the kernel takes no reply with a larger one */
#define BLOCK 4096u

#define ALWAYS_READY (POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM)
#define FILE_OPEN_FLAGS                                                                   \
	(FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE | FOPEN_NONSEEKABLE | FOPEN_NOFLUSH |         \
	 FOPEN_PARALLEL_DIRECT_WRITES)
#define DIR_OPEN_FLAGS FOPEN_CACHE_DIR

/* Notifications that abi.h does not have, since the mirror sends none of them. */
#define NOTIFY_DELETE 6
struct notify_inval_entry {
	uint64_t parent;
	uint32_t namelen, flags;
};
struct notify_delete {
	uint64_t parent, child;
	uint32_t namelen, padding;
};

#define VARIES SIZE_MAX

struct rule {
	/* Answers without the control plane. */
	int (*local)(struct zc_req *r);
	/* Rewrites m, which is a copy of the request so far. */
	int (*prepare)(const struct zc_req *r, uint32_t max_data, struct zc_relay_msg *m);
	/* Makes the reply of a body of the right size; NULL: it goes as it is. */
	int (*accept)(struct zc_req *r, const struct zc_relay_msg *m, const char *body, size_t len);
	size_t size; /* of the reply's body; VARIES: up to the request's limit */
	uint32_t opcode; /* to send instead */
};

static bool is_computed(uint64_t nodeid)
{
	return nodeid & ZC_COMPUTED_BIT;
}

static size_t least(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* Answered here ---------------------------------------------------------------------------- */

static int local_ok(struct zc_req *r)
{
	r->out_len = 0;
	return 0;
}

static int local_unsupported(struct zc_req *r)
{
	(void)r;
	return -EOPNOTSUPP;
}

static int local_ioctl(struct zc_req *r)
{
	(void)r;
	return -ENOTTY;
}

/* SEEK_DATA and SEEK_HOLE. The size of a computed file says little (0 before its first open), so
 * any answer made of it could let cp or tar copy nothing. EINVAL makes them read it all. */
static int local_lseek(struct zc_req *r)
{
	(void)r;
	return -EINVAL;
}

static int local_lock(struct zc_req *r)
{
	const struct fuse_lk_in *in = r->in;

	if (r->hdr.opcode != FUSE_GETLK && in->lk.type == F_UNLCK)
		return local_ok(r);
	return -ENOLCK;
}

static int local_copy_range(struct zc_req *r)
{
	const struct fuse_copy_file_range_in *in = r->in;

	return is_computed(in->nodeid_out) ? -EOPNOTSUPP : -EXDEV;
}

static int local_poll(struct zc_req *r)
{
	const struct fuse_poll_in *in = r->in;
	struct fuse_poll_out out = {.revents = in->events & ALWAYS_READY};

	if (r->out_cap < sizeof(out))
		return -EIO;
	memcpy(r->out, &out, sizeof(out));
	r->out_len = sizeof(out);
	return 0;
}

/* Requests --------------------------------------------------------------------------------- */

static int prepare_read(const struct zc_req *r, uint32_t max_data, struct zc_relay_msg *m)
{
	struct fuse_read_in *in = (void *)m->in;

	in->size = (uint32_t)least(least(in->size, max_data), r->out_cap);
	m->limit = in->size;
	return 0;
}

/* An entry takes more room in a READDIRPLUS than in a READDIR, so a short buffer asks for a page:
 * what does not fit is given back and read again, from its offset. */
static int prepare_readdir(const struct zc_req *r, uint32_t max_data, struct zc_relay_msg *m)
{
	struct fuse_read_in *in = (void *)m->in;
	int err = prepare_read(r, max_data, m);

	if (!err && in->size < PAGE)
		m->limit = in->size = PAGE;
	return err;
}

static int prepare_write(const struct zc_req *r, uint32_t max_data, struct zc_relay_msg *m)
{
	struct fuse_write_in *in = (void *)m->in;

	if (in->size > r->arg_len)
		return -EIO;
	in->size = (uint32_t)least(in->size, max_data);
	m->data_len = in->size;
	return 0;
}

/* The short form, since the INIT did not offer FUSE_SETXATTR_EXT. */
static int prepare_setxattr(const struct zc_req *r, uint32_t max_data, struct zc_relay_msg *m)
{
	const struct fuse_setxattr_in *in = r->in;
	size_t name = strnlen(r->arg, r->arg_len) + 1;

	if (in->size > max_data)
		return -E2BIG;
	if (r->arg_len < name || r->arg_len - name < in->size)
		return -EIO;
	m->in_len = offsetof(struct fuse_setxattr_in, setxattr_flags);
	m->data_len = name + in->size;
	return 0;
}

static int prepare_xattr(const struct zc_req *r, uint32_t max_data, struct zc_relay_msg *m)
{
	struct fuse_getxattr_in *in = (void *)m->in;

	in->size = (uint32_t)least(least(in->size, max_data), r->out_cap);
	m->limit = in->size ? in->size : sizeof(struct fuse_getxattr_out);
	return 0;
}

static int prepare_readlink(const struct zc_req *r, uint32_t max_data, struct zc_relay_msg *m)
{
	(void)max_data;
	m->limit = least(PATH_MAX - 1, r->out_cap);
	return 0;
}

static int prepare_statx(const struct zc_req *r, uint32_t max_data, struct zc_relay_msg *m)
{
	const struct fuse_statx_in *in = r->in;
	struct fuse_getattr_in get = {.getattr_flags = in->getattr_flags, .fh = in->fh};

	(void)max_data;
	memcpy(m->in, &get, sizeof(get));
	m->in_len = sizeof(get);
	return 0;
}

/* libfuse was not offered FUSE_DONT_MASK; where the kernel was, the mask is still to be applied. */
static int prepare_create(const struct zc_req *r, uint32_t max_data, struct zc_relay_msg *m)
{
	struct fuse_mknod_in *node = (void *)m->in;
	struct fuse_mkdir_in *dir = (void *)m->in;
	struct fuse_create_in *file = (void *)m->in;

	(void)max_data;
	if (!zc_has(r->s, FUSE_DONT_MASK))
		return 0;
	if (r->hdr.opcode == FUSE_MKNOD)
		node->mode &= ~(node->umask & 0777);
	else if (r->hdr.opcode == FUSE_MKDIR)
		dir->mode &= ~(dir->umask & 0777);
	else
		file->mode &= ~(file->umask & 0777);
	return 0;
}

/* RENAME, RENAME2 and LINK all begin with the nodeid of the other side. */
static int prepare_pair(const struct zc_req *r, uint32_t max_data, struct zc_relay_msg *m)
{
	(void)max_data;
	return is_computed(r->hdr.nodeid) && is_computed(m->in[0]) ? 0 : -EXDEV;
}

/* Replies ---------------------------------------------------------------------------------- */

static int reply_copy(struct zc_req *r, const void *body, size_t len)
{
	if (len > r->out_cap)
		return -EIO;
	if (len)
		memcpy(r->out, body, len);
	r->out_len = len;
	return 0;
}

/* Nodeid 0 in an answer to LOOKUP says "no such name" for a while. */
static int accept_entry(struct zc_req *r, const struct zc_relay_msg *m, const char *body,
			size_t len)
{
	const struct fuse_entry_out *e = (const void *)body;

	(void)m;
	if (!is_computed(e->nodeid) && !(r->hdr.opcode == FUSE_LOOKUP && !e->nodeid))
		return -EIO;
	return reply_copy(r, body, len);
}

/* Whatever Python wants, computed files do not fill the page cache and have no backing file. */
static int accept_open(struct zc_req *r, const struct zc_relay_msg *m, const char *body, size_t len)
{
	struct fuse_open_out out;

	(void)m;
	(void)len;
	memcpy(&out, body, sizeof(out));
	if (r->hdr.opcode == FUSE_OPENDIR)
		out.open_flags &= DIR_OPEN_FLAGS;
	else
		out.open_flags = (out.open_flags & FILE_OPEN_FLAGS) | FOPEN_DIRECT_IO;
	out.backing_id = 0;
	return reply_copy(r, &out, sizeof(out));
}

static int accept_create(struct zc_req *r, const struct zc_relay_msg *m, const char *body,
			 size_t len)
{
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} out;

	(void)m;
	(void)len;
	memcpy(&out, body, sizeof(out));
	if (!is_computed(out.entry.nodeid))
		return -EIO;
	out.open.open_flags = (out.open.open_flags & FILE_OPEN_FLAGS) | FOPEN_DIRECT_IO;
	out.open.backing_id = 0;
	return reply_copy(r, &out, sizeof(out));
}

static struct fuse_sx_time sx_time(uint64_t sec, uint32_t nsec)
{
	return (struct fuse_sx_time){.tv_sec = (int64_t)sec, .tv_nsec = nsec};
}

static int accept_statx(struct zc_req *r, const struct zc_relay_msg *m, const char *body,
			size_t len)
{
	const struct fuse_attr_out *in = (const void *)body;
	const struct fuse_attr *a = &in->attr;
	struct fuse_statx_out out = {
		.attr_valid = in->attr_valid,
		.attr_valid_nsec = in->attr_valid_nsec,
		.stat = {
			.mask = STATX_BASIC_STATS, .blksize = a->blksize, .nlink = a->nlink,
			.uid = a->uid, .gid = a->gid, .mode = (uint16_t)a->mode, .ino = a->ino,
			.size = a->size, .blocks = a->blocks,
			.rdev_major = major(a->rdev), .rdev_minor = minor(a->rdev),
			.atime = sx_time(a->atime, a->atimensec),
			.mtime = sx_time(a->mtime, a->mtimensec),
			.ctime = sx_time(a->ctime, a->ctimensec),
		},
	};

	(void)m;
	(void)len;
	return reply_copy(r, &out, sizeof(out));
}

static int accept_write(struct zc_req *r, const struct zc_relay_msg *m, const char *body,
			size_t len)
{
	const struct fuse_write_out *out = (const void *)body;

	return out->size > m->data_len ? -EIO : reply_copy(r, body, len);
}

static int accept_xattr(struct zc_req *r, const struct zc_relay_msg *m, const char *body,
			size_t len)
{
	const struct fuse_getxattr_in *in = (const void *)m->in;

	if (!in->size && len != sizeof(struct fuse_getxattr_out))
		return -EIO;
	return reply_copy(r, body, len);
}

static int accept_readlink(struct zc_req *r, const struct zc_relay_msg *m, const char *body,
			   size_t len)
{
	(void)m;
	return !len || memchr(body, 0, len) ? -EIO : reply_copy(r, body, len);
}

/* Directories ------------------------------------------------------------------------------ */

static size_t padded(size_t len)
{
	return (len + 7) & ~(size_t)7;
}

static bool is_dots(const char *name, size_t len)
{
	return name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.'));
}

/* The entry at *at of a READDIRPLUS's body, *at moved behind it; NULL at the end, or at something
 * that is no entry (*at stays). */
static const struct fuse_direntplus *next_entry(const char *body, size_t len, size_t *at)
{
	const struct fuse_direntplus *e = (const void *)(body + *at);
	size_t left = len - *at, head = offsetof(struct fuse_direntplus, dirent.name), namelen;

	if (left < head)
		return NULL;
	namelen = e->dirent.namelen;
	if (!namelen || namelen > NAME_MOST || left < padded(head + namelen) ||
	    memchr(e->dirent.name, '/', namelen) || memchr(e->dirent.name, 0, namelen))
		return NULL;
	*at += padded(head + namelen);
	return e;
}

static int check_entries(const char *body, size_t len)
{
	const struct fuse_direntplus *e;
	size_t at = 0;

	while ((e = next_entry(body, len, &at)))
		if (e->entry_out.nodeid && !is_computed(e->entry_out.nodeid))
			return -EIO;
	return at == len ? 0 : -EIO;
}

static int accept_readdirplus(struct zc_req *r, const struct zc_relay_msg *m, const char *body,
			      size_t len)
{
	int err = check_entries(body, len);

	(void)m;
	return err ? err : reply_copy(r, body, len);
}

static int accept_readdir(struct zc_req *r, const struct zc_relay_msg *m, const char *body,
			  size_t len)
{
	const struct fuse_read_in *in = r->in;
	const struct fuse_direntplus *e;
	size_t room = least(in->size, r->out_cap), used = 0, at = 0;
	int err = check_entries(body, len);

	(void)m;
	if (err)
		return err;
	while ((e = next_entry(body, len, &at))) {
		size_t plain = offsetof(struct fuse_dirent, name) + e->dirent.namelen;
		if (padded(plain) > room - used)
			break;
		memcpy(r->out + used, &e->dirent, plain);
		memset(r->out + used + plain, 0, padded(plain) - plain);
		used += padded(plain);
	}
	if (len && !used)
		return -EINVAL; /* as any file system says when not even one entry fits */
	r->out_len = used;
	return 0;
}

/* The table -------------------------------------------------------------------------------- */

#define ENTRY sizeof(struct fuse_entry_out)
#define OPENED sizeof(struct fuse_open_out)
#define ATTR sizeof(struct fuse_attr_out)

static const struct rule rules[FUSE_OPCODE_END] = {
	[FUSE_LOOKUP] = {.accept = accept_entry, .size = ENTRY},
	[FUSE_GETATTR] = {.size = ATTR},
	[FUSE_SETATTR] = {.size = ATTR},
	[FUSE_READLINK] = {.prepare = prepare_readlink, .accept = accept_readlink, .size = VARIES},
	[FUSE_SYMLINK] = {.accept = accept_entry, .size = ENTRY},
	[FUSE_MKNOD] = {.prepare = prepare_create, .accept = accept_entry, .size = ENTRY},
	[FUSE_MKDIR] = {.prepare = prepare_create, .accept = accept_entry, .size = ENTRY},
	[FUSE_UNLINK] = {.size = 0},
	[FUSE_RMDIR] = {.size = 0},
	[FUSE_RENAME] = {.prepare = prepare_pair},
	[FUSE_RENAME2] = {.prepare = prepare_pair},
	[FUSE_LINK] = {.prepare = prepare_pair, .accept = accept_entry, .size = ENTRY},
	[FUSE_OPEN] = {.accept = accept_open, .size = OPENED},
	[FUSE_READ] = {.prepare = prepare_read, .size = VARIES},
	[FUSE_WRITE] = {.prepare = prepare_write, .accept = accept_write,
			.size = sizeof(struct fuse_write_out)},
	[FUSE_STATFS] = {.size = sizeof(struct fuse_statfs_out)},
	[FUSE_RELEASE] = {.size = 0},
	[FUSE_FSYNC] = {.size = 0},
	[FUSE_SETXATTR] = {.prepare = prepare_setxattr},
	[FUSE_GETXATTR] = {.prepare = prepare_xattr, .accept = accept_xattr, .size = VARIES},
	[FUSE_LISTXATTR] = {.prepare = prepare_xattr, .accept = accept_xattr, .size = VARIES},
	[FUSE_REMOVEXATTR] = {.size = 0},
	[FUSE_FLUSH] = {.size = 0},
	[FUSE_OPENDIR] = {.accept = accept_open, .size = OPENED},
	[FUSE_READDIR] = {.prepare = prepare_readdir, .accept = accept_readdir, .size = VARIES,
			  .opcode = FUSE_READDIRPLUS},
	[FUSE_RELEASEDIR] = {.size = 0},
	[FUSE_FSYNCDIR] = {.size = 0},
	[FUSE_GETLK] = {.local = local_lock},
	[FUSE_SETLK] = {.local = local_lock},
	[FUSE_SETLKW] = {.local = local_lock},
	[FUSE_ACCESS] = {.size = 0},
	[FUSE_CREATE] = {.prepare = prepare_create, .accept = accept_create,
			 .size = ENTRY + OPENED},
	[FUSE_INTERRUPT] = {.local = local_ok},
	[FUSE_DESTROY] = {.local = local_ok},
	[FUSE_IOCTL] = {.local = local_ioctl},
	[FUSE_POLL] = {.local = local_poll},
	[FUSE_FALLOCATE] = {.local = local_unsupported},
	[FUSE_READDIRPLUS] = {.prepare = prepare_read, .accept = accept_readdirplus,
			      .size = VARIES},
	[FUSE_LSEEK] = {.local = local_lseek},
	[FUSE_COPY_FILE_RANGE] = {.local = local_copy_range},
	[FUSE_SYNCFS] = {.local = local_ok},
	[FUSE_TMPFILE] = {.local = local_unsupported},
	[FUSE_STATX] = {.prepare = prepare_statx, .accept = accept_statx, .size = ATTR,
			.opcode = FUSE_GETATTR},
	[FUSE_COPY_FILE_RANGE_64] = {.local = local_copy_range},
	[FUSE_INIT] = {.local = local_unsupported},
	[FUSE_FORGET] = {.local = local_unsupported}, /* zc_relay_forget() */
	[FUSE_BATCH_FORGET] = {.local = local_unsupported},
};

bool zc_relay_local(struct zc_req *r, int *result)
{
	uint32_t op = r->hdr.opcode;

	if (op >= FUSE_OPCODE_END || !zc_opinfo[op].name)
		*result = -EOPNOTSUPP;
	else if (rules[op].local)
		*result = rules[op].local(r);
	else
		return false;
	return true;
}

static int check_names(const struct zc_req *r)
{
	unsigned flags = zc_opinfo[r->hdr.opcode].flags;
	size_t len;

	if (!(flags & (ZC_F_NAME1 | ZC_F_NAME2)))
		return 0;
	len = strnlen(r->arg, r->arg_len);
	if (len == r->arg_len)
		return -EINVAL;
	if (len > NAME_MOST)
		return -ENAMETOOLONG;
	if (!(flags & ZC_F_NAME2))
		return 0;
	size_t left = r->arg_len - len - 1, most = r->hdr.opcode == FUSE_SYMLINK ? PATH_MAX - 1
										  : NAME_MOST;
	len = strnlen(r->arg + len + 1, left);
	return len == left ? -EINVAL : len > most ? -ENAMETOOLONG : 0;
}

int zc_relay_encode(const struct zc_req *r, uint32_t max_data, struct zc_relay_msg *m)
{
	const struct zc_opinfo *info = &zc_opinfo[r->hdr.opcode];
	const struct rule *rule = &rules[r->hdr.opcode];
	int err = check_names(r);

	if (err)
		return err;
	*m = (struct zc_relay_msg){.hdr = r->hdr, .in_len = info->in_size, .data = r->arg};
	if (info->flags & (ZC_F_NAME1 | ZC_F_NAME2 | ZC_F_DATA))
		m->data_len = r->arg_len;
	memcpy(m->in, r->in, info->in_size);
	err = rule->prepare ? rule->prepare(r, max_data, m) : 0;
	if (err)
		return err;
	size_t len = sizeof(m->hdr) + m->in_len + m->data_len;
	if (len > ZC_RELAY_MAX_MESSAGE)
		return -E2BIG;
	m->hdr.len = (uint32_t)len;
	m->hdr.total_extlen = m->hdr.padding = 0;
	if (rule->opcode)
		m->hdr.opcode = rule->opcode;
	return 0;
}

int zc_relay_decode(struct zc_req *r, const struct zc_relay_msg *m, const void *body, size_t len)
{
	const struct rule *rule = &rules[r->hdr.opcode];

	if (rule->size == VARIES ? len > m->limit : len != rule->size)
		return -EIO;
	return rule->accept ? rule->accept(r, m, body, len) : reply_copy(r, body, len);
}

static int default_statfs(struct zc_req *r)
{
	struct fuse_statfs_out out = {
		.st = {.bsize = BLOCK, .frsize = BLOCK, .namelen = NAME_MOST}};

	return reply_copy(r, &out, sizeof(out));
}

static int without_enosys(struct zc_req *r)
{
	switch (r->hdr.opcode) {
	case FUSE_FLUSH:
	case FUSE_ACCESS:
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
		return local_ok(r);
	case FUSE_STATFS:
		return default_statfs(r);
	default:
		return -EOPNOTSUPP;
	}
}

int zc_relay_error(struct zc_req *r, int error)
{
	if (error == -ENOSYS)
		return without_enosys(r);
	return error < -ERROR_MOST || error >= 0 ? -EIO : error;
}

/* What a reply handed out ------------------------------------------------------------------ */

bool zc_relay_handle_of(uint32_t opcode, uint64_t nodeid, const void *body, size_t len,
			struct zc_relay_handle *out)
{
	const struct fuse_entry_out *e = body;
	const struct fuse_open_out *o = body;

	switch (opcode) {
	case FUSE_OPEN:
	case FUSE_OPENDIR:
		if (len != OPENED)
			return false;
		*out = (struct zc_relay_handle){nodeid, o->fh, opcode == FUSE_OPENDIR};
		return true;
	case FUSE_CREATE:
		if (len != ENTRY + OPENED || !is_computed(e->nodeid))
			return false;
		o = (const void *)(e + 1);
		*out = (struct zc_relay_handle){e->nodeid, o->fh, false};
		return true;
	default:
		return false;
	}
}

/* As in the kernel, `.` and `..` are not counted. */
static size_t lookups_of_dir(const char *body, size_t len, struct fuse_forget_one *out, size_t cap)
{
	const struct fuse_direntplus *e;
	size_t at = 0, n = 0;

	while ((e = next_entry(body, len, &at))) {
		if (!is_computed(e->entry_out.nodeid) || is_dots(e->dirent.name, e->dirent.namelen))
			continue;
		if (n < cap)
			out[n] = (struct fuse_forget_one){e->entry_out.nodeid, 1};
		n++;
	}
	return n;
}

size_t zc_relay_lookups_of(uint32_t opcode, const void *body, size_t len,
			   struct fuse_forget_one *out, size_t cap)
{
	const struct fuse_entry_out *e = body;

	switch (opcode) {
	case FUSE_LOOKUP:
	case FUSE_SYMLINK:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_LINK:
	case FUSE_CREATE:
		if (len < ENTRY || !is_computed(e->nodeid))
			return 0;
		if (cap)
			*out = (struct fuse_forget_one){e->nodeid, 1};
		return 1;
	case FUSE_READDIRPLUS:
		return lookups_of_dir(body, len, out, cap);
	default:
		return 0;
	}
}

/* Notifications ---------------------------------------------------------------------------- */

/* `name` is followed by a NUL and then nothing. In the root only our own name may be touched. */
static bool may_touch(uint64_t parent, const char *name, size_t namelen, size_t left)
{
	if (!namelen || namelen > NAME_MOST || left != namelen + 1 || name[namelen] ||
	    memchr(name, 0, namelen))
		return false;
	return is_computed(parent) || (parent == FUSE_ROOT_ID && !strcmp(name, ZC_ZCFS_NAME));
}

bool zc_relay_may_notify(const void *msg, size_t len)
{
	const struct fuse_out_header *hdr = msg;
	const void *body = hdr + 1;
	const struct fuse_notify_inval_inode_out *inode = body;
	const struct notify_inval_entry *entry = body;
	const struct notify_delete *gone = body;

	if (len < sizeof(*hdr) || hdr->len != len || hdr->unique)
		return false;
	len -= sizeof(*hdr);
	switch (hdr->error) {
	case FUSE_NOTIFY_INVAL_INODE:
		return len == sizeof(*inode) && is_computed(inode->ino);
	case FUSE_NOTIFY_INVAL_ENTRY:
		return len > sizeof(*entry) && may_touch(entry->parent, (const char *)(entry + 1),
							 entry->namelen, len - sizeof(*entry));
	case NOTIFY_DELETE:
		return len > sizeof(*gone) && is_computed(gone->child) &&
		       may_touch(gone->parent, (const char *)(gone + 1), gone->namelen,
				 len - sizeof(*gone));
	default: /* STORE and RETRIEVE would fill a cache that is not used */
		return false;
	}
}
