/* Coherence with the source: close-to-open, and at every lock.
 *
 * What the kernel caches of a file was true when its attributes were `told`, its data when they were
 * `seen`. An open, a granted lock and every look at the attributes of an open file compare them with
 * the source. The kernel would do it by itself (FUSE_AUTO_INVAL_DATA, and at each change of size
 * without FUSE_EXPLICIT_INVAL_DATA), but it takes the mount's own writes for foreign ones; and
 * dropping the cache while such a write is on its way to us brings the old bytes back for good: the
 * kernel has the new page already, drops it, and reads the file before we write it.
 *
 * Of the data only size and mtime count: ctime also moves with every chmod and setxattr.
 *
 * Threading: any worker. `seen`, `changes` and `clean` are under the inode lock, and so is the statx
 * that they are compared with, or a change that ends in between would be taken for a foreign one.
 */
#include <time.h>

#include "ops.h"

static uint64_t data_digest(const struct statx *stx)
{
	struct statx data = {.stx_size = stx->stx_size, .stx_mtime = stx->stx_mtime};
	return zc_told_of(&data);
}

/* Before Linux 6.13 two changes within a tick of the clock have one time. Where a lock has just said
 * that nobody writes, data that young is not trusted; elsewhere a write of our own may be on its way. */
static bool is_young(const struct statx *stx)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	int64_t age = (now.tv_sec - stx->stx_mtime.tv_sec) * 1000 +
		      (now.tv_nsec - (int64_t)stx->stx_mtime.tv_nsec) / 1000000;
	return age < 20;
}

/* Whether the kernel's cached data is not the source's; it is taken for seen from here on. */
static bool data_changed_locked(struct zc_inode *inode, int fd, bool trust_young)
{
	struct statx stx;
	if (inode->changes)
		return false;
	if (zc_stat_fd(fd, &stx))
		return true;
	bool changed = inode->seen != data_digest(&stx) || (!trust_young && is_young(&stx));
	inode->seen = data_digest(&stx);
	return changed;
}

static bool data_changed(struct zc_session *s, struct zc_inode *inode, int fd, bool trust_young)
{
	pthread_mutex_t *lock = zc_inode_lock(s->inodes, inode);
	pthread_mutex_lock(lock);
	bool changed = data_changed_locked(inode, fd, trust_young);
	pthread_mutex_unlock(lock);
	if (changed)
		zc_pool_changed(s, fd, 0, UINT64_MAX);
	return changed;
}

/* Counts a writer that we shall not see writing; true if this is one. */
static bool count_unseen(struct zc_file *file)
{
	bool unseen = zc_is_writer(file->flags) && !file->engine->sees_data;
	if (unseen)
		atomic_fetch_add(&file->inode->unseen_writers, 1);
	return unseen;
}

void zc_open_refresh(struct zc_req *r, struct zc_file *file, int fd, struct fuse_open_out *out)
{
	struct zc_inode *inode = file->inode;
	struct statx stx;
	bool unseen = count_unseen(file);
	/* also with O_DIRECT, whose open would drop the cache of everybody else */
	if (file->engine->sees_data && !data_changed(r->s, inode, fd, true))
		out->open_flags |= FOPEN_KEEP_CACHE;
	bool known = !zc_stat_fd(fd, &stx);
	if (known && !file->engine->sees_data)
		zc_ledger_add(&r->w->ledger[file->engine->index][0].passthrough, stx.stx_size);
	if (unseen || !known || atomic_load(&inode->told) != zc_told_of(&stx))
		zc_notify_inval_attr(r->s, zc_inode_id(r->s->inodes, inode));
}

void zc_open_made(struct zc_req *r, struct zc_file *file, int fd)
{
	count_unseen(file);
	if (file->engine->sees_data)
		data_changed(r->s, file->inode, fd, true);
}

void zc_lock_refresh(struct zc_req *r, struct zc_file *file)
{
	int fd = atomic_load(&file->fd);
	if (file->engine == &zc_engine_pinned)
		(void)zc_pin_open(r, file->inode, O_RDONLY);
	if (file->engine->sees_data && fd >= 0 &&
	    data_changed(r->s, file->inode, fd, false))
		zc_notify_inval_data(r->s, zc_inode_id(r->s->inodes, file->inode));
}

void zc_attr_refresh(struct zc_session *s, struct zc_inode *inode)
{
	pthread_mutex_t *lock = zc_inode_lock(s->inodes, inode);
	ZC_FD(path);
	if (!__atomic_load_n(&inode->opened, __ATOMIC_RELAXED) ||
	    zc_inode_fd(s->inodes, inode, &path))
		return;
	pthread_mutex_lock(lock);
	const struct zc_opened *o = inode->opened;
	bool changed = o && o->engine->sees_data &&
		       data_changed_locked(inode, path.fd, true);
	pthread_mutex_unlock(lock);
	if (!changed)
		return;
	zc_pool_changed(s, path.fd, 0, UINT64_MAX);
	zc_notify_inval_data(s, zc_inode_id(s->inodes, inode));
}

bool zc_change_begin(struct zc_session *s, struct zc_inode *inode, int fd)
{
	pthread_mutex_t *lock = zc_inode_lock(s->inodes, inode);
	struct statx stx;
	pthread_mutex_lock(lock);
	bool begun = inode->seen != 0;
	if (begun && inode->changes++ == 0) {
		bool known = !zc_stat_fd(fd, &stx);
		inode->clean = known && inode->seen == data_digest(&stx);
		inode->set_id = known && stx.stx_mode & (S_ISUID | S_ISGID);
	}
	pthread_mutex_unlock(lock);
	return begun;
}

void zc_change_end(struct zc_session *s, struct zc_inode *inode, int fd, bool begun)
{
	pthread_mutex_t *lock = zc_inode_lock(s->inodes, inode);
	struct statx stx;
	bool dropped = false;
	if (!begun)
		return;
	pthread_mutex_lock(lock);
	if (--inode->changes == 0 && !zc_stat_fd(fd, &stx)) {
		if (inode->clean)
			inode->seen = data_digest(&stx);
		/* the kernel knows that size and times of what it wrote to have changed, not the mode */
		dropped = inode->set_id && !(stx.stx_mode & (S_ISUID | S_ISGID));
	}
	pthread_mutex_unlock(lock);
	if (dropped)
		zc_notify_inval_attr(s, zc_inode_id(s->inodes, inode));
}
