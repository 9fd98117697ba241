/* roundtrip FILE BLOCK DEPTH SECONDS WHAT: requests through a mount, as fast as they go.
 *
 * WHAT is read or write: BLOCK bytes of FILE by O_DIRECT, at places that are chosen at random once.
 * empty: reads behind the end. ioctl: one that nobody knows, the least that a request can be. Depth 1 is
 * a call at a time; a greater depth io_uring. memcpy, for comparison, needs no file: BLOCK bytes to and
 * fro, over 64 MiB.
 * write fills FILE with the letter z.
 *
 * Prints requests a second; memcpy prints bytes a second.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PLACES_MOST 4096u
#define COPIED ((size_t)64 << 20)
#define BATCH 64u /* between two looks at the clock */

static int fd;
static size_t block;
static uint64_t end; /* of the file, on the next page */
static char *memory;
static uint64_t place[PLACES_MOST];
static unsigned places;

static double now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static void must(int ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	exit(1);
}

static int one_read(unsigned i)
{
	return pread(fd, memory, block, (off_t)place[i % places]) == (ssize_t)block;
}

static int one_write(unsigned i)
{
	return pwrite(fd, memory, block, (off_t)place[i % places]) == (ssize_t)block;
}

static int one_past_end(unsigned i)
{
	(void)i;
	return pread(fd, memory, 4096, (off_t)end) == 0;
}

static int one_ioctl(unsigned i)
{
	(void)i;
	return ioctl(fd, _IO('z', 99)) < 0 && errno == ENOTTY;
}

static double rate_of(int (*one)(unsigned), double seconds)
{
	double start = now(), at = start;
	unsigned done = 0;
	for (; at < start + seconds; at = now())
		for (unsigned i = 0; i < BATCH; i++, done++)
			must(one(done), "request");
	return done / (at - start);
}

static void prepare(struct io_uring *ring, unsigned slot, unsigned number, int writes)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	char *buf = memory + slot * block;
	if (writes)
		io_uring_prep_write(sqe, fd, buf, (unsigned)block, place[number % places]);
	else
		io_uring_prep_read(sqe, fd, buf, (unsigned)block, place[number % places]);
	io_uring_sqe_set_data64(sqe, slot);
}

static double rate_deep(unsigned depth, int writes, double seconds)
{
	struct io_uring ring;
	struct io_uring_cqe *cqe;
	unsigned done = 0, begun = 0;
	must(!io_uring_queue_init(depth, &ring, 0), "io_uring");
	double start = now(), at = start;
	while (begun < depth) {
		prepare(&ring, begun, begun, writes);
		begun++;
	}
	for (; at < start + seconds; at = now()) {
		must(io_uring_submit_and_wait(&ring, 1) >= 0, "submit");
		while (!io_uring_peek_cqe(&ring, &cqe)) {
			errno = cqe->res < 0 ? -cqe->res : 0;
			must(cqe->res == (int)block, "request");
			prepare(&ring, (unsigned)cqe->user_data, begun++, writes);
			io_uring_cqe_seen(&ring, cqe);
			done++;
		}
	}
	io_uring_queue_exit(&ring); /* waits for what is under way */
	return done / (at - start);
}

static int one_copy(unsigned i)
{
	size_t blocks = COPIED / block, at = i % blocks * block;
	memcpy(memory + at, memory + COPIED + at, block);
	__asm__ volatile("" ::: "memory");
	return 1;
}

static int copy(double seconds)
{
	must(block && block <= COPIED && !posix_memalign((void **)&memory, 4096, 2 * COPIED), "memory");
	memset(memory, 'z', 2 * COPIED);
	printf("%.0f\n", rate_of(one_copy, seconds) * (double)block);
	return 0;
}

int main(int argc, char **argv)
{
	struct stat st;
	if (argc != 6) {
		fprintf(stderr, "usage: roundtrip FILE BLOCK DEPTH SECONDS read|write|empty|ioctl|memcpy\n");
		return 2;
	}
	int writes = !strcmp(argv[5], "write");
	int (*empty)(unsigned) = !strcmp(argv[5], "empty")   ? one_past_end
				 : !strcmp(argv[5], "ioctl") ? one_ioctl : NULL;
	unsigned depth = (unsigned)atoi(argv[3]);
	double seconds = atof(argv[4]), rate;
	block = (size_t)atol(argv[2]);
	if (!strcmp(argv[5], "memcpy"))
		return copy(seconds);
	fd = open(argv[1], (writes ? O_RDWR : O_RDONLY) | O_DIRECT);
	must(fd >= 0 && !fstat(fd, &st), argv[1]);
	end = ((uint64_t)st.st_size + 4095) & ~4095ULL;
	must(block && depth && (size_t)st.st_size >= block, "block or depth");
	must(!posix_memalign((void **)&memory, 4096, block * depth), "memory");
	memset(memory, 'z', block * depth);
	places = 4 * (uint64_t)st.st_size / block < PLACES_MOST ? 4 * (unsigned)((uint64_t)st.st_size / block)
								: PLACES_MOST;
	srandom(1);
	for (unsigned i = 0; i < places; i++)
		place[i] = (uint64_t)random() % ((uint64_t)st.st_size / block) * block;
	if (empty) {
		rate = rate_of(empty, seconds);
	} else {
		for (unsigned i = 0; i < places; i++) /* once through: what can be cached is */
			must(one_read(i), "read");
		rate = depth > 1 ? rate_deep(depth, writes, seconds)
				 : rate_of(writes ? one_write : one_read, seconds);
	}
	printf("%.0f\n", rate);
	return 0;
}
