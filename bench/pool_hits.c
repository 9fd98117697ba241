/* Pool hits from C: random pages of a file that is wholly in the pool, borrowed and released, one at a
 * time and in batches; one word somewhere in each is read. Prints JSON.
 *
 *     pool_hits FILE MIB PAGE_SIZE BATCH THREADS SECONDS
 *
 * FILE is made, or made longer, as needed.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../native/pool/pool.h"

#define BATCH_MOST 256

static struct zc_pool *pool;
static struct zc_pool_file *file;
static uint64_t pages;
static size_t page_size;
static unsigned batch;
static _Atomic bool go, stop;
static _Atomic uint64_t total, sum;

static void die(const char *what, int err)
{
	fprintf(stderr, "pool_hits: %s: %s\n", what, strerror(-err));
	exit(1);
}

static uint64_t next(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return (uint64_t)((__uint128_t)*x * pages >> 64);
}

/* A record of 64 bytes in a page. */
static size_t place(uint64_t x)
{
	return (size_t)(x * 0x9e3779b97f4a7c15ULL >> 20) & (page_size - 1) & ~(size_t)63;
}

static uint64_t one_batch(uint64_t *random)
{
	struct zc_page page[BATCH_MOST];
	uint64_t numbers[BATCH_MOST], words = 0;
	for (unsigned i = 0; i < batch; i++)
		numbers[i] = next(random);
	if (batch == 1) {
		int err = zc_page_borrow(file, numbers[0], &page[0]);
		if (err)
			die("borrow", err);
	} else if (zc_page_borrow_many(file, numbers, batch, page) != (ssize_t)batch) {
		die("borrow", page[0].error);
	}
	for (unsigned i = 0; i < batch; i++)
		words += *(volatile uint64_t *)(void *)(page[i].data + place(*random + i));
	zc_page_release_many(pool, page, batch);
	return words;
}

static void *run(void *arg)
{
	uint64_t random = 88172645463325252ULL + (uintptr_t)arg * 104729, count = 0, words = 0;
	while (!go)
		;
	while (!stop)
		for (unsigned i = 0; i < 100; i++, count += batch)
			words += one_batch(&random);
	atomic_fetch_add(&total, count);
	atomic_fetch_add(&sum, words);
	return NULL;
}

static void load(const char *path, size_t mib)
{
	static char block[1 << 20];
	struct zc_pool_options o = {.size = (mib + mib / 4 + 32) << 20, .frame_size = (uint32_t)page_size};
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		die(path, -1);
	for (size_t i = (size_t)lseek(fd, 0, SEEK_END) >> 20; i < mib; i++)
		if (pwrite(fd, block, sizeof(block), (off_t)(i << 20)) < 0)
			die("write", -1);
	int err = zc_pool_create(&o, &pool);
	if (!err)
		err = zc_pool_open(pool, fd, 0, &file);
	for (size_t i = 0; !err && i < mib; i++)
		if (zc_pool_read(file, i << 20, block, sizeof(block)) != sizeof(block))
			err = -EIO;
	if (err)
		die("load", err);
	close(fd);
}

int main(int argc, char **argv)
{
	pthread_t t[64];
	struct timespec from, to;
	struct zc_pool_stats before, after;
	if (argc != 7)
		return fprintf(stderr, "usage: pool_hits FILE MIB PAGE BATCH THREADS SECONDS\n"), 2;
	size_t mib = (size_t)atol(argv[2]);
	page_size = (size_t)atol(argv[3]);
	batch = (unsigned)atoi(argv[4]);
	unsigned threads = (unsigned)atoi(argv[5]);
	if (!mib || !batch || batch > BATCH_MOST || !threads || threads > 64)
		return fprintf(stderr, "pool_hits: bad arguments\n"), 2;
	load(argv[1], mib);
	pages = (mib << 20) / page_size;
	for (uintptr_t i = 0; i < threads; i++)
		pthread_create(&t[i], NULL, run, (void *)i);
	zc_pool_statistics(pool, &before);
	clock_gettime(CLOCK_MONOTONIC, &from);
	go = true;
	usleep((useconds_t)(atof(argv[6]) * 1e6));
	stop = true;
	clock_gettime(CLOCK_MONOTONIC, &to);
	for (unsigned i = 0; i < threads; i++)
		pthread_join(t[i], NULL);
	zc_pool_statistics(pool, &after);
	double s = (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
	printf("{\"mib\": %zu, \"page_size\": %zu, \"batch\": %u, \"threads\": %u, "
	       "\"hits_per_second\": %.0f, \"ns_per_hit\": %.1f, \"misses\": %lu, "
	       "\"huge_pages\": %s}\n",
	       mib, page_size, batch, threads, (double)total / s, s * 1e9 * threads / (double)total,
	       (unsigned long)(after.misses - before.misses), after.huge_pages ? "true" : "false");
	zc_pool_close(file);
	return -zc_pool_destroy(pool);
}
