/* The probe's direct reads. What statx says of alignment is not always so: a RAM block device with
 * 4 KiB sectors said 512, then returned wrong data for memory aligned to 512 and overwrote what lay
 * beside it. So the probe reads, compares, and looks at the memory on both sides.
 *
 * Owns nothing beyond a call. Single thread.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"
#include "probe.h"
#include "sys.h"

#define SAMPLE (256u << 10)
#define GUARD (128u << 10) /* watched on both sides of the target */
#define TARGET (64u << 10)
#define CANARY 0x5a

/* struct statx by offset, for system headers that lack it (before Linux 6.1). */
#define DIOALIGN_MASK 0x2000u
#define DIOALIGN_MEM 0x98
#define DIOALIGN_OFFSET 0x9c

/* The sample ------------------------------------------------------------------------------ */

static int nameless_file(int dirfd)
{
	char name[64];
	int fd = ZC_SYSI("openat", openat(dirfd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));

	if (fd != -EOPNOTSUPP && fd != -EISDIR && fd != -EINVAL)
		return fd;
	snprintf(name, sizeof(name), ".zcfs-probe-%d", (int)getpid());
	fd = ZC_SYSI("openat", openat(dirfd, name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600));
	if (fd >= 0)
		unlinkat(dirfd, name, 0);
	return fd;
}

static int fill(int fd)
{
	uint64_t words[512];

	for (uint64_t pos = 0; pos < SAMPLE; pos += sizeof(words)) {
		for (uint64_t i = 0; i < 512; i++)
			words[i] = (pos / 8 + i + 1) * 0x9e3779b97f4a7c15ULL;
		ssize_t n = ZC_SYS("pwrite", pwrite(fd, words, sizeof(words), (off_t)pos));
		if (n != sizeof(words))
			return n < 0 ? (int)n : -ENOSPC;
	}
	return ZC_SYSI("fsync", fsync(fd));
}

static bool is_regular(int dirfd, const struct dirent *e)
{
	struct stat st;

	if (e->d_type != DT_REG && e->d_type != DT_UNKNOWN)
		return false;
	return !fstatat(dirfd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) && S_ISREG(st.st_mode) &&
	       st.st_size >= 4096;
}

/* Opened without a trace: the access time stays, where that may be asked for. */
static int open_quietly(int dirfd, const char *name)
{
	int flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
	int fd = ZC_SYSI("openat", openat(dirfd, name, flags | O_NOATIME));

	return fd == -EPERM ? ZC_SYSI("openat", openat(dirfd, name, flags)) : fd;
}

static int existing_file(int dirfd)
{
	int fd = ZC_SYSI("openat", openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	struct dirent *e;
	int found = -ENOENT;

	if (!dir) {
		if (fd >= 0)
			close(fd);
		return fd < 0 ? fd : -ENOMEM;
	}
	for (int seen = 0; found < 0 && seen < 1000 && (e = readdir(dir)); seen++)
		if (is_regular(fd, e))
			found = open_quietly(fd, e->d_name);
	closedir(dir);
	return found;
}

int zc_probe_sample(int dirfd)
{
	int fd = nameless_file(dirfd);
	int err = fd < 0 ? fd : fill(fd);

	if (!err)
		return fd;
	if (fd >= 0)
		close(fd);
	fd = existing_file(dirfd);
	return fd == -ENOENT ? err : fd;
}

/* Reading --------------------------------------------------------------------------------- */

/* Two guards with the target between them, and what the file holds. */
struct bench {
	int fd;
	char *mem, *want;
	size_t size; /* of `want`, whole pages */
};

static bool all_canary(const char *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (p[i] != CANARY)
			return false;
	return true;
}

static int read_once(const struct bench *b, size_t skew, size_t offset, size_t len)
{
	size_t whole = 2 * GUARD + TARGET, before = GUARD + skew;

	memset(b->mem, CANARY, whole);
	ssize_t n = ZC_SYS("pread", pread(b->fd, b->mem + before, len, (off_t)offset));
	if (!all_canary(b->mem, before) ||
	    !all_canary(b->mem + before + len, whole - before - len))
		return -EFAULT;
	if (n < 0)
		return (int)n;
	return (size_t)n == len && !memcmp(b->mem + before, b->want + offset, len) ? 0 : -EBADMSG;
}

/* Several reads, as far as the file has them, with memory aligned to `mem` and no better. */
static int read_aligned(const struct bench *b, size_t mem, size_t align)
{
	static const size_t lengths[] = {1, 3, 8};
	size_t skew = mem < 4096 ? mem : 0;
	int err = -ENODATA;

	for (size_t at = 0; at < 16; at += 4)
		for (size_t i = 0; i < 3; i++) {
			if ((at + lengths[i]) * align > b->size)
				continue;
			err = read_once(b, skew, at * align, lengths[i] * align);
			if (err)
				return err;
		}
	return err;
}

static void ask_statx(int fd, struct zc_probe_direct *out)
{
	struct statx stx = {0};

	out->statx_error = ZC_SYSI("statx", statx(fd, "", AT_EMPTY_PATH, DIOALIGN_MASK, &stx));
	if (out->statx_error)
		return;
	if (!(stx.stx_mask & DIOALIGN_MASK)) {
		out->statx_error = -ENOSYS;
		return;
	}
	memcpy(&out->statx_mem, (char *)&stx + DIOALIGN_MEM, 4);
	memcpy(&out->statx_offset, (char *)&stx + DIOALIGN_OFFSET, 4);
}

static void run_reads(struct bench *b, struct zc_probe_direct *out)
{
	ssize_t n = ZC_SYS("pread", pread(b->fd, b->want, SAMPLE, 0));
	int flags = fcntl(b->fd, F_GETFL) | O_DIRECT;

	b->size = n > 0 ? (size_t)n & ~4095UL : 0;
	out->open_error = n < 0 ? (int)n : ZC_SYSI("fcntl", fcntl(b->fd, F_SETFL, flags));
	for (unsigned i = 0; i < ZC_PROBE_READS && !out->open_error; i++) {
		struct zc_probe_read *r = &out->reads[i];
		r->error = read_aligned(b, r->mem, r->offset);
	}
}

void zc_probe_direct(int sample, struct zc_probe_direct *out)
{
	size_t size = 2 * GUARD + TARGET + SAMPLE;
	struct bench b = {.fd = sample};

	*out = (struct zc_probe_direct){
		.reads = {{4096, 4096, 0}, {4096, 512, 0}, {512, 4096, 0}, {512, 512, 0}}};
	ask_statx(sample, out);
	b.mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (b.mem == MAP_FAILED) {
		out->open_error = -ENOMEM;
		return;
	}
	b.want = b.mem + 2 * GUARD + TARGET;
	run_reads(&b, out);
	munmap(b.mem, size);
}
