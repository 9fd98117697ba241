/* POSIX, OFD and flock locks, taken on the source (`--locks source`).
 *
 * A POSIX lock belongs to a process, which the kernel names by an opaque owner. Each owner gets a
 * descriptor of its own per inode and holds the locks on it as OFD locks, so that owners exclude
 * each other and everybody who locks the source directly. A FLUSH (a close by that owner) ends
 * them, as POSIX wants it. flock goes to the descriptor of the open file itself.
 *
 * Threading: the list hangs on struct zc_opened, under the inode lock; the locking call itself may
 * wait and is made outside it, with the owner counted as in use.
 */
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include "ops.h"
#include "sys.h"

struct zc_lock_owner {
	struct zc_lock_owner *next;
	uint64_t owner;
	const struct zc_file *file; /* the only open file it locked through; NULL: several */
	uint32_t pid, users;
	bool dead; /* flushed while a call was under way */
	int fd;
};

static void owner_free(struct zc_lock_owner *o)
{
	close(o->fd);
	free(o);
}

static struct zc_lock_owner *owner_find(struct zc_opened *o, uint64_t owner)
{
	struct zc_lock_owner *l = o ? o->locks : NULL;
	while (l && l->owner != owner)
		l = l->next;
	return l;
}

/* Takes out of the list what goes with `owner` or `file`; what a call is under way on is freed by
 * that call, the rest is returned. */
static struct zc_lock_owner *owners_take(struct zc_opened *o, uint64_t owner,
					 const struct zc_file *file)
{
	struct zc_lock_owner **link = &o->locks, *taken = NULL;
	while (*link) {
		struct zc_lock_owner *l = *link;
		if (file ? l->file != file : l->owner != owner) {
			link = &l->next;
			continue;
		}
		*link = l->next;
		l->dead = true;
		if (!l->users) {
			l->next = taken;
			taken = l;
		}
	}
	return taken;
}

static void owners_free(struct zc_lock_owner *l)
{
	while (l) {
		struct zc_lock_owner *next = l->next;
		owner_free(l);
		l = next;
	}
}

static void locks_drop(struct zc_session *s, struct zc_inode *inode, uint64_t owner,
		       const struct zc_file *file)
{
	pthread_mutex_t *lock = zc_inode_lock(s->inodes, inode);
	struct zc_lock_owner *taken = NULL;
	pthread_mutex_lock(lock);
	if (inode->opened && inode->opened->locks)
		taken = owners_take(inode->opened, owner, file);
	pthread_mutex_unlock(lock);
	owners_free(taken);
}

void zc_locks_release(struct zc_session *s, struct zc_inode *inode, uint64_t owner)
{
	locks_drop(s, inode, owner, NULL);
}

/* OFD locks are never flushed: they go with their open file. */
void zc_locks_release_file(struct zc_session *s, struct zc_file *file)
{
	locks_drop(s, file->inode, 0, file);
}

void zc_locks_destroy(struct zc_opened *o)
{
	owners_free(o->locks);
	o->locks = NULL;
}

/* A descriptor that can hold locks of both types, if the source lets us. */
static int lock_open(struct zc_session *s, struct zc_inode *inode)
{
	int fd = zc_inode_open(s->inodes, inode, O_RDWR | O_NONBLOCK);
	bool refused = fd == -EACCES || fd == -EROFS || fd == -EPERM || fd == -ETXTBSY;
	return refused ? zc_inode_open(s->inodes, inode, O_RDONLY | O_NONBLOCK) : fd;
}

static int owner_get(struct zc_req *r, struct zc_file *file, const struct fuse_lk_in *in,
		     struct zc_lock_owner **out)
{
	pthread_mutex_t *lock = zc_inode_lock(r->s->inodes, file->inode);
	pthread_mutex_lock(lock);
	struct zc_lock_owner *l = owner_find(file->inode->opened, in->owner);
	if (l)
		l->users++;
	pthread_mutex_unlock(lock);
	if (!l) {
		int fd = lock_open(r->s, file->inode);
		if (fd < 0)
			return fd;
		if (!(l = calloc(1, sizeof(*l)))) {
			close(fd);
			return -ENOMEM;
		}
		*l = (struct zc_lock_owner){.owner = in->owner, .file = file, .users = 1, .fd = fd};
		pthread_mutex_lock(lock);
		struct zc_lock_owner *other = owner_find(file->inode->opened, in->owner);
		if (other) {
			other->users++;
			owner_free(l);
			l = other;
		} else {
			l->next = file->inode->opened->locks;
			file->inode->opened->locks = l;
		}
		pthread_mutex_unlock(lock);
	}
	*out = l;
	return 0;
}

static void owner_put(struct zc_req *r, struct zc_file *file, struct zc_lock_owner *l)
{
	pthread_mutex_t *lock = zc_inode_lock(r->s->inodes, file->inode);
	pthread_mutex_lock(lock);
	bool gone = --l->users == 0 && l->dead;
	pthread_mutex_unlock(lock);
	if (gone)
		owner_free(l);
}

static struct flock flock_of(const struct fuse_file_lock *lk)
{
	bool to_end = lk->end >= INT64_MAX;
	return (struct flock){.l_type = (short)lk->type,
			      .l_whence = SEEK_SET,
			      .l_start = (off_t)lk->start,
			      .l_len = to_end ? 0 : (off_t)(lk->end - lk->start + 1)};
}

/* The process behind a lock on `range` that the source knows only as an OFD: of our owners, the one
 * whom that lock does not stand in the way of. Under the inode lock. */
static uint32_t holder_pid(const struct zc_opened *o, const struct flock *range)
{
	for (const struct zc_lock_owner *l = o ? o->locks : NULL; l; l = l->next) {
		struct flock fl = *range;
		fl.l_type = F_WRLCK;
		fl.l_pid = 0;
		if (!fcntl(l->fd, F_OFD_GETLK, &fl) && fl.l_type == F_UNLCK)
			return l->pid;
	}
	return 0;
}

int zc_op_GETLK(struct zc_req *r)
{
	const struct fuse_lk_in *in = r->in;
	struct zc_file *file = zc_file_of(in->fh);
	struct flock fl = flock_of(&in->lk);
	struct zc_lock_owner *l;
	int err = owner_get(r, file, in, &l);
	if (err)
		return err;
	err = ZC_SYSI("fcntl", fcntl(l->fd, F_OFD_GETLK, &fl));
	owner_put(r, file, l);
	if (err)
		return err;
	struct fuse_lk_out *out = (void *)r->out;
	*out = (struct fuse_lk_out){.lk = {.type = (uint32_t)fl.l_type}};
	if (fl.l_type != F_UNLCK) {
		out->lk.start = (uint64_t)fl.l_start;
		out->lk.end = fl.l_len ? (uint64_t)(fl.l_start + fl.l_len - 1) : INT64_MAX;
		out->lk.pid = (uint32_t)fl.l_pid;
		if (fl.l_pid <= 0) {
			pthread_mutex_lock(zc_inode_lock(r->s->inodes, file->inode));
			out->lk.pid = holder_pid(file->inode->opened, &fl);
			pthread_mutex_unlock(zc_inode_lock(r->s->inodes, file->inode));
		}
	}
	return zc_reply(r, sizeof(*out));
}

static int set_flock(struct zc_req *r, const struct fuse_lk_in *in, bool wait)
{
	int fd = zc_file_fd(r->s, zc_file_of(in->fh));
	int op = in->lk.type == F_RDLCK ? LOCK_SH : in->lk.type == F_WRLCK ? LOCK_EX : LOCK_UN;
	return fd < 0 ? fd : ZC_SYSI("flock", flock(fd, wait ? op : op | LOCK_NB));
}

static int set_posix(struct zc_req *r, const struct fuse_lk_in *in, bool wait)
{
	struct zc_file *file = zc_file_of(in->fh);
	struct flock fl = flock_of(&in->lk);
	struct zc_lock_owner *l;
	int err = owner_get(r, file, in, &l);
	if (err)
		return err;
	err = ZC_SYSI("fcntl", fcntl(l->fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &fl));
	if (!err) {
		pthread_mutex_lock(zc_inode_lock(r->s->inodes, file->inode));
		l->pid = in->lk.pid;
		if (l->file != file)
			l->file = NULL;
		pthread_mutex_unlock(zc_inode_lock(r->s->inodes, file->inode));
	}
	owner_put(r, file, l);
	return err;
}

static int set_lock(struct zc_req *r, bool wait)
{
	const struct fuse_lk_in *in = r->in;
	int err = in->lk_flags & FUSE_LK_FLOCK ? set_flock(r, in, wait) : set_posix(r, in, wait);
	if (!err && in->lk.type != F_UNLCK)
		zc_lock_refresh(r, zc_file_of(in->fh));
	return err;
}

int zc_op_SETLK(struct zc_req *r)
{
	return set_lock(r, false);
}

/* Waits at most until somebody interrupts it; first without waiting, since most locks are free. */
int zc_op_SETLKW(struct zc_req *r)
{
	int err = set_lock(r, false);
	if (err != -EAGAIN && err != -EACCES)
		return err;
	if (zc_wait_begin(r->w))
		return -ENOLCK;
	err = atomic_load(&r->w->interrupted) ? -EINTR : set_lock(r, true);
	zc_wait_end(r->w);
	return err;
}
