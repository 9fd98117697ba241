/* What the tests of the data plane share: counting failures, temporary trees, what a process holds. */
#ifndef ZC_TEST_HARNESS_H
#define ZC_TEST_HARNESS_H

#include <stddef.h>

/* Counts, and prints where and in which circumstances (`harness_context`). Any thread. */
void harness_fail(const char *file, int line, const char *what, long long got, long long want);
extern _Thread_local char harness_context[160];
int harness_end(void); /* prints the count; the exit status */

#define EXPECT(cond)                                                      \
	do {                                                              \
		if (!(cond))                                              \
			harness_fail(__FILE__, __LINE__, #cond, 0, 1);    \
	} while (0)
#define EXPECT_IS(got, want)                                                        \
	do {                                                                        \
		long long got_ = (long long)(got), want_ = (long long)(want);       \
		if (got_ != want_)                                                  \
			harness_fail(__FILE__, __LINE__, #got, got_, want_);        \
	} while (0)

/* A new directory below `base`; the descriptor of it. The test ends if that cannot be. */
int harness_dir(const char *base, char *path, size_t path_cap);
void harness_empty(int dir);			   /* removes all that is below it */
void harness_dir_end(int dir, const char *path);   /* the directory too; closes `dir` */
void harness_file(int dir, const char *name, unsigned mode, const char *content);
/* One number for all that is below a directory: names, types, modes, owners, links, contents. */
unsigned long long harness_digest(int dir);

int harness_fds(void);	    /* descriptors open in this process */
size_t harness_rss(void);   /* bytes of memory that it has */
int harness_sanitized(void); /* built with one: times and memory mean nothing */

#endif
