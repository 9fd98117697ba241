/* libzcfs-client: borrow pages of files from the pool of a zcfs mount, without a copy.
 *
 *	struct zcfs_client *client;
 *	struct zcfs_client_file file;
 *	struct zcfs_lease lease[64];
 *	uint64_t numbers[64] = { ... };
 *
 *	if (zcfs_client_attach("/mnt/data", &client) < 0 ||
 *	    zcfs_client_open(client, "accounts.ibd", 16384, &file) < 0)
 *		errx(1, "%s", zcfs_client_message());
 *	zcfs_client_lease(client, &file, numbers, 64, lease);
 *	... read lease[i].data, up to lease[i].valid bytes ...
 *	zcfs_client_release(client, lease, 64);
 *	zcfs_client_free(client);
 *
 * The pages are in memory that the daemon has read them into, mapped here for reading only. A
 * leased page keeps its bytes until it is released, whoever writes to the file, and also if the
 * daemon dies. Only root and the user who mounted it may borrow, from mounts that have a pool
 * (--engine pool).
 *
 * Errors: 0 or a count on success, -errno on failure; zcfs_client_message() says more. -ENOTCONN:
 * the daemon has gone. -ESHUTDOWN: the client was closed, or this is the child of a fork, where
 * each client is as if closed. Sizes are in bytes, page numbers count from 0.
 *
 * Threads: any, also at the same time; requests of one client wait for one another.
 *
 * Needs C99 or C++, and nothing but the system's own headers.
 */
#ifndef ZCFS_CLIENT_H
#define ZCFS_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct zcfs_client;

/* Connects to the daemon of the mount at `mountpoint`.
 * -ENODEV: no mount of zcfs is there. -EOPNOTSUPP: it has no pool. -EACCES: it is another user's.
 * -EUSERS: it has too many clients. -EPROTO: it speaks another version of the protocol. */
int zcfs_client_attach(const char *mountpoint, struct zcfs_client **out);
/* No more calls but release and free. Idempotent. What is leased stays so, and the connection with
 * it, until the last lease is released. */
void zcfs_client_close(struct zcfs_client *client);
/* Closes it, and ends the caller's use of the address; but leases may still be released. */
void zcfs_client_free(struct zcfs_client *client);

/* About the last call of this thread that failed. Never NULL. */
const char *zcfs_client_message(void);

struct zcfs_client_file {
	uint32_t number;
	uint32_t page_size;
	uint64_t size; /* of the file, when it was opened */
};

/* Opens a regular file for leasing. `path`: below the root of the mount, without "." and "..";
 * symbolic links are not followed. `page_size`: a power of two from 4096 to 65536; 0: the mount's
 * frame size. What was written to the file before is seen, behind the mount too.
 * -EINVAL: another page size, or such a path. -EMFILE: 256 files are open. Others as open(2). */
int zcfs_client_open(struct zcfs_client *client, const char *path, uint32_t page_size,
		     struct zcfs_client_file *out);
/* Its leases stay. */
int zcfs_client_close_file(struct zcfs_client *client, const struct zcfs_client_file *file);
/* Of the file as it is now. */
int64_t zcfs_client_file_size(struct zcfs_client *client, const struct zcfs_client_file *file);

struct zcfs_lease {
	const unsigned char *data; /* page_size bytes, aligned to it; NULL: not leased */
	uint64_t version; /* grows with each change of the page: the same version, the same bytes */
	uint32_t valid;	  /* bytes up to the end of the file; zeros follow up to the page size */
	int32_t error;	  /* 0, or -errno: why it is not leased */
	uint32_t id;
	uint32_t zero;
};

/* Leases `count` pages, the missing ones being read in batches of 256; the same number may occur
 * twice. Each has its own `error`. -ERANGE: past the end of the file; -ENOBUFS: too much is
 * borrowed, release some; -EBUSY: the daemon is changing it; -EIO, ...: the disk's, and the next
 * lease tries again. Returns how many were leased; -errno if the request itself failed and none
 * was. */
int64_t zcfs_client_lease(struct zcfs_client *client, const struct zcfs_client_file *file,
			  const uint64_t *numbers, size_t count, struct zcfs_lease *leases);
/* Ends leases; sets `data` to NULL, and skips those where it is NULL. Waits for no answer. */
void zcfs_client_release(struct zcfs_client *client, struct zcfs_lease *leases, size_t count);

struct zcfs_client_info {
	const void *arena; /* where the daemon's memory is mapped; NULL: no longer */
	uint64_t arena_size;
	uint64_t page_limit; /* bytes that all clients together may have borrowed */
	uint64_t leases;     /* now, this client's */
	uint32_t frame_size; /* page size of files opened with page size 0 */
	uint32_t connected;  /* 0: the daemon has gone, or the client was closed */
};
void zcfs_client_info(struct zcfs_client *client, struct zcfs_client_info *out);

#ifdef __cplusplus
}
#endif

#endif
