/* Pages a second that another process gets from a mount's pool: leased and released in batches,
 * beside pread of the same pages from the mount. One record of 64 bytes is read in each page.
 *
 *     leases MOUNTPOINT FILE MIB PAGE_SIZE BATCH SECONDS
 *
 * FILE, a name below the root of the mount, is made as needed: each 8 bytes hold their own offset,
 * and what is read is checked. Both ways take the same random pages, in turn, five rounds of
 * SECONDS each. Prints JSON: pages a second, the median of the rounds and all of them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../native/client/zcfs_client.h"

#define BATCH_MOST 256
#define ROUNDS 5
#define RECORD 64u

static struct zcfs_client *client;
static struct zcfs_client_file file;
static uint64_t pages, page_size;
static unsigned batch;
static int fd;
static unsigned char *buffer;

static void die(const char *what, const char *why)
{
	fprintf(stderr, "leases: %s: %s\n", what, why);
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t next(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x % pages;
}

/* One record somewhere in the page. */
static void check(const unsigned char *data, uint64_t number)
{
	uint64_t at = number * 2654435761u % (page_size / RECORD) * RECORD, word;
	memcpy(&word, data + at, sizeof(word));
	if (word != number * page_size + at)
		die("wrong data", "the page is another one");
}

static void by_lease(const uint64_t *numbers)
{
	struct zcfs_lease leases[BATCH_MOST];
	if (zcfs_client_lease(client, &file, numbers, batch, leases) != batch)
		die("lease", zcfs_client_message());
	for (unsigned i = 0; i < batch; i++)
		check(leases[i].data, numbers[i]);
	zcfs_client_release(client, leases, batch);
}

static void by_pread(const uint64_t *numbers)
{
	for (unsigned i = 0; i < batch; i++) {
		off_t at = (off_t)(numbers[i] * page_size);
		if (pread(fd, buffer, page_size, at) != (ssize_t)page_size)
			die("pread", strerror(errno));
		check(buffer, numbers[i]);
	}
}

static double rate(void (*get)(const uint64_t *), double seconds, uint64_t seed)
{
	uint64_t numbers[BATCH_MOST], random = 88172645463325252ULL + seed, count = 0;
	double began = now(), took;
	do {
		for (unsigned n = 0; n < 16; n++, count += batch) {
			for (unsigned i = 0; i < batch; i++)
				numbers[i] = next(&random);
			get(numbers);
		}
		took = now() - began;
	} while (took < seconds);
	return (double)count / took;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

static void report(const char *name, double *found, const char *after)
{
	double sorted[ROUNDS];
	memcpy(sorted, found, sizeof(sorted));
	qsort(sorted, ROUNDS, sizeof(*sorted), by_size);
	printf("\"%s\": {\"pages_s\": %.0f, \"rounds\": [", name, sorted[ROUNDS / 2]);
	for (unsigned i = 0; i < ROUNDS; i++)
		printf("%.0f%s", found[i], i + 1 < ROUNDS ? ", " : "]}");
	printf("%s", after);
}

static void make_file(const char *path, uint64_t size)
{
	static uint64_t words[1 << 14];
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		die(path, strerror(errno));
	for (uint64_t at = 0; at < size; at += sizeof(words)) {
		for (uint64_t i = 0; i < sizeof(words) / 8; i++)
			words[i] = at + i * 8;
		if (write(fd, words, sizeof(words)) != sizeof(words))
			die(path, strerror(errno));
	}
	fsync(fd);
	close(fd);
}

int main(int argc, char **argv)
{
	double leased[ROUNDS], read[ROUNDS];
	char path[4096];
	if (argc != 7)
		die("usage", "leases MOUNTPOINT FILE MIB PAGE_SIZE BATCH SECONDS");
	uint64_t size = strtoull(argv[3], NULL, 10) << 20;
	page_size = strtoull(argv[4], NULL, 10);
	batch = (unsigned)atoi(argv[5]);
	if (!size || page_size < RECORD || !batch || batch > BATCH_MOST)
		die("usage", "MIB, PAGE_SIZE and BATCH are not 0, and BATCH at most 256");
	pages = size / page_size;
	snprintf(path, sizeof(path), "%s/%s", argv[1], argv[2]);
	make_file(path, size);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || posix_memalign((void **)&buffer, 65536, page_size))
		die(path, strerror(errno));
	if (zcfs_client_attach(argv[1], &client) ||
	    zcfs_client_open(client, argv[2], (uint32_t)page_size, &file))
		die(argv[1], zcfs_client_message());
	rate(by_lease, 0.1, 1); /* both ways have all of it in their cache then */
	for (uint64_t i = 0; i < pages; i += batch) {
		uint64_t numbers[BATCH_MOST];
		for (unsigned k = 0; k < batch; k++)
			numbers[k] = (i + k) % pages;
		by_lease(numbers);
		by_pread(numbers);
	}
	for (unsigned i = 0; i < ROUNDS; i++) {
		leased[i] = rate(by_lease, atof(argv[6]), i);
		read[i] = rate(by_pread, atof(argv[6]), i);
	}
	printf("{\"page_size\": %llu, \"batch\": %u, ", (unsigned long long)page_size, batch);
	report("leases", leased, ", ");
	report("pread", read, "}\n");
	zcfs_client_free(client);
	unlink(path);
	return 0;
}
