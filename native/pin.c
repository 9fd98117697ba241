/* Pins: files that are held in memory as a whole, each in a memfd that the pinned engine gives
 * to the kernel as the file's passthrough backing.
 *
 * Owns the list of pins, the thread that loads them, and the bound on their memory (--pin-size).
 * A pin is made by hand (`mountctl pin`) or by the first open for reading of a file that a glob
 * names. It holds a lookup of its inode, so that the same file stays the same inode whatever the
 * kernel forgets, but no descriptor of the source: a deleted file gives its space back.
 *
 * What is pinned is compared with the source (size, mtime, ctime) at every open and every
 * granted lock. Where it differs and the file is open, the memfd is written over in place,
 * before the open is answered: one backing file serves all who have it open, and they must see
 * what the new one sees, as they would on the source. That is why the memfd is not sealed;
 * nobody but us has it. Where the file is not open it is loaded again: at once if it is small,
 * else by the thread, and this open takes the engine that the file would have without a pin.
 *
 * Huge pages are not asked for: 4 KiB reads were 4 % faster with them, which is within the
 * noise.
 *
 * Before a change through the mount (an open for writing, a truncation) the memfd is given up,
 * and loaded again after the last close.
 *
 * Threading: everything of a pin is under pins->lock, but for `memfd` of a pin that is `busy`,
 * which its loader owns. inode->pin changes, and a memfd goes, only under the inode lock as
 * well. Order: inode lock, then pins->lock. Nothing touches the disk under either.
 */
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/queue.h>
#include <time.h>
#include <unistd.h>

#include "ops.h"
#include "sys.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

#define CHUNK ((size_t)1 << 20)
#define PAGE 4096u
#define SMALL ((uint64_t)128 << 10) /* loaded by the open itself, as its reads would be */
#define LOAD_TRIES 3
#define YOUNG_MS 20
#define RELEASE_MS 250 /* from close(2) to RELEASE, at most */
#define REFUSED_MOST 64u /* that are kept for the status, if no hand has pinned them */
#define SWEEP_PAUSE_US 200000

enum state { LOADING, PINNED, WAITING, REFUSED };
static const char *const state_names[] = {"loading", "pinned", "waiting", "refused"};

struct zc_pin {
	TAILQ_ENTRY(zc_pin) all, queue;
	struct zc_inode *inode; /* holds a reference and a lookup */
	char *path;		/* as it was pinned, for people */
	char reason[96];	/* of REFUSED */
	enum state state;
	int memfd; /* -1: none */
	uint64_t size, charged, digest; /* digest 0: look at the source again in any case */
	_Atomic uint64_t loaded;
	unsigned blocked;   /* changes of the file that have begun */
	_Atomic bool stop;  /* the load under way is for nothing */
	bool busy, queued;  /* being loaded; to be loaded by the thread */
	bool gone;	    /* unpinned, or deleted; goes when it can */
	bool by_hand;
};
TAILQ_HEAD(pin_list, zc_pin);

struct zc_pins {
	struct zc_session *s;
	pthread_mutex_t lock;
	pthread_cond_t work, done; /* for the thread; a load has ended, or a file was closed */
	struct pin_list all, queue;
	uint64_t limit, used, refused;
	_Atomic uint64_t files; /* also looked at without the lock */
	bool started, sweep;
	const char *missing; /* why nothing can be pinned here, or NULL */
};

/* Locks and lists -------------------------------------------------------------------------- */

static void lock_both(struct zc_session *s, const struct zc_inode *inode)
{
	pthread_mutex_lock(zc_inode_lock(s->inodes, inode));
	pthread_mutex_lock(&s->pins->lock);
}

static void unlock_both(struct zc_session *s, const struct zc_inode *inode)
{
	pthread_mutex_unlock(&s->pins->lock);
	pthread_mutex_unlock(zc_inode_lock(s->inodes, inode));
}

static bool open_pinned(const struct zc_inode *inode)
{
	return inode->opened && inode->opened->engine == &zc_engine_pinned;
}

static void uncharge(struct zc_pins *p, struct zc_pin *pin, uint64_t to)
{
	p->used -= pin->charged - to;
	pin->charged = to;
}

static void unload_locked(struct zc_pins *p, struct zc_pin *pin)
{
	if (pin->memfd >= 0) {
		close(pin->memfd);
		atomic_fetch_sub(&p->s->open_fds, 1);
	}
	pin->memfd = -1;
	pin->digest = 0;
	atomic_store(&pin->loaded, 0);
	uncharge(p, pin, 0);
}

static void set_state(struct zc_pins *p, struct zc_pin *pin, enum state state)
{
	p->refused += state == REFUSED;
	p->refused -= pin->state == REFUSED;
	pin->state = state;
}

/* Both locks. For pin_free, once they are let go. */
static void take_out_locked(struct zc_pins *p, struct zc_pin *pin)
{
	unload_locked(p, pin);
	set_state(p, pin, LOADING);
	TAILQ_REMOVE(&p->all, pin, all);
	if (pin->queued)
		TAILQ_REMOVE(&p->queue, pin, queue);
	p->files--;
	atomic_store(&pin->inode->pin, NULL);
}

static void pin_free(struct zc_session *s, struct zc_pin *pin)
{
	if (!pin)
		return;
	zc_inode_forget(s->inodes, zc_inode_id(s->inodes, pin->inode), 1);
	zc_inode_put(s->inodes, pin->inode);
	free(pin->path);
	free(pin);
}

/* Takes out what is to go, if nobody needs it; the result is for pin_free. */
static struct zc_pin *reap_locked(struct zc_pins *p, struct zc_pin *pin)
{
	if (!pin->gone || pin->busy || pin->blocked || open_pinned(pin->inode))
		return NULL;
	take_out_locked(p, pin);
	return pin;
}

/* Takes the lookup and the reference that the caller has of the inode. Both locks. */
static struct zc_pin *pin_new_locked(struct zc_pins *p, struct zc_inode *inode, const char *path)
{
	struct zc_pin *pin = calloc(1, sizeof(*pin));
	char *copy = pin && path ? strdup(path) : NULL;
	if (!pin || (path && !copy)) {
		free(pin);
		return NULL;
	}
	pin->inode = inode;
	pin->path = copy;
	pin->memfd = -1;
	TAILQ_INSERT_TAIL(&p->all, pin, all);
	p->files++;
	atomic_store(&inode->pin, pin);
	return pin;
}

/* Loading ---------------------------------------------------------------------------------- */

static bool is_young(const struct statx *stx)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	int64_t age = (now.tv_sec - stx->stx_ctime.tv_sec) * 1000 +
		      (now.tv_nsec - (int64_t)stx->stx_ctime.tv_nsec) / 1000000;
	return age < YOUNG_MS;
}

static uint64_t cost(uint64_t size)
{
	return (size + PAGE - 1) / PAGE * PAGE;
}

static bool fits_locked(const struct zc_pins *p, const struct zc_pin *pin, uint64_t size)
{
	uint64_t charged = pin ? pin->charged : 0;
	return size <= p->limit && p->used - charged + cost(size) <= p->limit;
}

static int memfd_new(struct zc_session *s)
{
	if (s->open_fds_most && atomic_load(&s->open_fds) >= s->open_fds_most / 2)
		return -EMFILE;
	static const char name[] = "zcfs-pinned";
	int fd = ZC_SYSI("memfd_create", memfd_create(name, MFD_CLOEXEC | MFD_NOEXEC_SEAL));
	if (fd == -EINVAL) /* before Linux 6.3 */
		fd = ZC_SYSI("memfd_create", memfd_create(name, MFD_CLOEXEC));
	if (fd >= 0)
		atomic_fetch_add(&s->open_fds, 1);
	return fd;
}

/* Memory and a memfd for `size` bytes. -ENOSPC: more than is left. */
static int make_room(struct zc_session *s, struct zc_pin *pin, uint64_t size)
{
	struct zc_pins *p = s->pins;
	pthread_mutex_lock(&p->lock);
	int err = fits_locked(p, pin, size) ? 0 : -ENOSPC;
	if (!err && cost(size) > pin->charged) {
		p->used += cost(size) - pin->charged;
		pin->charged = cost(size);
	}
	pin->size = size;
	pthread_mutex_unlock(&p->lock);
	if (!err && pin->memfd < 0) {
		int fd = memfd_new(s);
		if (fd < 0)
			return fd;
		pin->memfd = fd;
	}
	return err;
}

/* One chunk at `at`, short at the end of the file. Past the page cache where that works: what is in
 * the memfd need not be there too. */
static ssize_t read_chunk(int fd, char *buf, uint64_t at)
{
	ssize_t n = ZC_SYS("pread", pread(fd, buf, CHUNK, (off_t)at));
	int flags = n == -EINVAL ? ZC_SYSI("fcntl", fcntl(fd, F_GETFL)) : 0;
	if (n != -EINVAL || !(flags & O_DIRECT))
		return n;
	int err = ZC_SYSI("fcntl", fcntl(fd, F_SETFL, flags & ~O_DIRECT));
	return err ? err : ZC_SYS("pread", pread(fd, buf, CHUNK, (off_t)at));
}

static int write_chunk(int fd, const char *buf, size_t size, uint64_t at)
{
	while (size) {
		ssize_t n = ZC_SYS("pwrite", pwrite(fd, buf, size, (off_t)at));
		if (n <= 0)
			return n ? (int)n : -EIO;
		buf += n;
		size -= (size_t)n;
		at += (uint64_t)n;
	}
	return 0;
}

/* -EAGAIN: the file is shorter than it was. */
static int copy_in(struct zc_pin *pin, int fd, char *buf, uint64_t size)
{
	ssize_t n = 0;
	atomic_store(&pin->loaded, 0);
	for (uint64_t at = 0; at < size; at += (uint64_t)n) {
		if (atomic_load(&pin->stop))
			return -ECANCELED;
		n = read_chunk(fd, buf, at);
		if (n > 0 && (uint64_t)n > size - at)
			n = (ssize_t)(size - at);
		int err = n < 0 ? (int)n : n ? 0 : -EAGAIN;
		if (!err)
			err = write_chunk(pin->memfd, buf, (size_t)n, at);
		if (!err && (size_t)n < CHUNK && at + (uint64_t)n < size)
			err = -EAGAIN;
		if (err)
			return err;
		atomic_store(&pin->loaded, at + (uint64_t)n);
	}
	return ZC_SYSI("ftruncate", ftruncate(pin->memfd, (off_t)size));
}

/* Copies until the file has stayed the same meanwhile. `patient`: waits until it is so old that a
 * later change has another time. */
static int copy_whole(struct zc_session *s, struct zc_pin *pin, int fd, char *buf, bool patient)
{
	struct statx before, after;
	uint64_t digest = 0;
	int err = 0;
	for (unsigned tries = 0; tries < LOAD_TRIES; tries++) {
		err = zc_stat_fd(fd, &before);
		if (patient && !err && is_young(&before)) {
			usleep(YOUNG_MS * 1000);
			err = zc_stat_fd(fd, &before);
		}
		if (!err)
			err = make_room(s, pin, before.stx_size);
		if (!err)
			err = copy_in(pin, fd, buf, before.stx_size);
		if (!err)
			err = zc_stat_fd(fd, &after);
		if (err && err != -EAGAIN)
			return err;
		digest = err ? 0 : zc_told_of(&after);
		if (digest && digest == zc_told_of(&before))
			break;
		err = -EAGAIN;
	}
	if (!err && !is_young(&before))
		pin->digest = digest;
	return err;
}

static int load(struct zc_session *s, struct zc_pin *pin, bool patient)
{
	ZC_CLOSE(source);
	pin->digest = 0;
	source.fd = zc_inode_open(s->inodes, pin->inode, O_RDONLY | O_NONBLOCK | O_DIRECT);
	if (source.fd == -EINVAL)
		source.fd = zc_inode_open(s->inodes, pin->inode, O_RDONLY | O_NONBLOCK);
	if (source.fd < 0)
		return source.fd;
	char *buf = aligned_alloc(PAGE, CHUNK);
	int err = buf ? copy_whole(s, pin, source.fd, buf, patient) : -ENOMEM;
	free(buf);
	return err;
}

static void say_why(const struct zc_pins *p, struct zc_pin *pin, int err)
{
	uint64_t left = p->limit > p->used ? p->limit - p->used : 0;
	if (err == -ENOSPC)
		snprintf(pin->reason, sizeof(pin->reason),
			 "%llu bytes, and %llu of --pin-size %llu are left",
			 (unsigned long long)pin->size, (unsigned long long)left,
			 (unsigned long long)p->limit);
	else if (err == -EAGAIN)
		snprintf(pin->reason, sizeof(pin->reason), "changed while it was loaded");
	else
		snprintf(pin->reason, sizeof(pin->reason), "%s", strerror(-err));
}

static void refuse_locked(struct zc_pins *p, struct zc_pin *pin, int err)
{
	unload_locked(p, pin);
	set_state(p, pin, REFUSED);
	say_why(p, pin, err);
	pin->gone |= err == -ESTALE || err == -ENOENT;
	pin->gone |= !pin->by_hand && p->refused > REFUSED_MOST;
}

static void queue_locked(struct zc_pins *p, struct zc_pin *pin);

/* Both locks; what comes back is for pin_free. */
static struct zc_pin *loaded_locked(struct zc_pins *p, struct zc_pin *pin, int err)
{
	struct zc_inode *inode = pin->inode;
	bool stopped = atomic_exchange(&pin->stop, false);
	pin->busy = false;
	pthread_cond_broadcast(&p->done);
	if (cost(pin->size) < pin->charged && !err)
		uncharge(p, pin, cost(pin->size));
	if (open_pinned(inode))
		return NULL; /* with an error, and digest 0, the next open tries again */
	if (pin->gone)
		return reap_locked(p, pin);
	if (stopped || pin->blocked || (inode->opened && inode->opened->writers)) {
		unload_locked(p, pin);
		set_state(p, pin, WAITING);
		if (!pin->blocked && !inode->opened)
			queue_locked(p, pin);
	} else if (err) {
		refuse_locked(p, pin, err);
	} else {
		set_state(p, pin, PINNED);
	}
	return reap_locked(p, pin);
}

/* The pin is `busy` for the caller. */
static int load_and_tell(struct zc_session *s, struct zc_pin *pin, bool patient)
{
	struct zc_inode *inode = pin->inode;
	int err = load(s, pin, patient);
	lock_both(s, inode);
	struct zc_pin *dead = loaded_locked(s->pins, pin, err);
	unlock_both(s, inode);
	pin_free(s, dead);
	return err;
}

/* The thread ------------------------------------------------------------------------------- */

/* 0: the load is wanted, and the pin busy. */
static bool still_wanted(struct zc_session *s, struct zc_pin *pin)
{
	struct zc_inode *inode = pin->inode;
	lock_both(s, inode);
	const struct zc_opened *o = inode->opened;
	bool wanted = !pin->gone && !pin->blocked && !open_pinned(inode) && !(o && o->writers);
	if (wanted)
		set_state(s->pins, pin, LOADING);
	unlock_both(s, inode);
	return wanted;
}

static void load_queued(struct zc_session *s, struct zc_pin *pin)
{
	struct zc_inode *inode = pin->inode;
	if (still_wanted(s, pin)) {
		load_and_tell(s, pin, true);
		return;
	}
	lock_both(s, inode);
	atomic_store(&pin->stop, true);
	struct zc_pin *dead = loaded_locked(s->pins, pin, 0);
	unlock_both(s, inode);
	pin_free(s, dead);
}

static bool is_deleted(struct zc_session *s, struct zc_inode *inode)
{
	struct statx stx;
	ZC_FD(path);
	int err = zc_inode_fd(s->inodes, inode, &path);
	if (!err)
		err = zc_stat_fd(path.fd, &stx);
	return err == -ESTALE || err == -ENOENT || (!err && stx.stx_nlink == 0);
}

/* The inodes of all pins, with a reference each; NULL: no memory. */
static struct zc_inode **all_inodes(struct zc_pins *p, uint64_t *count)
{
	struct zc_pin *pin;
	*count = 0;
	pthread_mutex_lock(&p->lock);
	struct zc_inode **list = malloc((p->files + 1) * sizeof(struct zc_inode *));
	TAILQ_FOREACH(pin, &p->all, all) {
		if (!list)
			break;
		atomic_fetch_add(&pin->inode->refs, 1);
		list[(*count)++] = pin->inode;
	}
	pthread_mutex_unlock(&p->lock);
	return list;
}

static void let_go(struct zc_session *s, struct zc_inode *inode)
{
	lock_both(s, inode);
	struct zc_pin *pin = inode->pin, *dead = NULL;
	if (pin) {
		pin->gone = true;
		dead = reap_locked(s->pins, pin);
	}
	unlock_both(s, inode);
	pin_free(s, dead);
}

/* Lets go of pins whose file has no name any more; of what is open, at its last close. */
static void sweep(struct zc_session *s)
{
	uint64_t count;
	struct zc_inode **list = all_inodes(s->pins, &count);
	for (uint64_t i = 0; i < count; i++) {
		if (is_deleted(s, list[i]))
			let_go(s, list[i]);
		zc_inode_put(s->inodes, list[i]);
	}
	free(list);
}

static void *pins_run(void *arg)
{
	struct zc_session *s = arg;
	struct zc_pins *p = s->pins;
	pthread_mutex_lock(&p->lock);
	for (;;) {
		struct zc_pin *pin = TAILQ_FIRST(&p->queue);
		bool swept = p->sweep;
		if (!pin && !swept) {
			pthread_cond_wait(&p->work, &p->lock);
			continue;
		}
		p->sweep = false;
		if (pin) {
			TAILQ_REMOVE(&p->queue, pin, queue);
			pin->queued = false;
			pin->busy = true;
		}
		pthread_mutex_unlock(&p->lock);
		if (pin)
			load_queued(s, pin);
		if (swept) {
			sweep(s);
			usleep(SWEEP_PAUSE_US); /* of many removals in a row one is seen to */
		}
		pthread_mutex_lock(&p->lock);
	}
	return NULL;
}

/* Started when it is needed; takes no signals. */
static int thread_start_locked(struct zc_pins *p)
{
	sigset_t every, old;
	pthread_t thread;
	if (p->started)
		return 0;
	sigfillset(&every);
	pthread_sigmask(SIG_SETMASK, &every, &old);
	int err = pthread_create(&thread, NULL, pins_run, p->s);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	p->started = !err;
	return -err;
}

static void queue_locked(struct zc_pins *p, struct zc_pin *pin)
{
	if (pin->busy || pin->queued)
		return;
	int err = thread_start_locked(p);
	if (err) {
		refuse_locked(p, pin, err);
		return;
	}
	set_state(p, pin, LOADING);
	pin->queued = true;
	TAILQ_INSERT_TAIL(&p->queue, pin, queue);
	pthread_cond_signal(&p->work);
}

/* Opens ------------------------------------------------------------------------------------ */

/* The kernel tells us of a close after close(2) has returned: who has just read the file may still
 * count as a reader. Both locks are held, and given up; false: it has taken too long. */
static bool wait_unread(struct zc_session *s, const struct zc_inode *inode,
			const struct timespec *end)
{
	pthread_mutex_unlock(zc_inode_lock(s->inodes, inode));
	int err = pthread_cond_timedwait(&s->pins->done, &s->pins->lock, end);
	pthread_mutex_unlock(&s->pins->lock);
	return err != ETIMEDOUT;
}

/* Both locks, once nobody has the file open pinned, or it has taken too long. */
static void lock_unread(struct zc_req *r, struct zc_inode *inode)
{
	struct timespec end;
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_nsec += RELEASE_MS * 1000000L;
	end.tv_sec += end.tv_nsec / 1000000000L;
	end.tv_nsec %= 1000000000L;
	lock_both(r->s, inode);
	if (open_pinned(inode)) {
		unlock_both(r->s, inode);
		zc_may_block(r->w);
		lock_both(r->s, inode);
	}
	for (bool wait = open_pinned(inode); wait; wait = wait && open_pinned(inode)) {
		wait = wait_unread(r->s, inode, &end);
		lock_both(r->s, inode);
	}
}

static int open_to_change(struct zc_req *r, struct zc_inode *inode)
{
	struct zc_session *s = r->s;
	int held = 0;
	lock_unread(r, inode);
	struct zc_pin *pin = inode->pin;
	if (open_pinned(inode)) {
		held = -ETXTBSY;
	} else if (pin) {
		held = ZC_PIN_HELD;
		pin->blocked++;
		if (pin->busy)
			atomic_store(&pin->stop, true);
		else
			unload_locked(s->pins, pin);
		set_state(s->pins, pin, WAITING);
	}
	unlock_both(s, inode);
	return held;
}

void zc_pin_opened(struct zc_session *s, struct zc_inode *inode)
{
	lock_both(s, inode);
	struct zc_pin *pin = inode->pin, *dead;
	pin->blocked--;
	dead = reap_locked(s->pins, pin);
	if (!dead && !pin->blocked && !inode->opened)
		queue_locked(s->pins, pin);
	unlock_both(s, inode);
	pin_free(s, dead);
}

enum step { DONE, WAIT, COMPARE };

/* The pin that a glob asks for. */
static struct zc_pin *wanted_locked(struct zc_session *s, struct zc_inode *inode)
{
	const struct zc_opened *o = inode->opened;
	if (s->pins->missing || !zc_policy_pins(inode) || atomic_load(&inode->unpinned) ||
	    (o && o->writers) || !zc_inode_hold(s->inodes, inode))
		return NULL;
	struct zc_pin *pin = pin_new_locked(s->pins, inode, NULL);
	if (!pin) { /* the kernel knows the inode: neither count ends here */
		zc_inode_forget(s->inodes, zc_inode_id(s->inodes, inode), 1);
		zc_inode_put(s->inodes, inode);
	}
	return pin;
}

/* Both locks. What an open for reading has to do next. */
static enum step next_step_locked(struct zc_session *s, struct zc_inode *inode, bool *open)
{
	const struct zc_opened *o = inode->opened;
	struct zc_pin *pin = inode->pin;
	*open = open_pinned(inode);
	if (!pin)
		pin = wanted_locked(s, inode);
	if (!pin)
		return DONE;
	if (*open)
		return pin->busy ? WAIT : COMPARE;
	if (pin->busy || pin->queued || pin->blocked || pin->gone || (o && o->writers))
		return DONE;
	return o && pin->state == PINNED ? DONE : COMPARE;
}

/* Both locks, with what the source is now. true: load it, here and now; the pin is busy. */
static bool must_load_locked(struct zc_session *s, struct zc_inode *inode, const struct statx *stx,
			     bool open)
{
	struct zc_pin *pin = inode->pin;
	if (!pin || pin->busy || pin->queued || pin->blocked || (pin->gone && !open) ||
	    open != open_pinned(inode) ||
	    (pin->state == PINNED && pin->digest == zc_told_of(stx)))
		return false;
	if (!fits_locked(s->pins, pin, stx->stx_size) && !open) {
		pin->size = stx->stx_size;
		refuse_locked(s->pins, pin, -ENOSPC);
		return false;
	}
	if (!open && stx->stx_size > SMALL) {
		queue_locked(s->pins, pin);
		return false;
	}
	pin->busy = true;
	return true;
}

/* A label for a pin that a glob made. */
static void name_it(struct zc_session *s, const struct zc_inode *inode, int fd)
{
	char path[PATH_MAX + 2];
	pthread_mutex_lock(&s->pins->lock);
	struct zc_pin *pin = inode->pin;
	if (pin && !pin->path) {
		if (zc_source_path(s, fd, path, PATH_MAX))
			snprintf(path, sizeof(path), "inode %llu", (unsigned long long)inode->ino);
		pin->path = strdup(path);
	}
	pthread_mutex_unlock(&s->pins->lock);
}

static int stat_source(struct zc_session *s, struct zc_inode *inode, struct statx *stx)
{
	ZC_FD(path);
	int err = zc_inode_fd(s->inodes, inode, &path);
	if (err)
		return err;
	name_it(s, inode, path.fd);
	return zc_stat_fd(path.fd, stx);
}

static void wait_loaded(struct zc_session *s, const struct zc_inode *inode)
{
	struct zc_pins *p = s->pins;
	const struct zc_pin *pin;
	pthread_mutex_lock(&p->lock);
	while ((pin = inode->pin) && pin->busy)
		pthread_cond_wait(&p->done, &p->lock);
	pthread_mutex_unlock(&p->lock);
}

/* Compares with the source, and loads it if it is to be loaded at once. ZC_PIN_FRESH: what is
 * pinned is the source's. */
static int compare(struct zc_req *r, struct zc_inode *inode, bool open)
{
	struct zc_session *s = r->s;
	struct statx stx;
	int err = stat_source(s, inode, &stx);
	lock_both(s, inode);
	struct zc_pin *pin = inode->pin, *dead = NULL;
	bool mine = !err && must_load_locked(s, inode, &stx, open);
	bool fresh = !err && !mine && pin && pin->state == PINNED && !pin->busy &&
		     pin->digest == zc_told_of(&stx);
	if (err && pin && !pin->busy && !open_pinned(inode))
		refuse_locked(s->pins, pin, err);
	if (!mine && pin)
		dead = reap_locked(s->pins, pin);
	unlock_both(s, inode);
	pin_free(s, dead);
	if (mine) {
		zc_may_block(r->w);
		err = load_and_tell(s, pin, false);
	}
	if (err)
		return open ? err : 0;
	return mine || fresh ? ZC_PIN_FRESH : 0;
}

static int open_to_read(struct zc_req *r, struct zc_inode *inode)
{
	struct zc_session *s = r->s;
	enum step step;
	bool open;
	do {
		lock_both(s, inode);
		step = next_step_locked(s, inode, &open);
		unlock_both(s, inode);
		if (step == WAIT) {
			zc_may_block(r->w);
			wait_loaded(s, inode);
		}
	} while (step == WAIT);
	int got = step == COMPARE ? compare(r, inode, open) : 0;
	if (got == -ENOSPC) /* more than there is room for: only when its readers have gone */
		return -ETXTBSY;
	/* changed while it was read: as whoever reads a file that is written to sees it */
	return got == -EAGAIN || got == -ECANCELED ? 0 : got;
}

int zc_pin_open(struct zc_req *r, struct zc_inode *inode, int flags)
{
	if (inode->fmt != S_IFREG || !r->s->pins ||
	    (!atomic_load_explicit(&inode->pin, memory_order_relaxed) && !zc_policy_pins(inode)))
		return 0;
	return zc_is_writer(flags) || flags & O_TRUNC ? open_to_change(r, inode)
						      : open_to_read(r, inode);
}

bool zc_pin_usable(struct zc_session *s, struct zc_inode *inode)
{
	if (!atomic_load(&inode->pin))
		return false;
	pthread_mutex_lock(&s->pins->lock);
	const struct zc_pin *pin = inode->pin;
	bool usable = pin->state == PINNED && !pin->busy && !pin->blocked && !pin->gone;
	pthread_mutex_unlock(&s->pins->lock);
	return usable;
}

int zc_pin_memfd(const struct zc_inode *inode)
{
	return inode->pin->memfd;
}

void zc_pin_unusable(struct zc_session *s, struct zc_inode *inode, int err)
{
	pthread_mutex_lock(&s->pins->lock);
	refuse_locked(s->pins, inode->pin, err);
	pthread_mutex_unlock(&s->pins->lock);
}

void zc_pin_closed(struct zc_session *s, struct zc_inode *inode)
{
	lock_both(s, inode);
	struct zc_pin *pin = inode->pin, *dead = NULL;
	pthread_cond_broadcast(&s->pins->done);
	if (pin && !inode->opened) {
		dead = reap_locked(s->pins, pin);
		if (!dead && pin->state == WAITING && !pin->blocked)
			queue_locked(s->pins, pin);
	}
	unlock_both(s, inode);
	pin_free(s, dead);
}

void zc_pins_removed(struct zc_session *s)
{
	struct zc_pins *p = s->pins;
	if (!p || !atomic_load(&p->files))
		return;
	pthread_mutex_lock(&p->lock);
	p->sweep = !thread_start_locked(p);
	pthread_cond_signal(&p->work);
	pthread_mutex_unlock(&p->lock);
}

/* By hand ---------------------------------------------------------------------------------- */

static void tell(const struct zc_pin *pin, zc_pin_visit visit, void *arg)
{
	bool leaving = pin->gone;
	struct zc_pin_info info = {
		.path = pin->path ? pin->path : "",
		.state = leaving ? "unpinning" : state_names[pin->state],
		.reason = leaving		 ? "open: goes at its last close"
			  : pin->state == REFUSED ? pin->reason
			  : pin->state == WAITING ? "open for writing: loaded after its last close"
						  : "",
		.size = pin->size,
		.loaded = atomic_load(&pin->loaded),
	};
	visit(arg, &info);
}

static void tell_path(const char *path, const char *state, const char *reason, zc_pin_visit visit,
		      void *arg)
{
	struct zc_pin_info info = {.path = path, .state = state, .reason = reason};
	visit(arg, &info);
}

/* An inode on the way to a path: a reference to it is ours, and perhaps a lookup. */
struct place {
	struct zc_inode *inode;
	bool lookup;
};

static void place_done(struct zc_session *s, const struct place *at)
{
	if (at->lookup)
		zc_inode_forget(s->inodes, zc_inode_id(s->inodes, at->inode), 1);
	zc_inode_put(s->inodes, at->inode);
}

/* Goes on to `name` in the directory `at`. */
static int place_next(struct zc_session *s, struct place *at, const char *name)
{
	struct statx stx;
	struct zc_inode *next;
	if (!*name || !strcmp(name, ".") || !strcmp(name, ".."))
		return -EINVAL;
	ZC_FD(dir);
	int err = at->inode->fmt == S_IFDIR ? zc_inode_fd(s->inodes, at->inode, &dir) : -ENOTDIR;
	if (!err)
		err = zc_inode_adopt_at(s->inodes, at->inode, dir.fd, name, &stx, &next);
	zc_fd_done(&dir); /* before the directory's reference goes */
	if (err)
		return err;
	place_done(s, at);
	*at = (struct place){next, true};
	return 0;
}

/* The regular file at `path`, with a lookup and a reference added. Follows no symbolic link. */
static int walk(struct zc_session *s, const char *path, struct zc_inode **out)
{
	char name[NAME_MAX + 1];
	struct place at = {zc_inode_get(s->inodes, FUSE_ROOT_ID), false};
	int err = 0;
	do {
		size_t len = strcspn(path, "/");
		err = len > NAME_MAX ? -ENAMETOOLONG : 0;
		if (!err) {
			memcpy(name, path, len);
			name[len] = '\0';
			err = place_next(s, &at, name);
		}
		path += len + (path[len] == '/');
	} while (!err && *path);
	if (!err && at.inode->fmt == S_IFREG) {
		*out = at.inode;
		return 0;
	}
	if (!err)
		err = at.inode->fmt == S_IFDIR	 ? -EISDIR
		      : at.inode->fmt == S_IFLNK ? -ELOOP
						 : -EINVAL;
	place_done(s, &at);
	return err;
}

/* Both locks. Takes the caller's hold of the inode if it makes a pin (`*taken`). */
static int pin_locked(struct zc_session *s, struct zc_inode *inode, const char *path,
		      const struct statx *stx, bool *taken)
{
	struct zc_pins *p = s->pins;
	struct zc_pin *pin = inode->pin;
	atomic_store(&inode->unpinned, false);
	*taken = !pin;
	if (!pin && !(pin = pin_new_locked(p, inode, path))) {
		*taken = false;
		return -ENOMEM;
	}
	pin->by_hand = true;
	pin->gone = false;
	if (pin->busy || pin->queued || pin->state == PINNED)
		return 0;
	pin->size = stx->stx_size;
	if (!fits_locked(p, pin, pin->size))
		refuse_locked(p, pin, -ENOSPC);
	else if (pin->blocked || (inode->opened && inode->opened->writers))
		set_state(p, pin, WAITING);
	else
		queue_locked(p, pin);
	return 0;
}

static void pin_path(struct zc_session *s, const char *path, struct zc_inode *inode,
		     zc_pin_visit visit, void *arg, bool *taken)
{
	struct statx stx;
	int err = stat_source(s, inode, &stx);
	if (!err) {
		lock_both(s, inode);
		err = pin_locked(s, inode, path, &stx, taken);
		if (!err)
			tell(inode->pin, visit, arg);
		unlock_both(s, inode);
	}
	if (err)
		tell_path(path, "refused", strerror(-err), visit, arg);
}

static void unpin_path(struct zc_session *s, const char *path, struct zc_inode *inode,
		       zc_pin_visit visit, void *arg)
{
	lock_both(s, inode);
	struct zc_pin *pin = inode->pin, *dead = NULL;
	atomic_store(&inode->unpinned, zc_policy_pins(inode));
	if (pin) {
		pin->gone = true;
		if (pin->busy && !open_pinned(inode))
			atomic_store(&pin->stop, true);
		dead = reap_locked(s->pins, pin);
	}
	if (pin && !dead && open_pinned(inode))
		tell(pin, visit, arg);
	else
		tell_path(path, pin ? "unpinned" : "refused", pin ? "" : "not pinned", visit, arg);
	unlock_both(s, inode);
	pin_free(s, dead);
}

static const char *walk_error(int err)
{
	return err == -ELOOP	? "a symbolic link: name the file itself"
	       : err == -EISDIR ? "a directory: name its files"
	       : err == -EINVAL ? "not a regular file below the mount"
				: strerror(-err);
}

void zc_pin_by_hand(struct zc_session *s, const char *path, bool pin, zc_pin_visit visit, void *arg)
{
	struct zc_inode *inode;
	bool taken = false;
	if (!s->pins || s->pins->missing) {
		tell_path(path, "refused", s->pins ? s->pins->missing : "no pins here", visit, arg);
		return;
	}
	int err = walk(s, path, &inode);
	if (err) {
		tell_path(path, "refused", walk_error(err), visit, arg);
		return;
	}
	if (pin)
		pin_path(s, path, inode, visit, arg, &taken);
	else
		unpin_path(s, path, inode, visit, arg);
	if (taken)
		return;
	zc_inode_forget(s->inodes, zc_inode_id(s->inodes, inode), 1);
	zc_inode_put(s->inodes, inode);
}

void zc_pins_each(struct zc_session *s, unsigned most, zc_pin_visit visit, void *arg,
		  struct zc_pins_totals *totals)
{
	struct zc_pins *p = s->pins;
	struct zc_pin *pin;
	*totals = (struct zc_pins_totals){0};
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	*totals = (struct zc_pins_totals){.limit = p->limit, .used = p->used, .files = p->files};
	TAILQ_FOREACH(pin, &p->all, all) {
		if (!most--)
			break;
		tell(pin, visit, arg);
	}
	pthread_mutex_unlock(&p->lock);
}

/* Beginning -------------------------------------------------------------------------------- */

/* An application's O_DIRECT must work on the backing file (Linux 6.6 and newer). */
static bool direct_works(void)
{
	ZC_CLOSE(memfd);
	ZC_CLOSE(again);
	memfd.fd = ZC_SYSI("memfd_create", memfd_create("zcfs-probe", MFD_CLOEXEC));
	if (memfd.fd < 0)
		return false;
	again.fd = ZC_SYSI("open", open(zc_link_of(memfd.fd).path,
					O_RDONLY | O_DIRECT | O_CLOEXEC));
	return again.fd >= 0;
}

static const char *missing(const struct zc_session *s)
{
	if (!s->privileged)
		return "needs passthrough, which is not permitted without CAP_SYS_ADMIN";
	if (!zc_has(s, FUSE_PASSTHROUGH))
		return "needs passthrough, which this kernel does not have (Linux 6.9 or newer)";
	return direct_works() ? NULL
			      : "a memfd cannot be opened with O_DIRECT here (Linux 6.6 or newer)";
}

int zc_pins_create(struct zc_session *s, uint64_t limit, struct zc_pins **out)
{
	struct zc_pins *p = calloc(1, sizeof(*p));
	long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
	if (!p)
		return -ENOMEM;
	p->s = s;
	p->limit = limit ? limit : (uint64_t)pages * (uint64_t)size / 4;
	p->missing = missing(s);
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->work, NULL);
	pthread_cond_init(&p->done, NULL);
	TAILQ_INIT(&p->all);
	TAILQ_INIT(&p->queue);
	if (p->missing && (zc_policy_names(&s->opt.policies, NULL) ||
			   zc_policy_names(&s->opt.policies, &zc_engine_pinned)))
		zc_degrade(s, "pin", "%s: files are not pinned", p->missing);
	*out = p;
	return 0;
}
