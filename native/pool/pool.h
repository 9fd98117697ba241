/* The pool: pages of files, read by O_DIRECT into aligned frames of one arena, and borrowed there.
 *
 * Whoever uses it sees pages (a file, a page number, a page size) and bytes (a file, an offset, a
 * length). Both are served from the same frames. Data is written through: when a write returns, the
 * disk has been asked to take it (and has taken it durably where that was asked for).
 *
 * Threads: every function may be called from any thread at any time, also on the same file; but not
 * on a file while it is being closed, nor on a pool while it is being destroyed, and a borrow is
 * ended once. A borrow may end in another thread than the one that took it, and after its file was
 * closed.
 *
 * Errors: 0 or a count on success, -errno on failure, out-parameters untouched then unless said
 * otherwise. Sizes and offsets are in bytes, page numbers count from 0 in units of the page size.
 */
#ifndef ZC_POOL_H
#define ZC_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define ZC_POOL_MIN_SIZE ((size_t)8 << 20)
#define ZC_PAGE_MIN 4096u
#define ZC_PAGE_MAX 65536u
#define ZC_PAGE_CLASSES 5 /* 4, 8, 16, 32 and 64 KiB */

struct zc_pool;
struct zc_pool_file;

/* The pool ------------------------------------------------------------------------------------ */

struct zc_pool_options {
	size_t size;	     /* of the frames and what manages them; memory stays below it + 64 MiB */
	uint32_t frame_size; /* page size of files opened with page size 0; 0: 16 KiB */
	const char *io;	     /* name of the I/O back end (io.h); NULL, "auto": the best that works */
	const char *policy;  /* "s3fifo", "clock", "lru", "wtinylfu"; NULL: s3fifo */
};

/* -EINVAL: size below the minimum, a frame size that is none, an unknown policy or back end;
 * -ENOMEM: more than the machine's memory; -ENOTSUP: the named back end does not work here. */
int zc_pool_create(const struct zc_pool_options *options, struct zc_pool **out);
/* -EBUSY, and nothing done: a file is open or a page borrowed. */
int zc_pool_destroy(struct zc_pool *pool);

/* Where the arena is mapped, and its length. All data of pages is inside; data - arena is the offset
 * in the arena's descriptor. */
const uint8_t *zc_pool_arena(const struct zc_pool *pool, size_t *len);
/* A read-only descriptor of the arena's memfd, the pool's own: it can be mapped for reading only, by
 * whoever has it, for good. */
int zc_pool_arena_fd(const struct zc_pool *pool);
const char *zc_pool_io_name(const struct zc_pool *pool);
const char *zc_pool_policy_name(const struct zc_pool *pool);
/* NULL, or the name of a policy by number: for those who try them all. */
const char *zc_pool_policy(unsigned number);

/* Files --------------------------------------------------------------------------------------- */

/* Opens the file behind `fd` (a regular file or a block device) for the pool, with descriptors of
 * its own: readable, and writable if `fd` is. `fd` stays the caller's and may be closed. Files with
 * the same device, inode and time of birth share their frames, if the page size is the same too. The
 * cached pages of a file that was changed since by others (size, mtime, ctime) are dropped. Reads
 * do not count as accesses (O_NOATIME) where the caller may say so.
 *
 * `page_size`: a power of two from 4096 to 65536; 0: the pool's frame size.
 * -EINVAL: another page size; or neither a regular file nor a block device. -EBADF, -EACCES, … as
 * open(2). */
int zc_pool_open(struct zc_pool *pool, int fd, uint32_t page_size, struct zc_pool_file **out);
/* What is borrowed stays so. Cached pages stay cached. */
void zc_pool_close(struct zc_pool_file *file);

struct zc_pool_file_info {
	uint64_t size; /* of the file, as it is now */
	uint32_t page_size;
	uint32_t mem_align, offset_align; /* what O_DIRECT follows here */
	bool direct;			  /* false: O_DIRECT was refused, the page cache is used */
	bool writable;
};
int zc_pool_file_info(struct zc_pool_file *file, struct zc_pool_file_info *out);

/* Pages --------------------------------------------------------------------------------------- */

/* A borrowed page. Shared borrows may only be read from. */
struct zc_page {
	uint8_t *data;	  /* page_size bytes, aligned to the page size; NULL: not borrowed */
	uint64_t version; /* grows with each change: the same version has the same bytes. A page that
			   * was dropped and read again has another */
	uint32_t valid;	  /* bytes up to the end of the file; zeros follow up to the page size */
	uint32_t frame;	  /* the pool's */
	int32_t error;	  /* 0 or -errno, where many are asked for */
	uint32_t flags;	  /* the pool's */
};

/* A shared borrow: the bytes stay as they are until it is released, whoever writes to the file.
 * -ERANGE: past the end of the file; -EBUSY: exclusively borrowed; -ENOBUFS: half of the pool is
 * borrowed, or what is borrowed leaves no room for this size of page; -EIO, …: the disk's, for this page alone, and the next borrow
 * tries again; -EAGAIN: 65535 borrows of this page are out. */
int zc_page_borrow(struct zc_pool_file *file, uint64_t number, struct zc_page *page);
/* The same for a whole page that is in the pool, and only then: it waits for nothing. -EAGAIN. */
int zc_page_borrow_cached(struct zc_pool_file *file, uint64_t number, struct zc_page *page);
/* Many at once; the missing ones are read in one batch. Each has its own `error`, and `data` NULL
 * then. Returns how many were borrowed. The same number may occur twice. */
ssize_t zc_page_borrow_many(struct zc_pool_file *file, const uint64_t *numbers, size_t count,
			    struct zc_page *pages);
/* The same for first, first + 1, … */
ssize_t zc_page_borrow_run(struct zc_pool_file *file, uint64_t first, size_t count,
			   struct zc_page *pages);
/* Ends shared borrows; sets `data` to NULL, and skips those where it is NULL. */
void zc_page_release(struct zc_pool *pool, struct zc_page *page);
void zc_page_release_many(struct zc_pool *pool, struct zc_page *pages, size_t count);

/* An exclusive borrow, for changing `data` in place up to `valid`. Until it ends, borrows of the page
 * fail with -EBUSY; zc_pool_read gets the bytes from the disk. -EBUSY: the page is borrowed, either
 * way; -EBADF: the file is not writable; others as zc_page_borrow. */
int zc_page_borrow_mut(struct zc_pool_file *file, uint64_t number, struct zc_page *page);
/* Writes the page back (`rw_flags`: 0, RWF_DSYNC or RWF_SYNC) and ends the borrow. On failure it goes
 * on: try again or abandon it. -ESTALE: somebody wrote to this page of the file, or truncated it,
 * meanwhile; only abandoning is left. */
int zc_page_commit(struct zc_pool_file *file, struct zc_page *page, int rw_flags);
/* Ends the borrow; what was changed is dropped. */
void zc_page_abandon(struct zc_pool *pool, struct zc_page *page);

/* Asks for pages to be read in the background. Returns at once; nothing is promised. */
int zc_pool_prefetch(struct zc_pool_file *file, uint64_t first, uint64_t count);

/* Bytes --------------------------------------------------------------------------------------- */

/* As pread(2), of any alignment. Short at the end of the file, and before what cannot be read.
 * Works with all frames borrowed: past the pool then. */
ssize_t zc_pool_read(struct zc_pool_file *file, uint64_t off, void *buf, size_t len);

/* A piece of a pinned frame. */
struct zc_segment {
	const uint8_t *ptr;
	size_t len;
	uint32_t frame;
};

/* As zc_pool_read without the copy: fills in up to `*count` segments, which stay pinned until they
 * are released, and sets `*count`. They count as borrowed. Returns the bytes in them: short also when
 * there are not enough segments (one for each page is enough). -ENOBUFS: too much is borrowed; read
 * into a buffer. */
ssize_t zc_pool_read_segments(struct zc_pool_file *file, uint64_t off, size_t len,
			      struct zc_segment *segments, unsigned *count);
/* The same if all of it is in the pool now: reads and waits for nothing. They may go beyond what may
 * be borrowed, so they are for a moment. -EAGAIN: something is missing, or segments are; `*count`
 * untouched. */
ssize_t zc_pool_read_cached(struct zc_pool_file *file, uint64_t off, size_t len,
			    struct zc_segment *segments, unsigned *count);
void zc_segments_release(struct zc_pool *pool, struct zc_segment *segments, unsigned count);

/* As pwrite(2) (`rw_flags`: 0, RWF_DSYNC or RWF_SYNC), of any alignment; the file's end comes out
 * exact. Whoever has borrowed the pages keeps the bytes that they had. A short count: the rest was
 * not written. -EBADF: not writable. */
ssize_t zc_pool_write(struct zc_pool_file *file, uint64_t off, const void *buf, size_t len,
		      int rw_flags);
/* fsync(2), or fdatasync(2). */
int zc_pool_fsync(struct zc_pool_file *file, bool data_only);

/* Sets the size, and drops what is behind it. */
int zc_pool_truncate(struct zc_pool_file *file, uint64_t size);
/* Somebody else has set the size: drops what is behind the smaller of both. */
int zc_pool_truncated(struct zc_pool_file *file);
/* Drops the cached pages that have bytes in from … to - 1, whatever their page size; borrowers keep
 * theirs. `to` UINT64_MAX: all to the end. */
void zc_pool_invalidate(struct zc_pool_file *file, uint64_t from, uint64_t to);
/* Drops everything if others have changed the file since (size, mtime, ctime). 1: they had. */
int zc_pool_revalidate(struct zc_pool_file *file);

/* Statistics ---------------------------------------------------------------------------------- */

/* Since the pool was made, but for those that say "now". */
struct zc_pool_stats {
	uint64_t hits, misses; /* pages found; pages read, readahead aside */
	uint64_t readahead;    /* pages read ahead */
	uint64_t evictions;
	uint64_t bytes_read, bytes_written; /* from and to the disk */
	uint64_t bytes_copied;		    /* by the pool, in either direction */
	uint64_t bypass_bytes;		    /* read and written past the frames */
	uint64_t waits;			    /* for a page that another thread was reading, or for room */
	uint64_t requests;		    /* to the I/O back end */
	uint64_t syscalls;		    /* the pool's own, and one for each submit and each reap */
	uint64_t borrowed;		    /* now: bytes of frames that are borrowed or pinned */
	uint64_t borrow_limit;		    /* most that may be */
	uint64_t size;			    /* of the arena */
	uint64_t frames[ZC_PAGE_CLASSES];   /* now: by class, used or not */
	uint64_t used[ZC_PAGE_CLASSES];	    /* now: with a page in it */
	uint64_t slab_size;		    /* frames of a class come in slabs of this many bytes */
	uint64_t free_slabs;		    /* now: of no class */
	uint64_t files;			    /* now: known, open or not */
	bool huge_pages;		    /* the arena has them */
};
void zc_pool_statistics(struct zc_pool *pool, struct zc_pool_stats *out);

#endif
