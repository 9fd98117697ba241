/* The memory bandwidth of one core: sums all 64-bit words of a buffer, as fast as the compiler makes
 * it. `membw BYTES ROUNDS` prints the seconds of the fastest round. With a third word, `copy`: copies
 * them by memcpy(3).
 *
 * Four sums, so that no addition waits for the one before it.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t sum(const uint64_t *p, size_t n)
{
	uint64_t a = 0, b = 0, c = 0, d = 0;

	for (size_t i = 0; i + 32 <= n; i += 32)
		for (size_t k = 0; k < 8; k++) {
			a += p[i + k];
			b += p[i + 8 + k];
			c += p[i + 16 + k];
			d += p[i + 24 + k];
		}
	return a + b + c + d;
}

static uint64_t *memory(size_t size)
{
	uint64_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		exit(1);
	madvise(p, size, MADV_HUGEPAGE);
	memset(p, 1, size);
	return p;
}

int main(int argc, char **argv)
{
	size_t size = argc > 1 ? strtoull(argv[1], NULL, 10) : (size_t)1 << 30;
	int rounds = argc > 2 ? atoi(argv[2]) : 5;
	double best = 1e9;
	uint64_t total = 0;
	uint64_t *p = memory(size), *to = argc > 3 ? memory(size) : NULL;

	for (int i = 0; i < rounds; i++) {
		double began = now();

		if (to)
			memcpy(to, p, size);
		else
			total += sum(p, size / 8);
		double took = now() - began;
		best = took < best ? took : best;
	}
	fprintf(stderr, "%llu\n", (unsigned long long)(to ? to[size / 16] : total));
	printf("%.6f\n", best);
	return 0;
}
