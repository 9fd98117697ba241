/* The C library's public interface, and what its Python extension sees of it.
 *
 * Errors: 0 or a count on success, -errno on failure, out-parameters untouched then. All functions
 * may be called from any thread.
 *
 * python/zcfs_native_build.py reads this file: declarations that a C parser without a preprocessor
 * understands, and no macros.
 */
#ifndef ZCFS_H
#define ZCFS_H

#include <stddef.h>
#include <stdint.h>

/* The version of zcfs, such as "0.1.0". Static. */
const char *zc_version(void);

/* The name of a FUSE opcode that the data plane serves, such as "LOOKUP"; NULL: none. Static. */
const char *zc_opcode_name(uint32_t opcode);

/* Where the parts of a request message are. Offsets are in bytes from its start. */
struct zc_message {
	uint32_t opcode;
	uint32_t names; /* how many */
	size_t fixed_size;
	size_t name_at[2], name_len[2]; /* without the NUL */
	size_t data_at, data_len;
	size_t ext_at, ext_len;
};

/* Checks a message as /dev/fuse gives it, with the data plane's own parser. -EPROTO: lengths that
 * disagree; -EOPNOTSUPP: unknown opcode; -EINVAL, -ENAMETOOLONG: a name that cannot be. */
int zc_message_parse(const void *message, size_t len, struct zc_message *out);

/* Fault injection, for tests: the `nth` system call of kind `call` ("*": any) from now on fails
 * with `error`, and all after it if `always`. -ENOTSUP: not built with it. */
int zc_faults_arm(const char *call, int nth, int error, int always);
/* How often the armed call was seen since. */
int zc_faults_seen(void);

/* The pool, as Python borrows from it -----------------------------------------------------------
 *
 * Over native/pool/pool.h, which has the rules. What it adds is lifetimes for a language with a
 * garbage collector: a borrow is known by the address of its data alone; a pool that was closed
 * keeps its arena until the last borrow has ended; and a call on what another thread closes gets
 * -ESHUTDOWN. Sizes are in bytes. Functions that return an address give NULL on failure, and errno.
 */
struct zcfs_pool;
struct zcfs_file;

/* The smallest size of a pool. */
uint64_t zcfs_pool_min_size(void);
/* Errors as zc_pool_create. */
int zcfs_pool_create(uint64_t size, uint32_t frame_size, const char *io, const char *policy,
		     struct zcfs_pool **out);
/* No more calls on it. Idempotent. Its files must have been closed. */
void zcfs_pool_close(struct zcfs_pool *pool);
/* Closes it, and ends the caller's use of the address. Borrows go on. */
void zcfs_pool_free(struct zcfs_pool *pool);
/* 1: it was closed; or is, for this process, for it was made before a fork. */
int zcfs_pool_closed(const struct zcfs_pool *pool);
/* So many pages more (less) are borrowed whose borrower should have let go of them. */
void zcfs_pool_leak(struct zcfs_pool *pool, int64_t pages);
/* Static; NULL when closed. */
const char *zcfs_pool_io(struct zcfs_pool *pool);
const char *zcfs_pool_policy(struct zcfs_pool *pool);
/* The figures of struct zc_pool_stats by name, and "leaked" pages. Returns how many there are; -EINVAL:
 * more than `max`. */
int zcfs_pool_statistics(struct zcfs_pool *pool, const char **names, uint64_t *values, int max);

/* A page that is borrowed. */
struct zcfs_borrowed {
	uint64_t number;
	uint32_t file; /* as given to zcfs_file_open */
	uint32_t shared; /* borrows; 0: one, exclusive */
};

/* What is borrowed. Returns how many pages are, and fills in `max` of them at most. While others
 * borrow and release it is out of date at once. */
uint64_t zcfs_pool_borrowed(struct zcfs_pool *pool, struct zcfs_borrowed *out, uint64_t max);

/* Errors as zc_pool_open. `id` comes back in struct zcfs_borrowed. */
int zcfs_file_open(struct zcfs_pool *pool, int fd, uint32_t page_size, uint32_t id,
		   struct zcfs_file **out);
/* No more calls on it. Idempotent. Borrows of its pages go on. */
void zcfs_file_close(struct zcfs_file *file);
/* Closes it, and ends the caller's use of the address. */
void zcfs_file_free(struct zcfs_file *file);
/* Of the file as it is now. */
int64_t zcfs_file_size(struct zcfs_file *file);
/* 1: read past the page cache. 0: O_DIRECT was refused. */
int zcfs_file_direct(struct zcfs_file *file);
int zcfs_file_prefetch(struct zcfs_file *file, uint64_t first, uint64_t count);
int zcfs_file_sync(struct zcfs_file *file, int data_only);

/* Errors as zc_page_borrow. Each must be put once. */
unsigned char *zcfs_page_borrow(struct zcfs_file *file, uint64_t number);
/* The same, if the page is in the pool and whole: waits for nothing. NULL: borrow it the other way. */
unsigned char *zcfs_page_borrow_cached(struct zcfs_file *file, uint64_t number);
void zcfs_page_put(struct zcfs_pool *pool, unsigned char *data);
/* Of a borrowed page: its bytes up to the end of the file, and its version. */
uint32_t zcfs_page_valid(struct zcfs_pool *pool, const unsigned char *data);
uint64_t zcfs_page_version(struct zcfs_pool *pool, const unsigned char *data);

/* Errors as zc_page_borrow_mut. Ends with a commit that returns 0, or with abandon. */
unsigned char *zcfs_page_borrow_mut(struct zcfs_file *file, uint64_t number);
/* `durable`: on the disk when it returns. */
int zcfs_page_commit(struct zcfs_file *file, unsigned char *data, int durable);
/* The borrow goes on, but it is no longer the file's: others get the page as the file has it, and what
 * is changed here is dropped. First, with write_back, the page is written as it is now. To be
 * abandoned in the end. */
int zcfs_page_write_back(struct zcfs_file *file, unsigned char *data, int durable);
int zcfs_page_detach(struct zcfs_file *file, const unsigned char *data);
void zcfs_page_abandon(struct zcfs_pool *pool, unsigned char *data);

/* Borrowed pages of a file in their order that lie one behind another in memory. */
struct zcfs_run {
	unsigned char *data;
	uint64_t first; /* page number */
	uint64_t bytes; /* up to the end of the file */
	uint32_t pages;
};

/* Borrows the pages `numbers`, or first, first + 1, … if it is NULL; at most 256. Returns how many runs
 * they make, with `join`; without, each is a run of its own. Ends before the first page that cannot
 * be borrowed; -errno if that is the first one. `runs` has room for `count`. */
int zcfs_run_borrow(struct zcfs_file *file, const uint64_t *numbers, uint64_t first, uint32_t count,
		    int join, struct zcfs_run *runs);
void zcfs_run_put(struct zcfs_pool *pool, uint32_t page_size, uint32_t pages, unsigned char *data);

/* Copies `item` bytes from each of `count` pages, at the offset in the page that `offsets` (if not
 * NULL) and `offset` make together, to `out`, one behind another. -EOVERFLOW: an item reaches past its
 * page or the end of the file; others as zc_page_borrow. `at`: the item that failed. */
int zcfs_gather(struct zcfs_file *file, const uint64_t *pages, const uint64_t *offsets,
		uint64_t offset, uint64_t count, uint32_t item, void *out, uint64_t *at);

#endif
