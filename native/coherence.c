/* Coherence with the source: close-to-open, and at every lock.
 *
 * What the kernel caches of a file was true when its attributes were `told`, its data when they were
 * `seen`. An open and a granted lock compare them with the source. FUSE_AUTO_INVAL_DATA would have
 * the kernel do it, but it takes the mount's own writes for foreign ones; and dropping the cache
 * while such a write is on its way to us brings the old bytes back for good: the kernel has the new
 * page already, drops it, and reads the file before we write it.
 *
 * Threading: any worker; `seen`, `changes` and `clean` are under the inode lock, the system calls
 * outside it.
 */
#include <time.h>

#include "ops.h"

/* Two changes within a tick of the clock can have one time: data that young may have changed even
 * where the times are the same. */
static bool is_young(const struct statx *stx)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	int64_t age = (now.tv_sec - stx->stx_mtime.tv_sec) * 1000 +
		      (now.tv_nsec - (int64_t)stx->stx_mtime.tv_nsec) / 1000000;
	return age < 20;
}

/* Whether the kernel's cached data is not the source's; it is taken for seen from here on. */
static bool data_changed_locked(struct zc_inode *inode, const struct statx *stx, bool trust_own)
{
	if (inode->opened->changes)
		return false;
	bool changed = inode->seen != zc_told_of(stx) ||
		       (!(trust_own && inode->seen_own) && is_young(stx));
	if (changed) {
		inode->seen = zc_told_of(stx);
		inode->seen_own = false;
	}
	return changed;
}

void zc_open_refresh(struct zc_req *r, struct zc_file *file, int fd, struct fuse_open_out *out)
{
	struct zc_inode *inode = file->inode;
	pthread_mutex_t *lock = zc_inode_lock(r->s->inodes, inode);
	bool unseen = zc_is_writer(file->flags) && file->engine == &zc_engine_kernel;
	struct statx stx;
	if (unseen)
		atomic_fetch_add(&inode->unseen_writers, 1);
	int err = zc_stat_fd(fd, &stx);
	if (!err && file->engine == &zc_engine_buffered) {
		pthread_mutex_lock(lock);
		bool changed = data_changed_locked(inode, &stx, true);
		pthread_mutex_unlock(lock);
		if (!changed && !(out->open_flags & FOPEN_DIRECT_IO))
			out->open_flags |= FOPEN_KEEP_CACHE;
	}
	if (err || unseen || atomic_load(&inode->told) != zc_told_of(&stx))
		zc_notify_inval_attr(r->s, zc_inode_id(r->s->inodes, inode));
}

void zc_open_made(struct zc_req *r, struct zc_file *file)
{
	struct zc_inode *inode = file->inode;
	pthread_mutex_t *lock = zc_inode_lock(r->s->inodes, inode);
	if (zc_is_writer(file->flags) && file->engine == &zc_engine_kernel)
		atomic_fetch_add(&inode->unseen_writers, 1);
	pthread_mutex_lock(lock);
	inode->seen = atomic_load(&inode->told);
	inode->seen_own = true;
	pthread_mutex_unlock(lock);
}

void zc_lock_refresh(struct zc_req *r, struct zc_file *file)
{
	struct zc_inode *inode = file->inode;
	pthread_mutex_t *lock = zc_inode_lock(r->s->inodes, inode);
	int fd = atomic_load(&file->fd);
	struct statx stx;
	if (file->engine != &zc_engine_buffered || fd < 0 || zc_stat_fd(fd, &stx))
		return;
	pthread_mutex_lock(lock);
	bool changed = data_changed_locked(inode, &stx, false);
	pthread_mutex_unlock(lock);
	if (changed)
		zc_notify_inval_data(r->s, zc_inode_id(r->s->inodes, inode));
}

void zc_change_begin(struct zc_session *s, struct zc_file *file, int fd)
{
	pthread_mutex_t *lock = zc_inode_lock(s->inodes, file->inode);
	struct statx stx;
	if (file->engine != &zc_engine_buffered)
		return;
	bool known = !zc_stat_fd(fd, &stx);
	pthread_mutex_lock(lock);
	struct zc_opened *o = file->inode->opened;
	if (o->changes++ == 0)
		o->clean = known && file->inode->seen == zc_told_of(&stx);
	o->set_id |= known && stx.stx_mode & (S_ISUID | S_ISGID);
	pthread_mutex_unlock(lock);
}

void zc_change_end(struct zc_session *s, struct zc_file *file, int fd)
{
	pthread_mutex_t *lock = zc_inode_lock(s->inodes, file->inode);
	struct zc_inode *inode = file->inode;
	struct statx stx;
	if (file->engine != &zc_engine_buffered)
		return;
	bool known = !zc_stat_fd(fd, &stx);
	pthread_mutex_lock(lock);
	if (--inode->opened->changes == 0 && inode->opened->clean && known) {
		inode->seen = zc_told_of(&stx);
		inode->seen_own = true;
	}
	/* the kernel takes the size and the times of a file it has written to for changed, not the mode */
	bool dropped = known && inode->opened->set_id && !(stx.stx_mode & (S_ISUID | S_ISGID));
	if (dropped)
		inode->opened->set_id = false;
	pthread_mutex_unlock(lock);
	if (dropped)
		zc_notify_inval_attr(s, zc_inode_id(s->inodes, inode));
}
