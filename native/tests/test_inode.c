/* The inode table alone: identity, counts, memory, cached descriptors, and many threads.
 *
 * Real files below /dev/shm and /var/tmp. As root inodes are located by handle and by path, else by
 * path only.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "../internal.h"
#include "harness.h"

#define LIMIT 16

static const char *base; /* of temporary directories */
static bool handles;

struct fixture {
	struct zc_inode_table *t;
	int dir;
	char path[64];
};

static void begin(struct fixture *f, const char *name)
{
	snprintf(harness_context, sizeof(harness_context), "%s, %s, %s", base,
		 handles ? "by handle" : "by path", name);
	f->dir = harness_dir(base, f->path, sizeof(f->path));
	EXPECT_IS(zc_inodes_create(f->dir, LIMIT, handles, &f->t), 0);
	EXPECT_IS(zc_inodes_count(f->t), 1);
	EXPECT_IS(zc_inodes_descriptors(f->t), 1);
}

static void end(struct fixture *f)
{
	EXPECT_IS(zc_inodes_count(f->t), 1);
	EXPECT_IS(zc_inodes_descriptors(f->t), 1);
	zc_inodes_destroy(f->t);
	harness_dir_end(f->dir, f->path);
}

/* As a LOOKUP does it: the nodeid, with one lookup more; 0 on failure. */
static uint64_t lookup(struct zc_inode_table *t, uint64_t parent, const char *name, uint32_t *generation)
{
	struct zc_inode *dir = zc_inode_get(t, parent), *inode;
	struct statx stx;
	uint64_t id = 0;
	if (!dir)
		return 0;
	ZC_FD(fd);
	if (!zc_inode_fd(t, dir, &fd) && !zc_inode_adopt_at(t, dir, fd.fd, name, &stx, &inode)) {
		id = zc_inode_id(t, inode);
		EXPECT_IS(inode->fmt, stx.stx_mode & S_IFMT);
		if (generation)
			*generation = inode->generation;
		zc_inode_put(t, inode);
	}
	zc_fd_done(&fd);
	zc_inode_put(t, dir);
	return id;
}

/* The source's inode number behind a nodeid, or 0. */
static uint64_t reach(struct zc_inode_table *t, uint64_t nodeid)
{
	struct zc_inode *inode = zc_inode_get(t, nodeid);
	struct stat st = {0};
	if (!inode)
		return 0;
	ZC_FD(fd);
	if (!zc_inode_fd(t, inode, &fd) && fstat(fd.fd, &st))
		st.st_ino = 0;
	zc_fd_done(&fd);
	zc_inode_put(t, inode);
	return st.st_ino;
}

static uint64_t ino_of(int dir, const char *name)
{
	struct stat st;
	return fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) ? 0 : st.st_ino;
}

/* one thread ---------------------------------------------------------------------------------- */

static void test_identity(void)
{
	struct fixture f;
	begin(&f, "identity");
	harness_file(f.dir, "a", 0644, "a");
	harness_file(f.dir, "b", 0644, "b");
	EXPECT(!linkat(f.dir, "a", f.dir, "hard", 0));
	uint64_t a = lookup(f.t, 1, "a", NULL), b = lookup(f.t, 1, "b", NULL);
	EXPECT(a > 1 && b > 1 && a != b);
	EXPECT_IS(lookup(f.t, 1, "a", NULL), a);
	EXPECT_IS(lookup(f.t, 1, "hard", NULL), a);
	EXPECT_IS(lookup(f.t, 1, "none", NULL), 0);
	EXPECT_IS(zc_inodes_count(f.t), 3);
	EXPECT_IS(reach(f.t, a), ino_of(f.dir, "hard"));
	EXPECT(!zc_inode_get(f.t, 0) && !zc_inode_get(f.t, 1000) && !zc_inode_get(f.t, UINT64_MAX));
	zc_inode_forget(f.t, a, 2);
	EXPECT_IS(lookup(f.t, 1, "a", NULL), a);
	zc_inode_forget(f.t, a, 2);
	EXPECT(!zc_inode_get(f.t, a));
	zc_inode_forget(f.t, a, 1);  /* again: nothing is left to forget */
	zc_inode_forget(f.t, b, 99); /* more than there were */
	zc_inode_forget(f.t, 1, 1);  /* the root stays */
	EXPECT_IS(reach(f.t, 1), ino_of(f.dir, "."));
	end(&f);
}

/* Ours, after the kernel forgot it: it lives until the last reference goes. */
static void test_reference(void)
{
	struct fixture f;
	begin(&f, "reference");
	harness_file(f.dir, "a", 0644, "a");
	uint64_t a = lookup(f.t, 1, "a", NULL);
	struct zc_inode *inode = zc_inode_get(f.t, a);
	zc_inode_forget(f.t, a, 1);
	EXPECT_IS(zc_inodes_count(f.t), 2);
	EXPECT_IS(reach(f.t, a), ino_of(f.dir, "a"));
	zc_inode_put(f.t, inode);
	EXPECT_IS(zc_inodes_count(f.t), 1);
	EXPECT(!zc_inode_get(f.t, a));
	end(&f);
}

static void test_generation(void)
{
	struct fixture f;
	uint32_t first = 0, second = 0;
	begin(&f, "generation");
	harness_file(f.dir, "a", 0644, "a");
	harness_file(f.dir, "b", 0644, "b");
	uint64_t a = lookup(f.t, 1, "a", &first);
	zc_inode_forget(f.t, a, 1);
	uint64_t b = lookup(f.t, 1, "b", &second);
	EXPECT(first && second && first != second);
	EXPECT_IS(a, b); /* the slot is used again, so this test tests something */
	zc_inode_forget(f.t, b, 1);
	end(&f);
}

/* The kernel still remembers a file that is gone, and its inode number belongs to a directory now:
 * not the same nodeid and generation, or it would take the one for the other. */
static void test_reused_number(void)
{
	struct fixture f;
	uint32_t first, second;
	begin(&f, "reused inode number");
	for (int i = 0; i < 20; i++) {
		harness_file(f.dir, "was", 0644, "file");
		uint64_t old_ino = ino_of(f.dir, "was"), old = lookup(f.t, 1, "was", &first);
		EXPECT(!unlinkat(f.dir, "was", 0) && !mkdirat(f.dir, "was", 0755));
		bool reused = ino_of(f.dir, "was") == old_ino;
		uint64_t now = lookup(f.t, 1, "was", &second);
		EXPECT(now != 0);
		EXPECT(now != old || first != second);
		EXPECT_IS(reach(f.t, now), ino_of(f.dir, "was"));
		if (now != old)
			EXPECT_IS(reach(f.t, old), 0); /* stale */
		zc_inode_forget(f.t, now, 2);
		zc_inode_forget(f.t, old, 2);
		EXPECT(!unlinkat(f.dir, "was", AT_REMOVEDIR));
		if (reused)
			break;
	}
	end(&f);
}

/* Many directories through a small cache. */
static void test_ring(void)
{
	enum { DIRS = 200 };
	struct fixture f;
	uint64_t id[DIRS];
	char name[16];
	begin(&f, "ring");
	int fds = harness_fds();
	for (int i = 0; i < DIRS; i++) {
		snprintf(name, sizeof(name), "d%d", i);
		EXPECT(!mkdirat(f.dir, name, 0755));
		id[i] = lookup(f.t, 1, name, NULL);
	}
	for (int round = 0; round < 3; round++)
		for (int i = 0; i < DIRS; i++) {
			snprintf(name, sizeof(name), "d%d", i);
			EXPECT_IS(reach(f.t, id[i]), ino_of(f.dir, name));
			EXPECT(zc_inodes_descriptors(f.t) <= LIMIT + 1);
			EXPECT_IS(harness_fds() - fds, zc_inodes_descriptors(f.t) - 1);
		}
	EXPECT(zc_inodes_descriptors(f.t) >= LIMIT - 1);
	for (int i = 0; i < DIRS; i++)
		zc_inode_forget(f.t, id[i], 1);
	EXPECT_IS(harness_fds(), fds);
	end(&f);
}

/* Held descriptors are not taken away, however many others come. */
static void test_pinned(void)
{
	struct fixture f;
	char name[16];
	begin(&f, "pinned");
	EXPECT(!mkdirat(f.dir, "held", 0755));
	uint64_t held = lookup(f.t, 1, "held", NULL);
	struct zc_inode *inode = zc_inode_get(f.t, held);
	ZC_FD(fd);
	EXPECT_IS(zc_inode_fd(f.t, inode, &fd), 0);
	for (int i = 0; i < 3 * LIMIT; i++) {
		snprintf(name, sizeof(name), "d%d", i);
		EXPECT(!mkdirat(f.dir, name, 0755));
		uint64_t id = lookup(f.t, 1, name, NULL);
		EXPECT_IS(reach(f.t, id), ino_of(f.dir, name));
		EXPECT(fcntl(fd.fd, F_GETFD) >= 0);
		zc_inode_forget(f.t, id, 1);
	}
	struct stat st;
	EXPECT(!fstat(fd.fd, &st) && st.st_ino == ino_of(f.dir, "held"));
	zc_fd_done(&fd);
	zc_inode_put(f.t, inode);
	zc_inode_forget(f.t, held, 1);
	end(&f);
}

static void crowd_out(struct fixture *f)
{
	char name[16];
	for (int i = 0; i < 2 * LIMIT; i++) {
		snprintf(name, sizeof(name), "crowd%d", i);
		harness_file(f->dir, name, 0644, "");
		uint64_t id = lookup(f->t, 1, name, NULL);
		EXPECT_IS(reach(f->t, id), ino_of(f->dir, name));
		zc_inode_forget(f->t, id, 1);
	}
}

static const char *last_of(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

/* As ops_name.c does it. */
static void move(struct fixture *f, uint64_t from, const char *from_path, uint64_t to, const char *path)
{
	struct zc_inode *old = zc_inode_get(f->t, from), *new = zc_inode_get(f->t, to), *inode = NULL;
	EXPECT_IS(zc_inode_moving(f->t, old, last_of(from_path), &inode), 0);
	EXPECT(!renameat(f->dir, from_path, f->dir, path));
	if (inode) {
		zc_inode_moved(f->t, inode, new, last_of(path));
		zc_inode_put(f->t, inode);
	}
	zc_inode_put(f->t, old);
	zc_inode_put(f->t, new);
}

static void test_moved(void)
{
	struct fixture f;
	begin(&f, "moved");
	EXPECT(!mkdirat(f.dir, "x", 0755) && !mkdirat(f.dir, "y", 0755));
	harness_file(f.dir, "x/a", 0644, "a");
	uint64_t ino = ino_of(f.dir, "x/a");
	uint64_t x = lookup(f.t, 1, "x", NULL), y = lookup(f.t, 1, "y", NULL);
	uint64_t a = lookup(f.t, x, "a", NULL);
	crowd_out(&f);
	EXPECT_IS(reach(f.t, a), ino);
	move(&f, x, "x/a", x, "x/renamed");
	crowd_out(&f);
	EXPECT_IS(reach(f.t, a), ino);
	move(&f, x, "x/renamed", y, "y/b");
	crowd_out(&f);
	EXPECT_IS(reach(f.t, a), ino);
	zc_inode_forget(f.t, x, 1); /* nothing of x is left in `a` */
	EXPECT(!zc_inode_get(f.t, x));
	move(&f, 1, "y", 1, "z"); /* its directory moves */
	crowd_out(&f);
	EXPECT_IS(reach(f.t, a), ino);
	EXPECT_IS(lookup(f.t, y, "b", NULL), a);
	zc_inode_forget(f.t, y, 1); /* stays as long as what is below it */
	EXPECT_IS(reach(f.t, a), ino);
	zc_inode_forget(f.t, a, 2);
	end(&f);
}

/* An open file whose last name goes stays within reach. */
static void test_unlinked(void)
{
	struct fixture f;
	static struct zc_opened opened;
	begin(&f, "unlinked while open");
	harness_file(f.dir, "a", 0644, "a");
	uint64_t ino = ino_of(f.dir, "a"), a = lookup(f.t, 1, "a", NULL);
	int fds = harness_fds();
	struct zc_inode *inode = zc_inode_get(f.t, a), *root = zc_inode_get(f.t, 1);
	int fd = zc_inode_open(f.t, inode, O_RDONLY); /* a handle alone does not keep it */
	inode->opened = &opened;
	EXPECT_IS(zc_inode_unlinking(f.t, root, "a"), 0);
	EXPECT(!unlinkat(f.dir, "a", 0));
	crowd_out(&f);
	EXPECT_IS(reach(f.t, a), ino);
	inode->opened = NULL;
	close(fd);
	zc_inode_put(f.t, root);
	zc_inode_put(f.t, inode);
	zc_inode_forget(f.t, a, 1);
	EXPECT_IS(harness_fds() - fds <= 0, 1);
	end(&f);
}

/* 200,000 real files, in memory. */
static void test_memory(void)
{
	enum { DIRS = 200, PER = 1000 };
	struct fixture f;
	char name[32];
	begin(&f, "memory");
	uint64_t *ids = malloc(DIRS * (PER + 1) * sizeof(*ids)), n = 0;
	memset(ids, 0xff, DIRS * (PER + 1) * sizeof(*ids));
	for (int d = 0; d < DIRS; d++) {
		snprintf(name, sizeof(name), "%d", d);
		EXPECT(!mkdirat(f.dir, name, 0755));
		int sub = openat(f.dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		for (int i = 0; i < PER; i++) {
			snprintf(name, sizeof(name), "%d", i);
			mknodat(sub, name, S_IFREG | 0644, 0);
		}
		close(sub);
	}
	size_t before = harness_rss();
	for (int d = 0; d < DIRS; d++) {
		snprintf(name, sizeof(name), "%d", d);
		uint64_t dir = ids[n++] = lookup(f.t, 1, name, NULL);
		for (int i = 0; i < PER; i++) {
			snprintf(name, sizeof(name), "%d", i);
			ids[n++] = lookup(f.t, dir, name, NULL);
		}
	}
	EXPECT_IS(zc_inodes_count(f.t), n + 1);
	size_t full = harness_rss();
	for (uint64_t i = 0; i < n; i++)
		zc_inode_forget(f.t, ids[i], 1);
	EXPECT_IS(zc_inodes_count(f.t), 1);
	size_t after = harness_rss();
	if (!harness_sanitized()) {
		printf("%s: %zu bytes an inode; %zu kB stay of %zu kB\n", harness_context,
		       (full - before) / n, (after - before) >> 10, (full - before) >> 10);
		EXPECT(full - before > n * sizeof(struct zc_inode) / 2);
		EXPECT(full - before < n * 300);
		/* the hash stays (4 MiB at most), one partly used chunk, what malloc keeps */
		EXPECT(after < before + (5u << 20) + (handles ? 0 : n * 40));
	}
	free(ids);
	end(&f);
}

/* many threads ---------------------------------------------------------------------------------- */

#define THREADS 4
#define SHARED 200

static struct fixture storm;
static uint64_t storm_ino[SHARED];
static _Atomic bool storm_over;
static _Atomic uint64_t storm_rounds;

static uint64_t storm_dir(unsigned n)
{
	uint64_t id = lookup(storm.t, 1, (char[3]){'d', (char)('0' + n), 0}, NULL);
	EXPECT(id != 0);
	return id;
}

/* Looks a file up, uses it in one of the ways of the operations, and forgets it, while others do
 * the same with the same file, move it, or make descriptors scarce. */
static void storm_round(unsigned *seed)
{
	unsigned n = (unsigned)rand_r(seed) % SHARED;
	char name[32];
	snprintf(name, sizeof(name), "f%u", n);
	uint64_t dir = storm_dir(n % 4), id = lookup(storm.t, dir, name, NULL);
	zc_inode_forget(storm.t, dir, 1);
	if (!id)
		return; /* moved away just now */
	struct zc_inode *inode = zc_inode_get(storm.t, id);
	EXPECT(inode != NULL);
	int fd = zc_inode_open(storm.t, inode, n % 8 ? O_PATH : O_RDONLY);
	EXPECT(fd >= 0 || fd == -ESTALE);
	if (fd >= 0)
		close(fd);
	if (rand_r(seed) % 4 == 0) { /* holds a reference beyond the FORGET */
		zc_inode_forget(storm.t, id, 1);
		zc_inode_put(storm.t, inode);
		return;
	}
	zc_inode_put(storm.t, inode);
	uint64_t ino = reach(storm.t, id);
	EXPECT(ino == storm_ino[n] || ino == 0);
	zc_inode_forget(storm.t, id, 1);
}

/* The kernel makes renames one after the other; so do we. */
static void storm_move(unsigned *seed)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	unsigned n = (unsigned)rand_r(seed) % SHARED;
	char from[32], to[32];
	snprintf(from, sizeof(from), "d%u/f%u", n % 4, n);
	snprintf(to, sizeof(to), "d%u/g%u", (n + 1) % 4, n);
	pthread_mutex_lock(&lock);
	uint64_t away = storm_dir((n + 1) % 4), home = storm_dir(n % 4);
	move(&storm, home, from, away, to);
	move(&storm, away, to, home, from);
	zc_inode_forget(storm.t, away, 1);
	zc_inode_forget(storm.t, home, 1);
	pthread_mutex_unlock(&lock);
}

static void *storm_thread(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	snprintf(harness_context, sizeof(harness_context), "storm, %s", handles ? "by handle" : "by path");
	for (unsigned i = 0; !atomic_load(&storm_over); i++) {
		storm_round(&seed);
		if (i % 16 == 0)
			storm_move(&seed);
		atomic_fetch_add(&storm_rounds, 1);
	}
	return NULL;
}

static void test_storm(void)
{
	pthread_t t[THREADS];
	char name[32];
	begin(&storm, "storm");
	atomic_store(&storm_over, false);
	atomic_store(&storm_rounds, 0);
	for (unsigned i = 0; i < 4; i++) {
		snprintf(name, sizeof(name), "d%u", i);
		EXPECT(!mkdirat(storm.dir, name, 0755));
	}
	for (unsigned i = 0; i < SHARED; i++) {
		snprintf(name, sizeof(name), "d%u/f%u", i % 4, i);
		harness_file(storm.dir, name, 0644, "x");
		storm_ino[i] = ino_of(storm.dir, name);
	}
	int fds = harness_fds();
	for (uintptr_t i = 0; i < THREADS; i++)
		EXPECT(!pthread_create(&t[i], NULL, storm_thread, (void *)(i + 1)));
	struct timespec two = {.tv_sec = 2};
	nanosleep(&two, NULL);
	atomic_store(&storm_over, true);
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	printf("%s: %llu rounds\n", harness_context, (unsigned long long)atomic_load(&storm_rounds));
	EXPECT(harness_fds() <= fds);
	end(&storm);
}

int main(void)
{
	struct rlimit lim = {.rlim_cur = 1024, .rlim_max = 1024};
	setrlimit(RLIMIT_NOFILE, &lim);
	alarm(110);
	static const char *const bases[] = {"/var/tmp", "/dev/shm"};
	for (int i = 0; i < 4; i++) {
		base = bases[i % 2];
		handles = i < 2;
		if ((handles && geteuid()) || access(base, W_OK))
			continue;
		test_identity();
		test_reference();
		test_generation();
		test_reused_number();
		test_ring();
		test_pinned();
		test_moved();
		test_unlinked();
		if (i % 2)
			test_memory();
		test_storm();
	}
	return harness_end();
}
