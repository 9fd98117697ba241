/* Page leases, by the protocol: what a client gets, what it may not, and what is left of one that
 * behaves badly or dies. Takes a directory to work in, /tmp without. As root it puts a socket into
 * /run/zcfs for a moment.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../internal.h"
#include "../lease_wire.h"
#include "../pool/pool.h"
#include "../sys.h"
#include "harness.h"

#define MIB ((size_t)1 << 20)
#define NOBODY 65534
#define MINOR 1000002u /* more than the kernel gives out */
#define PAGE 4096u
#define PAGES 512u

static struct zc_session session;
static struct zc_leases *leases;
static int dir;

/* A client --------------------------------------------------------------------------------- */

struct peer {
	int fd;
	struct zc_lease_hello hello;
	const uint8_t *arena;
	struct zc_lease_reply head;
	struct zc_lease_page pages[ZC_LEASE_BATCH];
};

static int dial(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = 20};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strcpy(addr.sun_path, path);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (!connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		return fd;
	close(fd);
	return -errno;
}

static const char *socket_path(void)
{
	struct zc_lease_status st;

	zc_leases_status(leases, &st);
	return st.socket;
}

/* Returns the descriptor that came with the hello, or -1. */
static int hear_hello(int fd, struct zc_lease_hello *hello)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {hello, sizeof(*hello)};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			   .msg_controllen = sizeof(control)};
	int arena = -1;
	ssize_t n;

	do
		n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	EXPECT_IS(n, sizeof(*hello));
	EXPECT_IS(hello->magic, ZC_LEASE_MAGIC);
	EXPECT_IS(hello->version, ZC_LEASE_VERSION);
	if (CMSG_FIRSTHDR(&m))
		memcpy(&arena, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(arena));
	return arena;
}

/* It must not be possible to write to the arena by its descriptor, in any way. */
static void check_read_only(int arena)
{
	char link[40];

	EXPECT(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, arena, 0) == MAP_FAILED);
	void *at = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, arena, 0);
	EXPECT(at != MAP_FAILED);
	EXPECT_IS(mprotect(at, PAGE, PROT_READ | PROT_WRITE), -1);
	munmap(at, PAGE);
	EXPECT_IS(pwrite(arena, "x", 1, 0), -1);
	EXPECT_IS(ftruncate(arena, 0), -1);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", arena);
	int again = open(link, O_RDWR | O_CLOEXEC);
	EXPECT(again < 0 || mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, again, 0) == MAP_FAILED);
	EXPECT(again < 0 || pwrite(again, "x", 1, 0) < 0);
	if (again >= 0)
		close(again);
}

static void attach(struct peer *p)
{
	p->fd = dial(socket_path());
	EXPECT(p->fd >= 0);
	int arena = hear_hello(p->fd, &p->hello);
	EXPECT_IS(p->hello.error, 0);
	EXPECT_IS(p->hello.frame_size, 16384);
	check_read_only(arena);
	p->arena = mmap(NULL, p->hello.arena, PROT_READ, MAP_SHARED, arena, 0);
	EXPECT(p->arena != MAP_FAILED);
	close(arena);
}

static void detach(struct peer *p)
{
	munmap((void *)(uintptr_t)p->arena, p->hello.arena);
	close(p->fd);
}

static void say(const struct peer *p, struct zc_lease_request r, const void *data, size_t len)
{
	struct iovec iov[2] = {{&r, sizeof(r)}, {(void *)(uintptr_t)data, len}};
	struct msghdr m = {.msg_iov = iov, .msg_iovlen = 2};

	sendmsg(p->fd, &m, MSG_NOSIGNAL);
}

/* The error of the reply; 1: there was none, for the connection has ended. */
static int hear(struct peer *p)
{
	ssize_t n;

	do /* a ring of this thread may interrupt it */
		n = recv(p->fd, &p->head, sizeof(p->head) + sizeof(p->pages), MSG_TRUNC);
	while (n < 0 && errno == EINTR);
	if (n == 0 || (n < 0 && errno == ECONNRESET))
		return 1;
	if (n < 0)
		return -errno;
	EXPECT_IS(n, sizeof(p->head) + p->head.count * sizeof(*p->pages));
	return p->head.error;
}

static int ask_open(struct peer *p, const char *path, uint32_t page_size)
{
	say(p, (struct zc_lease_request){.op = ZC_LEASE_OPEN, .count = (uint32_t)strlen(path),
					 .arg = page_size}, path, strlen(path));
	return hear(p);
}

static int ask_about(struct peer *p, uint32_t op, uint32_t file)
{
	say(p, (struct zc_lease_request){.op = op, .file = file}, NULL, 0);
	return hear(p);
}

static int lease(struct peer *p, uint32_t file, const uint64_t *numbers, uint32_t count)
{
	struct zc_lease_request r = {.op = ZC_LEASE_PAGES, .file = file, .count = count};

	say(p, r, numbers, count * sizeof(*numbers));
	return hear(p);
}

static int lease_run(struct peer *p, uint32_t file, uint64_t first, uint32_t count)
{
	uint64_t numbers[ZC_LEASE_BATCH];

	for (uint32_t i = 0; i < count; i++)
		numbers[i] = first + i;
	return lease(p, file, numbers, count);
}

static void release(const struct peer *p, const uint32_t *ids, uint32_t count)
{
	say(p, (struct zc_lease_request){.op = ZC_LEASE_RELEASE, .count = count}, ids,
	    count * sizeof(*ids));
}

static struct zc_lease_status status(void)
{
	struct zc_lease_status st;

	zc_leases_status(leases, &st);
	return st;
}

static void pause_ms(long ms)
{
	nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

/* What a client leaves is cleared away by another thread. */
static void expect_nothing_left(void)
{
	for (int i = 0; i < 1000 && (status().clients || status().borrowed); i++)
		pause_ms(10);
	EXPECT_IS(status().clients, 0);
	EXPECT_IS(status().borrowed, 0);
	EXPECT_IS(status().leases, 0);
	EXPECT_IS(status().files, 0);
	EXPECT_IS(session.open_fds, 0);
}

/* Tests ------------------------------------------------------------------------------------ */

static void test_pages(void)
{
	struct peer p;

	attach(&p);
	EXPECT_IS(ask_open(&p, "data", PAGE), 0);
	uint32_t file = p.head.file;
	EXPECT_IS(p.head.size, PAGES * PAGE - 100);
	EXPECT_IS(p.head.page_size, PAGE);
	EXPECT_IS(ask_about(&p, ZC_LEASE_SIZE, file), 0);
	EXPECT_IS(p.head.size, PAGES * PAGE - 100);

	uint64_t numbers[] = {7, PAGES - 1, PAGES, UINT64_MAX, 7};
	EXPECT_IS(lease(&p, file, numbers, 5), 0);
	EXPECT_IS(p.head.count, 5);
	EXPECT_IS(p.arena[p.pages[0].offset], 7);
	EXPECT_IS(p.arena[p.pages[0].offset + PAGE - 1], 7);
	EXPECT_IS(p.pages[0].valid, PAGE);
	EXPECT_IS(p.pages[1].valid, PAGE - 100);
	EXPECT_IS(p.arena[p.pages[1].offset + PAGE - 101], (PAGES - 1) & 255);
	EXPECT_IS(p.arena[p.pages[1].offset + PAGE - 100], 0);
	EXPECT_IS(p.pages[2].lease, -ERANGE);
	EXPECT_IS(p.pages[3].lease, -ERANGE);
	EXPECT_IS(p.pages[4].offset, p.pages[0].offset);
	EXPECT_IS(p.pages[4].version, p.pages[0].version);
	EXPECT(p.pages[4].lease != p.pages[0].lease);
	EXPECT_IS(status().leases, 3);
	EXPECT_IS(status().borrowed, 2 * PAGE);

	/* The file is closed and written to: what is leased stays. */
	uint64_t seven = p.pages[0].offset, version = p.pages[0].version;
	uint32_t ids[] = {(uint32_t)p.pages[0].lease, (uint32_t)p.pages[1].lease,
			  (uint32_t)p.pages[4].lease};
	EXPECT_IS(ask_about(&p, ZC_LEASE_CLOSE, file), 0);
	EXPECT_IS(ask_about(&p, ZC_LEASE_CLOSE, file), -EBADF);
	EXPECT_IS(ask_about(&p, ZC_LEASE_SIZE, file), -EBADF);
	EXPECT_IS(lease_run(&p, file, 0, 1), -EBADF);
	EXPECT_IS(status().borrowed, 2 * PAGE);
	int fd = openat(dir, "data", O_WRONLY | O_CLOEXEC);
	EXPECT_IS(pwrite(fd, "NEW", 3, 7 * PAGE), 3);
	close(fd);
	EXPECT_IS(ask_open(&p, "data", PAGE), 0);
	EXPECT_IS(lease_run(&p, p.head.file, 7, 1), 0);
	EXPECT_IS(p.arena[p.pages[0].offset], 'N');
	EXPECT(p.pages[0].version != version || p.pages[0].offset != seven);
	EXPECT_IS(p.arena[seven], 7);

	release(&p, ids, 3);
	EXPECT_IS(ask_about(&p, ZC_LEASE_SIZE, p.head.file), 0);
	EXPECT_IS(status().borrowed, PAGE);
	detach(&p);
	expect_nothing_left();
}

static void test_open(void)
{
	static const struct {
		const char *path;
		int error;
	} paths[] = {
		{"sub/file", 0}, {"absent", -ENOENT}, {"sub/absent", -ENOENT}, {"data/x", -ENOTDIR},
		{"sub", -EISDIR}, {"link", -ELOOP}, {"sublink/file", -ENOTDIR},
		{"fifo", -EOPNOTSUPP}, {"..", -EINVAL}, {"sub/../data", -EINVAL},
		{"./data", -EINVAL}, {"/etc/passwd", -EINVAL},
		{"sub//file", -EINVAL}, {"sub/", -EINVAL}, {".zcfs/stats", -EOPNOTSUPP},
		{".zcfs", -EOPNOTSUPP},
	};
	static const uint32_t bad[] = {1, 512, 2048, 5000, 12288, 131072, UINT32_MAX};
	struct peer p;

	attach(&p);
	for (size_t i = 0; i < sizeof(paths) / sizeof(*paths); i++) {
		snprintf(harness_context, sizeof(harness_context), "open %s", paths[i].path);
		EXPECT_IS(ask_open(&p, paths[i].path, 0), paths[i].error);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		EXPECT_IS(ask_open(&p, "data", bad[i]), -EINVAL);
	*harness_context = 0;
	EXPECT_IS(ask_open(&p, "data", 0), 0);
	EXPECT_IS(p.head.page_size, 16384);
	unsigned opened = 2;
	while (!ask_open(&p, "data", PAGE))
		opened++;
	EXPECT_IS(p.head.error, -EMFILE);
	EXPECT_IS(opened, ZC_LEASE_FILES);
	EXPECT_IS(status().files, ZC_LEASE_FILES);
	EXPECT_IS(ask_about(&p, ZC_LEASE_CLOSE, 5), 0);
	session.open_fds_most = session.open_fds + 1;
	EXPECT_IS(ask_open(&p, "data", PAGE), -ENFILE);
	session.open_fds_most = 0;
	EXPECT_IS(ask_open(&p, "data", PAGE), 0);
	EXPECT_IS(p.head.file, 5);
	detach(&p);
	expect_nothing_left();
}

/* Half of the pool can be leased; and it is an error of single pages. */
static void test_limit(void)
{
	struct peer p;
	uint64_t got = 0, refused = 0;

	attach(&p);
	EXPECT_IS(ask_open(&p, "big", PAGE), 0);
	uint32_t file = p.head.file;
	for (uint64_t first = 0; first < 16 * MIB / PAGE; first += ZC_LEASE_BATCH) {
		EXPECT_IS(lease_run(&p, file, first, ZC_LEASE_BATCH), 0);
		for (unsigned i = 0; i < ZC_LEASE_BATCH; i++) {
			got += p.pages[i].lease >= 0;
			refused += p.pages[i].lease == -ENOBUFS;
		}
	}
	EXPECT_IS(got + refused, 16 * MIB / PAGE);
	EXPECT(refused > 0 && got >= p.hello.page_limit / PAGE / 2);
	EXPECT(status().borrowed <= p.hello.page_limit);
	uint32_t one = 0;
	release(&p, &one, 1);
	EXPECT_IS(lease_run(&p, file, 0, 1), 0);
	EXPECT_IS(p.pages[0].lease, 0);
	detach(&p);
	expect_nothing_left();
}

/* The same page again and again takes no room in the pool, but numbers. */
static void test_numbers(void)
{
	struct peer p;
	uint64_t numbers[ZC_LEASE_BATCH];
	unsigned got = 0;

	for (unsigned i = 0; i < ZC_LEASE_BATCH; i++)
		numbers[i] = i % 4;
	attach(&p);
	EXPECT_IS(ask_open(&p, "data", PAGE), 0);
	while (got < 2 * ZC_LEASE_MOST && !lease(&p, p.head.file, numbers, ZC_LEASE_BATCH))
		got += ZC_LEASE_BATCH;
	EXPECT_IS(p.head.error, -ENOBUFS);
	EXPECT_IS(got, ZC_LEASE_MOST);
	EXPECT_IS(status().leases, ZC_LEASE_MOST);
	EXPECT_IS(status().borrowed, 4 * PAGE);
	detach(&p);
	expect_nothing_left();
}

static void test_nonsense(void)
{
	static const struct {
		struct zc_lease_request r;
		size_t more;
	} bad[] = {
		{{.op = 0}, 0}, {{.op = 99}, 0}, {{.op = UINT32_MAX}, 0},
		{{.op = ZC_LEASE_OPEN}, 0}, {{.op = ZC_LEASE_OPEN, .count = 3}, 4},
		{{.op = ZC_LEASE_OPEN, .count = 8}, 8}, /* with NULs */
		{{.op = ZC_LEASE_OPEN, .count = 5000}, 5000},
		{{.op = ZC_LEASE_CLOSE}, 1}, {{.op = ZC_LEASE_SIZE, .count = 1}, 0},
		{{.op = ZC_LEASE_PAGES}, 0}, {{.op = ZC_LEASE_PAGES, .count = 257}, 2056},
		{{.op = ZC_LEASE_PAGES, .count = 2}, 8},
		{{.op = ZC_LEASE_PAGES, .count = 1 << 29}, 0}, {{.op = ZC_LEASE_RELEASE}, 0},
		{{.op = ZC_LEASE_RELEASE, .count = 1}, 4}, /* not leased */
		{{.op = ZC_LEASE_RELEASE, .count = 257}, 1028},
		{{.op = ZC_LEASE_RELEASE, .count = UINT32_MAX}, 4},
	};
	static const char zeros[8192];
	struct peer p, other;

	attach(&other);
	EXPECT_IS(ask_open(&other, "data", PAGE), 0);
	uint32_t file = other.head.file;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		snprintf(harness_context, sizeof(harness_context), "nonsense %zu", i);
		uint64_t dropped = status().dropped;
		attach(&p);
		say(&p, bad[i].r, zeros, bad[i].more);
		EXPECT_IS(hear(&p), 1);
		EXPECT_IS(status().dropped, dropped + 1);
		detach(&p);
		EXPECT_IS(lease_run(&other, file, 0, 4), 0);
	}
	*harness_context = 0;
	uint64_t dropped = status().dropped;
	attach(&p);
	send(p.fd, "short", 5, 0);
	EXPECT_IS(hear(&p), 1);
	detach(&p);

	/* twice the same, of which one was leased */
	attach(&p);
	EXPECT_IS(ask_open(&p, "data", PAGE), 0);
	EXPECT_IS(lease_run(&p, p.head.file, 0, 8), 0);
	uint32_t twice[] = {3, 3};
	release(&p, twice, 2);
	EXPECT_IS(hear(&p), 1);
	EXPECT_IS(status().dropped, dropped + 2);
	detach(&p);
	detach(&other);
	expect_nothing_left();
}

/* Random requests, many of which are nearly right. */
static void test_random(void)
{
	uint32_t words[(sizeof(struct zc_lease_request) + 2100) / 4];
	struct peer p;

	srandom(1);
	attach(&p);
	for (unsigned i = 0; i < 20000; i++) {
		long most = random() % 2 ? 80 : (long)sizeof(words);
		size_t len = (size_t)(random() % most);
		struct zc_lease_request r = {.op = (uint32_t)(random() % 8),
					     .file = (uint32_t)(random() % 3),
					     .count = (uint32_t)(random() % 5)};
		for (size_t k = 0; k < sizeof(words) / 4; k++)
			words[k] = (uint32_t)(random() % 3 ? random() % 6 : random());
		memcpy(words, &r, sizeof(r));
		if (r.op == ZC_LEASE_PAGES && random() % 8)
			len = sizeof(r) + r.count * 8;
		if (r.op == ZC_LEASE_OPEN && random() % 8) {
			memcpy(words + 4, "data", 4);
			len = sizeof(r) + 4;
			words[2] = 4;
			words[3] = PAGE;
		}
		if (r.op == ZC_LEASE_RELEASE && random() % 8)
			len = sizeof(r) + r.count * 4;
		if (send(p.fd, words, len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN) {
			detach(&p);
			attach(&p);
		}
		while (recv(p.fd, p.pages, sizeof(p.pages), MSG_DONTWAIT) > 0)
			;
	}
	detach(&p);
	expect_nothing_left();
	EXPECT(status().dropped > 100 && status().pages > 100);
}

static void test_killed(void)
{
	int ready[2];
	char byte;

	EXPECT_IS(pipe(ready), 0);
	pid_t pid = fork();
	if (!pid) {
		struct peer p;
		attach(&p);
		EXPECT_IS(ask_open(&p, "big", PAGE), 0);
		uint32_t file = p.head.file;
		for (unsigned i = 0; i < 4; i++)
			EXPECT_IS(lease_run(&p, file, i * 250, 250), 0);
		EXPECT_IS(write(ready[1], "x", 1), 1);
		for (;;)
			pause();
	}
	EXPECT_IS(read(ready[0], &byte, 1), 1);
	EXPECT_IS(status().leases, 1000);
	EXPECT_IS(status().borrowed, 1000 * PAGE);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	expect_nothing_left();
	close(ready[0]);
	close(ready[1]);
}

static void test_clients(void)
{
	static struct peer p[ZC_LEASE_CLIENTS];
	struct zc_lease_hello hello;

	for (unsigned i = 0; i < ZC_LEASE_CLIENTS; i++)
		attach(&p[i]);
	int fd = dial(socket_path());
	EXPECT_IS(hear_hello(fd, &hello), -1);
	EXPECT_IS(hello.error, -EUSERS);
	EXPECT(strstr(hello.text, "64 clients"));
	EXPECT_IS(recv(fd, &hello, sizeof(hello), 0), 0);
	close(fd);
	EXPECT_IS(status().clients, ZC_LEASE_CLIENTS);
	EXPECT_IS(ask_open(&p[63], "data", 0), 0);
	for (unsigned i = 0; i < ZC_LEASE_CLIENTS; i++)
		detach(&p[i]);
	expect_nothing_left();
}

/* A client that does not read its answers stands in nobody's way. */
static void fill_up(struct peer *p)
{
	struct zc_lease_request r = {.op = ZC_LEASE_PAGES, .count = 128};
	char message[sizeof(r) + 128 * 8] = {0};

	attach(p);
	EXPECT_IS(ask_open(p, "data", PAGE), 0);
	r.file = p->head.file;
	memcpy(message, &r, sizeof(r));
	for (unsigned i = 0; i < 2000; i++)
		if (send(p->fd, message, sizeof(message), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
			break;
	EXPECT_IS(errno, EAGAIN);
}

static void test_stuck(void)
{
	struct peer stuck, other;

	fill_up(&stuck);
	attach(&other);
	EXPECT_IS(ask_open(&other, "data", PAGE), 0);
	for (unsigned i = 0; i < 20; i++)
		EXPECT_IS(lease_run(&other, other.head.file, i, 64), 0);
	detach(&other);
	detach(&stuck);
	expect_nothing_left();
}

/* A stranger is told why, even where the modes would let him in, and gets no descriptor. */
static void test_stranger(void)
{
	if (geteuid())
		return;
	char path[108];
	strcpy(path, socket_path());
	uint64_t refused = status().refused;
	chmod(path, 0666);
	chmod("/run/zcfs", 0711);
	pid_t pid = fork();
	if (!pid) {
		struct zc_lease_hello hello = {0};
		if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
		    setresuid(NOBODY, NOBODY, NOBODY))
			_exit(2);
		int fd = dial(path);
		EXPECT(fd >= 0);
		EXPECT_IS(hear_hello(fd, &hello), -1);
		EXPECT_IS(hello.error, -EACCES);
		EXPECT(strstr(hello.text, "only root and user 0"));
		EXPECT_IS(hello.arena, 0);
		EXPECT_IS(recv(fd, &hello, sizeof(hello), 0), 0);
		_exit(harness_end());
	}
	int result = 0;
	waitpid(pid, &result, 0);
	chmod("/run/zcfs", 0700);
	EXPECT_IS(result, 0);
	EXPECT_IS(status().refused, refused + 1);
}

/* The daemon ends: clients see it at once, and what they look at is still there. */
static void test_end(void)
{
	struct peer p, stuck;
	char path[108];

	fill_up(&stuck);
	attach(&p);
	EXPECT_IS(ask_open(&p, "data", PAGE), 0);
	EXPECT_IS(lease_run(&p, p.head.file, 9, 1), 0);
	uint64_t at = p.pages[0].offset;
	strcpy(path, socket_path());
	EXPECT_IS(zc_leases_destroy(leases), 0);
	EXPECT_IS(ask_about(&p, ZC_LEASE_SIZE, 0), 1);
	EXPECT_IS(dial(path), -ENOENT);
	EXPECT_IS(zc_pool_destroy(session.pool), 0);
	EXPECT_IS(p.arena[at], 9);
	EXPECT_IS(p.arena[at + PAGE - 1], 9);
	detach(&p);
	detach(&stuck);
}

/* Without a pool there is no socket, and none of a dead daemon. */
static void test_no_pool(void)
{
	struct zc_listener stale;
	struct zc_leases *none = NULL;
	char path[108];

	session.pool = NULL;
	EXPECT_IS(zc_listen(&session, "lease", SOCK_SEQPACKET, &stale), 0);
	strcpy(path, stale.path);
	close(stale.fd);
	EXPECT_IS(dial(path), -ECONNREFUSED);
	EXPECT_IS(zc_leases_create(&session, &none), 0);
	EXPECT(none == NULL);
	EXPECT_IS(dial(path), -ENOENT);
	EXPECT_IS(zc_leases_destroy(NULL), 0);
}

#ifdef ZC_FAULT_INJECTION

/* All that a client does, whatever comes of it. */
static void try_all(void)
{
	struct peer p = {.fd = dial(socket_path())};
	uint32_t id;
	char byte;

	if (p.fd < 0)
		return;
	if (recv(p.fd, &byte, 1, MSG_PEEK) > 0) {
		int arena = hear_hello(p.fd, &p.hello);
		if (arena >= 0)
			close(arena);
		if (!p.hello.error && !ask_open(&p, "sub/file", PAGE) &&
		    !lease_run(&p, p.head.file, 0, 2) && p.pages[0].lease >= 0) {
			id = (uint32_t)p.pages[0].lease;
			release(&p, &id, 1);
			ask_about(&p, ZC_LEASE_SIZE, 0);
			ask_about(&p, ZC_LEASE_CLOSE, 0);
		}
	}
	close(p.fd);
}

/* Each system call fails once: nothing is left, and the next client is served. */
static void test_faults(void)
{
	static const int errors[] = {EMFILE, ENOMEM, EINTR, EIO};
	bool reached = true;
	int nth = 1;

	for (; reached; nth++) {
		int err = errors[nth % 4], fds = harness_fds();
		snprintf(harness_context, sizeof(harness_context), "call %d fails with %d", nth,
			 err);
		zc_fault_arm("*", nth, err, 0);
		leases = NULL;
		int made = zc_leases_create(&session, &leases);
		if (!made)
			try_all();
		reached = zc_fault_seen() >= nth;
		zc_fault_arm("*", 0, 0, 0);
		if (!made) {
			struct peer p;
			expect_nothing_left();
			attach(&p);
			EXPECT_IS(ask_open(&p, "data", PAGE), 0);
			EXPECT_IS(lease_run(&p, p.head.file, 3, 1), 0);
			EXPECT_IS(p.arena[p.pages[0].offset], 3);
			detach(&p);
			EXPECT_IS(zc_leases_destroy(leases), 0);
		}
		EXPECT(harness_fds() < fds + 4); /* the pool's I/O may keep a ring */
		EXPECT(nth < 1000);
	}
	*harness_context = 0;
	EXPECT(nth > 30);
	EXPECT_IS(zc_pool_destroy(session.pool), 0);
}

#endif

static void make_files(void)
{
	static char page[PAGE];
	int fd = openat(dir, "data", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

	for (unsigned i = 0; i < PAGES; i++) {
		memset(page, (int)i, sizeof(page));
		EXPECT_IS(write(fd, page, sizeof(page)), sizeof(page));
	}
	EXPECT_IS(ftruncate(fd, PAGES * PAGE - 100), 0);
	close(fd);
	harness_file(dir, "big", 0600, "");
	fd = openat(dir, "big", O_WRONLY | O_CLOEXEC);
	EXPECT_IS(ftruncate(fd, 16 * MIB), 0);
	close(fd);
	EXPECT_IS(mkdirat(dir, "sub", 0700), 0);
	harness_file(dir, "sub/file", 0600, "content");
	EXPECT_IS(symlinkat("data", dir, "link"), 0);
	EXPECT_IS(symlinkat("sub", dir, "sublink"), 0);
	EXPECT_IS(mkfifoat(dir, "fifo", 0600), 0);
}

int main(int argc, char **argv)
{
	char path[200];
	struct zc_pool_options o = {.size = 16 * MIB, .frame_size = 16384};

	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(100);
	signal(SIGPIPE, SIG_IGN);
	zc_log_to(open("/dev/null", O_WRONLY | O_CLOEXEC));
	if (geteuid() && !getenv("XDG_RUNTIME_DIR"))
		setenv("XDG_RUNTIME_DIR", "/tmp", 1);
	dir = harness_dir(argc > 1 ? argv[1] : "/tmp", path, sizeof(path));
	make_files();
	session.source_fd = dir;
	session.dev_minor = MINOR;
	session.opt.frame_size = 16384;
	EXPECT_IS(zc_pool_create(&o, &session.pool), 0);
#ifdef ZC_FAULT_INJECTION
	test_faults();
#else
	EXPECT_IS(zc_leases_create(&session, &leases), 0);
	if (leases) {
		test_pages();
		int fds = harness_fds(); /* the pool's own are there by now */
		test_open();
		test_limit();
		test_numbers();
		test_nonsense();
		test_random();
		test_killed();
		test_clients();
		test_stuck();
		test_stranger();
		EXPECT(harness_fds() < fds + 4); /* its I/O may keep another ring */
		test_end();
		test_no_pool();
	}
#endif
	harness_empty(dir);
	harness_dir_end(dir, path);
	return harness_end();
}
