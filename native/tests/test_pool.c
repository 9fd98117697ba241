/* The pool, one thread at a time: bytes and pages against a model, ends of files, borrow rules,
 * eviction, what the disk refuses. Takes a directory to work in, /tmp without. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../pool/pool.h"
#include "../sys.h"
#include "harness.h"

#define MIB ((size_t)1 << 20)
#define SIZE (16 * MIB)

static int dir;
static const char *policy;

static uint64_t random_state = 88172645463325252ULL;

static uint64_t rnd(uint64_t below)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % below;
}

static struct zc_pool *make_pool(size_t size)
{
	struct zc_pool_options o = {.size = size, .policy = policy};
	struct zc_pool *p = NULL;
	EXPECT_IS(zc_pool_create(&o, &p), 0);
	if (!p)
		exit(harness_end() | 1);
	return p;
}

static struct zc_pool_stats stats_of(struct zc_pool *p)
{
	struct zc_pool_stats st;
	zc_pool_statistics(p, &st);
	return st;
}

static void end_pool(struct zc_pool *p)
{
	EXPECT_IS(stats_of(p).borrowed, 0);
	EXPECT_IS(zc_pool_destroy(p), 0);
}

static int make_file(const char *name, size_t size)
{
	int fd = openat(dir, name, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
	EXPECT(fd >= 0);
	EXPECT_IS(ftruncate(fd, (off_t)size), 0);
	return fd;
}

static struct zc_pool_file *open_file(struct zc_pool *p, int fd, uint32_t page_size)
{
	struct zc_pool_file *f = NULL;
	EXPECT_IS(zc_pool_open(p, fd, page_size, &f), 0);
	if (!f)
		exit(harness_end() | 1);
	return f;
}

/* Every 8 bytes say which file they are of and where they are. */
static uint64_t marker(uint64_t file, uint64_t at)
{
	return (file << 48 | at >> 3) * 0x9e3779b97f4a7c15ULL;
}

static void fill_marked(uint64_t file, uint64_t at, void *buf, size_t len)
{
	for (size_t i = 0; i < len; i += 8) {
		uint64_t m = marker(file, at + i);
		memcpy((char *)buf + i, &m, len - i < 8 ? len - i : 8);
	}
}

static int marked_file(const char *name, uint64_t number, size_t size)
{
	int fd = make_file(name, 0);
	char *buf = malloc(size);
	fill_marked(number, 0, buf, size);
	EXPECT_IS(pwrite(fd, buf, size, 0), size);
	EXPECT_IS(fsync(fd), 0);
	free(buf);
	return fd;
}

static bool is_marked(uint64_t file, uint64_t at, const void *buf, size_t len)
{
	for (size_t i = 0; i < len; i += 8) {
		uint64_t m = marker(file, at + i);
		if (memcmp((const char *)buf + i, &m, 8))
			return false;
	}
	return true;
}

/* creation ------------------------------------------------------------------------------------ */

static int create_with(size_t size, uint32_t frame, const char *io, const char *which)
{
	struct zc_pool_options o = {.size = size, .frame_size = frame, .io = io, .policy = which};
	struct zc_pool *p = NULL;
	int err = zc_pool_create(&o, &p);
	if (!err)
		EXPECT_IS(zc_pool_destroy(p), 0);
	return err;
}

static void test_create(void)
{
	int fds = harness_fds();
	EXPECT_IS(create_with(8 * MIB, 0, NULL, NULL), 0);
	EXPECT_IS(create_with(8 * MIB, 65536, "threads", "lru"), 0);
	EXPECT_IS(create_with(8 * MIB - 1, 0, NULL, NULL), -EINVAL);
	EXPECT_IS(create_with(0, 0, NULL, NULL), -EINVAL);
	EXPECT_IS(create_with((size_t)1 << 46, 0, NULL, NULL), -ENOMEM);
	EXPECT_IS(create_with(8 * MIB, 2048, NULL, NULL), -EINVAL);
	EXPECT_IS(create_with(8 * MIB, 12288, NULL, NULL), -EINVAL);
	EXPECT_IS(create_with(8 * MIB, 131072, NULL, NULL), -EINVAL);
	EXPECT_IS(create_with(8 * MIB, 0, "magic", NULL), -EINVAL);
	EXPECT_IS(create_with(8 * MIB, 0, NULL, "magic"), -EINVAL);
	EXPECT_IS(harness_fds(), fds);
}

/* The arena cannot be written to through the descriptor that others get, nor resized. */
static void test_arena(void)
{
	struct zc_pool *p = make_pool(SIZE);
	size_t len = 0;
	const uint8_t *arena = zc_pool_arena(p, &len);
	int fd = zc_pool_arena_fd(p);
	EXPECT(((uintptr_t)arena & (2 * MIB - 1)) == 0);
	EXPECT(len <= SIZE && len >= SIZE - 2 * MIB);
	void *m = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
	EXPECT(m != MAP_FAILED);
	EXPECT(mprotect(m, len, PROT_READ | PROT_WRITE) < 0);
	EXPECT(mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
	EXPECT(ftruncate(fd, 0) < 0);
	char path[64];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int again = open(path, O_RDWR | O_CLOEXEC);
	if (again >= 0) { /* root may; then the seals refuse */
		EXPECT(mmap(NULL, len, PROT_WRITE, MAP_SHARED, again, 0) == MAP_FAILED);
		EXPECT(pwrite(again, "x", 1, 0) < 0);
		EXPECT(ftruncate(again, 0) < 0);
		close(again);
	}

	int file = marked_file("arena", 1, 65536);
	struct zc_pool_file *f = open_file(p, file, 16384);
	struct zc_page page;
	EXPECT_IS(zc_page_borrow(f, 2, &page), 0);
	EXPECT(page.data >= arena && page.data + 16384 <= arena + len);
	EXPECT(!memcmp((char *)m + (page.data - arena), page.data, 16384));
	EXPECT(is_marked(1, 32768, page.data, 16384));
	EXPECT(((uintptr_t)page.data & 16383) == 0);
	EXPECT_IS(zc_pool_destroy(p), -EBUSY);
	zc_pool_close(f);
	EXPECT_IS(zc_pool_destroy(p), -EBUSY);
	EXPECT(is_marked(1, 32768, page.data, 16384));
	zc_page_release(p, &page);
	munmap(m, len);
	close(file);
	end_pool(p);
}

static void test_open(void)
{
	struct zc_pool *p = make_pool(SIZE);
	struct zc_pool_file *f = NULL, *g = NULL;
	struct zc_pool_file_info info;
	int fd = make_file("open", 5000);
	static const uint32_t bad[] = {1, 512, 2048, 4097, 12288, 131072};
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		EXPECT_IS(zc_pool_open(p, fd, bad[i], &f), -EINVAL);
	EXPECT_IS(zc_pool_open(p, dir, 4096, &f), -EINVAL);
	EXPECT_IS(zc_pool_open(p, -1, 4096, &f), -EBADF);
	int ro = openat(dir, "open", O_RDONLY | O_CLOEXEC);
	f = open_file(p, ro, 0);
	EXPECT_IS(zc_pool_file_info(f, &info), 0);
	EXPECT_IS(info.size, 5000);
	EXPECT_IS(info.page_size, 16384);
	EXPECT(info.mem_align >= 4096 && info.offset_align >= 4096);
	EXPECT(!info.writable);
	EXPECT_IS(zc_pool_write(f, 0, "x", 1, 0), -EBADF);
	struct zc_page page;
	EXPECT_IS(zc_page_borrow_mut(f, 0, &page), -EBADF);
	EXPECT_IS(zc_pool_truncate(f, 0), -EBADF);
	/* one that may only be written to becomes readable for us */
	int wo = openat(dir, "open", O_WRONLY | O_CLOEXEC);
	g = open_file(p, wo, 0);
	EXPECT_IS(zc_pool_write(g, 10, "hello", 5, 0), 5);
	char buf[5];
	EXPECT_IS(zc_pool_read(f, 10, buf, 5), 5);
	EXPECT(!memcmp(buf, "hello", 5));
	EXPECT_IS(stats_of(p).files, 1);
	zc_pool_close(g);
	zc_pool_close(f);
	close(wo);
	close(ro);
	close(fd);
	end_pool(p);
}

/* bytes --------------------------------------------------------------------------------------- */

#define MODEL (600u << 10)

struct model {
	struct zc_pool *p;
	struct zc_pool_file *f[2]; /* of different page sizes */
	int fd;
	uint8_t *bytes;
	size_t size;
};

static void model_read(struct model *m, size_t off, size_t len)
{
	static char buf[MODEL * 2];
	size_t want = off >= m->size ? 0 : len < m->size - off ? len : m->size - off;
	struct zc_pool_file *f = m->f[rnd(2)];
	memset(buf, 0xee, len);
	EXPECT_IS(zc_pool_read(f, off, buf, len), want);
	EXPECT(!memcmp(buf, m->bytes + off, want));
	for (size_t i = want; i < len && i < want + 64; i++)
		EXPECT((uint8_t)buf[i] == 0xee);
}

static void model_segments(struct model *m, size_t off, size_t len)
{
	struct zc_segment seg[200];
	unsigned count = 1 + (unsigned)rnd(199), room = count;
	ssize_t got = zc_pool_read_segments(m->f[rnd(2)], off, len, seg, &count);
	size_t want = off >= m->size ? 0 : len < m->size - off ? len : m->size - off, sum = 0;
	EXPECT(got >= 0 && (size_t)got <= want && (got || !want));
	EXPECT(count <= room);
	EXPECT((size_t)got == want || count == room);
	for (unsigned i = 0; got >= 0 && i < count; i++) {
		EXPECT(!memcmp(seg[i].ptr, m->bytes + off + sum, seg[i].len));
		sum += seg[i].len;
	}
	EXPECT_IS(sum, got);
	if (got >= 0)
		zc_segments_release(m->p, seg, count);
}

static void model_write(struct model *m, size_t off, size_t len, int flags)
{
	static char buf[MODEL * 2];
	for (size_t i = 0; i < len; i++)
		buf[i] = (char)rnd(256);
	EXPECT_IS(zc_pool_write(m->f[rnd(2)], off, buf, len, flags), len);
	memcpy(m->bytes + off, buf, len);
	if (off + len > m->size)
		m->size = off + len;
	struct stat st;
	EXPECT_IS(fstat(m->fd, &st), 0);
	EXPECT_IS(st.st_size, m->size);
}

static void model_truncate(struct model *m, size_t size)
{
	if (rnd(2)) {
		EXPECT_IS(zc_pool_truncate(m->f[rnd(2)], size), 0);
	} else {
		EXPECT_IS(ftruncate(m->fd, (off_t)size), 0);
		EXPECT_IS(zc_pool_truncated(m->f[rnd(2)]), 0);
	}
	if (size < m->size)
		memset(m->bytes + size, 0, m->size - size);
	m->size = size;
}

static void model_page(struct model *m)
{
	struct zc_pool_file *f = m->f[rnd(2)];
	struct zc_pool_file_info info;
	struct zc_page page;
	EXPECT_IS(zc_pool_file_info(f, &info), 0);
	EXPECT_IS(info.size, m->size);
	uint64_t n = rnd(MODEL / info.page_size + 1);
	size_t start = n * info.page_size;
	bool change = rnd(3) == 0;
	int err = change ? zc_page_borrow_mut(f, n, &page) : zc_page_borrow(f, n, &page);
	if (start >= m->size) {
		EXPECT_IS(err, -ERANGE);
		return;
	}
	EXPECT_IS(err, 0);
	if (err)
		return;
	size_t valid = m->size - start < info.page_size ? m->size - start : info.page_size;
	EXPECT_IS(page.valid, valid);
	EXPECT(!memcmp(page.data, m->bytes + start, valid));
	for (size_t i = valid; i < info.page_size; i++)
		if (page.data[i]) {
			EXPECT(!"zeros behind the end");
			break;
		}
	if (!change) {
		zc_page_release(m->p, &page);
		return;
	}
	size_t at = rnd(valid);
	page.data[at] ^= 0x55;
	if (rnd(3)) {
		EXPECT_IS(zc_page_commit(f, &page, 0), 0);
		m->bytes[start + at] ^= 0x55;
	} else {
		zc_page_abandon(m->p, &page);
	}
}

static void model_check_disk(struct model *m)
{
	static char buf[MODEL * 2];
	EXPECT_IS(pread(m->fd, buf, sizeof(buf), 0), m->size);
	EXPECT(!memcmp(buf, m->bytes, m->size));
}

static size_t odd_size(size_t most)
{
	static const size_t sizes[] = {1, 7, 511, 512, 513, 4095, 4096, 4097, 65536, 100000};
	size_t n = rnd(3) ? sizes[rnd(10)] + rnd(9) : 1 + rnd(most);
	return n < most ? n : most;
}

static void model_step(struct model *m)
{
	size_t off = rnd(4) ? rnd(m->size + 2) : rnd(MODEL), len = odd_size(MODEL - off + 1);
	if (rnd(3) == 0)
		off &= ~(size_t)4095;
	if (off + len > MODEL)
		len = MODEL - off + 1;
	switch (rnd(12)) {
	case 0: case 1: case 2: case 3:
		model_read(m, off, len);
		break;
	case 4: case 5:
		model_segments(m, off, len);
		break;
	case 6: case 7: case 8:
		model_write(m, off, len, rnd(20) ? 0 : RWF_DSYNC);
		break;
	case 9: case 10:
		model_page(m);
		break;
	default:
		if (rnd(4))
			model_page(m);
		else
			model_truncate(m, rnd(3) ? rnd(m->size + 1) : rnd(MODEL));
	}
}

static void test_model(uint32_t a, uint32_t b, unsigned steps)
{
	struct model m = {.p = make_pool(8 * MIB), .fd = make_file("model", 0)};
	m.bytes = calloc(1, MODEL * 2);
	m.f[0] = open_file(m.p, m.fd, a);
	m.f[1] = open_file(m.p, m.fd, b);
	for (unsigned i = 0; i < steps; i++) {
		snprintf(harness_context, sizeof(harness_context), "%s %u/%u, step %u",
			 zc_pool_policy_name(m.p), a, b, i);
		model_step(&m);
		if (i % 100 == 0)
			model_check_disk(&m);
	}
	model_check_disk(&m);
	harness_context[0] = 0;
	zc_pool_close(m.f[0]);
	zc_pool_close(m.f[1]);
	close(m.fd);
	free(m.bytes);
	end_pool(m.p);
}

static void test_small_files(void)
{
	struct zc_pool *p = make_pool(SIZE);
	static const size_t sizes[] = {0, 1, 100, 511, 512, 513, 4095, 4096, 4097};
	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		char want[8192], got[8192];
		memset(want, 'a' + (int)i, sizeof(want));
		int fd = make_file("small", 0);
		EXPECT_IS(pwrite(fd, want, sizes[i], 0), sizes[i]);
		struct zc_pool_file *f = open_file(p, fd, 4096);
		EXPECT_IS(zc_pool_read(f, 0, got, sizeof(got)), sizes[i]);
		EXPECT(!memcmp(got, want, sizes[i]));
		EXPECT_IS(zc_pool_read(f, sizes[i], got, 10), 0);
		EXPECT_IS(zc_pool_read(f, 1 << 20, got, 10), 0);
		EXPECT_IS(zc_pool_read(f, UINT64_MAX, got, 10), -EINVAL);
		struct zc_page page;
		EXPECT_IS(zc_page_borrow(f, 0, &page), sizes[i] ? 0 : -ERANGE);
		if (sizes[i])
			zc_page_release(p, &page);
		EXPECT_IS(zc_page_borrow(f, 2, &page), -ERANGE);
		EXPECT_IS(zc_page_borrow(f, UINT64_MAX, &page), -ERANGE);
		EXPECT_IS(zc_pool_write(f, sizes[i], "end", 3, 0), 3);
		EXPECT_IS(zc_pool_read(f, sizes[i], got, 10), 3);
		struct stat st;
		fstat(fd, &st);
		EXPECT_IS(st.st_size, sizes[i] + 3);
		zc_pool_close(f);
		close(fd);
		unlinkat(dir, "small", 0);
	}
	end_pool(p);
}

/* Somebody else appends, shortens, rewrites. */
static void test_behind_our_back(void)
{
	struct zc_pool *p = make_pool(SIZE);
	int fd = make_file("grow", 0);
	char buf[100], *big = calloc(1, 100000);
	EXPECT_IS(pwrite(fd, "0123456789", 10, 0), 10);
	struct zc_pool_file *f = open_file(p, fd, 4096);
	EXPECT_IS(zc_pool_read(f, 0, buf, 100), 10);
	EXPECT_IS(pwrite(fd, "abcdef", 6, 10), 6);
	EXPECT_IS(zc_pool_read(f, 0, buf, 100), 16);
	EXPECT(!memcmp(buf, "0123456789abcdef", 16));
	EXPECT_IS(pwrite(fd, "ghi", 3, 16), 3);
	struct zc_page page;
	EXPECT_IS(zc_page_borrow(f, 0, &page), 0);
	EXPECT_IS(page.valid, 19);
	EXPECT(!memcmp(page.data + 16, "ghi", 4));
	zc_page_release(p, &page);
	EXPECT_IS(pwrite(fd, "far", 3, 50000), 3);
	EXPECT_IS(zc_page_borrow(f, 0, &page), 0);
	EXPECT_IS(page.valid, 4096);
	zc_page_release(p, &page);
	EXPECT_IS(zc_pool_read(f, 0, big, 100000), 50003);
	EXPECT(!memcmp(big + 50000, "far", 3));
	/* shorter: seen when it is opened again */
	EXPECT_IS(ftruncate(fd, 5), 0);
	struct zc_pool_file *g = open_file(p, fd, 4096);
	EXPECT_IS(zc_pool_read(f, 0, big, 100000), 5);
	EXPECT_IS(zc_page_borrow(f, 1, &page), -ERANGE);
	EXPECT_IS(pwrite(fd, "X", 1, 0), 1);
	EXPECT_IS(zc_pool_revalidate(g), 1);
	EXPECT_IS(zc_pool_revalidate(g), 0);
	EXPECT_IS(zc_pool_read(g, 0, buf, 1), 1);
	EXPECT(buf[0] == 'X');
	EXPECT_IS(pwrite(fd, "Y", 1, 0), 1);
	zc_pool_invalidate(g, 0, 1);
	EXPECT_IS(zc_pool_read(g, 0, buf, 1), 1);
	EXPECT(buf[0] == 'Y');
	/* our own writes are no reason to drop anything */
	EXPECT_IS(zc_pool_write(g, 0, big, 100000, 0), 100000);
	uint64_t read = stats_of(p).bytes_read;
	zc_pool_close(f);
	f = open_file(p, fd, 4096);
	EXPECT_IS(zc_pool_read(f, 0, big, 100000), 100000);
	EXPECT_IS(stats_of(p).bytes_read, read);
	zc_pool_close(f);
	zc_pool_close(g);
	close(fd);
	free(big);
	end_pool(p);
}

/* A page that is cached in one size and written in another, or truncated. */
static void test_overlap(void)
{
	struct zc_pool *p = make_pool(SIZE);
	int fd = marked_file("overlap", 3, 256 << 10);
	struct zc_pool_file *small = open_file(p, fd, 4096), *large = open_file(p, fd, 65536);
	struct zc_page a, b;
	EXPECT_IS(zc_page_borrow(large, 1, &a), 0);
	EXPECT_IS(zc_pool_write(small, 65536 + 4096, "changed", 7, 0), 7);
	EXPECT(is_marked(3, 65536, a.data, 65536));
	EXPECT_IS(zc_page_borrow(large, 1, &b), 0);
	EXPECT(b.data != a.data && b.version > a.version);
	EXPECT(!memcmp(b.data + 4096, "changed", 7));
	zc_page_release(p, &a);
	zc_page_release(p, &b);
	EXPECT_IS(zc_page_borrow_mut(large, 1, &a), 0);
	EXPECT_IS(zc_pool_write(small, 65536, "theirs", 6, 0), 6);
	a.data[0] = 'o';
	EXPECT_IS(zc_page_commit(large, &a, 0), -ESTALE);
	zc_page_abandon(p, &a);
	char buf[6];
	EXPECT_IS(zc_pool_read(large, 65536, buf, 6), 6);
	EXPECT(!memcmp(buf, "theirs", 6));
	zc_pool_close(small);
	zc_pool_close(large);
	close(fd);
	end_pool(p);
}

/* borrows ------------------------------------------------------------------------------------- */

static void test_borrow(void)
{
	struct zc_pool *p = make_pool(SIZE);
	int fd = marked_file("borrow", 4, 1 << 20);
	struct zc_pool_file *f = open_file(p, fd, 16384);
	struct zc_page a, b, c;
	EXPECT_IS(zc_page_borrow(f, 3, &a), 0);
	EXPECT_IS(zc_page_borrow(f, 3, &b), 0);
	EXPECT(a.data == b.data && a.version == b.version && a.valid == 16384);
	EXPECT_IS(stats_of(p).borrowed, 16384);
	EXPECT_IS(zc_page_borrow_mut(f, 3, &c), -EBUSY);
	zc_page_release(p, &a);
	EXPECT(!a.data);
	zc_page_release(p, &a);
	EXPECT_IS(zc_page_borrow_mut(f, 3, &c), -EBUSY);
	zc_page_release(p, &b);
	EXPECT_IS(stats_of(p).borrowed, 0);

	EXPECT_IS(zc_page_borrow_mut(f, 3, &a), 0);
	EXPECT_IS(zc_page_borrow_mut(f, 3, &c), -EBUSY);
	EXPECT_IS(zc_page_borrow(f, 3, &c), -EBUSY);
	struct zc_page many[4];
	EXPECT_IS(zc_page_borrow_run(f, 2, 4, many), 3);
	EXPECT_IS(many[1].error, -EBUSY);
	EXPECT(!many[1].data && many[0].data && many[2].data);
	zc_page_release_many(p, many, 4);
	uint64_t before = a.version, word = 0;
	memset(a.data, 'm', 100);
	EXPECT_IS(zc_pool_read(f, 3 * 16384, &word, 8), 8); /* as it is on the disk */
	EXPECT_IS(word, marker(4, 3 * 16384));
	EXPECT_IS(zc_page_commit(f, &a, RWF_DSYNC), 0);
	EXPECT(!a.data);
	EXPECT_IS(zc_page_commit(f, &a, 0), -EINVAL);
	EXPECT_IS(zc_page_borrow(f, 3, &b), 0);
	EXPECT(b.version > before && b.data[99] == 'm');
	EXPECT_IS(pread(fd, &word, 8, 3 * 16384), 8);
	EXPECT(!memcmp(&word, "mmmmmmmm", 8));

	/* borrowers keep what they have */
	EXPECT_IS(zc_pool_write(f, 3 * 16384, "new", 3, 0), 3);
	EXPECT(b.data[0] == 'm');
	EXPECT_IS(zc_page_borrow(f, 3, &c), 0);
	EXPECT(c.data != b.data && !memcmp(c.data, "newm", 4) && c.version > b.version);
	EXPECT_IS(zc_pool_truncate(f, 0), 0);
	EXPECT(b.data[0] == 'm' && c.data[0] == 'n');
	EXPECT_IS(zc_page_borrow(f, 3, &a), -ERANGE);
	zc_page_release(p, &b);
	zc_page_release(p, &c);

	EXPECT_IS(zc_pool_write(f, 0, "short", 5, 0), 5);
	EXPECT_IS(zc_page_borrow_mut(f, 0, &a), 0);
	EXPECT_IS(a.valid, 5);
	a.data[0] = 'S';
	zc_page_abandon(p, &a);
	zc_page_abandon(p, &a);
	EXPECT_IS(zc_page_borrow_mut(f, 0, &a), 0);
	EXPECT(a.data[0] == 's');
	a.data[0] = 'S';
	EXPECT_IS(zc_page_commit(f, &a, 0), 0);
	struct stat st;
	fstat(fd, &st);
	EXPECT_IS(st.st_size, 5);
	zc_pool_close(f);
	close(fd);
	end_pool(p);
}

/* Only what is there, whole, and not exclusively borrowed. */
static void test_borrow_cached(void)
{
	struct zc_pool *p = make_pool(SIZE);
	int fd = marked_file("cached", 6, 5 * 16384 + 100);
	struct zc_pool_file *f = open_file(p, fd, 16384);
	struct zc_page a, b;
	EXPECT_IS(zc_page_borrow_cached(f, 3, &a), -EAGAIN);
	EXPECT_IS(stats_of(p).requests, 0);
	EXPECT_IS(zc_page_borrow(f, 3, &a), 0);
	uint64_t hits = stats_of(p).hits;
	EXPECT_IS(zc_page_borrow_cached(f, 3, &b), 0);
	EXPECT(a.data == b.data && a.version == b.version && b.valid == 16384);
	EXPECT_IS(stats_of(p).hits, hits + 1);
	zc_page_release(p, &a);
	zc_page_release(p, &b);
	EXPECT_IS(zc_page_borrow_mut(f, 3, &a), 0);
	EXPECT_IS(zc_page_borrow_cached(f, 3, &b), -EAGAIN);
	zc_page_abandon(p, &a);
	EXPECT_IS(zc_page_borrow(f, 5, &a), 0);
	EXPECT_IS(a.valid, 100);
	EXPECT_IS(zc_page_borrow_cached(f, 5, &b), -EAGAIN);
	zc_page_release(p, &a);
	EXPECT_IS(zc_page_borrow_cached(f, UINT64_MAX, &b), -EAGAIN);
	EXPECT_IS(stats_of(p).borrowed, 0);
	zc_pool_close(f);
	close(fd);
	end_pool(p);
}

/* What is cached is answered with no disk request and no wait; nothing else is. */
static void test_cached(void)
{
	struct zc_pool *p = make_pool(8 * MIB);
	int fd = marked_file("cached", 6, 40000);
	struct zc_pool_file *f = open_file(p, fd, 4096);
	struct zc_segment seg[16];
	unsigned n = 16;
	char byte;
	EXPECT_IS(zc_pool_read_cached(f, 0, 10, seg, &n), -EAGAIN);
	EXPECT_IS(zc_pool_read(f, 0, &byte, 1), 1);
	EXPECT_IS(zc_pool_read(f, 4096, &byte, 1), 1);
	zc_pool_invalidate(f, 8192, UINT64_MAX); /* readahead may have come so far */
	struct zc_pool_stats st = stats_of(p);
	EXPECT_IS(zc_pool_read_cached(f, 104, 8192, seg, &n), -EAGAIN); /* the third page */
	EXPECT_IS(n, 16);
	EXPECT_IS(stats_of(p).borrowed, 0);
	EXPECT_IS(stats_of(p).hits, st.hits);
	n = 1;
	EXPECT_IS(zc_pool_read_cached(f, 104, 8000, seg, &n), -EAGAIN); /* too few segments */
	n = 16;
	EXPECT_IS(zc_pool_read_cached(f, 104, 8088, seg, &n), 8088);
	EXPECT_IS(n, 2);
	EXPECT_IS(seg[0].len, 3992);
	EXPECT(is_marked(6, 104, seg[0].ptr, 3992));
	EXPECT(is_marked(6, 4096, seg[1].ptr, 4096));
	EXPECT_IS(stats_of(p).borrowed, 8192);
	EXPECT_IS(stats_of(p).hits, st.hits + 2);
	zc_segments_release(p, seg, n);
	EXPECT_IS(stats_of(p).borrowed, 0);
	EXPECT_IS(stats_of(p).requests, st.requests);
	n = 16;
	EXPECT_IS(zc_pool_read_cached(f, 40000, 10, seg, &n), 0); /* the end needs no page */
	EXPECT_IS(n, 0);
	n = 16;
	EXPECT_IS(ftruncate(fd, 5000), 0);
	EXPECT_IS(zc_pool_truncated(f), 0);
	EXPECT_IS(zc_pool_read_cached(f, 0, 4096, seg, &n), 4096);
	zc_segments_release(p, seg, n);
	EXPECT_IS(zc_pool_read_cached(f, 0, 8192, seg, &n), -EAGAIN);
	zc_pool_close(f);
	close(fd);
	end_pool(p);
}

static void test_limit(void)
{
	struct zc_pool *p = make_pool(8 * MIB);
	size_t limit = stats_of(p).borrow_limit / 4096, count = limit + 100;
	int fd = marked_file("limit", 5, count * 4096);
	struct zc_pool_file *f = open_file(p, fd, 4096);
	struct zc_page *pages = calloc(count, sizeof(*pages)), one;
	EXPECT_IS(zc_page_borrow_run(f, 0, count, pages), limit);
	size_t refused = 0;
	for (size_t i = 0; i < count; i++) {
		refused += pages[i].error == -ENOBUFS;
		if (pages[i].data)
			EXPECT(is_marked(5, i * 4096, pages[i].data, 4096));
	}
	EXPECT_IS(refused, 100);
	EXPECT_IS(zc_page_borrow(f, count - 1, &one), -ENOBUFS);
	EXPECT_IS(zc_page_borrow(f, 0, &one), 0); /* borrowed already */
	zc_page_release(p, &one);
	struct zc_segment seg[4];
	unsigned n = 4;
	EXPECT_IS(zc_pool_read_segments(f, (count - 4) * 4096, 16384, seg, &n), -ENOBUFS);
	char *all = malloc(count * 4096);
	EXPECT_IS(zc_pool_read(f, 0, all, count * 4096), count * 4096);
	EXPECT(is_marked(5, 0, all, count * 4096));
	EXPECT_IS(zc_pool_write(f, 8, "through", 7, 0), 7);
	EXPECT_IS(zc_pool_read(f, 8, all, 7), 7);
	EXPECT(!memcmp(all, "through", 7));
	EXPECT(is_marked(5, 0, pages[0].data, 4096));
	zc_page_release_many(p, pages, 1);
	EXPECT_IS(zc_page_borrow(f, count - 1, &one), 0);
	zc_page_release(p, &one);
	zc_page_release_many(p, pages, count);
	EXPECT_IS(stats_of(p).borrowed, 0);
	zc_pool_close(f);
	close(fd);
	free(all);
	free(pages);
	end_pool(p);
}

static void test_many(void)
{
	struct zc_pool *p = make_pool(SIZE);
	int fd = marked_file("many", 6, 4 << 20);
	struct zc_pool_file *f = open_file(p, fd, 4096);
	uint64_t numbers[700];
	static struct zc_page pages[700];
	for (unsigned i = 0; i < 700; i++)
		numbers[i] = i % 7 ? rnd(1024) : i % 14 ? 5 : 5000; /* 5000: behind the end */
	EXPECT_IS(zc_page_borrow_many(f, numbers, 700, pages), 650);
	for (unsigned i = 0; i < 700; i++) {
		EXPECT_IS(pages[i].error, numbers[i] == 5000 ? -ERANGE : 0);
		if (pages[i].data)
			EXPECT(is_marked(6, numbers[i] * 4096, pages[i].data, 4096));
	}
	zc_page_release_many(p, pages, 700);
	/* a run from a fresh pool goes in few requests */
	struct zc_pool *q = make_pool(SIZE);
	struct zc_pool_file *g = open_file(q, fd, 4096);
	EXPECT_IS(zc_page_borrow_run(g, 0, 256, pages), 256);
	EXPECT(stats_of(q).requests <= 8);
	zc_page_release_many(q, pages, 256);
	zc_pool_close(g);
	end_pool(q);
	zc_pool_close(f);
	close(fd);
	end_pool(p);
}

/* eviction ------------------------------------------------------------------------------------ */

/* Files many times the pool, in all page sizes, with some pages borrowed all the while. */
static void test_eviction(void)
{
	struct zc_pool *p = make_pool(8 * MIB);
	int fd[5];
	struct zc_pool_file *f[5];
	char *buf = malloc(MIB);
	for (unsigned i = 0; i < 5; i++) {
		char name[16];
		snprintf(name, sizeof(name), "evict%u", i);
		fd[i] = marked_file(name, 10 + i, 10 * MIB);
		f[i] = open_file(p, fd[i], 4096u << i);
	}
	struct zc_page held[20];
	for (unsigned i = 0; i < 20; i++)
		EXPECT_IS(zc_page_borrow(f[i % 5], i, &held[i]), 0);
	for (unsigned step = 0; step < 4000; step++) {
		unsigned i = (unsigned)rnd(5);
		uint32_t size = 4096u << i;
		if (rnd(2)) {
			size_t len = (1 + rnd(MIB / 8 - 1)) * 8, off = rnd((10 * MIB - len) / 8) * 8;
			EXPECT_IS(zc_pool_read(f[i], off, buf, len), len);
			EXPECT(is_marked(10 + i, off, buf, len));
			step += 10;
		} else {
			struct zc_page page;
			uint64_t n = rnd(10 * MIB / size);
			int err = zc_page_borrow(f[i], n, &page);
			EXPECT_IS(err, 0);
			if (!err)
				EXPECT(is_marked(10 + i, n * size, page.data, size));
			if (!err)
				zc_page_release(p, &page);
		}
	}
	for (unsigned i = 0; i < 20; i++)
		EXPECT(is_marked(10 + i % 5, (uint64_t)i << (12 + i % 5), held[i].data, 4096u << i % 5));
	zc_page_release_many(p, held, 20);
	struct zc_pool_stats st = stats_of(p);
	EXPECT(st.evictions > 0);
	uint64_t bytes = st.free_slabs * st.slab_size;
	for (unsigned i = 0; i < 5; i++)
		bytes += st.frames[i] * (4096u << i);
	EXPECT_IS(bytes, st.size);
	for (unsigned i = 0; i < 5; i++) {
		zc_pool_close(f[i]);
		close(fd[i]);
	}
	free(buf);
	end_pool(p);
}

/* What is used stays while a file much larger than the pool is read through. */
static void test_scan(void)
{
	struct zc_pool *p = make_pool(8 * MIB);
	int hot = marked_file("hot", 30, 2 * MIB), cold = marked_file("cold", 31, 40 * MIB);
	struct zc_pool_file *h = open_file(p, hot, 4096), *c = open_file(p, cold, 4096);
	struct zc_page page;
	for (unsigned i = 0; i < 4 * 512; i++)
		if (!zc_page_borrow(h, i % 512, &page))
			zc_page_release(p, &page);
	char *buf = malloc(MIB);
	for (unsigned i = 0; i < 40; i++)
		EXPECT_IS(zc_pool_read(c, i * MIB, buf, MIB), MIB);
	uint64_t misses = stats_of(p).misses;
	for (unsigned i = 0; i < 512; i++) /* no stream */
		if (!zc_page_borrow(h, i * 45 % 512, &page))
			zc_page_release(p, &page);
	misses = stats_of(p).misses - misses;
	if (!strcmp(zc_pool_policy_name(p), "s3fifo") || !strcmp(zc_pool_policy_name(p), "wtinylfu"))
		EXPECT(misses < 100);
	EXPECT(is_marked(31, 39 * MIB, buf, MIB));
	free(buf);
	zc_pool_close(h);
	zc_pool_close(c);
	close(hot);
	close(cold);
	end_pool(p);
}

/* A stream is read ahead, in the background; once all is there nothing is. */
static void test_readahead(void)
{
	struct zc_pool *p = make_pool(64 * MIB);
	int fd = marked_file("stream", 32, 20 * MIB);
	struct zc_pool_file *f = open_file(p, fd, 16384);
	char *buf = malloc(65536);
	for (unsigned i = 0; i < 320; i++) {
		EXPECT_IS(zc_pool_read(f, i * 65536, buf, 65536), 65536);
		EXPECT(is_marked(32, i * 65536, buf, 65536));
	}
	struct zc_pool_stats st = stats_of(p);
	EXPECT(st.readahead > 100);
	EXPECT_IS(st.misses + st.readahead, 1280);
	zc_pool_close(f);
	f = open_file(p, fd, 4096);
	EXPECT_IS(zc_pool_prefetch(f, 10, 100000), 0);
	for (unsigned i = 0; i < 1000 && stats_of(p).readahead - st.readahead < 5110; i++)
		usleep(10000);
	EXPECT_IS(stats_of(p).readahead - st.readahead, 5110);
	zc_pool_close(f);
	close(fd);
	free(buf);
	end_pool(p);
}

/* Frames of one size become frames of another when those are what is needed. */
static void test_classes(void)
{
	struct zc_pool *p = make_pool(16 * MIB);
	int fd = marked_file("classes", 33, 40 * MIB);
	struct zc_pool_file *small = open_file(p, fd, 4096), *large = open_file(p, fd, 65536);
	char *buf = malloc(MIB);
	for (unsigned i = 0; i < 40; i++)
		EXPECT_IS(zc_pool_read(small, i * MIB, buf, MIB), MIB);
	EXPECT(stats_of(p).frames[0] > 3000);
	for (unsigned round = 0; round < 4; round++)
		for (unsigned i = 0; i < 40; i++)
			EXPECT_IS(zc_pool_read(large, i * MIB, buf, MIB), MIB);
	EXPECT(stats_of(p).frames[4] > 150);
	for (unsigned round = 0; round < 4; round++)
		for (unsigned i = 0; i < 40; i++)
			EXPECT_IS(zc_pool_read(small, i * MIB, buf, MIB), MIB);
	EXPECT(stats_of(p).frames[0] > 3000);
	EXPECT(is_marked(33, 39 * MIB, buf, MIB));
	free(buf);
	zc_pool_close(small);
	zc_pool_close(large);
	close(fd);
	end_pool(p);
}

/* Many files, opened and closed: those that nobody has open are bounded, as is the memory. */
static void test_files(void)
{
	struct zc_pool *p = make_pool(80 * MIB);
	for (unsigned i = 0; i < 18000; i++) {
		int fd = openat(dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		if (fd < 0)
			break;
		EXPECT_IS(pwrite(fd, &i, sizeof(i), 0), sizeof(i));
		struct zc_pool_file *f = open_file(p, fd, 4096);
		unsigned got = ~i;
		EXPECT_IS(zc_pool_read(f, 0, &got, sizeof(got)), sizeof(got));
		EXPECT_IS(got, i);
		zc_pool_close(f);
		close(fd);
		if (i > 2000 && harness_sanitized())
			break;
	}
	EXPECT(stats_of(p).files <= 16384);
	end_pool(p);
}

static void test_memory(void)
{
	size_t before = harness_rss(), size = 256 * MIB;
	struct zc_pool *p = make_pool(size);
	int fd = make_file("memory", 300 * MIB);
	struct zc_pool_file *f = open_file(p, fd, 4096);
	char *buf = malloc(MIB);
	for (unsigned i = 0; i < 300; i++)
		EXPECT_IS(zc_pool_read(f, i * MIB, buf, MIB), MIB);
	size_t after = harness_rss();
	EXPECT(harness_sanitized() || after - before <= size + 64 * MIB);
	EXPECT(after - before >= size - 64 * MIB);
	printf("256 MiB of 4 KiB frames take %zu KiB\n", (after - before) >> 10);
	free(buf);
	zc_pool_close(f);
	close(fd);
	end_pool(p);
}

/* faults -------------------------------------------------------------------------------------- */

#ifdef ZC_FAULT_INJECTION
static void test_faults(void)
{
	struct zc_pool *p = make_pool(SIZE);
	int fd = marked_file("faults", 40, 1 << 20);
	struct zc_pool_file *f = open_file(p, fd, 4096);
	struct zc_page pages[16], page;
	char buf[65536];
	/* the request for all of them fails, and then that for the third */
	zc_fault_arm("pread", 1, EIO, 0);
	EXPECT_IS(zc_page_borrow_run(f, 100, 16, pages), 16);
	zc_page_release_many(p, pages, 16);
	zc_fault_arm("pread", 1, EIO, 1);
	EXPECT_IS(zc_page_borrow(f, 7, &page), -EIO);
	EXPECT_IS(zc_pool_read(f, 7 * 4096, buf, 4096), -EIO);
	EXPECT_IS(zc_pool_read(f, 100 * 4096, buf, 4096), 4096);
	zc_fault_arm("", 0, 0, 0);
	EXPECT_IS(zc_page_borrow(f, 7, &page), 0);
	EXPECT(is_marked(40, 7 * 4096, page.data, 4096));
	zc_page_release(p, &page);
	/* O_DIRECT refused at the first read only */
	zc_fault_arm("pread", 1, EINVAL, 0);
	EXPECT_IS(zc_pool_read(f, 50 * 4096, buf, 65536), 65536);
	EXPECT(is_marked(40, 50 * 4096, buf, 65536));
	struct zc_pool_file_info info;
	EXPECT_IS(zc_pool_file_info(f, &info), 0);
	EXPECT(!info.direct);
	zc_pool_close(f);
	f = open_file(p, fd, 4096);

	/* a write that fails leaves nothing of itself in the pool */
	zc_fault_arm("pwritev2", 1, EIO, 1);
	memset(buf, 'w', sizeof(buf));
	EXPECT_IS(zc_pool_write(f, 8192, buf, 65536, 0), -EIO);
	EXPECT_IS(zc_pool_write(f, 8193, buf, 10, 0), -EIO);
	EXPECT_IS(zc_page_borrow_mut(f, 60, &page), 0);
	page.data[0] = 'c';
	EXPECT_IS(zc_page_commit(f, &page, 0), -EIO);
	zc_fault_arm("", 0, 0, 0);
	EXPECT_IS(zc_page_commit(f, &page, 0), 0);
	EXPECT_IS(zc_pool_read(f, 60 * 4096, buf, 1), 1);
	EXPECT(buf[0] == 'c');
	EXPECT_IS(zc_pool_read(f, 8192, buf, 65536), 65536);
	EXPECT(is_marked(40, 8192, buf, 65536));
	zc_fault_arm("fsync", 1, EIO, 0);
	EXPECT_IS(zc_pool_fsync(f, false), -EIO);
	EXPECT_IS(zc_pool_fsync(f, false), 0);
	EXPECT_IS(zc_pool_fsync(f, true), 0);
	zc_pool_close(f);
	close(fd);
	end_pool(p);
}

/* Every call of a small life fails once; nothing is lost by it. */
static void test_sweep(void)
{
	for (int nth = 1; nth < 400; nth++) {
		struct zc_pool_options o = {.size = 8 * MIB, .policy = policy};
		struct zc_pool *p = NULL;
		struct zc_pool_file *f = NULL;
		struct zc_page page;
		char buf[20000];
		int fds = harness_fds();
		int fd = marked_file("sweep", 41, 100000);
		snprintf(harness_context, sizeof(harness_context), "sweep %d", nth);
		zc_fault_arm("*", nth, EIO, 0);
		if (!zc_pool_create(&o, &p) && !zc_pool_open(p, fd, 8192, &f)) {
			ssize_t n = zc_pool_read(f, 5000, buf, 16384);
			EXPECT(n < 0 || is_marked(41, 5000, buf, (size_t)n & ~7u));
			memset(buf, 'z', sizeof(buf));
			n = zc_pool_write(f, 95000, buf, 10000, 0);
			EXPECT(n < 0 || n == 10000 || n == 3304 || n == 7400);
			if (!zc_page_borrow_mut(f, 2, &page)) {
				fill_marked(41, 2 * 8192, page.data, 8192);
				if (zc_page_commit(f, &page, 0))
					zc_page_abandon(p, &page);
			}
			zc_pool_truncate(f, 90000);
		}
		bool over = zc_fault_seen() < nth;
		zc_fault_arm("", 0, 0, 0);
		if (f) {
			EXPECT_IS(zc_pool_truncate(f, 90000), 0);
			memset(buf, 0, 8192);
			EXPECT_IS(zc_pool_read(f, 16384, buf, 8192), 8192);
			EXPECT(is_marked(41, 16384, buf, 8192));
			EXPECT_IS(zc_pool_read(f, 80000, buf, 20000), 10000);
			EXPECT(is_marked(41, 80000, buf, 10000));
			zc_pool_close(f);
		}
		if (p)
			end_pool(p);
		close(fd);
		EXPECT_IS(harness_fds(), fds);
		if (over)
			break;
		EXPECT(nth < 399);
	}
	harness_context[0] = 0;
}
#endif

int main(int argc, char **argv)
{
	char path[200];
	unsigned steps = harness_sanitized() ? 1500 : 5000;
	dir = harness_dir(argc > 1 ? argv[1] : "/tmp", path, sizeof(path));
	setvbuf(stdout, NULL, _IOLBF, 0);
	test_create();
	test_arena();
	test_open();
	test_small_files();
	test_behind_our_back();
	test_overlap();
	test_borrow();
	test_borrow_cached();
	test_cached();
	test_limit();
	test_many();
	for (unsigned i = 0; (policy = zc_pool_policy(i)); i++) {
		test_model(4096, 16384, steps / 4);
		test_eviction();
		test_scan();
	}
	policy = NULL;
	test_model(4096, 65536, steps);
	test_model(8192, 32768, steps / 2);
	test_readahead();
	test_classes();
	test_files();
	test_memory();
#ifdef ZC_FAULT_INJECTION
	test_faults();
	test_sweep();
#endif
	harness_dir_end(dir, path);
	return harness_end();
}
