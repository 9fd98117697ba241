/* The pool under many threads: readers, borrowers, writers, those who change pages in place and those
 * who throw everything out, all on the same few files and in a pool that is too small for them. Takes
 * a directory to work in, seconds for each policy, and the name of an I/O back end. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../pool/pool.h"
#include "harness.h"

#define MIB ((size_t)1 << 20)
#define PAGE 4096u
#define PAGES 4096u /* of the file whose pages are whole: twice the pool */
#define THREADS 8
#define SKIPPED 77 /* to meson */
#define SHARED (300u << 10) /* bytes of the file that all write to, each its own */

static struct zc_pool *pool;
static const char *io;
static int dir, pages_fd, shared_fd;
static _Atomic bool stop;
static _Atomic uint64_t generation = 1, work[8];

struct thread {
	pthread_t t;
	unsigned number;
	uint64_t random;
	uint64_t *seen; /* generation of each page, as last read: it never goes back */
	char *buf;	/* of 64 pages */
	uint8_t *mine;	/* what the shared file must have at our places */
};

static uint64_t rnd(struct thread *t, uint64_t below)
{
	t->random ^= t->random << 13;
	t->random ^= t->random >> 7;
	t->random ^= t->random << 17;
	return t->random % below;
}

static struct zc_pool_file *open_file(int fd, uint32_t page_size)
{
	struct zc_pool_file *f = NULL;
	EXPECT_IS(zc_pool_open(pool, fd, page_size, &f), 0);
	if (!f)
		exit(harness_end() | 1);
	return f;
}

static void make_page(uint64_t *words, uint64_t number, uint64_t made)
{
	for (unsigned i = 0; i < PAGE / 8; i += 2) {
		words[i] = number;
		words[i + 1] = made;
	}
}

/* Whole, of this number, and no older than before. */
static void check_page(struct thread *t, const void *data, uint64_t number)
{
	const uint64_t *words = data;
	uint64_t made = words[1];
	EXPECT_IS(words[0], number);
	for (unsigned i = 2; i < PAGE / 8; i += 2)
		if (words[i] != number || words[i + 1] != made) {
			harness_fail(__FILE__, __LINE__, "torn page", (long long)words[i + 1],
				     (long long)made);
			return;
		}
	if (t->seen && made < t->seen[number])
		harness_fail(__FILE__, __LINE__, "older page", (long long)made,
			     (long long)t->seen[number]);
	if (t->seen)
		t->seen[number] = made;
}

/* Refused for a reason that others are to blame for. */
static bool is_contended(int err)
{
	return err == -EBUSY || err == -ENOBUFS || err == -ESTALE;
}

static void borrow_one(struct thread *t, struct zc_pool_file *f)
{
	struct zc_page page;
	uint64_t n = rnd(t, PAGES);
	int err = zc_page_borrow(f, n, &page);
	EXPECT(!err || is_contended(err));
	if (err)
		return;
	check_page(t, page.data, n);
	if (rnd(t, 10) == 0) {
		uint64_t made = ((uint64_t *)(void *)page.data)[1];
		sched_yield();
		EXPECT_IS(((uint64_t *)(void *)page.data)[511], made);
	}
	zc_page_release(pool, &page);
	work[0]++;
}

static void borrow_some(struct thread *t, struct zc_pool_file *f, unsigned size)
{
	static _Thread_local struct zc_page pages[64];
	uint64_t numbers[64];
	unsigned n = 1 + (unsigned)rnd(t, 64), per = size / PAGE;
	for (unsigned i = 0; i < n; i++)
		numbers[i] = rnd(t, PAGES / per);
	zc_page_borrow_many(f, numbers, n, pages);
	for (unsigned i = 0; i < n; i++) {
		EXPECT(pages[i].data ? !pages[i].error : is_contended(pages[i].error));
		for (unsigned k = 0; pages[i].data && k < per; k++)
			check_page(t, pages[i].data + k * PAGE, numbers[i] * per + k);
	}
	zc_page_release_many(pool, pages, n);
	work[1]++;
}

static void read_some(struct thread *t, struct zc_pool_file *f)
{
	char *buf = t->buf;
	uint64_t n = rnd(t, PAGES - 64), count = 1 + rnd(t, 63);
	EXPECT_IS(zc_pool_read(f, n * PAGE, buf, count * PAGE), count * PAGE);
	work[2]++;
	/* only what lies in one page of the pool is atomic, and only where it is not read past it */
	for (unsigned i = 0; i < count; i++)
		EXPECT_IS(((uint64_t *)(void *)(buf + i * PAGE))[0], n + i);
}

static void segments(struct thread *t, struct zc_pool_file *f)
{
	struct zc_segment seg[64];
	unsigned count = 64;
	uint64_t n = rnd(t, PAGES - 64), len = (1 + rnd(t, 63)) * PAGE, off = n * PAGE;
	ssize_t got = zc_pool_read_segments(f, off, len, seg, &count);
	EXPECT(got > 0 || is_contended((int)got));
	if (got <= 0)
		return;
	for (unsigned i = 0; i < count; i++)
		for (size_t k = 0; k < seg[i].len; k += PAGE, off += PAGE)
			check_page(t, seg[i].ptr + k, off / PAGE);
	zc_segments_release(pool, seg, count);
	work[3]++;
}

/* Writers of a page take their generation while nobody else writes it: then it only grows. */
static pthread_mutex_t page_lock[64];

static void write_pages(struct thread *t, struct zc_pool_file *f)
{
	uint64_t words[PAGE / 8], n = rnd(t, PAGES);
	pthread_mutex_t *lock = &page_lock[n % 64];
	pthread_mutex_lock(lock);
	make_page(words, n, atomic_fetch_add(&generation, 1));
	EXPECT_IS(zc_pool_write(f, n * PAGE, words, PAGE, 0), PAGE);
	pthread_mutex_unlock(lock);
	work[4]++;
}

static void change_page(struct thread *t, struct zc_pool_file *f)
{
	struct zc_page page;
	uint64_t n = rnd(t, PAGES);
	pthread_mutex_t *lock = &page_lock[n % 64];
	pthread_mutex_lock(lock);
	int err = zc_page_borrow_mut(f, n, &page);
	EXPECT(!err || is_contended(err));
	if (!err) {
		check_page(t, page.data, n);
		make_page((uint64_t *)(void *)page.data, n, atomic_fetch_add(&generation, 1));
		err = rnd(t, 4) ? zc_page_commit(f, &page, 0) : -ECANCELED;
		EXPECT(!err || err == -ECANCELED || err == -ESTALE);
		if (err)
			zc_page_abandon(pool, &page);
	}
	pthread_mutex_unlock(lock);
	work[5]++;
}

static void throw_out(struct thread *t, struct zc_pool_file *f)
{
	uint64_t from = rnd(t, PAGES) * PAGE;
	zc_pool_invalidate(f, from, rnd(t, 20) ? from + rnd(t, 100) * PAGE : UINT64_MAX);
	zc_pool_prefetch(f, rnd(t, PAGES), rnd(t, 100));
}

/* Bytes of a file that all write to: block k of 100 bytes is that of thread k % THREADS. */
static void write_shared(struct thread *t, struct zc_pool_file *f)
{
	uint64_t block = rnd(t, SHARED / 100 / THREADS) * THREADS + t->number, at = block * 100;
	uint8_t bytes[100];
	uint64_t from = rnd(t, 100), len = 1 + rnd(t, 100 - from);
	if (rnd(t, 2)) {
		memset(bytes, (int)rnd(t, 255) + 1, len);
		EXPECT_IS(zc_pool_write(f, at + from, bytes, len, 0), len);
		memcpy(t->mine + at + from, bytes, len);
	}
	memset(bytes, 0xee, 100);
	ssize_t got = zc_pool_read(f, at, bytes, 100); /* perhaps behind the end still */
	EXPECT(got >= 0);
	for (ssize_t i = got; i < 100; i++)
		EXPECT_IS(t->mine[at + (uint64_t)i], 0);
	if (got > 0 && memcmp(bytes, t->mine + at, (size_t)got))
		harness_fail(__FILE__, __LINE__, "our own bytes", (long long)at, 0);
	work[6]++;
}

static void *run(void *arg)
{
	struct thread *t = arg;
	struct zc_pool_file *f = open_file(pages_fd, PAGE), *g = open_file(pages_fd, 16384);
	struct zc_pool_file *s = open_file(shared_fd, t->number % 2 ? 4096 : 8192);
	while (!stop) {
		switch (rnd(t, 16)) {
		case 0: case 1: case 2: case 3: case 4:
			borrow_one(t, f);
			break;
		case 5: case 6:
			borrow_some(t, f, PAGE);
			break;
		case 7:
			borrow_some(t, g, 16384);
			break;
		case 8:
			read_some(t, rnd(t, 2) ? f : g);
			break;
		case 9:
			segments(t, f);
			break;
		case 10: case 11:
			write_pages(t, rnd(t, 4) ? f : g);
			break;
		case 12:
			change_page(t, f);
			break;
		case 13: case 14:
			write_shared(t, s);
			break;
		default:
			if (rnd(t, 4) == 0)
				throw_out(t, f);
			if (rnd(t, 10) == 0) {
				zc_pool_close(f);
				f = open_file(pages_fd, PAGE);
			}
		}
	}
	zc_pool_close(f);
	zc_pool_close(g);
	zc_pool_close(s);
	return NULL;
}

static void check_shared(struct thread *threads)
{
	uint8_t *disk = calloc(1, SHARED);
	struct zc_pool_file *f = open_file(shared_fd, 65536);
	for (int through_pool = 0; through_pool < 2; through_pool++) {
		memset(disk, 0, SHARED);
		ssize_t got = through_pool ? zc_pool_read(f, 0, disk, SHARED)
					   : pread(shared_fd, disk, SHARED, 0);
		EXPECT(got > 0);
		for (uint64_t k = 0; k < SHARED / 100; k++)
			if (memcmp(disk + k * 100, threads[k % THREADS].mine + k * 100, 100))
				harness_fail(__FILE__, __LINE__, "lost bytes", (long long)k, 0);
	}
	zc_pool_close(f);
	free(disk);
}

static unsigned long count(unsigned kind)
{
	return (unsigned long)atomic_exchange(&work[kind], 0);
}

static bool test_mixed(const char *policy, unsigned seconds)
{
	struct zc_pool_options o = {.size = 8 * MIB, .policy = policy, .io = io};
	struct thread threads[THREADS];
	uint64_t words[PAGE / 8];
	int err = zc_pool_create(&o, &pool);
	if (err == -ENOTSUP) { /* this back end does not work here */
		printf("no %s\n", io);
		return false;
	}
	EXPECT_IS(err, 0);
	pages_fd = openat(dir, "pages", O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
	shared_fd = openat(dir, "shared", O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
	for (uint64_t i = 0; i < PAGES; i++) {
		make_page(words, i, 0);
		EXPECT_IS(pwrite(pages_fd, words, PAGE, (off_t)(i * PAGE)), PAGE);
	}
	atomic_store(&stop, false);
	for (unsigned i = 0; i < THREADS; i++) {
		threads[i] = (struct thread){.number = i, .random = 88172645463325252ULL + i * 7919};
		threads[i].seen = calloc(PAGES, sizeof(uint64_t));
		threads[i].mine = calloc(1, SHARED);
		threads[i].buf = malloc(64 * PAGE);
		pthread_create(&threads[i].t, NULL, run, &threads[i]);
	}
	sleep(seconds);
	atomic_store(&stop, true);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i].t, NULL);
	check_shared(threads);
	struct zc_pool_stats st;
	zc_pool_statistics(pool, &st);
	EXPECT_IS(st.borrowed, 0);
	printf("%s: %lu hits, %lu misses, %lu evictions, %lu waits; borrowed %lu %lu, read %lu %lu, "
	       "written %lu %lu %lu\n", zc_pool_policy_name(pool), (unsigned long)st.hits,
	       (unsigned long)st.misses, (unsigned long)st.evictions, (unsigned long)st.waits,
	       count(0), count(1), count(2), count(3), count(4), count(5), count(6));
	EXPECT_IS(zc_pool_destroy(pool), 0);
	for (unsigned i = 0; i < THREADS; i++) {
		free(threads[i].seen);
		free(threads[i].mine);
		free(threads[i].buf);
	}
	close(pages_fd);
	close(shared_fd);
	return true;
}

/* One page, everybody at once, again and again: it is read from the disk once each time. */
static _Atomic unsigned gate;

static void *all_at_once(void *arg)
{
	struct zc_pool_file *f = arg;
	struct thread t = {.seen = NULL};
	for (unsigned i = 0; i < 300; i++) {
		struct zc_page page;
		atomic_fetch_add(&gate, 1);
		while (atomic_load(&gate) < (i + 1) * THREADS)
			sched_yield();
		EXPECT_IS(zc_page_borrow(f, i, &page), 0);
		check_page(&t, page.data, i);
		zc_page_release(pool, &page);
	}
	return NULL;
}

static void test_one_read(void)
{
	struct zc_pool_options o = {.size = 16 * MIB, .io = io};
	pthread_t t[THREADS];
	EXPECT_IS(zc_pool_create(&o, &pool), 0);
	int fd = openat(dir, "pages", O_RDWR | O_CLOEXEC);
	uint64_t words[PAGE / 8];
	for (uint64_t i = 0; i < 300; i++) {
		make_page(words, i, 0);
		EXPECT_IS(pwrite(fd, words, PAGE, (off_t)(i * PAGE)), PAGE);
	}
	struct zc_pool_file *f = open_file(fd, PAGE);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_create(&t[i], NULL, all_at_once, f);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	zc_pool_close(f);
	struct zc_pool_stats st;
	zc_pool_statistics(pool, &st);
	for (int i = 0; i < 1000 && st.bytes_read < st.used[0] * PAGE; i++) {
		usleep(1000); /* some are still being read ahead */
		zc_pool_statistics(pool, &st);
	}
	EXPECT(st.misses <= 300);
	EXPECT_IS(st.evictions, 0);
	EXPECT_IS(st.used[0], st.misses + st.readahead); /* none twice */
	EXPECT_IS(st.bytes_read, st.used[0] * PAGE);
	EXPECT_IS(zc_pool_destroy(pool), 0);
	close(fd);
}

int main(int argc, char **argv)
{
	char path[200];
	unsigned seconds = argc > 2 ? (unsigned)atoi(argv[2]) : 3;
	io = argc > 3 ? argv[3] : NULL;
	dir = harness_dir(argc > 1 ? argv[1] : "/tmp", path, sizeof(path));
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (unsigned i = 0; i < 64; i++)
		pthread_mutex_init(&page_lock[i], NULL);
	bool works = true;
	for (unsigned i = 0; works && zc_pool_policy(i); i++)
		works = test_mixed(zc_pool_policy(i), seconds);
	if (works)
		test_one_read();
	harness_dir_end(dir, path);
	return works ? harness_end() : SKIPPED;
}
