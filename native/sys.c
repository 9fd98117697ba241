/* The fault countdown behind the syscall seam (sys.h): "fail the Nth call".
 *
 * Owns what is armed. It exists for tests only: without ZC_FAULT_INJECTION nothing of it is built.
 *
 * Any thread, and the child of a fork: there is no lock. Arming publishes a new record, which is
 * never changed after but for its counter; the older ones stay in a list behind it, because a
 * thread may still be counting on them.
 */
#include "sys.h"

#ifdef ZC_FAULT_INJECTION

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ERRNO_MOST 4095

struct fault {
	char call[32];
	int nth, err; /* nth 0: never */
	int always;
	atomic_int seen;
	struct fault *older;
};

static _Atomic(struct fault *) armed;
static pthread_once_t env_once = PTHREAD_ONCE_INIT;

static void arm(const char *call, int nth, int err, int always)
{
	struct fault *f = calloc(1, sizeof(*f));

	if (!f)
		abort();
	snprintf(f->call, sizeof(f->call), "%s", call ? call : "");
	f->nth = nth > 0 ? nth : 0;
	f->err = err;
	f->always = always;
	f->older = atomic_load(&armed);
	while (!atomic_compare_exchange_weak(&armed, &f->older, f))
		;
}

/* A number or a name as errno(3) has it; 0: neither. */
static int parse_errno(const char *s)
{
	char *end;
	long n = strtol(s, &end, 10);

	if (end != s)
		return *end == 0 && n > 0 && n <= ERRNO_MOST ? (int)n : 0;
	for (int e = 1; e < 256; e++) {
		const char *name = strerrorname_np(e);
		if (name && !strcmp(name, s))
			return e;
	}
	return 0;
}

/* `spec` is CALL:N:ERRNO[:always], and cut up. */
static int arm_from(char *spec)
{
	char *save, *end, *call, *nth, *err, *always;

	call = strtok_r(spec, ":", &save);
	nth = strtok_r(NULL, ":", &save);
	err = strtok_r(NULL, ":", &save);
	always = strtok_r(NULL, ":", &save);
	if (!call || !nth || !err || (always && strcmp(always, "always")))
		return -EINVAL;
	long n = strtol(nth, &end, 10);
	int e = parse_errno(err);
	if (*end || n < 1 || n > INT32_MAX || !e)
		return -EINVAL;
	arm(call, (int)n, e, always != NULL);
	return 0;
}

/* A typo must not make a test pass, so it ends the process. */
static void arm_from_env(void)
{
	const char *env = getenv("ZCFS_FAULT");
	char *spec = env && *env ? strdup(env) : NULL;

	if (!spec)
		return;
	if (arm_from(spec)) {
		fprintf(stderr, "zcfsd: ZCFS_FAULT=%s: want CALL:N:ERRNO[:always]\n", env);
		_Exit(2);
	}
	free(spec);
}

int zc_fault(const char *call)
{
	pthread_once(&env_once, arm_from_env);
	struct fault *f = atomic_load(&armed);
	if (!f || !f->nth || (strcmp(f->call, "*") && strcmp(f->call, call)))
		return 0;
	int seen = atomic_fetch_add(&f->seen, 1) + 1;
	return seen == f->nth || (f->always && seen > f->nth) ? -f->err : 0;
}

void zc_fault_arm(const char *call, int nth, int err, int always)
{
	pthread_once(&env_once, arm_from_env); /* what is asked for here comes later and wins */
	arm(call, nth, err, always);
}

int zc_fault_seen(void)
{
	struct fault *f = atomic_load(&armed);

	return f ? atomic_load(&f->seen) : 0;
}

#endif
