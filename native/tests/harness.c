/* Failures, temporary trees, and what a process holds (harness.h). */
#include "harness.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PRINTED_MOST 60

_Thread_local char harness_context[160];
static atomic_int failures;

void harness_fail(const char *file, int line, const char *what, long long got, long long want)
{
	if (atomic_fetch_add(&failures, 1) >= PRINTED_MOST)
		return;
	printf("%s:%d: [%s] %s is %lld, not %lld\n", file, line, harness_context, what, got, want);
	fflush(stdout);
}

int harness_end(void)
{
	printf("%d failures\n", atomic_load(&failures));
	return atomic_load(&failures) != 0;
}

static void must(int ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	exit(99);
}

int harness_dir(const char *base, char *path, size_t path_cap)
{
	snprintf(path, path_cap, "%s/zcfs-test-XXXXXX", base);
	must(mkdtemp(path) != NULL, path);
	must(!chmod(path, 0755), path);
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	must(fd >= 0, path);
	return fd;
}

void harness_file(int dir, const char *name, unsigned mode, const char *content)
{
	int fd = openat(dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	must(fd >= 0, name);
	must(write(fd, content, strlen(content)) == (ssize_t)strlen(content), name);
	must(!fchmod(fd, mode), name);
	close(fd);
}

static int is_dots(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..");
}

static DIR *list(int dir)
{
	int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
	must(d != NULL, "opendir");
	return d;
}

void harness_empty(int dir)
{
	DIR *d = list(dir);
	const struct dirent *e;
	while ((e = readdir(d))) {
		if (is_dots(e->d_name))
			continue;
		if (e->d_type == DT_DIR) {
			int sub = openat(dir, e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
			must(sub >= 0, e->d_name);
			harness_empty(sub);
			close(sub);
		}
		must(!unlinkat(dir, e->d_name, e->d_type == DT_DIR ? AT_REMOVEDIR : 0), e->d_name);
	}
	closedir(d);
}

void harness_dir_end(int dir, const char *path)
{
	harness_empty(dir);
	close(dir);
	rmdir(path);
}

static uint64_t fnv(uint64_t h, const void *data, size_t len)
{
	const unsigned char *p = data;
	while (len--)
		h = (h ^ *p++) * 0x100000001b3ULL;
	return h;
}

static uint64_t digest_content(int dir, const char *name, const struct stat *st, uint64_t h)
{
	char buf[65536];
	ssize_t n = 0;
	if (S_ISDIR(st->st_mode)) {
		int sub = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		uint64_t below = harness_digest(sub);
		close(sub);
		return fnv(h, &below, sizeof(below));
	}
	if (S_ISLNK(st->st_mode))
		n = readlinkat(dir, name, buf, sizeof(buf));
	if (S_ISREG(st->st_mode)) {
		int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
		n = read(fd, buf, sizeof(buf));
		close(fd);
	}
	return fnv(h, buf, n > 0 ? (size_t)n : 0);
}

/* Entries are added up, so their order does not matter. */
unsigned long long harness_digest(int dir)
{
	unsigned long long sum = 0;
	DIR *d = list(dir);
	const struct dirent *e;
	while ((e = readdir(d))) {
		struct stat st;
		if (is_dots(e->d_name) || fstatat(dir, e->d_name, &st, AT_SYMLINK_NOFOLLOW))
			continue;
		uint64_t of[] = {st.st_mode, st.st_uid, st.st_gid, st.st_nlink, st.st_rdev,
				 S_ISDIR(st.st_mode) ? 0 : (uint64_t)st.st_size};
		uint64_t h = fnv(0xcbf29ce484222325ULL, e->d_name, strlen(e->d_name));
		sum += digest_content(dir, e->d_name, &st, fnv(h, of, sizeof(of)));
	}
	closedir(d);
	return sum;
}

int harness_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;
	must(d != NULL, "/proc/self/fd");
	while (readdir(d))
		n++;
	closedir(d);
	return n - 3; /* the dots, and the one that looks */
}

size_t harness_rss(void)
{
	char line[128];
	size_t kb = 0;
	FILE *f = fopen("/proc/self/smaps_rollup", "re"); /* exact, unlike statm */
	must(f != NULL, "/proc/self/smaps_rollup");
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "Rss: %zu kB", &kb) == 1)
			break;
	fclose(f);
	return kb << 10;
}

int harness_sanitized(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return 1;
#else
	return 0;
#endif
}
