/* Golden bytes: one request of every opcode as the kernel sends it, written out byte by byte, and
 * what the parser must make of it. Then the ways in which a message can be wrong.
 *
 * Little-endian, as every machine that zcfs runs on. No field of a golden request has the value of
 * its neighbour, so a swapped field shows.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../internal.h"

static int failures;

#define EXPECT(cond, ...)                                               \
	do {                                                            \
		if (!(cond)) {                                          \
			failures++;                                     \
			printf("%s:%d: %s: ", __FILE__, __LINE__, #cond); \
			printf(__VA_ARGS__);                            \
			putchar('\n');                                  \
		}                                                       \
	} while (0)

/* The table ------------------------------------------------------------------------------- */

/* unique 0x0102, nodeid 0x8000000000000703, uid 1000, gid 1001, pid 4242 */
#define HEAD(len, opcode, extlen)                                                          \
	len opcode "0201000000000000" "0307000000000080" "e8030000" "e9030000" "92100000" extlen \
		"0000"
#define NOEXT "0000"
#define UNIQUE 0x0102ULL
#define NODEID 0x8000000000000703ULL

#define FH "1122334455667788"
#define FH_VALUE 0x8877665544332211ULL
#define OWNER "a1a2a3a4a5a6a7a8"
#define OWNER_VALUE 0xa8a7a6a5a4a3a2a1ULL
/* one supplementary group, 1002, in a block of 16 bytes */
#define GROUPS "10000000" "20000000" "01000000" "ea030000"

struct field {
	const char *name;
	size_t offset, size;
	uint64_t value;
};
#define F(type, field, value) \
	{#field, offsetof(struct type, field), sizeof(((struct type *)NULL)->field), value}

struct golden {
	uint32_t opcode;
	const char *hex;
	struct field fields[16];
	const char *names[2];
	const char *data; /* what follows the names */
	size_t data_len, ext_len;
};

static const struct golden goldens[] = {
	{.opcode = FUSE_LOOKUP,
	 .hex = HEAD("2c000000", "01000000", NOEXT) "61 2e 62 00",
	 .names = {"a.b"}},
	{.opcode = FUSE_FORGET,
	 .hex = HEAD("30000000", "02000000", NOEXT) "0500000000000001",
	 .fields = {F(fuse_forget_in, nlookup, 0x0100000000000005)}},
	{.opcode = FUSE_GETATTR,
	 .hex = HEAD("38000000", "03000000", NOEXT) "01000000" "00000000" FH,
	 .fields = {F(fuse_getattr_in, getattr_flags, FUSE_GETATTR_FH),
	  F(fuse_getattr_in, fh, FH_VALUE)}},
	{.opcode = FUSE_SETATTR,
	 .hex = HEAD("80000000", "04000000", NOEXT)
		"ff070000" "00000000" FH "0010000000000002" OWNER
		"0100000000000011" "0200000000000012" "0300000000000013"
		"04000014" "05000015" "06000016" "a4810000" "00000000" "07000000" "08000000"
		"00000000",
	 .fields = {F(fuse_setattr_in, valid, 0x7ff), F(fuse_setattr_in, fh, FH_VALUE),
	  F(fuse_setattr_in, size, 0x0200000000001000),
	  F(fuse_setattr_in, lock_owner, OWNER_VALUE),
	  F(fuse_setattr_in, atime, 0x1100000000000001),
	  F(fuse_setattr_in, mtime, 0x1200000000000002),
	  F(fuse_setattr_in, ctime, 0x1300000000000003),
	  F(fuse_setattr_in, atimensec, 0x14000004), F(fuse_setattr_in, mtimensec, 0x15000005),
	  F(fuse_setattr_in, ctimensec, 0x16000006), F(fuse_setattr_in, mode, 0100644),
	  F(fuse_setattr_in, uid, 7), F(fuse_setattr_in, gid, 8)}},
	{.opcode = FUSE_READLINK, .hex = HEAD("28000000", "05000000", NOEXT)},
	{.opcode = FUSE_SYMLINK,
	 .hex = HEAD("42000000", "06000000", "0200") "6c696e6b 00" "2e2e2f 74 00" GROUPS,
	 .names = {"link", "../t"},
	 .ext_len = 16},
	{.opcode = FUSE_MKNOD,
	 .hex = HEAD("3d000000", "08000000", NOEXT)
		"a4110000" "03080000" "12000000" "00000000" "66696666 00",
	 .fields = {F(fuse_mknod_in, mode, 010644), F(fuse_mknod_in, rdev, 0x803),
	  F(fuse_mknod_in, umask, 022)},
	 .names = {"fiff"}},
	{.opcode = FUSE_MKDIR,
	 .hex = HEAD("44000000", "09000000", "0200") "ed010000" "3f000000" "646972 00" GROUPS,
	 .fields = {F(fuse_mkdir_in, mode, 0755), F(fuse_mkdir_in, umask, 077)},
	 .names = {"dir"},
	 .ext_len = 16},
	{.opcode = FUSE_UNLINK,
	 .hex = HEAD("2d000000", "0a000000", NOEXT) "2e2e2e61 00",
	 .names = {"...a"}},
	{.opcode = FUSE_RMDIR, .hex = HEAD("2a000000", "0b000000", NOEXT) "64 00", .names = {"d"}},
	{.opcode = FUSE_RENAME,
	 .hex = HEAD("36000000", "0c000000", NOEXT) "0900000000000001" "6f6c64 00" "62 00",
	 .fields = {F(fuse_rename_in, newdir, 0x0100000000000009)},
	 .names = {"old", "b"}},
	{.opcode = FUSE_LINK,
	 .hex = HEAD("34000000", "0d000000", NOEXT) "0a00000000000002" "6e6577 00",
	 .fields = {F(fuse_link_in, oldnodeid, 0x020000000000000a)},
	 .names = {"new"}},
	{.opcode = FUSE_OPEN,
	 .hex = HEAD("30000000", "0e000000", NOEXT) "02c40000" "01000000",
	 .fields = {F(fuse_open_in, flags, 0xc402),
	  F(fuse_open_in, open_flags, FUSE_OPEN_KILL_SUIDGID)}},
	{.opcode = FUSE_READ,
	 .hex = HEAD("50000000", "0f000000", NOEXT)
		FH "0010000000000003" "00000200" "02000000" OWNER
		"00c00000" "00000000",
	 .fields = {F(fuse_read_in, fh, FH_VALUE), F(fuse_read_in, offset, 0x0300000000001000),
	  F(fuse_read_in, size, 0x20000), F(fuse_read_in, read_flags, 2),
	  F(fuse_read_in, lock_owner, OWNER_VALUE), F(fuse_read_in, flags, 0xc000)}},
	{.opcode = FUSE_WRITE,
	 .hex = HEAD("55000000", "10000000", NOEXT)
		FH "0010000000000004" "05000000" "04000000" OWNER
		"01c00000" "00000000" "00 2f 00 ff 01",
	 .fields = {F(fuse_write_in, fh, FH_VALUE), F(fuse_write_in, offset, 0x0400000000001000),
	  F(fuse_write_in, size, 5), F(fuse_write_in, write_flags, FUSE_WRITE_KILL_SUIDGID),
	  F(fuse_write_in, lock_owner, OWNER_VALUE), F(fuse_write_in, flags, 0xc001)},
	 .data = "\0/\0\xff\1",
	 .data_len = 5},
	{.opcode = FUSE_STATFS, .hex = HEAD("28000000", "11000000", NOEXT)},
	{.opcode = FUSE_RELEASE,
	 .hex = HEAD("40000000", "12000000", NOEXT) FH "02800000" "03000000" OWNER,
	 .fields = {F(fuse_release_in, fh, FH_VALUE), F(fuse_release_in, flags, 0x8002),
	  F(fuse_release_in, release_flags, FUSE_RELEASE_FLUSH | FUSE_RELEASE_FLOCK_UNLOCK),
	  F(fuse_release_in, lock_owner, OWNER_VALUE)}},
	{.opcode = FUSE_FSYNC,
	 .hex = HEAD("38000000", "14000000", NOEXT) FH "01000000" "00000000",
	 .fields = {F(fuse_fsync_in, fh, FH_VALUE),
	  F(fuse_fsync_in, fsync_flags, FUSE_FSYNC_FDATASYNC)}},
	{.opcode = FUSE_SETXATTR,
	 .hex = HEAD("42000000", "15000000", NOEXT) "03000000" "02000000" "01000000" "00000000"
		"757365722e61 00" "76 00 77",
	 .fields = {F(fuse_setxattr_in, size, 3), F(fuse_setxattr_in, flags, 2),
	  F(fuse_setxattr_in, setxattr_flags, FUSE_SETXATTR_ACL_KILL_SGID)},
	 .names = {"user.a"},
	 .data = "v\0w",
	 .data_len = 3},
	{.opcode = FUSE_GETXATTR,
	 .hex = HEAD("37000000", "16000000", NOEXT) "00010000" "00000000" "757365722e61 00",
	 .fields = {F(fuse_getxattr_in, size, 256)},
	 .names = {"user.a"}},
	{.opcode = FUSE_LISTXATTR,
	 .hex = HEAD("30000000", "17000000", NOEXT) "00020000" "00000000",
	 .fields = {F(fuse_getxattr_in, size, 512)}},
	{.opcode = FUSE_REMOVEXATTR,
	 .hex = HEAD("2f000000", "18000000", NOEXT) "757365722e62 00",
	 .names = {"user.b"}},
	{.opcode = FUSE_FLUSH,
	 .hex = HEAD("40000000", "19000000", NOEXT) FH "00000000" "00000000" OWNER,
	 .fields = {F(fuse_flush_in, fh, FH_VALUE), F(fuse_flush_in, lock_owner, OWNER_VALUE)}},
	{.opcode = FUSE_INIT,
	 .hex = HEAD("68000000", "1a000000", NOEXT)
		"07000000" "2d000000" "00000200" "fbfffff3" "bf070000"
		"0000000000000000" "0000000000000000" "0000000000000000" "0000000000000000"
		"0000000000000000" "00000000",
	 .fields = {F(fuse_init_in, major, 7), F(fuse_init_in, minor, 45),
	  F(fuse_init_in, max_readahead, 0x20000), F(fuse_init_in, flags, 0xf3fffffb),
	  F(fuse_init_in, flags2, 0x7bf)}},
	{.opcode = FUSE_OPENDIR,
	 .hex = HEAD("30000000", "1b000000", NOEXT) "00c80100" "00000000",
	 .fields = {F(fuse_open_in, flags, 0x1c800)}},
	{.opcode = FUSE_READDIR,
	 .hex = HEAD("50000000", "1c000000", NOEXT) FH "0700000000000005" "00100000" "00000000"
		"0000000000000000" "00c80100" "00000000",
	 .fields = {F(fuse_read_in, fh, FH_VALUE), F(fuse_read_in, offset, 0x0500000000000007),
	  F(fuse_read_in, size, 4096), F(fuse_read_in, flags, 0x1c800)}},
	{.opcode = FUSE_RELEASEDIR,
	 .hex = HEAD("40000000", "1d000000", NOEXT) FH "00c80100" "00000000" "0000000000000000",
	 .fields = {F(fuse_release_in, fh, FH_VALUE), F(fuse_release_in, flags, 0x1c800)}},
	{.opcode = FUSE_FSYNCDIR,
	 .hex = HEAD("38000000", "1e000000", NOEXT) FH "01000000" "00000000",
	 .fields = {F(fuse_fsync_in, fh, FH_VALUE), F(fuse_fsync_in, fsync_flags, 1)}},
	{.opcode = FUSE_GETLK,
	 .hex = HEAD("58000000", "1f000000", NOEXT) FH OWNER "0a00000000000006" "ffffffffffffff7f"
		"01000000" "92100000" "00000000" "00000000",
	 .fields = {F(fuse_lk_in, fh, FH_VALUE), F(fuse_lk_in, owner, OWNER_VALUE),
	  F(fuse_lk_in, lk.start, 0x060000000000000a),
	  F(fuse_lk_in, lk.end, 0x7fffffffffffffff), F(fuse_lk_in, lk.type, F_WRLCK),
	  F(fuse_lk_in, lk.pid, 4242)}},
	{.opcode = FUSE_SETLK,
	 .hex = HEAD("58000000", "20000000", NOEXT) FH OWNER "0b00000000000000" "1400000000000000"
		"02000000" "92100000" "00000000" "00000000",
	 .fields = {F(fuse_lk_in, fh, FH_VALUE), F(fuse_lk_in, lk.start, 11),
	  F(fuse_lk_in, lk.end, 20),
	  F(fuse_lk_in, lk.type, F_UNLCK)}},
	{.opcode = FUSE_SETLKW,
	 .hex = HEAD("58000000", "21000000", NOEXT) FH OWNER "0000000000000000" "ffffffffffffff7f"
		"01000000" "92100000" "01000000" "00000000",
	 .fields = {F(fuse_lk_in, owner, OWNER_VALUE), F(fuse_lk_in, lk_flags, FUSE_LK_FLOCK)}},
	{.opcode = FUSE_ACCESS,
	 .hex = HEAD("30000000", "22000000", NOEXT) "05000000" "00000000",
	 .fields = {F(fuse_access_in, mask, 5)}},
	{.opcode = FUSE_CREATE,
	 .hex = HEAD("4d000000", "23000000", "0200")
		"c1800000" "a4810000" "12000000" "01000000" "66696c65 00"
		GROUPS,
	 .fields = {F(fuse_create_in, flags, 0x80c1), F(fuse_create_in, mode, 0100644),
	  F(fuse_create_in, umask, 022), F(fuse_create_in, open_flags, FUSE_OPEN_KILL_SUIDGID)},
	 .names = {"file"},
	 .ext_len = 16},
	{.opcode = FUSE_INTERRUPT,
	 .hex = HEAD("30000000", "24000000", NOEXT) "0401000000000001",
	 .fields = {F(fuse_interrupt_in, unique, 0x0100000000000104)}},
	{.opcode = FUSE_DESTROY, .hex = HEAD("28000000", "26000000", NOEXT)},
	{.opcode = FUSE_IOCTL,
	 .hex = HEAD("4c000000", "27000000", NOEXT)
		FH "10000000" "02660840" "0807060504030201" "04000000"
		"08000000" "20000100",
	 .fields = {F(fuse_ioctl_in, fh, FH_VALUE), F(fuse_ioctl_in, flags, FUSE_IOCTL_DIR),
	  F(fuse_ioctl_in, cmd, 0x40086602), F(fuse_ioctl_in, arg, 0x0102030405060708),
	  F(fuse_ioctl_in, in_size, 4), F(fuse_ioctl_in, out_size, 8)},
	 .data = " \0\1\0",
	 .data_len = 4},
	{.opcode = FUSE_POLL,
	 .hex = HEAD("40000000", "28000000", NOEXT) FH "0c00000000000000" "01000000" "05000000",
	 .fields = {F(fuse_poll_in, fh, FH_VALUE), F(fuse_poll_in, kh, 12),
	  F(fuse_poll_in, flags, 1),
	  F(fuse_poll_in, events, 5)}},
	{.opcode = FUSE_BATCH_FORGET,
	 .hex = HEAD("50000000", "2a000000", NOEXT) "02000000" "00000000"
		"0300000000000000" "0100000000000000" "0400000000000080" "0200000000000000",
	 .fields = {F(fuse_batch_forget_in, count, 2)},
	 .data = "\3\0\0\0\0\0\0\0" "\1\0\0\0\0\0\0\0" "\4\0\0\0\0\0\0\x80" "\2\0\0\0\0\0\0\0",
	 .data_len = 32},
	{.opcode = FUSE_FALLOCATE,
	 .hex = HEAD("48000000", "2b000000", NOEXT)
		FH "0010000000000007" "0020000000000008" "03000000"
		"00000000",
	 .fields = {F(fuse_fallocate_in, fh, FH_VALUE),
	  F(fuse_fallocate_in, offset, 0x0700000000001000),
	  F(fuse_fallocate_in, length, 0x0800000000002000), F(fuse_fallocate_in, mode, 3)}},
	{.opcode = FUSE_READDIRPLUS,
	 .hex = HEAD("50000000", "2c000000", NOEXT) FH "0900000000000009" "00800000" "00000000"
		"0000000000000000" "00c80100" "00000000",
	 .fields = {F(fuse_read_in, fh, FH_VALUE), F(fuse_read_in, offset, 0x0900000000000009),
	  F(fuse_read_in, size, 0x8000)}},
	{.opcode = FUSE_RENAME2,
	 .hex = HEAD("3c000000", "2d000000", NOEXT)
		"0d00000000000000" "02000000" "00000000" "61 00" "62 00",
	 .fields = {F(fuse_rename2_in, newdir, 13), F(fuse_rename2_in, flags, 2)},
	 .names = {"a", "b"}},
	{.opcode = FUSE_LSEEK,
	 .hex = HEAD("40000000", "2e000000", NOEXT) FH "000000000000000a" "03000000" "00000000",
	 .fields = {F(fuse_lseek_in, fh, FH_VALUE), F(fuse_lseek_in, offset, 0x0a00000000000000),
	  F(fuse_lseek_in, whence, 3)}},
	{.opcode = FUSE_COPY_FILE_RANGE,
	 .hex = HEAD("60000000", "2f000000", NOEXT) FH "0100000000000000" "0e00000000000000" OWNER
		"0200000000000000" "0000100000000000" "0000000000000000",
	 .fields = {F(fuse_copy_file_range_in, fh_in, FH_VALUE),
	  F(fuse_copy_file_range_in, off_in, 1),
	  F(fuse_copy_file_range_in, nodeid_out, 14),
	  F(fuse_copy_file_range_in, fh_out, OWNER_VALUE),
	  F(fuse_copy_file_range_in, off_out, 2), F(fuse_copy_file_range_in, len, 0x100000),
	  F(fuse_copy_file_range_in, flags, 0)}},
	{.opcode = FUSE_SYNCFS, .hex = HEAD("30000000", "32000000", NOEXT) "0000000000000000"},
	{.opcode = FUSE_TMPFILE,
	 .hex = HEAD("4a000000", "33000000", "0200")
		"02804100" "80810000" "12000000" "00000000" "2f 00"
		GROUPS,
	 .fields = {F(fuse_create_in, flags, 0x418002), F(fuse_create_in, mode, 0100600),
	  F(fuse_create_in, umask, 022)},
	 .names = {"/"},
	 .ext_len = 16},
	{.opcode = FUSE_STATX,
	 .hex = HEAD("40000000", "34000000", NOEXT) "01000000" "00000000" FH "00200000" "ff0f0000",
	 .fields = {F(fuse_statx_in, getattr_flags, FUSE_GETATTR_FH),
	  F(fuse_statx_in, fh, FH_VALUE),
	  F(fuse_statx_in, sx_flags, 0x2000), F(fuse_statx_in, sx_mask, 0xfff)}},
	{.opcode = FUSE_COPY_FILE_RANGE_64,
	 .hex = HEAD("60000000", "35000000", NOEXT) FH "0100000000000000" "0e00000000000000" OWNER
		"0200000000000000" "0000000002000000" "0000000000000000",
	 .fields = {F(fuse_copy_file_range_in, len, 0x200000000)}},
};
#define GOLDENS (sizeof(goldens) / sizeof(goldens[0]))

/* Messages -------------------------------------------------------------------------------- */

/* A message in memory of exactly its size, so that a sanitizer sees a read beyond it. */
struct message {
	char *bytes;
	size_t len;
};

static unsigned nibble(char c)
{
	return (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
}

static struct message from_hex(const char *hex)
{
	struct message m = {malloc(strlen(hex) / 2 + 1), 0};

	for (; *hex; hex++) {
		if (*hex == ' ')
			continue;
		m.bytes[m.len++] = (char)(nibble(hex[0]) << 4 | nibble(hex[1]));
		hex++;
	}
	m.bytes = realloc(m.bytes, m.len);
	return m;
}

static void put32(struct message *m, size_t offset, uint32_t v)
{
	memcpy(m->bytes + offset, &v, sizeof(v));
}

static void put16(struct message *m, size_t offset, uint16_t v)
{
	memcpy(m->bytes + offset, &v, sizeof(v));
}

/* Changes the size; what is added is `fill`, the header's length follows. */
static void resize(struct message *m, size_t len, char fill)
{
	m->bytes = realloc(m->bytes, len);
	if (len > m->len)
		memset(m->bytes + m->len, fill, len - m->len);
	m->len = len;
	if (len >= 4)
		put32(m, 0, (uint32_t)len);
}

static void append(struct message *m, const void *bytes, size_t len)
{
	size_t at = m->len;

	resize(m, at + len, 0);
	memcpy(m->bytes + at, bytes, len);
}

static struct message golden_of(uint32_t opcode)
{
	for (size_t i = 0; i < GOLDENS; i++)
		if (goldens[i].opcode == opcode)
			return from_hex(goldens[i].hex);
	abort();
}

/* A golden request cut after its fixed part, without extensions. */
static struct message fixed_of(uint32_t opcode)
{
	struct message m = golden_of(opcode);

	put16(&m, offsetof(struct fuse_in_header, total_extlen), 0);
	resize(&m, sizeof(struct fuse_in_header) + zc_opinfo[opcode].in_size, 0);
	return m;
}

/* The error of parsing `m`, which is freed. Nothing but the header may change on failure. */
static int error_of(struct message m)
{
	struct zc_req r;

	memset(&r, 0x5a, sizeof(r));
	struct zc_req before = r;
	int err = zc_req_parse(m.bytes, m.len, &r);
	if (err) {
		before.hdr = r.hdr;
		EXPECT(!memcmp(&before, &r, sizeof(r)), "request changed by a failed parse");
	}
	free(m.bytes);
	return err;
}

/* Golden tests ---------------------------------------------------------------------------- */

static uint64_t field_of(const void *in, const struct field *f)
{
	uint64_t v = 0;

	memcpy(&v, (const char *)in + f->offset, f->size);
	return v;
}

static void check_fields(const struct golden *g, const struct zc_req *r)
{
	const char *op = zc_opinfo[g->opcode].name;

	EXPECT(r->hdr.opcode == g->opcode, "%s", op);
	EXPECT(r->hdr.unique == UNIQUE && r->hdr.nodeid == NODEID, "%s", op);
	EXPECT(r->hdr.uid == 1000 && r->hdr.gid == 1001 && r->hdr.pid == 4242, "%s", op);
	for (const struct field *f = g->fields; f->name; f++)
		EXPECT(field_of(r->in, f) == f->value, "%s.%s is %#llx", op, f->name,
		       (unsigned long long)field_of(r->in, f));
}

static void check_rest(const struct golden *g, const struct zc_req *r)
{
	const char *op = zc_opinfo[g->opcode].name, *p = r->arg;

	for (int i = 0; i < 2 && g->names[i]; i++) {
		EXPECT(!strcmp(p, g->names[i]), "%s: name %d is %s", op, i, p);
		p = i ? p : zc_req_name2(r);
	}
	size_t names = (g->names[0] ? strlen(g->names[0]) + 1 : 0) +
		       (g->names[1] ? strlen(g->names[1]) + 1 : 0);
	EXPECT(r->arg_len == names + g->data_len, "%s: arg_len %zu", op, r->arg_len);
	if (g->data_len && r->arg_len == names + g->data_len)
		EXPECT(!memcmp(r->arg + names, g->data, g->data_len), "%s: data", op);
	EXPECT(r->ext_len == g->ext_len && !r->ext == !g->ext_len, "%s: ext", op);
	if (g->ext_len) {
		struct message want = from_hex(GROUPS);
		EXPECT(!memcmp(r->ext, want.bytes, want.len), "%s: ext bytes", op);
		free(want.bytes);
	}
}

static void test_golden(const struct golden *g)
{
	struct message m = from_hex(g->hex);
	struct zc_req r = {0};
	int err = zc_req_parse(m.bytes, m.len, &r);

	EXPECT(!err, "%s: error %d", zc_opinfo[g->opcode].name, err);
	if (!err) {
		EXPECT((const char *)r.in == m.bytes + 40, "%s", zc_opinfo[g->opcode].name);
		check_fields(g, &r);
		check_rest(g, &r);
	}
	free(m.bytes);
}

/* The parts as FUSE over io_uring gives them: each in memory of its own. */
static void test_parts(const struct golden *g)
{
	struct message m = from_hex(g->hex);
	size_t fixed = 40 + (size_t)zc_opinfo[g->opcode].in_size;
	_Alignas(8) char op_in[128] = {0};
	struct zc_req r = {.in = op_in, .arg_len = m.len - fixed};
	char *arg = malloc(r.arg_len + 1);

	memcpy(&r.hdr, m.bytes, sizeof(r.hdr));
	memcpy(op_in, m.bytes + 40, fixed - 40);
	memcpy(arg, m.bytes + fixed, r.arg_len);
	r.arg = arg = realloc(arg, r.arg_len ? r.arg_len : 1);
	int err = zc_req_check(&r);
	EXPECT(!err, "%s: error %d", zc_opinfo[g->opcode].name, err);
	if (!err) {
		check_fields(g, &r);
		check_rest(g, &r);
	}
	free(arg);
	free(m.bytes);
}

static void test_table_is_whole(void)
{
	for (uint32_t op = 0; op < FUSE_OPCODE_END; op++) {
		unsigned n = 0;
		for (size_t i = 0; i < GOLDENS; i++)
			n += goldens[i].opcode == op;
		EXPECT(n == (zc_opinfo[op].name ? 1 : 0), "opcode %u: %u requests", op, n);
		EXPECT(zc_opinfo[op].in_size % 8 == 0 && zc_opinfo[op].in_size <= 128, "%u", op);
	}
}

/* Malformed requests ---------------------------------------------------------------------- */

static void test_truncated(const struct golden *g)
{
	struct message whole = from_hex(g->hex);

	for (size_t len = 0; len < whole.len; len++) {
		struct message m = from_hex(g->hex);
		resize(&m, len, 0);
		int err = error_of(m);
		EXPECT(err == -EPROTO, "%s cut to %zu: %d", zc_opinfo[g->opcode].name, len, err);
	}
	free(whole.bytes);
}

static void test_too_long(const struct golden *g)
{
	struct message m = from_hex(g->hex);

	resize(&m, m.len + 1, 'x');
	int err = error_of(m);
	EXPECT(err == (g->opcode == FUSE_INIT ? 0 : -EPROTO), "%s: %d", zc_opinfo[g->opcode].name,
	       err);
}

static void test_wrong_length(const struct golden *g)
{
	static const int by[] = {-40, -1, 1, 0x10000};

	for (size_t i = 0; i < sizeof(by) / sizeof(by[0]); i++) {
		struct message m = from_hex(g->hex);
		put32(&m, 0, (uint32_t)((int)m.len + by[i]));
		EXPECT(error_of(m) == -EPROTO, "%s: %d", zc_opinfo[g->opcode].name, by[i]);
	}
}

static void test_extension_not_allowed(const struct golden *g)
{
	struct message groups = from_hex(GROUPS), m = from_hex(g->hex);

	if (!g->ext_len && g->opcode != FUSE_MKNOD && g->opcode != FUSE_INIT) {
		append(&m, groups.bytes, groups.len);
		put16(&m, offsetof(struct fuse_in_header, total_extlen), 2);
		EXPECT(error_of(m) == -EPROTO, "%s", zc_opinfo[g->opcode].name);
	} else {
		free(m.bytes);
	}
	free(groups.bytes);
}

static void test_unknown(void)
{
	static const uint32_t unknown[] = {0, 7, 19, 37, 41, 48, 49, 54, 63, 64, 4096, UINT32_MAX};

	for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
		struct message m = golden_of(FUSE_STATFS);
		put32(&m, 4, unknown[i]);
		EXPECT(error_of(m) == -EOPNOTSUPP, "opcode %u", unknown[i]);
	}
}

static void test_header_is_kept(void)
{
	struct message m = golden_of(FUSE_LOOKUP);
	struct zc_req r = {0};

	m.bytes[m.len - 1] = 'x';
	EXPECT(zc_req_parse(m.bytes, m.len, &r) == -EPROTO, "no NUL");
	EXPECT(r.hdr.unique == UNIQUE, "the error could not be answered");
	free(m.bytes);
}

/* INIT of Linux before 5.17 ends before flags2. */
static void test_short_init(void)
{
	struct message m = golden_of(FUSE_INIT);
	struct zc_req r = {0};

	resize(&m, 40 + 16, 0);
	put32(&m, 40 + 12, 0xb3fffffb); /* without FUSE_INIT_EXT */
	EXPECT(!zc_req_parse(m.bytes, m.len, &r), "short INIT refused");
	EXPECT(((const struct fuse_init_in *)r.in)->minor == 45 && !r.arg_len, "short INIT");
	resize(&m, 40 + 15, 0);
	EXPECT(error_of(m) == -EPROTO, "shorter");
}

/* Names ----------------------------------------------------------------------------------- */

static const uint32_t entry_ops[] = {FUSE_LOOKUP, FUSE_MKNOD,  FUSE_MKDIR,   FUSE_UNLINK,
				     FUSE_RMDIR,  FUSE_RENAME, FUSE_RENAME2, FUSE_LINK,
				     FUSE_CREATE, FUSE_SYMLINK};
#define ENTRY_OPS (sizeof(entry_ops) / sizeof(entry_ops[0]))

static int error_with_names(uint32_t opcode, const char *a, const char *b)
{
	struct message m = fixed_of(opcode);

	append(&m, a, strlen(a) + 1);
	if (zc_opinfo[opcode].flags & ZC_F_NAME2)
		append(&m, b, strlen(b) + 1);
	if (opcode == FUSE_SETXATTR)
		put32(&m, 40, 0);
	return error_of(m);
}

static const char *of_length(size_t n)
{
	static char buf[5000];

	memset(buf, 'n', n);
	buf[n] = 0;
	return buf;
}

static void test_entry_names(uint32_t op)
{
	static const struct {
		const char *name;
		int err;
	} cases[] = {
		{"", -EINVAL},	      {".", -EINVAL},	 {"..", -EINVAL},  {"/", -EINVAL},
		{"a/b", -EINVAL},     {"../x", -EINVAL}, {"a/", -EINVAL},  {"...", 0},
		{".x", 0},	      {"..x", 0},	 {"x", 0},	   {"\xff\xfe", 0},
		{"\n", 0},	      {" ", 0},		 {".zcfs", 0},
	};
	bool two = op == FUSE_RENAME || op == FUSE_RENAME2;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int err = error_with_names(op, cases[i].name, "x");
		EXPECT(err == cases[i].err, "%s(%s): %d", zc_opinfo[op].name, cases[i].name, err);
		if (two)
			EXPECT(error_with_names(op, "x", cases[i].name) == cases[i].err,
			       "%s(x, %s)", zc_opinfo[op].name, cases[i].name);
	}
	EXPECT(!error_with_names(op, of_length(255), "x"), "%u", op);
	EXPECT(error_with_names(op, of_length(256), "x") == -ENAMETOOLONG, "%u", op);
	if (two)
		EXPECT(error_with_names(op, "x", of_length(256)) == -ENAMETOOLONG, "%u", op);
}

static void test_other_names(void)
{
	static const uint32_t xattrs[] = {FUSE_SETXATTR, FUSE_GETXATTR, FUSE_REMOVEXATTR};

	for (size_t i = 0; i < 3; i++) {
		EXPECT(!error_with_names(xattrs[i], "user.a/..", NULL), "%u", xattrs[i]);
		EXPECT(!error_with_names(xattrs[i], of_length(255), NULL), "%u", xattrs[i]);
		EXPECT(error_with_names(xattrs[i], of_length(256), NULL) == -ENAMETOOLONG, "%u",
		       xattrs[i]);
	}
	EXPECT(!error_with_names(FUSE_SYMLINK, "l", "/../x"), "target");
	EXPECT(!error_with_names(FUSE_SYMLINK, "l", of_length(4095)), "target");
	EXPECT(error_with_names(FUSE_SYMLINK, "l", of_length(4096)) == -ENAMETOOLONG, "target");
	EXPECT(!error_with_names(FUSE_TMPFILE, "", NULL), "empty");
	EXPECT(!error_with_names(FUSE_TMPFILE, "/", NULL), "slash");
	EXPECT(!error_with_names(FUSE_TMPFILE, of_length(1000), NULL), "long");
}

/* Data and extensions --------------------------------------------------------------------- */

static void test_counts(void)
{
	static const struct {
		uint32_t opcode;
		size_t offset;
	} counts[] = {
		{FUSE_WRITE, offsetof(struct fuse_write_in, size)},
		{FUSE_SETXATTR, offsetof(struct fuse_setxattr_in, size)},
		{FUSE_IOCTL, offsetof(struct fuse_ioctl_in, in_size)},
		{FUSE_BATCH_FORGET, offsetof(struct fuse_batch_forget_in, count)},
	};
	static const uint32_t wrong[] = {0, 1, 1000, 0x10000001, 0x10000002, UINT32_MAX};

	for (size_t i = 0; i < 4; i++)
		for (size_t j = 0; j < sizeof(wrong) / sizeof(wrong[0]); j++) {
			struct message m = golden_of(counts[i].opcode);
			put32(&m, 40 + counts[i].offset, wrong[j]);
			EXPECT(error_of(m) == -EPROTO, "%u: count %u", counts[i].opcode, wrong[j]);
		}
}

static int error_with_extension(uint16_t units, const char *hex)
{
	struct message m = fixed_of(FUSE_MKDIR), ext = from_hex(hex);

	append(&m, "d", 2);
	append(&m, ext.bytes, ext.len);
	put16(&m, offsetof(struct fuse_in_header, total_extlen), units);
	free(ext.bytes);
	return error_of(m);
}

static void test_extensions(void)
{
	static const struct {
		const char *hex;
		uint16_t units;
		int err;
	} cases[] = {
		{GROUPS, 2, 0},
		{"10000000 01000000 0000000000000000" GROUPS, 4, 0}, /* a security context */
		{"08000000 07000000", 1, 0},			       /* unknown and empty */
		{"10000000 20000000 00000000 00000000", 2, 0},	       /* no groups */
		{GROUPS, 0, -EPROTO},				       /* not declared */
		{GROUPS, 1, -EPROTO},				       /* declared too short */
		{GROUPS, 3, -EPROTO},				       /* declared too long */
		{GROUPS, UINT16_MAX, -EPROTO},
		{"00000000 20000000 01000000 ea030000", 2, -EPROTO},   /* size 0: no end */
		{"04000000 20000000 01000000 ea030000", 2, -EPROTO},   /* less than a header */
		{"0c000000 20000000 01000000 ea030000", 2, -EPROTO},   /* not a multiple of 8 */
		{"18000000 20000000 01000000 ea030000", 2, -EPROTO},   /* beyond the block */
		{"f8ffffff 20000000 01000000 ea030000", 2, -EPROTO},
		{"08000000 20000000", 1, -EPROTO},		       /* no room for the count */
		{"10000000 20000000 02000000 ea030000", 2, -EPROTO},   /* more groups than room */
		{"10000000 20000000 ffffffff ea030000", 2, -EPROTO},
		{"10000000 20000000 01000040 ea030000", 2, -EPROTO},   /* 4 * count wraps */
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int err = error_with_extension(cases[i].units, cases[i].hex);
		EXPECT(err == cases[i].err, "case %zu, %s: %d", i, cases[i].hex, err);
	}
}

int main(void)
{
	test_table_is_whole();
	for (size_t i = 0; i < GOLDENS; i++) {
		test_golden(&goldens[i]);
		test_parts(&goldens[i]);
		test_truncated(&goldens[i]);
		test_too_long(&goldens[i]);
		test_wrong_length(&goldens[i]);
		test_extension_not_allowed(&goldens[i]);
	}
	test_unknown();
	test_header_is_kept();
	test_short_init();
	for (size_t i = 0; i < ENTRY_OPS; i++)
		test_entry_names(entry_ops[i]);
	test_other_names();
	test_counts();
	test_extensions();
	printf("%zu golden requests, %d failures\n", GOLDENS, failures);
	return failures != 0;
}
