/* The inode table: every source inode that the kernel holds a nodeid of.
 *
 * A nodeid is an index into one reserved range of memory, so that finding an inode takes no lock.
 * Slots are handed out from chunks of 64 KiB; a chunk whose last inode goes gives its memory back,
 * so that a walk of a million files costs memory only as long as the kernel remembers them.
 *
 * Two counts keep an inode: `nlookup` is the kernel's (LOOKUP and friends add, FORGET takes away),
 * `refs` is ours (requests under way, open files, and one for nlookup > 0). Only `refs` frees.
 *
 * Descriptors: an inode is located by its file handle, so a tree of any size needs none. O_PATH
 * descriptors of directories are cached in a ring; where the source has no handles (or we may not
 * open them) descriptors of all kinds are, and an evicted one is found again by parent and name.
 * Regular files are not cached by handle: a descriptor would keep a deleted file's space.
 *
 * Threading: any thread. Lock order: shard lock, then table lock. The inode lock (opened) is taken
 * outside both.
 */
#include "internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "sys.h"

#define CHUNK_BYTES 65536u
#define CHUNK_SLOTS (CHUNK_BYTES / (unsigned)sizeof(struct zc_inode))
#define MAX_CHUNKS (1u << 18) /* 150 million inodes */
#define BUCKETS (1u << 20)
#define SHARDS 64u
#define MAX_MOUNTS 256u
#define NONE UINT32_MAX

struct chunk {
	uint32_t live, fresh; /* inodes in use; slots never used since the memory was given back */
	uint32_t free_head;   /* slot numbers through hash_next */
	uint32_t next_partial;
	bool listed;
};

struct source_mount {
	uint64_t dev, id; /* a filesystem may be mounted twice, once read-only */
	int fd; /* for open_by_handle_at; -1: no handles there */
};

struct zc_inode_table {
	char *slots; /* MAX_CHUNKS chunks, reserved */
	struct chunk *chunks;
	uint32_t *buckets;
	pthread_mutex_t shard[SHARDS], inode_lock[SHARDS];
	pthread_mutex_t lock; /* chunks, mounts, ring */
	uint32_t partial, chunk_count, generation;
	struct source_mount mounts[MAX_MOUNTS];
	_Atomic unsigned mount_count;
	bool want_handles;
	_Atomic uint64_t count, cached;
	uint32_t *ring; /* slot numbers of inodes with a cached descriptor */
	uint32_t ring_size, ring_hand;
};

/* slots ---------------------------------------------------------------------------------- */

static struct zc_inode *slot_of(const struct zc_inode_table *t, uint32_t n)
{
	return (struct zc_inode *)(void *)(t->slots + (size_t)(n / CHUNK_SLOTS) * CHUNK_BYTES) +
	       n % CHUNK_SLOTS;
}

static uint32_t number_of(const struct zc_inode_table *t, const struct zc_inode *inode)
{
	size_t off = (size_t)((const char *)inode - t->slots);
	return (uint32_t)(off / CHUNK_BYTES) * CHUNK_SLOTS +
	       (uint32_t)(off % CHUNK_BYTES / sizeof(struct zc_inode));
}

uint64_t zc_inode_id(const struct zc_inode_table *t, const struct zc_inode *inode)
{
	return number_of(t, inode) + (uint64_t)FUSE_ROOT_ID;
}

static int chunk_with_room_locked(struct zc_inode_table *t, uint32_t *out)
{
	if (t->partial == NONE) {
		if (t->chunk_count == MAX_CHUNKS)
			return -ENFILE;
		uint32_t n = t->chunk_count;
		if (mprotect(t->slots + (size_t)n * CHUNK_BYTES, CHUNK_BYTES, PROT_READ | PROT_WRITE))
			return -errno;
		t->chunks[n] =
			(struct chunk){.free_head = NONE, .next_partial = NONE, .listed = true};
		t->partial = n;
		__atomic_store_n(&t->chunk_count, n + 1, __ATOMIC_RELEASE);
	}
	*out = t->partial;
	return 0;
}

static int slot_alloc(struct zc_inode_table *t, struct zc_inode **out)
{
	uint32_t c = 0;
	pthread_mutex_lock(&t->lock);
	int err = chunk_with_room_locked(t, &c);
	if (err) {
		pthread_mutex_unlock(&t->lock);
		return err;
	}
	struct chunk *chunk = &t->chunks[c];
	uint32_t n = chunk->free_head;
	if (n != NONE)
		chunk->free_head = slot_of(t, n)->hash_next;
	else
		n = c * CHUNK_SLOTS + chunk->fresh++;
	chunk->live++;
	if (chunk->free_head == NONE && chunk->fresh == CHUNK_SLOTS) {
		t->partial = chunk->next_partial;
		chunk->listed = false;
	}
	struct zc_inode *inode = slot_of(t, n);
	memset(inode, 0, sizeof(*inode));
	inode->ring_pos = NONE;
	inode->generation = ++t->generation;
	pthread_mutex_unlock(&t->lock);
	atomic_fetch_add(&t->count, 1);
	*out = inode;
	return 0;
}

static void slot_free(struct zc_inode_table *t, struct zc_inode *inode)
{
	uint32_t n = number_of(t, inode), c = n / CHUNK_SLOTS;
	pthread_mutex_lock(&t->lock);
	struct chunk *chunk = &t->chunks[c];
	inode->hash_next = chunk->free_head;
	chunk->free_head = n;
	if (--chunk->live == 0) {
		madvise(t->slots + (size_t)c * CHUNK_BYTES, CHUNK_BYTES, MADV_DONTNEED);
		chunk->free_head = NONE;
		chunk->fresh = 0;
	}
	if (!chunk->listed) {
		chunk->next_partial = t->partial;
		t->partial = c;
		chunk->listed = true;
	}
	pthread_mutex_unlock(&t->lock);
	atomic_fetch_sub(&t->count, 1);
}

/* cached descriptors ---------------------------------------------------------------------- */

static int fdw_fd(uint64_t w)
{
	return (int)(uint32_t)w - 1;
}

/* Takes the descriptor out if nobody holds it, for the caller to close; else -1. */
static int fd_evict(struct zc_inode_table *t, struct zc_inode *inode)
{
	uint64_t w = atomic_load(&inode->fdw);
	if (w == 0 || w >> 32 || !atomic_compare_exchange_strong(&inode->fdw, &w, 0))
		return -1;
	atomic_fetch_sub(&t->cached, 1);
	return fdw_fd(w);
}

/* Enters the inode in the ring, and evicts whoever stood there. */
static void ring_enter(struct zc_inode_table *t, struct zc_inode *inode)
{
	int fd = -1;
	pthread_mutex_lock(&t->lock);
	for (unsigned tries = 0; tries < 64 && fd < 0; tries++) {
		uint32_t pos = t->ring_hand++ % t->ring_size;
		uint32_t old = t->ring[pos];
		struct zc_inode *other = old == NONE ? inode : slot_of(t, old);
		if (other != inode && other->ring_pos == pos) {
			fd = fd_evict(t, other);
			if (fd < 0 && atomic_load(&other->fdw))
				continue; /* in use: look further */
		}
		t->ring[pos] = number_of(t, inode);
		inode->ring_pos = pos;
		break;
	}
	pthread_mutex_unlock(&t->lock);
	if (fd >= 0)
		close(fd);
}

static bool keeps_fd(const struct zc_inode *inode)
{
	return inode->by_path || inode->fmt == S_IFDIR;
}

/* Hands `fd` to the cache with one pin; the pinned descriptor is returned (another, if somebody
 * was faster). */
static int fd_install(struct zc_inode_table *t, struct zc_inode *inode, int fd)
{
	uint64_t w = 0;
	for (;;) {
		if (w == 0) {
			if (atomic_compare_exchange_weak(&inode->fdw, &w,
							 1ULL << 32 | (uint32_t)(fd + 1)))
				break;
		} else if (atomic_compare_exchange_weak(&inode->fdw, &w, w + (1ULL << 32))) {
			close(fd);
			return fdw_fd(w);
		}
	}
	atomic_fetch_add(&t->cached, 1);
	ring_enter(t, inode);
	return fd;
}

static bool fd_pin(struct zc_inode *inode, int *fd)
{
	uint64_t w = atomic_load(&inode->fdw);
	while (w)
		if (atomic_compare_exchange_weak(&inode->fdw, &w, w + (1ULL << 32))) {
			*fd = fdw_fd(w);
			return true;
		}
	return false;
}

void zc_fd_done(struct zc_fd *fd)
{
	if (fd->owner)
		atomic_fetch_sub(&fd->owner->fdw, 1ULL << 32);
	else if (fd->fd >= 0)
		close(fd->fd);
	*fd = (struct zc_fd){-1, NULL};
}

/* locating --------------------------------------------------------------------------------- */

struct handle_buf {
	struct file_handle h;
	uint8_t bytes[MAX_HANDLE_SZ];
};

/* -ENOMEM also means that the inode number is just being given to a new file (ext4): a moment later
 * the handle is stale or it was memory indeed. */
static int open_handle(struct zc_inode_table *t, struct zc_inode *inode, int flags)
{
	struct handle_buf b = {.h = {.handle_bytes = inode->handle_len,
				     .handle_type = inode->handle_type}};
	int fd = -ENOMEM;
	memcpy(b.h.f_handle, inode->handle, inode->handle_len);
	for (unsigned tries = 0; fd == -ENOMEM && tries < 10; tries++) {
		if (tries)
			usleep(100);
		fd = ZC_SYSI("open_by_handle_at",
			     open_by_handle_at(t->mounts[inode->mount].fd, &b.h, flags | O_CLOEXEC));
	}
	return fd == -ENOMEM ? -ESTALE : fd;
}

static uint64_t btime_of(const struct statx *stx)
{
	return (uint64_t)stx->stx_btime.tv_sec * 1000000000ULL + stx->stx_btime.tv_nsec;
}

static bool is_same(const struct zc_inode *inode, const struct statx *stx)
{
	return stx->stx_ino == inode->ino && btime_of(stx) == inode->path.btime &&
	       (stx->stx_mode & S_IFMT) == inode->fmt &&
	       gnu_dev_makedev(stx->stx_dev_major, stx->stx_dev_minor) == inode->path.dev;
}

/* Where an inode by path is now: its parent, with a reference, and a copy of its name. */
static int place_of(struct zc_inode_table *t, struct zc_inode *inode, struct zc_inode **parent,
		    char **name)
{
	pthread_mutex_t *lock = &t->shard[inode->hash % SHARDS];
	pthread_mutex_lock(lock);
	*parent = zc_inode_get(t, inode->path.parent);
	*name = *parent ? strdup(inode->path.name) : NULL;
	pthread_mutex_unlock(lock);
	if (!*parent)
		return -ESTALE;
	if (*name)
		return 0;
	zc_inode_put(t, *parent);
	return -ENOMEM;
}

static int open_at(struct zc_inode_table *t, const struct zc_inode *inode, struct zc_inode *parent,
		   const char *name)
{
	struct statx stx;
	ZC_FD(dir);
	int err = zc_inode_fd(t, parent, &dir);
	if (err)
		return err;
	int fd = ZC_SYSI("openat", openat(dir.fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC));
	if (fd < 0)
		return fd == -ENOENT || fd == -ENOTDIR ? -ESTALE : fd;
	err = ZC_SYSI("statx", statx(fd, "", AT_EMPTY_PATH, ZC_STATX_MASK, &stx));
	if (!err && is_same(inode, &stx))
		return fd;
	close(fd);
	return err ? err : -ESTALE;
}

static int open_path(struct zc_inode_table *t, struct zc_inode *inode)
{
	struct zc_inode *parent;
	char *name;
	int err = place_of(t, inode, &parent, &name);
	if (err)
		return err;
	int fd = open_at(t, inode, parent, name);
	free(name);
	zc_inode_put(t, parent); /* after open_at has let go of its descriptor */
	return fd;
}

int zc_inode_fd(struct zc_inode_table *t, struct zc_inode *inode, struct zc_fd *out)
{
	int fd;
	if (!fd_pin(inode, &fd)) {
		fd = inode->by_path ? open_path(t, inode)
				    : open_handle(t, inode, O_PATH | O_NOFOLLOW);
		if (fd < 0)
			return fd;
		if (!keeps_fd(inode)) {
			*out = (struct zc_fd){fd, NULL};
			return 0;
		}
		fd = fd_install(t, inode, fd);
	}
	*out = (struct zc_fd){fd, inode};
	return 0;
}

int zc_inode_open(struct zc_inode_table *t, struct zc_inode *inode, int flags)
{
	int fd;
	if (!inode->by_path && !atomic_load(&inode->fdw))
		return open_handle(t, inode, flags);
	ZC_FD(path);
	int err = zc_inode_fd(t, inode, &path);
	if (err)
		return err;
	if (inode->fmt == S_IFDIR)
		fd = ZC_SYSI("openat", openat(path.fd, ".", (flags & ~O_NOFOLLOW) | O_CLOEXEC));
	else {
		char link[32];
		snprintf(link, sizeof(link), "/proc/self/fd/%d", path.fd);
		fd = ZC_SYSI("open", open(link, (flags & ~O_NOFOLLOW) | O_CLOEXEC));
	}
	return fd;
}

/* the hash --------------------------------------------------------------------------------- */

struct key {
	uint64_t dev, ino, btime;
	uint16_t fmt;
	uint32_t hash;
	uint16_t mount;
	bool by_path;
	uint8_t handle_len;
	int32_t handle_type;
	uint8_t handle[ZC_HANDLE_BYTES];
};

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	return x ^ x >> 33;
}

static uint32_t key_hash(const struct key *k)
{
	uint64_t h = mix(k->dev) ^ k->handle_len;
	if (k->by_path)
		return (uint32_t)mix(h ^ k->ino);
	for (unsigned i = 0; i < ZC_HANDLE_BYTES; i += 8) {
		uint64_t w;
		memcpy(&w, k->handle + i, 8);
		h = mix(h ^ w);
	}
	return (uint32_t)h;
}

static bool key_equal(const struct zc_inode *i, const struct key *k)
{
	if (i->hash != k->hash || i->by_path != k->by_path || i->mount != k->mount)
		return false;
	if (k->by_path)
		return i->ino == k->ino && i->path.dev == k->dev &&
		       i->path.btime == k->btime && i->fmt == k->fmt;
	return i->handle_len == k->handle_len && i->handle_type == k->handle_type &&
	       !memcmp(i->handle, k->handle, k->handle_len);
}

static uint64_t dev_of(const struct statx *stx)
{
	return gnu_dev_makedev(stx->stx_dev_major, stx->stx_dev_minor);
}

static int mount_find(const struct zc_inode_table *t, const struct statx *stx)
{
	unsigned n = atomic_load(&t->mount_count);
	for (unsigned i = 0; i < n; i++)
		if (t->mounts[i].dev == dev_of(stx) && t->mounts[i].id == stx->stx_mnt_id)
			return (int)i;
	return -1;
}

/* A directory on the mount of `fd` by which handles can be opened, or -1. */
static int handle_dir(int fd)
{
	struct handle_buf b = {.h = {.handle_bytes = ZC_HANDLE_BYTES}};
	int mnt_id, probe = -1;
	int dir = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return -1;
	if (!name_to_handle_at(dir, "", &b.h, &mnt_id, AT_EMPTY_PATH))
		probe = open_by_handle_at(dir, &b.h, O_PATH | O_CLOEXEC);
	if (probe >= 0) {
		close(probe);
		return dir;
	}
	close(dir);
	return -1;
}

/* The mount that `fd` lies on; a new one is entered. */
static uint16_t mount_of(struct zc_inode_table *t, const struct statx *stx, int fd)
{
	int i = mount_find(t, stx);
	if (i >= 0)
		return (uint16_t)i;
	int dir = t->want_handles && S_ISDIR(stx->stx_mode) ? handle_dir(fd) : -1;
	pthread_mutex_lock(&t->lock);
	unsigned n = atomic_load(&t->mount_count);
	i = mount_find(t, stx);
	if (i < 0 && n < MAX_MOUNTS) {
		t->mounts[n] = (struct source_mount){dev_of(stx), stx->stx_mnt_id, dir};
		atomic_store(&t->mount_count, n + 1);
		i = (int)n;
		dir = -1;
	}
	pthread_mutex_unlock(&t->lock);
	if (dir >= 0)
		close(dir);
	return (uint16_t)(i < 0 ? MAX_MOUNTS - 1 : (unsigned)i);
}

static void key_init(struct zc_inode_table *t, int fd, const struct statx *stx, struct key *k)
{
	memset(k, 0, sizeof(*k));
	k->dev = dev_of(stx);
	k->ino = stx->stx_ino;
	k->btime = btime_of(stx);
	k->fmt = stx->stx_mode & S_IFMT;
	k->mount = mount_of(t, stx, fd);
	k->by_path = t->mounts[k->mount].fd < 0 || t->mounts[k->mount].dev != k->dev;
}

static void key_handle(struct key *k, const struct file_handle *h)
{
	k->handle_len = (uint8_t)h->handle_bytes;
	k->handle_type = h->handle_type;
	memcpy(k->handle, h->f_handle, h->handle_bytes);
}

/* Only a source that has no handles is located by path: a passing failure must not give the inode a
 * second identity. */
static int key_of(struct zc_inode_table *t, int fd, const struct statx *stx, struct key *k)
{
	struct handle_buf b = {.h = {.handle_bytes = ZC_HANDLE_BYTES}};
	int mnt_id, err = 0;
	key_init(t, fd, stx, k);
	if (!k->by_path)
		err = ZC_SYSI("name_to_handle_at",
			      name_to_handle_at(fd, "", &b.h, &mnt_id, AT_EMPTY_PATH));
	if (err && err != -EOPNOTSUPP && err != -EOVERFLOW)
		return err;
	if (!k->by_path && !err)
		key_handle(k, &b.h);
	k->by_path |= err != 0;
	k->hash = key_hash(k);
	return 0;
}

/* The inode number within a handle, where its type is known to hold it; else 0. */
static uint64_t handle_ino(const struct file_handle *h)
{
	uint32_t ino32;
	uint64_t ino64;
	memcpy(&ino32, h->f_handle, sizeof(ino32));
	memcpy(&ino64, h->f_handle, sizeof(ino64));
	switch (h->handle_type) {
	case 0x01: /* FILEID_INO32_GEN: ext4 */
		return ino32;
	case 0x81: /* XFS with 64-bit inode numbers */
		return ino64;
	default:
		return 0;
	}
}

/* Key and attributes by name, without a descriptor. The two calls may see two files if somebody
 * renames in between: the inode number shows that, and a reused number only leads to a handle that
 * is stale. In this order, so that attributes are never older than the handle they go with.
 * -EAGAIN: take a descriptor. */
static int key_at(struct zc_inode_table *t, int dirfd, const char *name, struct statx *stx,
		  struct key *k)
{
	struct handle_buf b = {.h = {.handle_bytes = ZC_HANDLE_BYTES}};
	int mnt_id;
	int err = ZC_SYSI("name_to_handle_at", name_to_handle_at(dirfd, name, &b.h, &mnt_id, 0));
	if (err)
		return err == -ENOENT ? err : -EAGAIN;
	uint64_t ino = handle_ino(&b.h);
	if (!ino)
		return -EAGAIN;
	err = ZC_SYSI("statx", statx(dirfd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT,
				     ZC_STATX_MASK, stx));
	if (err)
		return err;
	if (stx->stx_ino != ino || mount_find(t, stx) < 0)
		return -EAGAIN;
	key_init(t, -1, stx, k);
	if (k->by_path)
		return -EAGAIN;
	key_handle(k, &b.h);
	k->hash = key_hash(k);
	return 0;
}

static struct zc_inode *find_locked(struct zc_inode_table *t, const struct key *k)
{
	for (uint32_t n = t->buckets[k->hash % BUCKETS]; n;) {
		struct zc_inode *i = slot_of(t, n - 1);
		if (key_equal(i, k))
			return i;
		n = i->hash_next;
	}
	return NULL;
}

static void insert_locked(struct zc_inode_table *t, struct zc_inode *inode)
{
	uint32_t *bucket = &t->buckets[inode->hash % BUCKETS];
	inode->hash_next = *bucket;
	*bucket = number_of(t, inode) + 1;
}

static void remove_locked(struct zc_inode_table *t, struct zc_inode *inode)
{
	uint32_t *link = &t->buckets[inode->hash % BUCKETS], me = number_of(t, inode) + 1;
	while (*link != me)
		link = &slot_of(t, *link - 1)->hash_next;
	*link = inode->hash_next;
}

static int inode_new(struct zc_inode_table *t, const struct key *k, struct zc_inode *parent,
		     const char *name, const struct statx *stx, struct zc_inode **out)
{
	struct zc_inode *inode;
	char *copy = NULL;
	if (k->by_path && name && !(copy = strdup(name)))
		return -ENOMEM;
	int err = slot_alloc(t, &inode);
	if (err) {
		free(copy);
		return err;
	}
	inode->ino = k->ino;
	inode->hash = k->hash;
	inode->mount = k->mount;
	inode->fmt = stx->stx_mode & S_IFMT;
	inode->by_path = k->by_path;
	inode->handle_len = k->handle_len;
	inode->handle_type = k->handle_type;
	if (k->by_path) {
		inode->path.dev = k->dev;
		inode->path.btime = k->btime;
		inode->path.name = copy;
		if (parent) {
			atomic_fetch_add(&parent->refs, 1);
			inode->path.parent = zc_inode_id(t, parent);
		}
	} else {
		memcpy(inode->handle, k->handle, sizeof(inode->handle));
	}
	*out = inode;
	return 0;
}

static void inode_destroy(struct zc_inode_table *t, struct zc_inode *inode)
{
	uint64_t w = atomic_exchange(&inode->fdw, 0);
	if (w) {
		close(fdw_fd(w));
		atomic_fetch_sub(&t->cached, 1);
	}
	struct zc_inode *parent = NULL;
	if (inode->by_path) {
		free(inode->path.name);
		if (inode->path.parent)
			parent = slot_of(t, (uint32_t)(inode->path.parent - FUSE_ROOT_ID));
	}
	slot_free(t, inode);
	if (parent)
		zc_inode_put(t, parent);
}

/* references ------------------------------------------------------------------------------- */

struct zc_inode *zc_inode_get(struct zc_inode_table *t, uint64_t nodeid)
{
	uint64_t n = nodeid - FUSE_ROOT_ID;
	if (n >= (uint64_t)__atomic_load_n(&t->chunk_count, __ATOMIC_ACQUIRE) * CHUNK_SLOTS)
		return NULL;
	struct zc_inode *inode = slot_of(t, (uint32_t)n);
	uint32_t refs = atomic_load(&inode->refs);
	while (refs)
		if (atomic_compare_exchange_weak(&inode->refs, &refs, refs + 1))
			return inode;
	return NULL;
}

uint64_t zc_inode_next_file(struct zc_inode_table *t, uint64_t nodeid)
{
	uint64_t end = (uint64_t)__atomic_load_n(&t->chunk_count, __ATOMIC_ACQUIRE) * CHUNK_SLOTS;
	for (; nodeid < end + FUSE_ROOT_ID; nodeid++) {
		struct zc_inode *inode = zc_inode_get(t, nodeid);
		if (!inode)
			continue;
		bool is_file = inode->fmt == S_IFREG;
		zc_inode_put(t, inode);
		if (is_file)
			return nodeid;
	}
	return 0;
}

void zc_inode_put(struct zc_inode_table *t, struct zc_inode *inode)
{
	if (atomic_fetch_sub(&inode->refs, 1) == 1)
		inode_destroy(t, inode);
}

/* Found under another name than the one we knew: that one may be gone. Under the shard lock; returns
 * the reference to give back afterwards. */
static struct zc_inode *relocate_locked(struct zc_inode_table *t, struct zc_inode *inode,
					struct zc_inode *parent, const char *name)
{
	uint64_t id = zc_inode_id(t, parent);
	if (inode->path.parent == id && !strcmp(inode->path.name, name))
		return NULL;
	char *copy = strdup(name);
	struct zc_inode *old = NULL;
	if (!copy)
		return NULL;
	if (inode->path.parent)
		old = slot_of(t, (uint32_t)(inode->path.parent - FUSE_ROOT_ID));
	free(inode->path.name);
	inode->path.name = copy;
	inode->path.parent = id;
	atomic_fetch_add(&parent->refs, 1);
	return old;
}

static int adopt(struct zc_inode_table *t, struct zc_inode *parent, const char *name,
		 const struct key *k, const struct statx *stx, struct zc_inode **out)
{
	pthread_mutex_t *lock = &t->shard[k->hash % SHARDS];
	pthread_mutex_lock(lock);
	struct zc_inode *inode = find_locked(t, k), *old = NULL;
	if (inode && inode->by_path && inode->path.parent && parent && *name) {
		old = relocate_locked(t, inode, parent, name);
	} else if (!inode) {
		int err = inode_new(t, k, parent, name, stx, &inode);
		if (err) {
			pthread_mutex_unlock(lock);
			return err;
		}
		atomic_store(&inode->refs, 1);
		insert_locked(t, inode);
	}
	inode->nlookup++;
	atomic_fetch_add(&inode->refs, 1);
	pthread_mutex_unlock(lock);
	if (old)
		zc_inode_put(t, old);
	*out = inode;
	return 0;
}

int zc_inode_adopt(struct zc_inode_table *t, struct zc_inode *parent, const char *name, int fd,
		   struct statx *stx, struct zc_inode **out)
{
	struct key k;
	int err = ZC_SYSI("statx", statx(fd, "", AT_EMPTY_PATH, ZC_STATX_MASK, stx));
	if (err)
		return err;
	err = key_of(t, fd, stx, &k);
	return err ? err : adopt(t, parent, name, &k, stx, out);
}

int zc_inode_adopt_at(struct zc_inode_table *t, struct zc_inode *parent, int dirfd,
		      const char *name, struct statx *stx, struct zc_inode **out)
{
	struct key k;
	int err = parent->by_path ? -EAGAIN : key_at(t, dirfd, name, stx, &k);
	if (!err)
		return adopt(t, parent, name, &k, stx, out);
	if (err != -EAGAIN)
		return err;
	int fd = ZC_SYSI("openat", openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC));
	if (fd < 0)
		return fd;
	err = zc_inode_adopt(t, parent, name, fd, stx, out);
	close(fd);
	return err;
}

void zc_inode_forget(struct zc_inode_table *t, uint64_t nodeid, uint64_t nlookup)
{
	struct zc_inode *inode = zc_inode_get(t, nodeid);
	if (!inode)
		return;
	pthread_mutex_t *lock = &t->shard[inode->hash % SHARDS];
	pthread_mutex_lock(lock);
	bool gone = false;
	if (nodeid != FUSE_ROOT_ID && inode->nlookup) {
		inode->nlookup -= nlookup < inode->nlookup ? nlookup : inode->nlookup;
		gone = inode->nlookup == 0;
		if (gone)
			remove_locked(t, inode);
	}
	pthread_mutex_unlock(lock);
	if (gone)
		zc_inode_put(t, inode);
	zc_inode_put(t, inode);
}

bool zc_inode_hold(struct zc_inode_table *t, struct zc_inode *inode)
{
	pthread_mutex_t *lock = &t->shard[inode->hash % SHARDS];
	pthread_mutex_lock(lock);
	bool known = inode->nlookup;
	if (known) {
		inode->nlookup++;
		atomic_fetch_add(&inode->refs, 1);
	}
	pthread_mutex_unlock(lock);
	return known;
}

pthread_mutex_t *zc_inode_lock(struct zc_inode_table *t, const struct zc_inode *inode)
{
	return &t->inode_lock[number_of(t, inode) % SHARDS];
}

/* names that move -------------------------------------------------------------------------- */

/* The inode that `name` in `parent` leads to, if we know it (else NULL); with a reference. */
static int find_named(struct zc_inode_table *t, struct zc_inode *parent, const char *name,
		      struct zc_inode **out)
{
	struct statx stx;
	struct key k;
	ZC_FD(dir);
	*out = NULL;
	int err = zc_inode_fd(t, parent, &dir);
	if (err)
		return err;
	int fd = ZC_SYSI("openat", openat(dir.fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC));
	if (fd < 0)
		return fd == -ENOENT ? 0 : fd;
	err = ZC_SYSI("statx", statx(fd, "", AT_EMPTY_PATH, ZC_STATX_MASK, &stx));
	if (!err)
		err = key_of(t, fd, &stx, &k);
	close(fd);
	if (err)
		return err;
	pthread_mutex_lock(&t->shard[k.hash % SHARDS]);
	*out = find_locked(t, &k);
	if (*out)
		atomic_fetch_add(&(*out)->refs, 1);
	pthread_mutex_unlock(&t->shard[k.hash % SHARDS]);
	return 0;
}

int zc_inode_moving(struct zc_inode_table *t, struct zc_inode *parent, const char *name,
		    struct zc_inode **out)
{
	*out = NULL;
	return parent->by_path ? find_named(t, parent, name, out) : 0;
}

void zc_inode_moved(struct zc_inode_table *t, struct zc_inode *inode, struct zc_inode *parent,
		    const char *name)
{
	struct zc_inode *old = NULL;
	if (inode->by_path) {
		pthread_mutex_lock(&t->shard[inode->hash % SHARDS]);
		old = relocate_locked(t, inode, parent, name);
		pthread_mutex_unlock(&t->shard[inode->hash % SHARDS]);
	}
	if (old)
		zc_inode_put(t, old);
}

void zc_inode_keep(struct zc_inode_table *t, struct zc_inode *inode, int fd)
{
	char link[32];
	if (!inode->by_path)
		return;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	int path = ZC_SYSI("open", open(link, O_PATH | O_CLOEXEC));
	if (path >= 0)
		fd_install(t, inode, path); /* the pin stays; inode_destroy closes it */
}

/* What is open must stay reachable after its last name is gone: its descriptor stays pinned, and
 * inode_destroy closes it. */
int zc_inode_unlinking(struct zc_inode_table *t, struct zc_inode *parent, const char *name)
{
	struct zc_inode *inode;
	struct zc_fd fd;
	int err = parent->by_path ? find_named(t, parent, name, &inode) : 0;
	if (err || !parent->by_path || !inode)
		return err;
	pthread_mutex_lock(zc_inode_lock(t, inode));
	bool open = inode->opened;
	pthread_mutex_unlock(zc_inode_lock(t, inode));
	if (open && inode->by_path)
		err = zc_inode_fd(t, inode, &fd);
	zc_inode_put(t, inode);
	return err;
}

/* the table -------------------------------------------------------------------------------- */

static void *reserve(size_t bytes, int prot)
{
	void *p = mmap(NULL, bytes, prot,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return p == MAP_FAILED ? NULL : p;
}

static int root_adopt(struct zc_inode_table *t, int root_fd)
{
	struct statx stx;
	struct zc_inode *root;
	int err = zc_inode_adopt(t, NULL, NULL, root_fd, &stx, &root);
	if (err)
		return err;
	assert(zc_inode_id(t, root) == FUSE_ROOT_ID);
	int fd = ZC_SYSI("openat", openat(root_fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC));
	if (fd < 0)
		return fd;
	fd_install(t, root, fd); /* the pin stays: the root's descriptor is never evicted */
	return 0;
}

int zc_inodes_create(int root_fd, unsigned fd_limit, bool want_handles, struct zc_inode_table **out)
{
	struct zc_inode_table *t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->slots = reserve((size_t)MAX_CHUNKS * CHUNK_BYTES, PROT_NONE); /* see slot_alloc */
	t->chunks = reserve(MAX_CHUNKS * sizeof(*t->chunks), PROT_READ | PROT_WRITE);
	t->buckets = reserve(BUCKETS * sizeof(*t->buckets), PROT_READ | PROT_WRITE);
	t->ring_size = fd_limit < 16 ? 16 : fd_limit;
	t->ring = malloc(t->ring_size * sizeof(*t->ring));
	t->partial = NONE;
	t->want_handles = want_handles;
	if (t->ring)
		memset(t->ring, 0xff, t->ring_size * sizeof(*t->ring));
	for (unsigned i = 0; i < SHARDS; i++) {
		pthread_mutex_init(&t->shard[i], NULL);
		pthread_mutex_init(&t->inode_lock[i], NULL);
	}
	pthread_mutex_init(&t->lock, NULL);
	int err = t->slots && t->chunks && t->buckets && t->ring ? root_adopt(t, root_fd) : -ENOMEM;
	if (err) {
		zc_inodes_destroy(t);
		return err;
	}
	*out = t;
	return 0;
}

void zc_inodes_destroy(struct zc_inode_table *t)
{
	if (!t)
		return;
	for (uint32_t c = 0; c < t->chunk_count; c++)
		for (uint32_t i = 0; t->chunks[c].live && i < t->chunks[c].fresh; i++) {
			struct zc_inode *inode = slot_of(t, c * CHUNK_SLOTS + i);
			uint64_t w = atomic_load(&inode->fdw);
			if (w)
				close(fdw_fd(w));
			if (inode->by_path && atomic_load(&inode->refs))
				free(inode->path.name);
		}
	for (unsigned i = 0; i < atomic_load(&t->mount_count); i++)
		if (t->mounts[i].fd >= 0)
			close(t->mounts[i].fd);
	if (t->slots)
		munmap(t->slots, (size_t)MAX_CHUNKS * CHUNK_BYTES);
	if (t->chunks)
		munmap(t->chunks, MAX_CHUNKS * sizeof(*t->chunks));
	if (t->buckets)
		munmap(t->buckets, BUCKETS * sizeof(*t->buckets));
	free(t->ring);
	free(t);
}

uint64_t zc_inodes_count(const struct zc_inode_table *t)
{
	return atomic_load(&t->count);
}

uint64_t zc_inodes_descriptors(const struct zc_inode_table *t)
{
	return atomic_load(&t->cached);
}
