/* The FUSE wire format, protocol 7.45, as far as zcfs speaks it.
 *
 * Kept here rather than taken from the system because distributions ship headers that are years
 * older than the kernels they run on (Debian 12: 7.38), while passthrough needs 7.40 and io_uring
 * 7.42. Structures are little more than the field list of each message; all are multiples of 8.
 * Source: the kernel's FUSE interface (include/uapi/linux/fuse.h, Linux 6.18).
 */
#ifndef ZC_WIRE_ABI_H
#define ZC_WIRE_ABI_H

#include <stdint.h>
#include <sys/ioctl.h>

#define FUSE_MAJOR 7
#define FUSE_MINOR 45
#define FUSE_MINOR_LEAST 33 /* what Linux 5.12 speaks; older messages have other sizes */
#define FUSE_ROOT_ID 1
#define FUSE_INT_REQ_BIT 1ULL
#define FUSE_BUFFER_HEADER_SIZE 4096 /* room before the data of a WRITE or READ */

/* X(code, name, size of the fixed part of the request, flags) */
#define ZC_F_NAME1 1u  /* one NUL-terminated string follows the fixed part */
#define ZC_F_NAME2 2u  /* two strings follow */
#define ZC_F_DATA 4u   /* bytes follow */
#define ZC_F_NOREPLY 8u
#define ZC_F_BLOCKS 16u /* may wait for the disk or for somebody else */
#define ZC_F_DEV 32u   /* comes over /dev/fuse whatever the transport */
#define ZC_F_ANYCRED 64u /* leaves set-id bits alone, or sees to CAP_FSETID itself */

#define ZC_OPCODES(X)                                                                   \
	X(1, LOOKUP, 0, ZC_F_NAME1 | ZC_F_BLOCKS | ZC_F_ANYCRED)                                                     \
	X(2, FORGET, sizeof(struct fuse_forget_in), ZC_F_NOREPLY | ZC_F_DEV | ZC_F_ANYCRED)            \
	X(3, GETATTR, sizeof(struct fuse_getattr_in), ZC_F_BLOCKS | ZC_F_ANYCRED)                                \
	X(4, SETATTR, sizeof(struct fuse_setattr_in), ZC_F_BLOCKS)                      \
	X(5, READLINK, 0, ZC_F_BLOCKS)                                                  \
	X(6, SYMLINK, 0, ZC_F_NAME2 | ZC_F_BLOCKS)                                      \
	X(8, MKNOD, sizeof(struct fuse_mknod_in), ZC_F_NAME1 | ZC_F_BLOCKS)             \
	X(9, MKDIR, sizeof(struct fuse_mkdir_in), ZC_F_NAME1 | ZC_F_BLOCKS)             \
	X(10, UNLINK, 0, ZC_F_NAME1 | ZC_F_BLOCKS)                                      \
	X(11, RMDIR, 0, ZC_F_NAME1 | ZC_F_BLOCKS)                                       \
	X(12, RENAME, sizeof(struct fuse_rename_in), ZC_F_NAME2 | ZC_F_BLOCKS)          \
	X(13, LINK, sizeof(struct fuse_link_in), ZC_F_NAME1 | ZC_F_BLOCKS)              \
	X(14, OPEN, sizeof(struct fuse_open_in), ZC_F_BLOCKS | ZC_F_ANYCRED)                                     \
	X(15, READ, sizeof(struct fuse_read_in), ZC_F_ANYCRED)                                     \
	X(16, WRITE, sizeof(struct fuse_write_in), ZC_F_DATA | ZC_F_BLOCKS | ZC_F_ANYCRED)             \
	X(17, STATFS, 0, ZC_F_BLOCKS)                                                             \
	X(18, RELEASE, sizeof(struct fuse_release_in), ZC_F_BLOCKS | ZC_F_ANYCRED)                               \
	X(20, FSYNC, sizeof(struct fuse_fsync_in), ZC_F_BLOCKS | ZC_F_ANYCRED)                         \
	X(21, SETXATTR, sizeof(struct fuse_setxattr_in), ZC_F_NAME1 | ZC_F_DATA | ZC_F_BLOCKS) \
	X(22, GETXATTR, sizeof(struct fuse_getxattr_in), ZC_F_NAME1 | ZC_F_BLOCKS)      \
	X(23, LISTXATTR, sizeof(struct fuse_getxattr_in), ZC_F_BLOCKS)                  \
	X(24, REMOVEXATTR, 0, ZC_F_NAME1 | ZC_F_BLOCKS)                                 \
	X(25, FLUSH, sizeof(struct fuse_flush_in), ZC_F_BLOCKS | ZC_F_ANYCRED)                                   \
	X(26, INIT, sizeof(struct fuse_init_in), ZC_F_DEV)                              \
	X(27, OPENDIR, sizeof(struct fuse_open_in), ZC_F_BLOCKS | ZC_F_ANYCRED)                                  \
	X(28, READDIR, sizeof(struct fuse_read_in), ZC_F_BLOCKS | ZC_F_ANYCRED)                        \
	X(29, RELEASEDIR, sizeof(struct fuse_release_in), ZC_F_BLOCKS | ZC_F_ANYCRED)                            \
	X(30, FSYNCDIR, sizeof(struct fuse_fsync_in), ZC_F_BLOCKS)                      \
	X(31, GETLK, sizeof(struct fuse_lk_in), ZC_F_BLOCKS)                            \
	X(32, SETLK, sizeof(struct fuse_lk_in), ZC_F_BLOCKS)                            \
	X(33, SETLKW, sizeof(struct fuse_lk_in), ZC_F_BLOCKS)                           \
	X(34, ACCESS, sizeof(struct fuse_access_in), ZC_F_BLOCKS)                       \
	X(35, CREATE, sizeof(struct fuse_create_in), ZC_F_NAME1 | ZC_F_BLOCKS)          \
	X(36, INTERRUPT, sizeof(struct fuse_interrupt_in), ZC_F_NOREPLY | ZC_F_DEV)     \
	X(38, DESTROY, 0, 0)                                                            \
	X(39, IOCTL, sizeof(struct fuse_ioctl_in), ZC_F_DATA | ZC_F_BLOCKS)             \
	X(40, POLL, sizeof(struct fuse_poll_in), 0)                                     \
	X(42, BATCH_FORGET, sizeof(struct fuse_batch_forget_in), ZC_F_DATA | ZC_F_NOREPLY | ZC_F_DEV | ZC_F_ANYCRED) \
	X(43, FALLOCATE, sizeof(struct fuse_fallocate_in), ZC_F_BLOCKS)                 \
	X(44, READDIRPLUS, sizeof(struct fuse_read_in), ZC_F_BLOCKS | ZC_F_ANYCRED)                    \
	X(45, RENAME2, sizeof(struct fuse_rename2_in), ZC_F_NAME2 | ZC_F_BLOCKS)        \
	X(46, LSEEK, sizeof(struct fuse_lseek_in), ZC_F_BLOCKS)                         \
	X(47, COPY_FILE_RANGE, sizeof(struct fuse_copy_file_range_in), ZC_F_BLOCKS)     \
	X(50, SYNCFS, sizeof(struct fuse_syncfs_in), ZC_F_BLOCKS)                       \
	X(51, TMPFILE, sizeof(struct fuse_create_in), ZC_F_NAME1 | ZC_F_BLOCKS)         \
	X(52, STATX, sizeof(struct fuse_statx_in), ZC_F_BLOCKS | ZC_F_ANYCRED)                                   \
	X(53, COPY_FILE_RANGE_64, sizeof(struct fuse_copy_file_range_in), ZC_F_BLOCKS)

#define X(code, name, size, flags) FUSE_##name = code,
enum fuse_opcode { ZC_OPCODES(X) FUSE_OPCODE_END = 64 };
#undef X

/* INIT flags, both words as one number */
#define FUSE_ASYNC_READ (1ULL << 0)
#define FUSE_POSIX_LOCKS (1ULL << 1)
#define FUSE_ATOMIC_O_TRUNC (1ULL << 3)
#define FUSE_BIG_WRITES (1ULL << 5)
#define FUSE_DONT_MASK (1ULL << 6)
#define FUSE_FLOCK_LOCKS (1ULL << 10)
#define FUSE_HAS_IOCTL_DIR (1ULL << 11)
#define FUSE_AUTO_INVAL_DATA (1ULL << 12)
#define FUSE_DO_READDIRPLUS (1ULL << 13)
#define FUSE_READDIRPLUS_AUTO (1ULL << 14)
#define FUSE_ASYNC_DIO (1ULL << 15)
#define FUSE_PARALLEL_DIROPS (1ULL << 18)
#define FUSE_POSIX_ACL (1ULL << 20)
#define FUSE_ABORT_ERROR (1ULL << 21)
#define FUSE_MAX_PAGES (1ULL << 22)
#define FUSE_CACHE_SYMLINKS (1ULL << 23)
#define FUSE_EXPLICIT_INVAL_DATA (1ULL << 25)
#define FUSE_HANDLE_KILLPRIV_V2 (1ULL << 28)
#define FUSE_SETXATTR_EXT (1ULL << 29)
#define FUSE_INIT_EXT (1ULL << 30)
#define FUSE_CREATE_SUPP_GROUP (1ULL << 34)
#define FUSE_HAS_EXPIRE_ONLY (1ULL << 35)
#define FUSE_DIRECT_IO_ALLOW_MMAP (1ULL << 36)
#define FUSE_PASSTHROUGH (1ULL << 37)
#define FUSE_HAS_RESEND (1ULL << 39)
#define FUSE_ALLOW_IDMAP (1ULL << 40)
#define FUSE_OVER_IO_URING (1ULL << 41)
#define FUSE_REQUEST_TIMEOUT (1ULL << 42)

/* OPEN and CREATE replies */
#define FOPEN_DIRECT_IO (1u << 0)
#define FOPEN_KEEP_CACHE (1u << 1)
#define FOPEN_NONSEEKABLE (1u << 2)
#define FOPEN_CACHE_DIR (1u << 3)
#define FOPEN_NOFLUSH (1u << 5)
#define FOPEN_PARALLEL_DIRECT_WRITES (1u << 6)
#define FOPEN_PASSTHROUGH (1u << 7)

#define FATTR_MODE (1u << 0)
#define FATTR_UID (1u << 1)
#define FATTR_GID (1u << 2)
#define FATTR_SIZE (1u << 3)
#define FATTR_ATIME (1u << 4)
#define FATTR_MTIME (1u << 5)
#define FATTR_FH (1u << 6)
#define FATTR_ATIME_NOW (1u << 7)
#define FATTR_MTIME_NOW (1u << 8)
#define FATTR_LOCKOWNER (1u << 9)
#define FATTR_CTIME (1u << 10)
#define FATTR_KILL_SUIDGID (1u << 11)

#define FUSE_GETATTR_FH (1u << 0)
#define FUSE_RELEASE_FLUSH (1u << 0)
#define FUSE_RELEASE_FLOCK_UNLOCK (1u << 1)
#define FUSE_LK_FLOCK (1u << 0)
#define FUSE_WRITE_CACHE (1u << 0)
#define FUSE_WRITE_LOCKOWNER (1u << 1)
#define FUSE_WRITE_KILL_SUIDGID (1u << 2)
#define FUSE_OPEN_KILL_SUIDGID (1u << 0)
#define FUSE_SETXATTR_ACL_KILL_SGID (1u << 0)
#define FUSE_FSYNC_FDATASYNC (1u << 0)
#define FUSE_IOCTL_DIR (1u << 4)
#define FUSE_EXT_GROUPS 32u
#define FUSE_NOTIFY_REPLY 41u

enum fuse_notify_code {
	FUSE_NOTIFY_POLL = 1,
	FUSE_NOTIFY_INVAL_INODE = 2,
	FUSE_NOTIFY_INVAL_ENTRY = 3,
	FUSE_NOTIFY_RETRIEVE = 5, /* the answer is a request, FUSE_NOTIFY_REPLY */
};

struct fuse_in_header {
	uint32_t len, opcode;
	uint64_t unique, nodeid;
	uint32_t uid, gid, pid;
	uint16_t total_extlen; /* in units of 8 bytes */
	uint16_t padding;
};

struct fuse_out_header {
	uint32_t len;
	int32_t error;
	uint64_t unique;
};

struct fuse_attr {
	uint64_t ino, size, blocks, atime, mtime, ctime;
	uint32_t atimensec, mtimensec, ctimensec;
	uint32_t mode, nlink, uid, gid, rdev, blksize, flags;
};

struct fuse_entry_out {
	uint64_t nodeid, generation, entry_valid, attr_valid;
	uint32_t entry_valid_nsec, attr_valid_nsec;
	struct fuse_attr attr;
};

struct fuse_attr_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec, dummy;
	struct fuse_attr attr;
};

struct fuse_sx_time {
	int64_t tv_sec;
	uint32_t tv_nsec;
	int32_t reserved;
};

struct fuse_statx {
	uint32_t mask, blksize;
	uint64_t attributes;
	uint32_t nlink, uid, gid;
	uint16_t mode, spare0;
	uint64_t ino, size, blocks, attributes_mask;
	struct fuse_sx_time atime, btime, ctime, mtime;
	uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
	uint64_t spare2[14];
};

struct fuse_statx_in {
	uint32_t getattr_flags, reserved;
	uint64_t fh;
	uint32_t sx_flags, sx_mask;
};

struct fuse_statx_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec, flags;
	uint64_t spare[2];
	struct fuse_statx stat;
};

struct fuse_forget_in {
	uint64_t nlookup;
};

struct fuse_forget_one {
	uint64_t nodeid, nlookup;
};

struct fuse_batch_forget_in {
	uint32_t count, dummy;
};

struct fuse_getattr_in {
	uint32_t getattr_flags, dummy;
	uint64_t fh;
};

struct fuse_setattr_in {
	uint32_t valid, padding;
	uint64_t fh, size, lock_owner, atime, mtime, ctime;
	uint32_t atimensec, mtimensec, ctimensec;
	uint32_t mode, unused4, uid, gid, unused5;
};

struct fuse_mknod_in {
	uint32_t mode, rdev, umask, padding;
};

struct fuse_mkdir_in {
	uint32_t mode, umask;
};

struct fuse_rename_in {
	uint64_t newdir;
};

struct fuse_rename2_in {
	uint64_t newdir;
	uint32_t flags, padding;
};

struct fuse_link_in {
	uint64_t oldnodeid;
};

struct fuse_open_in {
	uint32_t flags, open_flags;
};

struct fuse_create_in {
	uint32_t flags, mode, umask, open_flags;
};

struct fuse_open_out {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

struct fuse_release_in {
	uint64_t fh;
	uint32_t flags, release_flags;
	uint64_t lock_owner;
};

struct fuse_flush_in {
	uint64_t fh;
	uint32_t unused, padding;
	uint64_t lock_owner;
};

struct fuse_read_in {
	uint64_t fh, offset;
	uint32_t size, read_flags;
	uint64_t lock_owner;
	uint32_t flags, padding;
};

struct fuse_write_in {
	uint64_t fh, offset;
	uint32_t size, write_flags;
	uint64_t lock_owner;
	uint32_t flags, padding;
};

struct fuse_write_out {
	uint32_t size, padding;
};

struct fuse_kstatfs {
	uint64_t blocks, bfree, bavail, files, ffree;
	uint32_t bsize, namelen, frsize, padding, spare[6];
};

struct fuse_statfs_out {
	struct fuse_kstatfs st;
};

struct fuse_fsync_in {
	uint64_t fh;
	uint32_t fsync_flags, padding;
};

struct fuse_setxattr_in {
	uint32_t size, flags, setxattr_flags, padding;
};

struct fuse_getxattr_in {
	uint32_t size, padding;
};

struct fuse_getxattr_out {
	uint32_t size, padding;
};

struct fuse_file_lock {
	uint64_t start, end; /* inclusive */
	uint32_t type, pid;
};

struct fuse_lk_in {
	uint64_t fh, owner;
	struct fuse_file_lock lk;
	uint32_t lk_flags, padding;
};

struct fuse_lk_out {
	struct fuse_file_lock lk;
};

struct fuse_access_in {
	uint32_t mask, padding;
};

struct fuse_init_in {
	uint32_t major, minor, max_readahead, flags, flags2, unused[11];
};

struct fuse_init_out {
	uint32_t major, minor, max_readahead, flags;
	uint16_t max_background, congestion_threshold;
	uint32_t max_write, time_gran;
	uint16_t max_pages, map_alignment;
	uint32_t flags2, max_stack_depth;
	uint16_t request_timeout, unused[11];
};

struct fuse_interrupt_in {
	uint64_t unique;
};

struct fuse_ioctl_in {
	uint64_t fh;
	uint32_t flags, cmd;
	uint64_t arg;
	uint32_t in_size, out_size;
};

struct fuse_ioctl_out {
	int32_t result;
	uint32_t flags, in_iovs, out_iovs;
};

struct fuse_poll_in {
	uint64_t fh, kh;
	uint32_t flags, events;
};

struct fuse_poll_out {
	uint32_t revents, padding;
};

struct fuse_fallocate_in {
	uint64_t fh, offset, length;
	uint32_t mode, padding;
};

struct fuse_lseek_in {
	uint64_t fh, offset;
	uint32_t whence, padding;
};

struct fuse_lseek_out {
	uint64_t offset;
};

struct fuse_copy_file_range_in {
	uint64_t fh_in, off_in, nodeid_out, fh_out, off_out, len, flags;
};

struct fuse_copy_file_range_out {
	uint64_t bytes_copied;
};

struct fuse_syncfs_in {
	uint64_t padding;
};

struct fuse_dirent {
	uint64_t ino, off;
	uint32_t namelen, type;
	char name[];
};

struct fuse_direntplus {
	struct fuse_entry_out entry_out;
	struct fuse_dirent dirent;
};

struct fuse_notify_inval_inode_out {
	uint64_t ino;
	int64_t off, len;
};

struct fuse_notify_retrieve_out {
	uint64_t notify_unique, nodeid, offset;
	uint32_t size, padding;
};

struct fuse_ext_header {
	uint32_t size, type;
};

struct fuse_supp_groups {
	uint32_t nr_groups;
	uint32_t groups[];
};

/* /dev/fuse ioctls */
struct fuse_backing_map {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};
#define FUSE_DEV_IOC_CLONE _IOR(229, 0, uint32_t)
#define FUSE_DEV_IOC_BACKING_OPEN _IOW(229, 1, struct fuse_backing_map)
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)

/* FUSE over io_uring: what a ring entry's header buffer holds */
struct fuse_uring_ent_in_out {
	uint64_t flags, commit_id;
	uint32_t payload_sz, padding;
	uint64_t reserved;
};

struct fuse_uring_req_header {
	char in_out[128]; /* fuse_in_header in, fuse_out_header out */
	char op_in[128];
	struct fuse_uring_ent_in_out ring_ent_in_out;
};

struct fuse_uring_cmd_req {
	uint64_t flags, commit_id;
	uint16_t qid;
	uint8_t padding[6];
};

enum fuse_uring_cmd {
	FUSE_IO_URING_CMD_REGISTER = 1,
	FUSE_IO_URING_CMD_COMMIT_AND_FETCH = 2,
};

_Static_assert(sizeof(struct fuse_in_header) == 40, "in_header");
_Static_assert(sizeof(struct fuse_attr) == 88, "attr");
_Static_assert(sizeof(struct fuse_entry_out) == 128, "entry_out");
_Static_assert(sizeof(struct fuse_statx) == 256, "statx");
_Static_assert(sizeof(struct fuse_statx_out) == 288, "statx_out");
_Static_assert(sizeof(struct fuse_setattr_in) == 88, "setattr_in");
_Static_assert(sizeof(struct fuse_init_in) == 64, "init_in");
_Static_assert(sizeof(struct fuse_init_out) == 64, "init_out");
_Static_assert(sizeof(struct fuse_uring_req_header) == 288, "uring header");

#endif
