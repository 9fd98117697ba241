/* libzcfs-client (zcfs_client.h): the client's side of the lease protocol (lease_wire.h).
 *
 * Owns connections and mappings of arenas. Each client has a lock: one request is under way at a
 * time, and the count of its leases is exact. The connection ends when the client was closed and
 * nothing is leased, for then nobody needs it; its memory when the caller has let go of the
 * address, too.
 *
 * Forks: the child has the memory and the descriptors, and must use neither the connection, which
 * is the parent's, nor keep it open, for the leases end with it. So in the child, before anything
 * else runs, all connections are closed, and every call fails. The lock of a client may be held
 * there by a thread that does not exist: it is not taken.
 *
 * The library stands alone: it is for other people's programs, and takes nothing from the daemon
 * but lease_wire.h.
 */
#include "zcfs_client.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../lease_wire.h"
#include "find.h"

#define HELLO_SECONDS 5
#define ARENA_ALIGN ((uint64_t)2 << 20)
#define REPLY_SECONDS 60 /* a disk that takes longer for a batch counts as gone */

struct zcfs_client {
	struct zcfs_client *next, **link; /* in the list of all, under its lock */
	pthread_mutex_t lock;
	_Atomic bool forked;
	bool closed, freed;
	int fd; /* -1: no connection any more */
	const unsigned char *arena;
	uint64_t arena_size, page_limit, leases;
	uint32_t frame_size;
	char mountpoint[PATH_MAX];
};

/* Messages --------------------------------------------------------------------------------- */

static _Thread_local char message[PATH_MAX + 400];

const char *zcfs_client_message(void)
{
	return message;
}

/* Returns `err`. */
__attribute__((format(printf, 2, 3))) static int fail(int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(message, sizeof(message), fmt, ap);
	va_end(ap);
	return err;
}

/* Forks ------------------------------------------------------------------------------------ */

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static struct zcfs_client *all;

static void before_fork(void)
{
	pthread_mutex_lock(&all_lock);
}

static void in_parent(void)
{
	pthread_mutex_unlock(&all_lock);
}

static void in_child(void)
{
	for (struct zcfs_client *c = all; c; c = c->next) {
		atomic_store(&c->forked, true);
		if (c->fd >= 0)
			close(c->fd);
	}
	all = NULL;
	pthread_mutex_unlock(&all_lock);
}

static void watch_forks(void)
{
	pthread_atfork(before_fork, in_parent, in_child);
}

static void list_enter(struct zcfs_client *c)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, watch_forks);
	pthread_mutex_lock(&all_lock);
	c->next = all;
	c->link = &all;
	if (all)
		all->link = &c->next;
	all = c;
	pthread_mutex_unlock(&all_lock);
}

static void list_leave(struct zcfs_client *c)
{
	pthread_mutex_lock(&all_lock);
	*c->link = c->next;
	if (c->next)
		c->next->link = c->link;
	pthread_mutex_unlock(&all_lock);
}

/* The end of a client ---------------------------------------------------------------------- */

/* Under the lock. The list's lock as well, so that a child closes no descriptor that is another's
 * by then. */
static void disconnect(struct zcfs_client *c)
{
	pthread_mutex_lock(&all_lock);
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	pthread_mutex_unlock(&all_lock);
}

static void unmap(struct zcfs_client *c)
{
	if (c->arena)
		munmap((void *)(uintptr_t)c->arena, c->arena_size);
	c->arena = NULL;
}

static void destroy(struct zcfs_client *c)
{
	disconnect(c);
	unmap(c);
	pthread_mutex_destroy(&c->lock);
	free(c);
}

/* Takes the lock off, and ends what nobody needs any more. */
static void unlock(struct zcfs_client *c)
{
	bool last = c->closed && !c->leases, freed = c->freed;

	if (last) {
		disconnect(c);
		unmap(c);
	}
	pthread_mutex_unlock(&c->lock);
	if (last && freed) {
		list_leave(c);
		destroy(c);
	}
}

/* False: the child of a fork; nothing is locked. */
static bool lock(struct zcfs_client *c)
{
	if (atomic_load(&c->forked))
		return false;
	pthread_mutex_lock(&c->lock);
	return true;
}

void zcfs_client_close(struct zcfs_client *c)
{
	if (!lock(c))
		return;
	c->closed = true;
	unlock(c);
}

void zcfs_client_free(struct zcfs_client *c)
{
	if (!c || !lock(c))
		return;
	c->closed = c->freed = true;
	unlock(c);
}

/* Attaching -------------------------------------------------------------------------------- */

static int no_place(int err, const char *mountpoint, const struct zcfs_place *at)
{
	switch (err) {
	case -ENODEV:
		return fail(err, "%s: no mount of zcfs", mountpoint);
	case -EACCES:
		return fail(err, "%s: only root and user %u, who mounted it, may borrow pages: "
			    "they come from all files; read through the mount", mountpoint,
			    (unsigned)at->owner);
	case -EOPNOTSUPP:
		return fail(err, "%s: the mount has no pool (mount it with --engine pool)",
			    mountpoint);
	case -ENOTCONN:
		return fail(err, "%s: its daemon is dead; mountctl umount cleans up", mountpoint);
	default:
		return fail(err, "%s: %s", mountpoint, strerror(-err));
	}
}

/* Only the mount's owner and root are believed. */
static int check_peer(int fd, const struct zcfs_place *at)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len))
		return -errno;
	if (peer.uid && peer.uid != at->owner)
		return fail(-EACCES, "%s: somebody else's socket, not the daemon's", at->path);
	return 0;
}

static int set_patience(int fd, int seconds)
{
	struct timeval t = {.tv_sec = seconds};

	return setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)) ||
	       setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t)) ? -errno : 0;
}

/* The client's socket: from here on a child closes it. */
static int open_socket(struct zcfs_client *c)
{
	int err = 0;

	pthread_mutex_lock(&all_lock);
	c->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		err = -errno;
	pthread_mutex_unlock(&all_lock);
	return err ? err : set_patience(c->fd, HELLO_SECONDS);
}

/* Connects; the daemon may still refuse. */
static int dial(struct zcfs_client *c, const struct zcfs_place *at)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int err = open_socket(c);

	memcpy(addr.sun_path, at->path, sizeof(addr.sun_path));
	if (!err && connect(c->fd, (struct sockaddr *)&addr, sizeof(addr)))
		err = errno == ECONNREFUSED || errno == ENOENT ? -ENOTCONN : -errno;
	return err ? no_place(err, at->mountpoint, at) : check_peer(c->fd, at);
}

/* The descriptor that came with a message, or -1. */
static int descriptor_of(struct msghdr *m)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(m);
	int fd = -1;

	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
	    c->cmsg_len == CMSG_LEN(sizeof(fd)))
		memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	return fd;
}

/* Returns the arena's descriptor. */
static int receive_hello(int fd, const char *mountpoint, struct zc_lease_hello *hello)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {hello, sizeof(*hello)};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			   .msg_controllen = sizeof(control)};
	ssize_t n;
	int arena;

	do
		n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return fail(-ETIMEDOUT, "%s: its daemon does not answer", mountpoint);
	if (n <= 0)
		return fail(-ENOTCONN, "%s: its daemon hung up", mountpoint);
	arena = descriptor_of(&m);
	if (n == sizeof(*hello) && hello->magic == ZC_LEASE_MAGIC &&
	    hello->version == ZC_LEASE_VERSION && (hello->error < 0 || arena >= 0)) {
		hello->text[sizeof(hello->text) - 1] = 0;
		if (!hello->error)
			return arena;
		fail(hello->error, "%s: %s", mountpoint, hello->text);
	} else {
		hello->error = fail(-EPROTO, "%s: its daemon speaks another version of the lease "
				    "protocol than %u", mountpoint, ZC_LEASE_VERSION);
	}
	if (arena >= 0)
		close(arena);
	return hello->error;
}

/* Maps the arena, at an address that is aligned as its pages are, and as huge pages are. */
static void *map_arena(int arena, uint64_t size)
{
	uint64_t room = size + ARENA_ALIGN;
	unsigned char *at = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
				 -1, 0);
	uint64_t skip;
	void *mapped;

	if (at == MAP_FAILED)
		return at;
	skip = -(uintptr_t)at & (ARENA_ALIGN - 1);
	mapped = mmap(at + skip, size, PROT_READ, MAP_SHARED | MAP_FIXED, arena, 0);
	if (mapped == MAP_FAILED) {
		int err = errno;

		munmap(at, room);
		errno = err;
		return mapped;
	}
	if (skip)
		munmap(at, skip);
	if (skip < ARENA_ALIGN)
		munmap(at + skip + size, ARENA_ALIGN - skip);
	return mapped;
}

/* Hears the hello and maps the arena. */
static int greet(struct zcfs_client *c)
{
	struct zc_lease_hello hello;
	int arena = receive_hello(c->fd, c->mountpoint, &hello);
	void *at;
	int err;

	if (arena < 0)
		return arena;
	at = map_arena(arena, hello.arena);
	err = at == MAP_FAILED ? -errno : set_patience(c->fd, REPLY_SECONDS);
	close(arena);
	if (at == MAP_FAILED)
		return fail(err, "%s: its pool cannot be mapped: %s", c->mountpoint,
			    strerror(-err));
	c->arena = at;
	c->arena_size = hello.arena;
	c->page_limit = hello.page_limit;
	c->frame_size = hello.frame_size;
	return err;
}

int zcfs_client_attach(const char *mountpoint, struct zcfs_client **out)
{
	struct zcfs_client *c;
	struct zcfs_place at;
	int err = zcfs_find(mountpoint, &at);

	if (err)
		return no_place(err, mountpoint, &at);
	c = calloc(1, sizeof(*c));
	if (!c)
		return fail(-ENOMEM, "out of memory");
	c->fd = -1;
	strcpy(c->mountpoint, at.mountpoint);
	pthread_mutex_init(&c->lock, NULL);
	list_enter(c);
	err = dial(c, &at);
	if (!err)
		err = greet(c);
	if (err) {
		list_leave(c);
		destroy(c);
		return err;
	}
	*out = c;
	return 0;
}

/* Requests --------------------------------------------------------------------------------- */

struct answer {
	struct zc_lease_reply head;
	struct zc_lease_page pages[ZC_LEASE_BATCH];
};

static int gone(struct zcfs_client *c, int err)
{
	disconnect(c);
	if (err == -EAGAIN)
		return fail(-ETIMEDOUT, "%s: its daemon does not answer", c->mountpoint);
	if (err == -EPROTO)
		return fail(err, "%s: its daemon sent nonsense", c->mountpoint);
	return fail(-ENOTCONN, "%s: its daemon has gone", c->mountpoint);
}

/* Under the lock. */
static int send_request(struct zcfs_client *c, const struct zc_lease_request *r, const void *data,
			size_t len)
{
	struct iovec iov[2] = {{(void *)(uintptr_t)r, sizeof(*r)}, {(void *)(uintptr_t)data, len}};
	struct msghdr m = {.msg_iov = iov, .msg_iovlen = 2};
	ssize_t n;

	if (c->fd < 0)
		return gone(c, -ENOTCONN);
	do
		n = sendmsg(c->fd, &m, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? gone(c, -errno) : 0;
}

/* Under the lock. */
static int receive_answer(struct zcfs_client *c, const struct zc_lease_request *r,
			  struct answer *answer)
{
	size_t want = sizeof(answer->head);
	ssize_t n;

	do
		n = recv(c->fd, answer, sizeof(*answer), MSG_TRUNC);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return gone(c, n < 0 ? -errno : -ENOTCONN);
	if (r->op == ZC_LEASE_PAGES && (size_t)n >= want && !answer->head.error)
		want += r->count * sizeof(*answer->pages);
	if ((size_t)n != want || answer->head.op != r->op)
		return gone(c, -EPROTO);
	return answer->head.error;
}

static int is_closed(void)
{
	return fail(-ESHUTDOWN, "the client is closed");
}

/* Under the lock. */
static int transact(struct zcfs_client *c, const struct zc_lease_request *r, const void *data,
		    size_t len, struct answer *answer)
{
	int err = c->closed ? is_closed() : send_request(c, r, data, len);

	return err ? err : receive_answer(c, r, answer);
}

static const char *why_not_open(int err)
{
	switch (err) {
	case -EINVAL:
		return "a page size is a power of two from 4096 to 65536, and a path is below the "
		       "root of the mount, without . and ..";
	case -EOPNOTSUPP:
		return "only regular files of the source have pages";
	case -ELOOP:
		return "symbolic links are not followed";
	case -EMFILE:
		return "too many files are open for leases; close some";
	default:
		return strerror(-err);
	}
}

int zcfs_client_open(struct zcfs_client *c, const char *path, uint32_t page_size,
		     struct zcfs_client_file *out)
{
	size_t len = strlen(path);
	struct zc_lease_request r = {.op = ZC_LEASE_OPEN, .count = (uint32_t)len, .arg = page_size};
	struct answer answer;
	int err;

	if (!len || len > ZC_LEASE_PATH)
		return fail(len ? -ENAMETOOLONG : -ENOENT, "a path of %zu bytes", len);
	if (!lock(c))
		return is_closed();
	err = transact(c, &r, path, len, &answer);
	if (err && c->fd >= 0 && !c->closed)
		fail(err, "%s/%s: %s", c->mountpoint, path, why_not_open(err));
	unlock(c);
	if (!err)
		*out = (struct zcfs_client_file){.number = answer.head.file,
						 .page_size = answer.head.page_size,
						 .size = answer.head.size};
	return err;
}

/* A request about a file that has nothing more to it. */
static int ask(struct zcfs_client *c, const struct zcfs_client_file *file, uint32_t op,
	       struct answer *answer)
{
	struct zc_lease_request r = {.op = op, .file = file->number};
	int err;

	if (!lock(c))
		return is_closed();
	err = transact(c, &r, NULL, 0, answer);
	if (err && c->fd >= 0 && !c->closed)
		fail(err, "%s: file %u: %s", c->mountpoint, file->number, strerror(-err));
	unlock(c);
	return err;
}

int zcfs_client_close_file(struct zcfs_client *c, const struct zcfs_client_file *file)
{
	struct answer answer;

	return ask(c, file, ZC_LEASE_CLOSE, &answer);
}

int64_t zcfs_client_file_size(struct zcfs_client *c, const struct zcfs_client_file *file)
{
	struct answer answer;
	int err = ask(c, file, ZC_LEASE_SIZE, &answer);

	return err ? err : (int64_t)answer.head.size;
}

/* Leases ----------------------------------------------------------------------------------- */

/* Returns how many of them are leased; -EPROTO: one is not in the arena. */
static int take_pages(struct zcfs_client *c, const struct zcfs_client_file *file,
		      const struct zc_lease_page *pages, uint32_t count, struct zcfs_lease *out)
{
	int got = 0;

	for (uint32_t i = 0; i < count; i++) {
		const struct zc_lease_page *p = &pages[i];

		out[i] = (struct zcfs_lease){.error = p->lease};
		if (p->lease < 0)
			continue;
		if (p->offset > c->arena_size || c->arena_size - p->offset < file->page_size ||
		    p->valid > file->page_size)
			return -EPROTO;
		out[i] = (struct zcfs_lease){.data = c->arena + p->offset, .version = p->version,
					     .valid = p->valid, .id = (uint32_t)p->lease};
		got++;
	}
	return got;
}

/* At most a batch, under the lock. On failure all of them have its error. */
static int lease_batch(struct zcfs_client *c, const struct zcfs_client_file *file,
		       const uint64_t *numbers, uint32_t count, struct zcfs_lease *out)
{
	struct zc_lease_request r = {.op = ZC_LEASE_PAGES, .file = file->number, .count = count};
	struct answer answer;
	int got = transact(c, &r, numbers, count * sizeof(*numbers), &answer);

	if (!got) {
		got = take_pages(c, file, answer.pages, count, out);
		if (got >= 0)
			return got;
		got = gone(c, got);
	} else if (c->fd >= 0 && !c->closed) {
		fail(got, "%s: file %u: %s", c->mountpoint, file->number, strerror(-got));
	}
	for (uint32_t i = 0; i < count; i++)
		out[i] = (struct zcfs_lease){.error = got};
	return got;
}

int64_t zcfs_client_lease(struct zcfs_client *c, const struct zcfs_client_file *file,
			  const uint64_t *numbers, size_t count, struct zcfs_lease *leases)
{
	int64_t got = 0;
	int err = 0;

	if (!lock(c))
		return is_closed();
	for (size_t i = 0; i < count; i += ZC_LEASE_BATCH) {
		uint32_t n = count - i < ZC_LEASE_BATCH ? (uint32_t)(count - i) : ZC_LEASE_BATCH;
		int more = lease_batch(c, file, numbers + i, n, leases + i);

		err = more < 0 ? more : err;
		got += more > 0 ? more : 0;
	}
	c->leases += (uint64_t)got;
	unlock(c);
	return got ? got : err;
}

/* Ends the leases that there are among at most a batch, under the lock. */
static void release_batch(struct zcfs_client *c, struct zcfs_lease *leases, size_t count)
{
	struct zc_lease_request r = {.op = ZC_LEASE_RELEASE};
	uint32_t ids[ZC_LEASE_BATCH];

	for (size_t i = 0; i < count; i++) {
		if (!leases[i].data)
			continue;
		ids[r.count++] = leases[i].id;
		leases[i].data = NULL;
	}
	c->leases -= r.count;
	if (r.count && c->fd >= 0)
		send_request(c, &r, ids, r.count * sizeof(*ids));
}

void zcfs_client_release(struct zcfs_client *c, struct zcfs_lease *leases, size_t count)
{
	if (!lock(c))
		return;
	for (size_t i = 0; i < count; i += ZC_LEASE_BATCH) {
		size_t n = count - i < ZC_LEASE_BATCH ? count - i : ZC_LEASE_BATCH;

		release_batch(c, leases + i, n);
	}
	unlock(c);
}

void zcfs_client_info(struct zcfs_client *c, struct zcfs_client_info *out)
{
	*out = (struct zcfs_client_info){0};
	if (!lock(c))
		return;
	*out = (struct zcfs_client_info){
		.arena = c->arena, .arena_size = c->arena_size, .page_limit = c->page_limit,
		.leases = c->leases, .frame_size = c->frame_size,
		.connected = c->fd >= 0 && !c->closed};
	unlock(c);
}
