/* The fault countdown: which call fails, in one thread and in many. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../sys.h"

#define THREADS 4
#define CALLS 10000

static int failures;
static atomic_int failed_calls;

#define EXPECT(cond)                                                   \
	do {                                                           \
		if (!(cond)) {                                         \
			failures++;                                    \
			printf("%s:%d: %s\n", __FILE__, __LINE__, #cond); \
		}                                                      \
	} while (0)

static void test_seam(void)
{
	zc_fault_arm(NULL, 0, 0, 0);
	EXPECT(ZC_SYS("close", close(-1)) == -EBADF);
	EXPECT(ZC_SYSI("getpid", getpid()) > 0);
	zc_fault_arm("getpid", 2, EIO, 0);
	EXPECT(ZC_SYSI("getpid", getpid()) > 0);
	EXPECT(ZC_SYSI("getppid", getppid()) >= 0);
	EXPECT(ZC_SYSI("getpid", getpid()) == -EIO);
	EXPECT(ZC_SYSI("getpid", getpid()) > 0);
	EXPECT(zc_fault_seen() == 3);
}

static void test_always(void)
{
	zc_fault_arm("*", 3, ENOSPC, 1);
	EXPECT(!zc_fault("open"));
	EXPECT(!zc_fault("read"));
	EXPECT(zc_fault("write") == -ENOSPC);
	EXPECT(zc_fault("open") == -ENOSPC);
	zc_fault_arm("", 0, 0, 0);
	EXPECT(!zc_fault("open"));
	EXPECT(zc_fault_seen() == 0);
}

static void *caller(void *arg)
{
	(void)arg;
	for (int i = 0; i < CALLS; i++)
		if (zc_fault("pread"))
			atomic_fetch_add(&failed_calls, 1);
	return NULL;
}

/* Of all the calls of all the threads exactly one is the Nth. */
static void test_threads(void)
{
	pthread_t t[THREADS];

	zc_fault_arm("pread", THREADS * CALLS / 2, EIO, 0);
	for (int i = 0; i < THREADS; i++)
		EXPECT(!pthread_create(&t[i], NULL, caller, NULL));
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	EXPECT(atomic_load(&failed_calls) == 1);
	EXPECT(zc_fault_seen() == THREADS * CALLS);
}

/* How `spec` in the environment of a fresh process treats its third call of `open`: the errno, 0,
 * or the exit status of a process that refused it. */
static int third_open(const char *self, const char *spec)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		setenv("ZCFS_FAULT", spec, 1);
		execl(self, self, "third", (char *)NULL);
		_exit(99);
	}
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_env(const char *self)
{
	EXPECT(third_open(self, "") == 0);
	EXPECT(third_open(self, "open:3:EIO") == EIO);
	EXPECT(third_open(self, "open:3:28") == ENOSPC);
	EXPECT(third_open(self, "open:2:EIO") == 0);
	EXPECT(third_open(self, "open:2:EIO:always") == EIO);
	EXPECT(third_open(self, "*:1:EINTR:always") == EINTR);
	EXPECT(third_open(self, "read:1:EIO:always") == 0);
	static const char *const bad[] = {"open", "open:1", "open:x:EIO", "open:0:EIO",
					  "open:1:EWHAT", "open:1:0", "open:1:EIO:often"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		EXPECT(third_open(self, bad[i]) == 2);
}

int main(int argc, char **argv)
{
	(void)argv;
	if (argc > 1) {
		zc_fault("open");
		zc_fault("open");
		return -zc_fault("open");
	}
	test_seam();
	test_always();
	test_threads();
	fflush(stdout);
	if (freopen("/dev/null", "w", stderr))
		test_env("/proc/self/exe");
	printf("%d failures\n", failures);
	return failures != 0;
}
