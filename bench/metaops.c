/*
 * metaops OP DIR COUNT: one metadata operation on COUNT files, timed in nanoseconds.
 *
 * The driver has to cost less than what it measures, so it asks the kernel directly: one dirfd,
 * relative names made in place, no allocation and no library call in the timed stretch.
 * It prints one number: the nanoseconds that the stretch took.
 *
 *   create  openat(O_CREAT|O_EXCL) + close of f000000 … into DIR
 *   stat    newfstatat of each
 *   open    openat(O_RDONLY) + close of each
 *   reopen  the same, after a pass of newfstatat that is not timed (names known, files closed)
 *   walk    getdents64 to the end, newfstatat of each name
 *   unlink  unlinkat of each, after a pass of newfstatat that is not timed
 *   tree    COUNT directories d000000 … of 1,000 empty files each (not a measurement)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { NAME_DIGITS = 6, TREE_FILES = 1000 };

struct entry {			/* struct linux_dirent64, which the C library does not declare */
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

typedef void (*op_fn)(int dir, unsigned count);

static void fail(const char *what, const char *name)
{
	fprintf(stderr, "metaops: %s %s: %s\n", what, name, strerror(errno));
	exit(1);
}

static const char *name_of(char prefix, unsigned number)
{
	static char name[NAME_DIGITS + 2];

	name[0] = prefix;
	for (int i = NAME_DIGITS; i > 0; i--, number /= 10)
		name[i] = (char)('0' + number % 10);
	return name;
}

static void stat_one(int dir, const char *name)
{
	struct stat st;

	if (syscall(SYS_newfstatat, dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		fail("stat", name);
}

static void open_close(int dir, const char *name, int flags)
{
	long fd = syscall(SYS_openat, dir, name, flags, 0644);

	if (fd < 0)
		fail("open", name);
	syscall(SYS_close, fd);
}

static void op_create(int dir, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		open_close(dir, name_of('f', i), O_CREAT | O_EXCL | O_WRONLY);
}

static void op_stat(int dir, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		stat_one(dir, name_of('f', i));
}

static void op_open(int dir, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		open_close(dir, name_of('f', i), O_RDONLY);
}

static void op_unlink(int dir, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (syscall(SYS_unlinkat, dir, name_of('f', i), 0) < 0)
			fail("unlink", name_of('f', i));
}

static void op_walk(int dir, unsigned count)
{
	static char buf[32768] __attribute__((aligned(8)));
	unsigned seen = 0;
	long got;

	while ((got = syscall(SYS_getdents64, dir, buf, sizeof buf)) > 0) {
		for (char *at = buf; at < buf + got; at += ((struct entry *)(void *)at)->reclen) {
			const char *name = ((struct entry *)(void *)at)->name;

			if (name[0] == '.')
				continue;
			stat_one(dir, name);
			seen++;
		}
	}
	if (got < 0)
		fail("getdents64", ".");
	if (seen != count) {
		fprintf(stderr, "metaops: walk saw %u names, not %u\n", seen, count);
		exit(1);
	}
}

static void op_tree(int dir, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		const char *name = name_of('d', i);

		if (mkdirat(dir, name, 0755) < 0)
			fail("mkdir", name);
		int sub = openat(dir, name, O_RDONLY | O_DIRECTORY);
		if (sub < 0)
			fail("open", name);
		op_create(sub, TREE_FILES);
		close(sub);
	}
}

static const struct op {
	const char *name;
	op_fn warm;		/* not timed, may be NULL */
	op_fn timed;
} OPS[] = {
	{ "create", NULL, op_create },
	{ "stat", NULL, op_stat },
	{ "open", NULL, op_open },
	{ "reopen", op_stat, op_open },
	{ "walk", NULL, op_walk },
	{ "unlink", op_stat, op_unlink },
	{ "tree", NULL, op_tree },
};

static long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void run(const struct op *op, const char *path, unsigned count)
{
	int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (dir < 0)
		fail("open", path);
	if (op->warm)
		op->warm(dir, count);
	long long start = now_ns();
	op->timed(dir, count);
	printf("%lld\n", now_ns() - start);
	close(dir);
}

int main(int argc, char **argv)
{
	unsigned long count = argc == 4 ? strtoul(argv[3], NULL, 10) : 0;

	for (size_t i = 0; count > 0 && count < 1000000 && i < sizeof OPS / sizeof *OPS; i++) {
		if (strcmp(argv[1], OPS[i].name) == 0) {
			run(&OPS[i], argv[2], (unsigned)count);
			return 0;
		}
	}
	fprintf(stderr, "usage: metaops create|stat|open|reopen|walk|unlink|tree DIR COUNT\n");
	return 2;
}
