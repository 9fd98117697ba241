/* Requests as bytes: what a message must look like, and where its parts are.
 *
 * Owns the opcode table and every check of a request's shape: lengths that agree with each other,
 * names that end, that are names and not paths, extensions that fill their block. It exists so
 * that no handler has to ask again, and so that all of this can be tested without a mount.
 *
 * Pure: no system calls, no state but constant tables, any thread. The message is only read.
 */
#include <assert.h>
#include <string.h>

#include "../internal.h"

#define NAME_LEAST 1
#define NAME_MOST 255
#define TARGET_MOST 4095
#define INIT_SIZE_OLD offsetof(struct fuse_init_in, flags2) /* before Linux 5.17 */

#define X(code, name, size, flags) [code] = {#name, size, flags},
const struct zc_opinfo zc_opinfo[FUSE_OPCODE_END] = {ZC_OPCODES(X)};
#undef X

/* What a string may be. */
enum name_kind {
	KIND_ANY,	/* only its end is checked */
	KIND_ENTRY,	/* names a directory entry */
	KIND_XATTR,
	KIND_TARGET,	/* of a symbolic link */
};

static const uint8_t name_kinds[FUSE_OPCODE_END][2] = {
	[FUSE_LOOKUP] = {KIND_ENTRY},
	[FUSE_SYMLINK] = {KIND_ENTRY, KIND_TARGET},
	[FUSE_MKNOD] = {KIND_ENTRY},
	[FUSE_MKDIR] = {KIND_ENTRY},
	[FUSE_UNLINK] = {KIND_ENTRY},
	[FUSE_RMDIR] = {KIND_ENTRY},
	[FUSE_RENAME] = {KIND_ENTRY, KIND_ENTRY},
	[FUSE_RENAME2] = {KIND_ENTRY, KIND_ENTRY},
	[FUSE_LINK] = {KIND_ENTRY},
	[FUSE_CREATE] = {KIND_ENTRY},
	[FUSE_TMPFILE] = {KIND_ANY},
	[FUSE_SETXATTR] = {KIND_XATTR},
	[FUSE_GETXATTR] = {KIND_XATTR},
	[FUSE_REMOVEXATTR] = {KIND_XATTR},
};

/* Where the fixed part says how much data follows, and in units of what. */
static const struct {
	uint8_t offset, unit;
} data_counts[FUSE_OPCODE_END] = {
	[FUSE_WRITE] = {offsetof(struct fuse_write_in, size), 1},
	[FUSE_SETXATTR] = {offsetof(struct fuse_setxattr_in, size), 1},
	[FUSE_IOCTL] = {offsetof(struct fuse_ioctl_in, in_size), 1},
	[FUSE_BATCH_FORGET] = {offsetof(struct fuse_batch_forget_in, count),
			       sizeof(struct fuse_forget_one)},
};

static const bool may_extend[FUSE_OPCODE_END] = {
	[FUSE_SYMLINK] = true, [FUSE_MKNOD] = true, [FUSE_MKDIR] = true,
	[FUSE_CREATE] = true,  [FUSE_TMPFILE] = true,
};

static uint32_t load32(const char *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static int check_entry(const char *name, size_t len)
{
	if (len > NAME_MOST)
		return -ENAMETOOLONG;
	if (len < NAME_LEAST || memchr(name, '/', len))
		return -EINVAL;
	if (name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')))
		return -EINVAL;
	return 0;
}

static int check_name(const char *name, size_t len, enum name_kind kind)
{
	switch (kind) {
	case KIND_ENTRY:
		return check_entry(name, len);
	case KIND_XATTR:
		return len > NAME_MOST ? -ENAMETOOLONG : 0;
	case KIND_TARGET:
		return len > TARGET_MOST ? -ENAMETOOLONG : 0;
	case KIND_ANY:
		break;
	}
	return 0;
}

/* Checks the strings at the front of `arg`; `*used` is what they take, with their NULs. */
static int check_names(uint32_t opcode, const char *arg, size_t len, size_t *used)
{
	unsigned flags = zc_opinfo[opcode].flags;
	unsigned count = flags & ZC_F_NAME2 ? 2 : flags & ZC_F_NAME1 ? 1 : 0;
	size_t pos = 0;

	for (unsigned i = 0; i < count; i++) {
		const char *nul = pos < len ? memchr(arg + pos, 0, len - pos) : NULL;
		if (!nul)
			return -EPROTO;
		size_t end = (size_t)(nul - arg);
		int err = check_name(arg + pos, end - pos, name_kinds[opcode][i]);
		if (err)
			return err;
		pos = end + 1;
	}
	*used = pos;
	return 0;
}

/* `rest`: bytes after the names. */
static int check_data(const struct zc_req *r, size_t rest)
{
	uint32_t opcode = r->hdr.opcode;

	if (!(zc_opinfo[opcode].flags & ZC_F_DATA))
		return rest ? -EPROTO : 0;
	uint64_t count = load32((const char *)r->in + data_counts[opcode].offset);
	return count * data_counts[opcode].unit == rest ? 0 : -EPROTO;
}

/* One extension of `size` bytes, its header included. */
static int check_extension(const char *ext, size_t size)
{
	struct fuse_ext_header h;
	size_t fixed = sizeof(h) + sizeof(struct fuse_supp_groups);

	memcpy(&h, ext, sizeof(h));
	if (h.type != FUSE_EXT_GROUPS)
		return 0;
	if (size < fixed)
		return -EPROTO;
	return load32(ext + sizeof(h)) <= (size - fixed) / sizeof(uint32_t) ? 0 : -EPROTO;
}

static int check_extensions(const char *ext, size_t len)
{
	while (len) {
		/* `len` is a multiple of 8, so a header is always there */
		size_t size = load32(ext + offsetof(struct fuse_ext_header, size));
		if (size < sizeof(struct fuse_ext_header) || size > len || size % 8)
			return -EPROTO;
		int err = check_extension(ext, size);
		if (err)
			return err;
		ext += size;
		len -= size;
	}
	return 0;
}

static bool known(uint32_t opcode)
{
	return opcode < FUSE_OPCODE_END && zc_opinfo[opcode].name;
}

/* On success the extensions are no longer part of `arg`. They follow a name, so `ext` has no
 * alignment: copy out of it. */
int zc_req_check(struct zc_req *r)
{
	uint32_t opcode = r->hdr.opcode;
	size_t ext_len = (size_t)r->hdr.total_extlen * 8;
	size_t used;

	if (!known(opcode))
		return -EOPNOTSUPP;
	if (ext_len > r->arg_len || (ext_len && !may_extend[opcode]))
		return -EPROTO;
	size_t arg_len = r->arg_len - ext_len;
	int err = check_names(opcode, r->arg, arg_len, &used);
	if (!err)
		err = check_data(r, arg_len - used);
	if (!err && ext_len)
		err = check_extensions(r->arg + arg_len, ext_len);
	if (err)
		return err;
	r->arg_len = arg_len;
	r->ext = ext_len ? r->arg + arg_len : NULL;
	r->ext_len = ext_len;
	return 0;
}

/* Bytes of the fixed part in a body of `have` bytes. INIT alone has grown over time: it is shorter
 * from old kernels, which then do not set FUSE_INIT_EXT, and what is longer is not for us. */
static int fixed_size(uint32_t opcode, const char *in, size_t have, size_t *size)
{
	size_t want = zc_opinfo[opcode].in_size;

	if (opcode == FUSE_INIT && have >= INIT_SIZE_OLD && have < want) {
		uint32_t flags = load32(in + offsetof(struct fuse_init_in, flags));
		if (!(flags & FUSE_INIT_EXT))
			want = INIT_SIZE_OLD;
	}
	if (have < want)
		return -EPROTO;
	*size = want;
	return 0;
}

/* `r->hdr` is set whenever the message has room for it, so that an error can be answered; the rest
 * only on success. The fixed part of an INIT without FUSE_INIT_EXT may end before `flags2`. */
int zc_req_parse(const void *msg, size_t len, struct zc_req *r)
{
	const char *in = (const char *)msg + sizeof(r->hdr);
	struct zc_req tmp = {0};
	size_t size;

	assert((uintptr_t)msg % 8 == 0);
	if (len < sizeof(r->hdr))
		return -EPROTO;
	memcpy(&r->hdr, msg, sizeof(r->hdr));
	if (r->hdr.len != len)
		return -EPROTO;
	if (!known(r->hdr.opcode))
		return -EOPNOTSUPP;
	int err = fixed_size(r->hdr.opcode, in, len - sizeof(r->hdr), &size);
	if (err)
		return err;
	tmp.hdr = r->hdr;
	tmp.in = in;
	tmp.arg = in + size;
	tmp.arg_len = r->hdr.opcode == FUSE_INIT ? 0 : len - sizeof(r->hdr) - size;
	err = zc_req_check(&tmp);
	if (err)
		return err;
	r->in = tmp.in;
	r->arg = tmp.arg;
	r->arg_len = tmp.arg_len;
	r->ext = tmp.ext;
	r->ext_len = tmp.ext_len;
	return 0;
}
