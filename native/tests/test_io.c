/* The three I/O back ends of the pool, each through the same tests: with O_DIRECT on a file below
 * TMPDIR (or /var/tmp), with system calls that fail, and with more requests than fit.
 */
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../pool/io_parts.h"
#include "harness.h"

#define PAGE 4096u
#define PAGES 256u
#define FILE_SIZE ((size_t)PAGES * PAGE + 1000)
#define ARENA (4u << 20)
#define MOST 512u

static const struct zc_io_kind *const kinds[] = {&zc_io_uring, &zc_io_aio, &zc_io_threads};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static const struct zc_io_kind *kind; /* under test */
static int dir = -1, file = -1;
static char dir_path[200];
static char *arena, *other; /* the second is never registered */
static struct zc_io_req reqs[MOST];
static struct zc_io_req *list[MOST];

/* Helpers --------------------------------------------------------------------------------- */

static char byte_at(size_t off)
{
	uint64_t x = (off / 8 + 1) * 0x9e3779b97f4a7c15ULL;

	return (char)(x >> (off % 8 * 8));
}

static void fill(char *buf, size_t off, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = byte_at(off + i);
}

static bool is_filled(const char *buf, size_t off, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (buf[i] != byte_at(off + i))
			return false;
	return true;
}

static struct zc_io *make(unsigned depth)
{
	struct zc_io *io = NULL;
	int err = kind->create(arena, ARENA, depth, &io);

	if (err) {
		printf("%s: %s\n", kind->name, strerror(-err));
		exit(99);
	}
	return io;
}

static struct zc_io_req *read_page(unsigned i, char *base, unsigned page)
{
	list[i] = &reqs[i];
	reqs[i] = (struct zc_io_req){.op = ZC_IO_READ, .fd = file, .len = PAGE,
				     .buf = base + (size_t)i * PAGE, .off = (off_t)page * PAGE};
	return &reqs[i];
}

/* `n` reads of pages here and there. */
static void read_pages(unsigned n, char *base)
{
	for (unsigned i = 0; i < n; i++)
		read_page(i, base, i * 37 % PAGES);
	memset(base, 0, (size_t)n * PAGE);
}

static bool right(const struct zc_io_req *r)
{
	return r->done && r->result == (ssize_t)r->len &&
	       is_filled(r->buf, (size_t)r->off, r->len);
}

/* Submits the first `n` and waits for them; the number of those that are right. */
static unsigned run(struct zc_io *io, unsigned n)
{
	unsigned ok = 0;

	EXPECT_IS(kind->submit(io, list, n), 0);
	EXPECT_IS(kind->reap(io, n), n);
	for (unsigned i = 0; i < n; i++)
		ok += right(&reqs[i]);
	return ok;
}

static ssize_t run_one(struct zc_io *io, struct zc_io_req r)
{
	reqs[0] = r;
	list[0] = &reqs[0];
	EXPECT_IS(kind->submit(io, list, 1), 0);
	EXPECT_IS(kind->reap(io, 1), 1);
	EXPECT(reqs[0].done);
	return reqs[0].result;
}

static bool readable(int fd, int ms)
{
	return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, ms) == 1;
}

/* Tests ----------------------------------------------------------------------------------- */

static void batches(void)
{
	static const unsigned depths[] = {1, 3, 32, ZC_IO_DEPTH_MOST};

	for (unsigned d = 0; d < 4; d++) {
		struct zc_io *io = make(depths[d]);
		for (unsigned n = 1; n <= PAGES; n *= 4) {
			read_pages(n, arena);
			EXPECT_IS(run(io, n), n);
		}
		EXPECT_IS(kind->reap(io, 1), 0); /* nothing is under way: no waiting */
		EXPECT_IS(kind->submit(io, list, 0), 0);
		kind->destroy(io);
	}
}

static void memory_outside(void)
{
	struct zc_io *io = make(8);

	read_pages(20, other);
	EXPECT_IS(run(io, 20), 20);
	kind->destroy(io);
	EXPECT_IS(kind->create(NULL, 0, 8, &io), 0);
	EXPECT(!kind->registered(io));
	read_pages(20, arena);
	EXPECT_IS(run(io, 20), 20);
	kind->destroy(io);
}

static void end_of_file(void)
{
	struct zc_io *io = make(4);
	size_t tail = FILE_SIZE - (size_t)PAGES * PAGE;
	struct zc_io_req r = {.op = ZC_IO_READ, .fd = file, .buf = arena, .len = PAGE,
			      .off = (off_t)PAGES * PAGE};

	EXPECT_IS(run_one(io, r), tail);
	EXPECT(is_filled(arena, (size_t)r.off, tail));
	r.off += PAGE;
	EXPECT_IS(run_one(io, r), 0);
	r.off = PAGE;
	r.len = 2u << 20;
	EXPECT_IS(run_one(io, r), FILE_SIZE - PAGE);
	EXPECT(is_filled(arena, PAGE, FILE_SIZE - PAGE));
	kind->destroy(io);
}

/* A file of /proc gives some records a call, not what was asked for. */
static void short_reads_go_on(void)
{
	static char want[1 << 16];
	size_t len = 0;
	ssize_t n;
	int fd = open("/proc/crypto", O_RDONLY | O_CLOEXEC);

	while (fd >= 0 && (n = read(fd, want + len, sizeof(want) - len)) > 0)
		len += (size_t)n;
	if (len <= PAGE) {
		printf("%s: short reads: /proc/crypto is too short here\n", kind->name);
	} else {
		struct zc_io *io = make(2);
		struct zc_io_req r = {.op = ZC_IO_READ, .fd = fd, .buf = other, .len = ARENA};
		EXPECT_IS(run_one(io, r), len);
		EXPECT(!memcmp(want, other, len));
		kind->destroy(io);
	}
	if (fd >= 0)
		close(fd);
}

static void writes(void)
{
	int fd = openat(dir, "written", O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC |
			(fcntl(file, F_GETFL) & O_DIRECT), 0600);
	struct zc_io *io = make(5);

	fill(arena, 0, 40 * PAGE);
	for (unsigned i = 0; i < 40; i++) {
		read_page(i, arena, i)->op = ZC_IO_WRITE;
		reqs[i].fd = fd;
		reqs[i].rw_flags = i % 3 ? 0 : RWF_DSYNC;
	}
	EXPECT_IS(run(io, 40), 40);
	memset(arena, 0, 40 * PAGE);
	for (unsigned i = 0; i < 40; i++)
		read_page(i, arena, i)->fd = fd;
	EXPECT_IS(run(io, 40), 40);
	EXPECT_IS(run_one(io, (struct zc_io_req){.op = ZC_IO_FDATASYNC, .fd = fd}), 0);
	kind->destroy(io);
	close(fd);
}

/* One request of a batch is refused by the disk, or asked to be tried again. */
static void fails_alone(void)
{
	struct zc_io *io = make(4);

	for (int nth = 1; nth <= 12; nth += 3) {
		read_pages(12, arena);
		zc_fault_arm("pread", nth, EIO, 0);
		EXPECT_IS(run(io, 12), 11);
		unsigned refused = 0;
		for (unsigned i = 0; i < 12; i++)
			refused += reqs[i].done && reqs[i].result == -EIO;
		EXPECT_IS(refused, 1);
		EXPECT_IS(run(io, 12), 12);
		zc_fault_arm("pread", nth, nth % 2 ? EINTR : EAGAIN, 0);
		EXPECT_IS(run(io, 12), 12);
		EXPECT(zc_fault_seen() > 12);
	}
	zc_fault_arm("pread", 1, EAGAIN, 1); /* for ever */
	EXPECT_IS(run(io, 2), 0);
	EXPECT_IS(reqs[0].result, -EAGAIN);
	zc_fault_arm("fdatasync", 1, EIO, 0);
	EXPECT_IS(run_one(io, (struct zc_io_req){.op = ZC_IO_FDATASYNC, .fd = file}), -EIO);
	kind->destroy(io);
	zc_fault_arm("", 0, 0, 0);
}

static void bad_descriptor(void)
{
	struct zc_io *io = make(4);

	read_pages(11, arena);
	reqs[0].fd = -1;
	reqs[5].fd = 1 << 20;
	reqs[10].op = ZC_IO_WRITE;
	reqs[10].fd = openat(dir, "data", O_RDONLY | O_CLOEXEC);
	EXPECT_IS(run(io, 11), 8);
	EXPECT_IS(reqs[0].result, -EBADF);
	EXPECT_IS(reqs[5].result, -EBADF);
	EXPECT_IS(reqs[10].result, -EBADF);
	close(reqs[10].fd);
	kind->destroy(io);
}

/* One is done, another takes its place; more are under way than fit. */
static void interleaved(void)
{
	struct zc_io *io = make(8);
	unsigned sent = 16, done = 0, ok = 0;

	read_pages(16, arena);
	EXPECT_IS(kind->submit(io, list, 16), 0);
	while (done < 600) {
		int n = kind->reap(io, done % 3);
		EXPECT(n >= (int)(done % 3 && done < 600));
		done += (unsigned)n;
		for (unsigned i = 0; i < 16; i++) {
			if (!reqs[i].done)
				continue;
			ok += right(&reqs[i]);
			reqs[i].done = false;
			if (sent == 600)
				continue;
			kind->submit(io, &(struct zc_io_req *){read_page(i, arena, sent++ % PAGES)},
				     1);
		}
	}
	EXPECT_IS(done, 600);
	EXPECT_IS(ok, 600);
	kind->destroy(io);
}

static void destroyed_under_way(void)
{
	for (int round = 0; round < 20; round++) {
		struct zc_io *io = make(8);
		unsigned ok = 0, cancelled = 0;
		read_pages(64, arena);
		kind->submit(io, list, 64);
		kind->destroy(io);
		for (unsigned i = 0; i < 64; i++) {
			ok += right(&reqs[i]);
			cancelled += reqs[i].done && reqs[i].result == -ECANCELED;
		}
		EXPECT_IS(ok + cancelled, 64);
	}
}

static void rings_the_bell(void)
{
	struct zc_io *io = make(4);
	int bell = kind->event_fd(io);

	EXPECT(bell >= 0);
	EXPECT_IS(kind->event_fd(io), bell);
	for (int round = 0; round < 50; round++) {
		int done = 0;
		read_pages(16, arena);
		if (round % 2)
			reqs[3].fd = -1;
		kind->submit(io, list, 16);
		while (done < 16) {
			EXPECT(readable(bell, 5000));
			done += kind->reap(io, 0);
		}
		EXPECT_IS(done, 16);
	}
	for (int i = 0; i < 3 && readable(bell, 0); i++)
		EXPECT_IS(kind->reap(io, 0), 0);
	EXPECT(!readable(bell, 0));
	kind->destroy(io);

	io = make(4); /* asked for late */
	read_pages(16, arena);
	kind->submit(io, list, 16);
	bell = kind->event_fd(io);
	for (int done = 0; done < 16;) {
		EXPECT(readable(bell, 5000));
		done += kind->reap(io, 0);
	}
	kind->destroy(io);
}

/* All that was taken becomes done, whatever fails. */
static void workload(bool must_work)
{
	struct zc_io *io;
	unsigned ok = 0, ended = 0;
	int done = 0;

	if (kind->create(arena, ARENA, 4, &io))
		return;
	kind->event_fd(io);
	read_pages(20, arena);
	for (unsigned i = 0; i < 20; i++)
		list[i]->done = true;
	for (unsigned i = 0; i < 20; i += 10)
		if (!kind->submit(io, list + i, 10))
			done -= 10;
	for (int tries = 0; done < 0 && tries < 5;) {
		int n = kind->reap(io, (unsigned)-done);
		done += n > 0 ? n : 0;
		tries += n <= 0;
	}
	EXPECT_IS(done, 0);
	kind->destroy(io);
	for (unsigned i = 0; i < 20; i++) {
		ended += reqs[i].done;
		ok += right(&reqs[i]);
	}
	EXPECT_IS(ended, 20);
	if (must_work)
		EXPECT_IS(ok, 20);
}

static void every_call_fails(void)
{
	static const int errors[] = {EIO, EINTR, EAGAIN, ENOMEM};
	int fds = harness_fds();

	for (unsigned e = 0; e < 4; e++)
		for (int nth = 1; nth < 200; nth++) {
			snprintf(harness_context, sizeof(harness_context), "%s, call %d: %s",
				 kind->name, nth, strerror(errors[e]));
			zc_fault_arm("*", nth, errors[e], 0);
			workload(false);
			EXPECT_IS(harness_fds(), fds);
			if (zc_fault_seen() < nth)
				break; /* it has no more calls */
		}
	zc_fault_arm("", 0, 0, 0);
	snprintf(harness_context, sizeof(harness_context), "%s", kind->name);
}

static void calls_fail(void)
{
	static const struct {
		const char *call;
		int err, always;
		bool works;
	} table[] = {
		{"io_uring_enter", EINTR, 0, true},    {"io_uring_enter", EAGAIN, 0, true},
		{"io_uring_enter", EBUSY, 0, true},    {"io_uring_register", ENOMEM, 0, true},
		{"io_uring_enter", EAGAIN, 1, false},  {"io_submit", EINTR, 0, true},
		{"io_submit", EAGAIN, 0, true},	       {"io_submit", EAGAIN, 1, false},
		{"io_submit", EIO, 1, false},	       {"io_getevents", EINTR, 0, true},
		{"eventfd", EMFILE, 0, true},	       {"pthread_create", EAGAIN, 0, false},
		{"pread", EIO, 1, false},
	};

	for (unsigned i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		zc_fault_arm(table[i].call, 1, table[i].err, table[i].always);
		workload(table[i].works);
	}
	zc_fault_arm("", 0, 0, 0);
	workload(true);
}

static void one_io_submit_fails(void)
{
	struct zc_io *io = make(8);

	read_pages(8, arena);
	zc_fault_arm("io_submit", 1, EIO, 0);
	EXPECT_IS(run(io, 8), kind == &zc_io_aio ? 7 : 8);
	zc_fault_arm("io_uring_enter", 1, EIO, 0);
	EXPECT_IS(run(io, 8), kind == &zc_io_uring ? 0 : 8); /* nothing tells which */
	zc_fault_arm("", 0, 0, 0);
	for (int i = 0; i < 20; i++)
		EXPECT_IS(run(io, 8), 8);
	kind->destroy(io);
}

static void *one_batch(void *io)
{
	EXPECT_IS(run(io, 16), 16);
	return NULL;
}

static void in_another_thread(struct zc_io *io)
{
	pthread_t t;

	EXPECT_IS(pthread_create(&t, NULL, one_batch, io), 0);
	pthread_join(t, NULL);
}

/* A back end goes from hand to hand, and a call fails on the way. */
static void handed_on(void)
{
	struct zc_io *io = make(8);
	bool registered = kind->registered(io);
	int bell = kind->event_fd(io);

	read_pages(16, arena);
	for (int i = 0; i < 5; i++)
		in_another_thread(io);
	EXPECT_IS(run(io, 16), 16);
	in_another_thread(io);
	EXPECT_IS(kind->registered(io), registered);
	kind->reap(io, 0);
	kind->submit(io, list, 1);
	EXPECT(readable(bell, 5000));
	EXPECT_IS(kind->reap(io, 1), 1);
	kind->destroy(io);

	static const char *const calls[] = {"io_uring_setup", "io_uring_register"};
	for (int i = 0; i < 6; i++) {
		io = make(8);
		kind->event_fd(io);
		read_pages(16, arena);
		in_another_thread(io);
		zc_fault_arm(calls[i % 2], 1 + i / 2, EPERM, 0);
		if (kind->submit(io, list, 16))
			EXPECT_IS(run(io, 16), 16); /* the next time it works */
		else
			EXPECT_IS(kind->reap(io, 16), 16);
		zc_fault_arm("", 0, 0, 0);
		kind->destroy(io);
	}
}

static void shared_arena(void)
{
	struct zc_io *a = make(4), *b = make(4);

	EXPECT_IS(kind->registered(a), kind->registered(b));
	read_pages(8, arena);
	EXPECT_IS(run(a, 8), 8);
	kind->destroy(a);
	EXPECT_IS(run(b, 8), 8);
	a = make(4);
	kind->destroy(b);
	EXPECT_IS(run(a, 8), 8);
	kind->destroy(a);
}

/* More than fits into one registered buffer; of little memory, mapped over and over. */
static void large_arena(void)
{
	const size_t part = 2u << 20, len = (1ull << 30) + part;
	char *all = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int fd = memfd_create("test", MFD_CLOEXEC);
	struct zc_io *io;

	if (all == MAP_FAILED || fd < 0 || ftruncate(fd, (off_t)part)) {
		printf("%s: large arena: %s\n", kind->name, strerror(errno));
		exit(99);
	}
	for (size_t at = 0; at < len; at += part)
		mmap(all + at, part, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	EXPECT_IS(kind->create(all, len, 4, &io), 0);
	for (size_t at = (1ull << 30) - PAGE; at <= (1ull << 30) + PAGE; at += PAGE) {
		struct zc_io_req r = {.op = ZC_IO_READ, .fd = file, .len = 2 * PAGE,
				      .buf = all + at, .off = (off_t)PAGE};
		EXPECT_IS(run_one(io, r), 2 * PAGE);
		EXPECT(right(&reqs[0]));
		EXPECT_IS(kind->submit(io, list, 1) ? 0 : kind->reap(io, 1), 1);
	}
	kind->destroy(io);
	munmap(all, len);
	close(fd);
}

static void drop_ipc_lock(void)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {{0}};

	syscall(SYS_capget, &h, d);
	d[0].effective &= ~(1u << CAP_IPC_LOCK);
	syscall(SYS_capset, &h, d);
	setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){1 << 20, 1 << 20}); /* rings count too */
}

/* A process that may not lock memory reads without registered buffers. */
static void no_memlock(void)
{
	int status = -1;

	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		drop_ipc_lock();
		struct zc_io *io = make(4);
		bool registered = kind->registered(io);
		read_pages(12, arena);
		unsigned ok = run(io, 12);
		kind->destroy(io);
		_exit(registered ? 1 : ok == 12 ? 0 : 2);
	}
	EXPECT(pid > 0 && waitpid(pid, &status, 0) == pid);
	EXPECT_IS(status, 0);
}

static void wrong_arguments(void)
{
	struct zc_io *io = NULL;

	EXPECT_IS(kind->create(arena, ARENA, 0, &io), -EINVAL);
	EXPECT_IS(kind->create(arena, ARENA, ZC_IO_DEPTH_MOST + 1, &io), -EINVAL);
	EXPECT(!io);
	io = make(1); /* never used */
	EXPECT_IS(kind->reap(io, 5), 0);
	kind->destroy(io);
}

static void chosen_by_name(void)
{
	char why[200];

	EXPECT(zc_io_choose(kind->name, why, sizeof(why)) == kind);
	EXPECT(!why[0]);
	zc_fault_arm("pread", 1, EPERM, 1);
	EXPECT(!zc_io_choose(kind->name, why, sizeof(why)));
	EXPECT(strstr(why, kind->name) == why && strstr(why, strerror(EPERM)));
	zc_fault_arm("", 0, 0, 0);
}

/* Without a back end ---------------------------------------------------------------------- */

static void choice(void)
{
	char why[200];

	EXPECT(zc_io_choose("fast", why, sizeof(why)) == NULL);
	EXPECT(strstr(why, "fast: no such I/O") == why);
	EXPECT(zc_io_choose(NULL, why, sizeof(why)) != NULL);
	zc_fault_arm("io_uring_setup", 1, EPERM, 1);
	EXPECT(zc_io_choose("auto", why, sizeof(why)) == &zc_io_aio);
	EXPECT(!strcmp(why, "io_uring: Operation not permitted"));
	EXPECT(!zc_io_choose("io_uring", why, sizeof(why)));
	zc_fault_arm("memfd_create", 1, EPERM, 1);
	EXPECT(zc_io_choose(NULL, why, sizeof(why)) != NULL);
	zc_fault_arm("pread", 1, EPERM, 1);
	EXPECT(!zc_io_choose(NULL, why, 30)); /* cut off */
	EXPECT_IS(strlen(why), 29);
	zc_fault_arm("", 0, 0, 0);
}

/* What follows from a result, step by step. */
static void steps(void)
{
	bool direct = fcntl(file, F_GETFL) & O_DIRECT;
	struct zc_io_req r = {.op = ZC_IO_READ, .fd = file, .len = 4 * PAGE};
	struct zc_io_progress p = {0};

	EXPECT(zc_io_step(&r, &p, PAGE));
	EXPECT_IS(p.got, PAGE);
	EXPECT_IS(zc_io_step(&r, &p, 100), !direct); /* at an odd place: the end */
	EXPECT(!zc_io_step(&r, &p, 0));
	EXPECT_IS(r.result, PAGE + 100);
	p.got = PAGE;
	EXPECT(!zc_io_step(&r, &p, -EINVAL));
	EXPECT_IS(r.result, direct ? (int)PAGE : -EINVAL);
	p.got = PAGE;
	EXPECT(!zc_io_step(&r, &p, -EIO));
	EXPECT_IS(r.result, -EIO);
	p.got = 0;
	r.rw_flags = RWF_NOWAIT;
	EXPECT(!zc_io_step(&r, &p, -EAGAIN)); /* was asked for */
	EXPECT_IS(r.result, -EAGAIN);
}

/* The file -------------------------------------------------------------------------------- */

static void set_up(void)
{
	const char *base = getenv("TMPDIR") ? getenv("TMPDIR") : "/var/tmp";
	static char content[FILE_SIZE];
	struct statfs st;

	dir = harness_dir(base, dir_path, sizeof(dir_path));
	if (!fstatfs(dir, &st) && st.f_type != 0xef53)
		printf("%s is not on ext4 (type 0x%lx)\n", base, (unsigned long)st.f_type);
	fill(content, 0, FILE_SIZE);
	file = openat(dir, "data", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	if (file < 0 || write(file, content, FILE_SIZE) != (ssize_t)FILE_SIZE || fsync(file))
		exit(99);
	close(file);
	file = openat(dir, "data", O_RDWR | O_DIRECT | O_CLOEXEC);
	if (file < 0) {
		printf("without O_DIRECT: %s: %s\n", base, strerror(errno));
		file = openat(dir, "data", O_RDWR | O_CLOEXEC);
	}
	int fd = memfd_create("arena", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, ARENA))
		exit(99);
	arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	other = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	close(fd);
}

static void (*const tests[])(void) = {
	batches, memory_outside, end_of_file, short_reads_go_on, writes, fails_alone,
	bad_descriptor, interleaved, destroyed_under_way, rings_the_bell, calls_fail,
	one_io_submit_fails, handed_on, shared_arena, large_arena, no_memlock, wrong_arguments,
	chosen_by_name, every_call_fails,
};

int main(void)
{
	char why[300];

	set_up();
	int fds = harness_fds();
	for (size_t k = 0; k < KINDS; k++) {
		kind = kinds[k];
		if (!zc_io_choose(kind->name, why, sizeof(why))) {
			printf("not tested: %s\n", why);
			continue;
		}
		struct zc_io *io = make(1);
		printf("%s: arena %sregistered\n", kind->name, kind->registered(io) ? "" : "not ");
		kind->destroy(io);
		snprintf(harness_context, sizeof(harness_context), "%s", kind->name);
		for (size_t t = 0; t < sizeof(tests) / sizeof(tests[0]); t++)
			tests[t]();
		EXPECT_IS(harness_fds(), fds);
	}
	steps();
	choice();
	munmap(arena, ARENA);
	munmap(other, ARENA);
	close(file);
	harness_dir_end(dir, dir_path);
	return harness_end();
}
