/* The session: the source and its private mount, the INIT handshake, the queues, the end.
 *
 * The order matters: the source is opened before the mount exists (a mount point below the source
 * would lead into ourselves), INIT is answered before any worker runs, and nothing of this process
 * ever touches the mount itself.
 */
#include <linux/mount.h>
#include <liburing.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "internal.h"
#include "session.h"
#include "sys.h"

#define THREADS_PER_QUEUE 256u
/* With a pool the memory of requests is bounded: that of a WRITE is in use until it is on the disk. */
#define POOL_MAX_WRITE (256u << 10)
#define POOL_THREADS 160u /* of all queues that serve data */
#define POOL_THREADS_LEAST 8u
#define READ_AHEAD_KB 2048
#define RESERVED_FDS 64u /* rings, sockets, requests under way */

void zc_degrade(struct zc_session *s, const char *what, const char *fmt, ...)
{
	char reason[sizeof(s->degr[0].reason)];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(reason, sizeof(reason), fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&s->degr_lock);
	bool known = s->degr_count == ZC_MAX_DEGRADATIONS;
	for (unsigned i = 0; i < s->degr_count; i++)
		known |= !strcmp(s->degr[i].what, what) && !strcmp(s->degr[i].reason, reason);
	if (!known) {
		snprintf(s->degr[s->degr_count].what, sizeof(s->degr[0].what), "%s", what);
		memcpy(s->degr[s->degr_count++].reason, reason, sizeof(reason));
	}
	pthread_mutex_unlock(&s->degr_lock);
	if (!known)
		zc_log("%s: %s", what, reason);
}

void zc_session_end(struct zc_session *s)
{
	uint64_t one = 1;
	if (!atomic_exchange(&s->ended, true) && write(s->end_efd, &one, sizeof(one)) < 0)
		zc_log("the end cannot be told: %s", strerror(errno));
}

static int notify(struct zc_session *s, enum fuse_notify_code code, void *body, uint32_t size)
{
	struct fuse_out_header h = {.len = (uint32_t)sizeof(h) + size, .error = code};
	struct iovec iov[2] = {{&h, sizeof(h)}, {body, size}};
	return ZC_SYSI("writev", writev(s->fd, iov, 2));
}

static void notify_inval(struct zc_session *s, uint64_t nodeid, int64_t off)
{
	struct fuse_notify_inval_inode_out n = {.ino = nodeid, .off = off};
	(void)notify(s, FUSE_NOTIFY_INVAL_INODE, &n, sizeof(n)); /* -ENOENT: it holds none */
}

void zc_notify_inval_attr(struct zc_session *s, uint64_t nodeid)
{
	notify_inval(s, nodeid, -1);
}

void zc_notify_inval_data(struct zc_session *s, uint64_t nodeid)
{
	notify_inval(s, nodeid, 0);
}

void zc_notify_echo(struct zc_session *s)
{
	static _Atomic uint64_t echoes; /* bit 63 tells its ids from the kernel's own; even, as they are */
	struct fuse_notify_retrieve_out n = {.notify_unique = 1ULL << 63 | atomic_fetch_add(&echoes, 2)};
	uint64_t known = atomic_load(&s->echo_nodeid);
	for (unsigned tries = 0; tries < 8; tries++) { /* one may be forgotten, and we not know yet */
		n.nodeid = known = zc_inode_next_file(s->inodes, known);
		if (!known || notify(s, FUSE_NOTIFY_RETRIEVE, &n, sizeof(n)) >= 0)
			break;
		known++;
	}
	atomic_store(&s->echo_nodeid, known);
}

/* the source ------------------------------------------------------------------------------- */

/* A mount of the source of our own: no device or set-id file works through it, and with
 * --read-only neither writes nor access times reach the source, whoever asks. */
static int private_mount(struct zc_session *s)
{
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID,
				  .propagation = 1UL << 18 /* MS_PRIVATE */};
	if (s->opt.read_only) {
		attr.attr_set |= MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME;
		attr.attr_clr |= MOUNT_ATTR__ATIME;
	}
	int fd = ZC_SYSI("open_tree", syscall(SYS_open_tree, AT_FDCWD, s->opt.source,
					      OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
	if (fd < 0)
		return fd;
	int err = ZC_SYSI("mount_setattr", syscall(SYS_mount_setattr, fd, "",
						   AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr)));
	if (err) {
		close(fd);
		return err;
	}
	return fd;
}

/* What the source's own mount forbids, ours forbids. */
static void inherit_flags(struct zc_options *o)
{
	struct statvfs st;
	if (!statvfs(o->source, &st)) /* ST_ and MS_ have the same values here */
		o->mount_flags |= st.f_flag & (ST_NOSUID | ST_NODEV | ST_NOEXEC);
}

int zc_source_open(struct zc_session *s)
{
	inherit_flags(&s->opt);
	s->tree_fd = s->privileged ? private_mount(s) : -EPERM;
	if (s->tree_fd < 0 && (s->privileged || s->opt.read_only))
		zc_degrade(s, "private-mount", "the source is used as it is mounted (%s)%s",
			   strerror(-s->tree_fd),
			   s->opt.read_only ? ": reading may update access times" : "");
	s->source_fd = s->tree_fd >= 0
			       ? ZC_SYSI("openat", openat(s->tree_fd, ".",
							  O_RDONLY | O_DIRECTORY | O_CLOEXEC))
			       : ZC_SYSI("open", open(s->opt.source,
						      O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	if (s->source_fd < 0)
		return s->source_fd;
	struct rlimit lim = {.rlim_cur = 1024};
	getrlimit(RLIMIT_NOFILE, &lim);
	if (lim.rlim_cur < lim.rlim_max) {
		lim.rlim_cur = lim.rlim_max;
		setrlimit(RLIMIT_NOFILE, &lim);
	}
	unsigned cache = lim.rlim_cur / 4 < 4096 ? (unsigned)lim.rlim_cur / 4 : 4096;
	unsigned rest = lim.rlim_cur < INT_MAX ? (unsigned)lim.rlim_cur - cache : INT_MAX;
	s->open_fds_most = (int)(rest > 2 * RESERVED_FDS ? rest - RESERVED_FDS : RESERVED_FDS);
	return zc_inodes_create(s->source_fd, cache, s->privileged, &s->inodes);
}

/* INIT ------------------------------------------------------------------------------------- */

static uint64_t wanted_features(const struct zc_session *s)
{
	uint64_t want = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES |
			FUSE_HAS_IOCTL_DIR | FUSE_DO_READDIRPLUS |
			FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS |
			FUSE_ABORT_ERROR | FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS | FUSE_EXPLICIT_INVAL_DATA | FUSE_SETXATTR_EXT | FUSE_INIT_EXT |
			FUSE_HAS_EXPIRE_ONLY | FUSE_DIRECT_IO_ALLOW_MMAP;
	if (!strcmp(s->opt.locks, "source"))
		want |= FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS;
	want |= FUSE_POSIX_ACL | FUSE_DONT_MASK;
	if (s->privileged)
		want |= FUSE_HANDLE_KILLPRIV_V2 | FUSE_CREATE_SUPP_GROUP;
	if (s->privileged) /* whatever the engine: files may be pinned */
		want |= FUSE_PASSTHROUGH;
	if (s->transport == &zc_transport_uring)
		want |= FUSE_OVER_IO_URING;
	return want;
}

static bool registers_source(const struct zc_session *s)
{
	return (strcmp(s->opt.engine, "buffered") && strcmp(s->opt.engine, "pool")) ||
	       zc_policy_names(&s->opt.policies, &zc_engine_kernel);
}

/* Files on a filesystem that stacks on another need one level more. */
static uint32_t stack_depth(const struct zc_session *s)
{
	struct statfs st;
	if (!registers_source(s) || fstatfs(s->source_fd, &st))
		return 1;
	switch ((unsigned long)st.f_type) {
	case 0x794c7630: /* overlayfs */
	case 0xf15f:	 /* ecryptfs */
	case 0x65735546: /* FUSE */
		return 2;
	default:
		return 1;
	}
}

/* Before Linux 5.17 the message ends after the first word of flags. */
static uint64_t offered_features(const struct fuse_init_in *in)
{
	return in->flags | (in->flags & FUSE_INIT_EXT ? (uint64_t)in->flags2 << 32 : 0);
}

/* What is spliced must fit a pipe of 1 MiB, the most that is granted to us, with its header. */
static bool splices(const struct zc_session *s)
{
	return s->transport == &zc_transport_dev &&
	       (zc_splice_always(s) || (s->engine == &zc_engine_buffered && !zc_splice_never(s)));
}

static void answer_init(struct zc_session *s, const struct fuse_init_in *in,
			struct fuse_init_out *out)
{
	s->kernel_minor = in->minor < FUSE_MINOR ? in->minor : FUSE_MINOR;
	s->features = offered_features(in) & wanted_features(s);
	uint32_t most = splices(s) ? ZC_MAX_WRITE / 2 : ZC_MAX_WRITE;
	s->max_write = s->pool ? POOL_MAX_WRITE : most;
	*out = (struct fuse_init_out){
		.major = FUSE_MAJOR,
		.minor = FUSE_MINOR,
		.max_readahead = in->max_readahead,
		.flags = (uint32_t)s->features,
		.flags2 = (uint32_t)(s->features >> 32),
		.max_background = 256,
		.congestion_threshold = 192,
		.max_write = s->max_write,
		.max_pages = (uint16_t)(most / 4096),
		.time_gran = 1,
		.max_stack_depth = zc_has(s, FUSE_PASSTHROUGH) ? stack_depth(s) : 0,
	};
}

static void choose_engine(struct zc_session *s, uint64_t offered)
{
	s->engine = &zc_engine_buffered;
	if (!strcmp(s->opt.engine, "buffered"))
		return;
	if (!strcmp(s->opt.engine, "pool")) {
		s->engine = &zc_engine_pool;
		return;
	}
	if (!s->privileged)
		zc_degrade(s, "passthrough", "not permitted without CAP_SYS_ADMIN: "
			   "files are served through the daemon");
	else if (!(offered & FUSE_PASSTHROUGH))
		zc_degrade(s, "passthrough", "this kernel has none (Linux 6.9 or newer needed): "
			   "files are served through the daemon");
	else
		s->engine = &zc_engine_kernel;
}

/* The kernel splits or drops longer reads itself: short buffers give EINVAL. */
int zc_session_init(struct zc_session *s)
{
	static char buf[FUSE_BUFFER_HEADER_SIZE + 8192] __attribute__((aligned(8)));
	struct {
		struct fuse_out_header h;
		struct fuse_init_out init;
	} out = {.h = {.len = sizeof(out)}};
	ssize_t n;
	do
		n = ZC_SYS("read", read(s->fd, buf, sizeof(buf)));
	while (n == -EINTR || n == -EAGAIN);
	const struct fuse_in_header *h = (const void *)buf;
	const struct fuse_init_in *in = (const void *)(h + 1);
	if (n < 0)
		return (int)n;
	if ((size_t)n < sizeof(*h) + 16 || h->opcode != FUSE_INIT || in->major != FUSE_MAJOR ||
	    in->minor < FUSE_MINOR_LEAST)
		return -EPROTO;
	out.h.unique = h->unique;
	choose_engine(s, offered_features(in));
	answer_init(s, in, &out.init);
	if (s->engine != &zc_engine_kernel && !zc_has(s, FUSE_PASSTHROUGH) &&
	    zc_policy_names(&s->opt.policies, &zc_engine_kernel))
		zc_degrade(s, "policy", "there is no passthrough: files of the kernel engine are "
			   "served by the %s engine", s->engine->name);
	n = ZC_SYS("write", write(s->fd, &out, sizeof(out)));
	return n < 0 ? (int)n : 0;
}

/* transports ------------------------------------------------------------------------------- */

/* How many queues the kernel will have, or 0 if it does not say. The file has ranges: "0-3,8-11". */
static unsigned possible_cpus(void)
{
	unsigned last = 0, n;
	FILE *f = fopen("/sys/devices/system/cpu/possible", "re");
	if (!f)
		return 0;
	bool any = false;
	while (fscanf(f, "%*[,-]"), fscanf(f, "%u", &n) == 1) {
		last = n;
		any = true;
	}
	fclose(f);
	return any ? last + 1 : 0;
}

/* Why FUSE over io_uring is not to be had, or NULL. */
static const char *uring_missing(void)
{
	char on = 'N';
	int fd = open("/sys/module/fuse/parameters/enable_uring", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return "this kernel has none (Linux 6.14 or newer needed)";
	if (read(fd, &on, 1) != 1)
		on = 'N';
	close(fd);
	if (on != 'Y' && on != '1')
		return "switched off (echo Y > /sys/module/fuse/parameters/enable_uring)";
	if (!possible_cpus())
		return "the number of CPUs cannot be read from /sys";
	struct io_uring ring;
	struct io_uring_params p = {.flags = IORING_SETUP_SQE128};
	if (io_uring_queue_init_params(4, &ring, &p))
		return "io_uring is forbidden here";
	io_uring_queue_exit(&ring);
	return NULL;
}

void zc_choose_transport(struct zc_session *s)
{
	s->transport = &zc_transport_dev;
	if (!strcmp(s->opt.transport, "dev"))
		return;
	if (zc_splice_always(s) && strcmp(s->opt.transport, "uring"))
		return;
	const char *missing = s->privileged ? uring_missing() : "needs root";
	if (!missing)
		s->transport = &zc_transport_uring;
	else if (!strcmp(s->opt.transport, "uring"))
		zc_degrade(s, "io_uring transport", "%s", missing);
	if (!missing && zc_splice_always(s))
		zc_degrade(s, "splice", "FUSE over io_uring copies: nothing is spliced");
}

/* `of`: queues that serve data. */
static unsigned threads_most(const struct zc_session *s, unsigned of)
{
	unsigned share = POOL_THREADS / of;
	if (!s->pool)
		return THREADS_PER_QUEUE;
	return share > POOL_THREADS_LEAST ? share : POOL_THREADS_LEAST;
}

static int queue_setup(struct zc_session *s, const struct zc_transport *t, unsigned index,
		       unsigned max)
{
	struct zc_queue *q = &s->queues[s->queue_count];
	uint32_t fd = (uint32_t)s->fd;
	*q = (struct zc_queue){.s = s, .transport = t, .index = index, .max = max};
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->unpark, NULL);
	q->fd = s->fd;
	if (t == &zc_transport_dev) {
		int clone = ZC_SYSI("open", open("/dev/fuse", O_RDWR | O_CLOEXEC));
		if (clone >= 0 && ioctl(clone, FUSE_DEV_IOC_CLONE, &fd)) {
			close(clone);
			clone = -1;
		}
		if (clone >= 0)
			q->fd = clone;
	}
	s->queue_count++;
	return 0;
}

/* io_uring wants a queue on every possible CPU; one thread more than needed stands by on each, so
 * that a thread that blocks needs to wake nobody. */
int zc_session_start(struct zc_session *s)
{
	unsigned uring = zc_has(s, FUSE_OVER_IO_URING) ? possible_cpus() : 0;
	if (s->transport == &zc_transport_uring && !uring) {
		zc_degrade(s, "io_uring transport", "the kernel did not offer it");
		s->transport = &zc_transport_dev;
	}
	s->queues = calloc((size_t)uring + 1, sizeof(*s->queues));
	if (!s->queues)
		return -ENOMEM;
	unsigned max = threads_most(s, uring ? uring : 1);
	int err = queue_setup(s, &zc_transport_dev, 0, max);
	for (unsigned i = 0; !err && i < uring; i++)
		err = queue_setup(s, &zc_transport_uring, i, max);
	for (unsigned i = 0; !err && i < s->queue_count; i++)
		err = zc_queue_start(&s->queues[i], i || !uring ? s->opt.threads : 1);
	return err;
}

void zc_read_ahead(const struct zc_session *s)
{
	char path[64];
	snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", s->dev_major, s->dev_minor);
	FILE *f = fopen(path, "we");
	if (!f)
		return;
	fprintf(f, "%d\n", READ_AHEAD_KB);
	fclose(f);
}
