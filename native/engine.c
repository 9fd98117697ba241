/* Open files and the choice of their engine.
 *
 * The engine is fixed per inode by its first open and changes only when nobody has it open: the
 * kernel refuses to mix passthrough with anything else, and an application would see EIO.
 *
 * Which engine that is, the file's policy says (policy.c), unless the file is pinned (pin.c).
 *
 * What touches the disk (opening the source file) happens outside the inode lock, which other
 * inodes share; under it is only bookkeeping and the registration of the backing file.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ops.h"
#include "sys.h"

/* open(2) flags for our own descriptor. The application's O_DIRECT is not ours: our buffers and
 * offsets follow no alignment, and the kernel engine does not read through it anyway. */
static int source_flags(int flags)
{
	return (flags & ~(O_CREAT | O_EXCL | O_NOCTTY | O_DIRECT | O_TMPFILE | O_DIRECTORY)) |
	       O_NOFOLLOW;
}

static int plain_open(struct zc_req *r, struct zc_inode *inode, int flags)
{
	int fd = zc_inode_open(r->s->inodes, inode, source_flags(flags));
	if (fd == -EPERM && flags & O_NOATIME) /* only the owner may ask for it */
		fd = zc_inode_open(r->s->inodes, inode, source_flags(flags & ~O_NOATIME));
	return fd;
}

/* With O_TRUNC the open is a change of the file, and drops set-id bits as one. */
static int truncating_open(struct zc_req *r, struct zc_inode *inode, int flags)
{
	ZC_FD(path);
	int fd = zc_inode_fd(r->s->inodes, inode, &path);
	if (fd < 0)
		return fd;
	if (r->hdr.uid == 0)
		zc_fsetid_on(r->w);
	else
		zc_no_privilege(r);
	bool begun = zc_change_begin(r->s, inode, path.fd);
	fd = plain_open(r, inode, flags);
	zc_change_end(r->s, inode, path.fd, begun);
	zc_as_self(r);
	zc_pool_changed(r->s, fd, 0, UINT64_MAX);
	return fd;
}

/* The descriptor that this open needs, or -1 in `*fd` if it can do without. */
static int source_open(struct zc_req *r, struct zc_inode *inode, int flags, bool need, int *fd)
{
	*fd = -1;
	if (!need && !zc_is_writer(flags) && !(flags & O_TRUNC))
		return 0;
	int got = flags & O_TRUNC ? truncating_open(r, inode, flags) : plain_open(r, inode, flags);
	if (got < 0)
		return got;
	*fd = got;
	return 0;
}

static const struct zc_engine *engine_for(struct zc_session *s, struct zc_inode *inode, bool fresh)
{
	return fresh && zc_pin_usable(s, inode) ? &zc_engine_pinned : zc_policy_engine(s, inode);
}

/* Changed under the inode lock; some only look whether there is one, without it. */
static void set_opened(struct zc_inode *inode, struct zc_opened *o)
{
	__atomic_store_n(&inode->opened, o, __ATOMIC_RELAXED);
}

static struct zc_opened *opened_of(struct zc_session *s, const struct zc_file *file)
{
	struct zc_inode *inode = file->inode;
	struct zc_opened *o = inode->opened;
	if (o || !(o = calloc(1, sizeof(*o))))
		return o;
	o->engine = engine_for(s, inode, file->fresh);
	set_opened(inode, o);
	return o;
}

/* Under the inode lock. */
static int engine_open_locked(struct zc_req *r, struct zc_file *file, int fd,
			      struct fuse_open_out *out)
{
	struct zc_opened *o = opened_of(r->s, file);
	if (!o)
		return -ENOMEM;
	int err = o->engine->open(r, file, o, fd, out);
	if (err == -EOPNOTSUPP && o->engine == &zc_engine_pinned && o->count == 0) {
		o->engine = zc_policy_engine(r->s, file->inode);
		err = o->engine->open(r, file, o, fd, out);
	}
	if (err == -EOPNOTSUPP && o->count == 0) {
		o->engine = &zc_engine_buffered;
		err = o->engine->open(r, file, o, fd, out);
	}
	if (err) {
		if (o->count == 0) {
			set_opened(file->inode, NULL);
			free(o);
		}
		return err;
	}
	file->engine = o->engine;
	o->count++;
	o->writers += zc_is_writer(file->flags);
	atomic_fetch_add(&r->s->open_files[o->engine->index], 1);
	return 0;
}

/* For an open without a descriptor of its own: one to look at the inode. Where nobody has registered
 * it yet, one that can be. */
static int look_open(struct zc_session *s, struct zc_inode *inode, bool *registrable)
{
	*registrable |= !__atomic_load_n(&inode->opened, __ATOMIC_RELAXED);
	return zc_inode_open(s->inodes, inode, *registrable ? O_RDONLY : O_PATH);
}

/* `made`: by this request, which tells the kernel all there is to know. */
static int open_with(struct zc_req *r, struct zc_file *file, bool made, struct fuse_open_out *out)
{
	pthread_mutex_t *lock = zc_inode_lock(r->s->inodes, file->inode);
	ZC_CLOSE(look);
	int fd = atomic_load(&file->fd), err = -EAGAIN;
	bool registrable = false;
	for (unsigned tries = 0; err == -EAGAIN && tries < 2; tries++) {
		if (fd < 0) {
			zc_closer_done(&look);
			registrable |= tries > 0;
			look.fd = look_open(r->s, file->inode, &registrable);
			if (look.fd < 0)
				return look.fd;
		}
		pthread_mutex_lock(lock);
		err = engine_open_locked(r, file, fd >= 0 ? fd : registrable ? look.fd : -1, out);
		pthread_mutex_unlock(lock);
	}
	if (err)
		return err;
	if (made)
		zc_open_made(r, file, fd);
	else
		zc_open_refresh(r, file, fd < 0 ? look.fd : fd, out);
	if (fd < 0 && file->engine->needs_fd) { /* degraded to an engine that reads through us */
		atomic_store(&file->fd, look.fd);
		look.fd = -1;
	}
	return 0;
}

/* `fresh`: may be opened pinned. */
static int file_open(struct zc_req *r, struct zc_inode *inode, int flags, int fd, bool fresh,
		     struct fuse_open_out *out)
{
	struct zc_session *s = r->s;
	bool need = !fresh && zc_policy_engine(s, inode)->needs_fd;
	bool holds = fd >= 0 || need || zc_is_writer(flags);
	bool full = holds && s->open_fds_most && atomic_load(&s->open_fds) >= s->open_fds_most;
	struct zc_file *file = full ? NULL : calloc(1, sizeof(*file));
	if (!file) {
		if (fd >= 0)
			close(fd);
		return full ? -ENFILE : -ENOMEM;
	}
	*out = (struct fuse_open_out){.fh = (uintptr_t)file};
	bool made = fd >= 0;
	int err = fd < 0 ? source_open(r, inode, flags, need, &fd) : 0;
	if (err) {
		free(file);
		return err;
	}
	atomic_fetch_add(&inode->refs, 1);
	file->inode = inode;
	file->flags = flags;
	file->fresh = fresh;
	atomic_init(&file->fd, fd);
	err = open_with(r, file, made, out);
	if (err) {
		if (fd >= 0)
			close(fd);
		zc_inode_put(s->inodes, inode);
		free(file);
		return err;
	}
	file->fds = (atomic_load(&file->fd) >= 0) + file->engine->more_fds;
	atomic_fetch_add(&s->open_fds, file->fds);
	if (!strcmp(s->opt.locks, "local"))
		out->open_flags |= FOPEN_NOFLUSH;
	return 0;
}

int zc_file_open(struct zc_req *r, struct zc_inode *inode, int flags, int fd,
		 struct fuse_open_out *out)
{
	int pin = zc_pin_open(r, inode, flags);
	if (pin < 0 && fd >= 0)
		close(fd);
	if (pin < 0)
		return pin;
	int err = file_open(r, inode, flags, fd, pin == ZC_PIN_FRESH, out);
	if (pin == ZC_PIN_HELD)
		zc_pin_opened(r->s, inode);
	return err;
}

void zc_file_close(struct zc_session *s, struct zc_file *file)
{
	struct zc_inode *inode = file->inode;
	pthread_mutex_t *lock = zc_inode_lock(s->inodes, inode);
	if (zc_is_writer(file->flags) && !file->engine->sees_data)
		atomic_fetch_sub(&inode->unseen_writers, 1);
	zc_locks_release_file(s, file);
	pthread_mutex_lock(lock);
	struct zc_opened *o = inode->opened;
	o->writers -= zc_is_writer(file->flags);
	if (--o->count == 0)
		set_opened(inode, NULL);
	else
		o = NULL;
	pthread_mutex_unlock(lock);
	if (o) { /* outside the lock: the last close of a deleted file takes its time */
		o->engine->last_close(s, o);
		zc_locks_destroy(o);
		if (atomic_load(&inode->pin))
			zc_pin_closed(s, inode);
	}
	free(o);
	atomic_fetch_sub(&s->open_files[file->engine->index], 1);
	atomic_fetch_sub(&s->open_fds, file->fds);
	zc_pool_file_done(file);
	if (atomic_load(&file->fd) >= 0)
		close(atomic_load(&file->fd));
	zc_inode_put(s->inodes, inode);
	free(file);
}

int zc_file_fd(struct zc_session *s, struct zc_file *file)
{
	int fd = atomic_load(&file->fd), none = -1;
	if (fd >= 0)
		return fd;
	fd = zc_inode_open(s->inodes, file->inode, O_RDONLY | O_NONBLOCK);
	if (fd < 0)
		return fd;
	if (atomic_compare_exchange_strong(&file->fd, &none, fd))
		return fd;
	close(fd);
	return none;
}
