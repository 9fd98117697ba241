/* The syscall seam: every system call of the data plane goes through here, returns its result or
 * -errno, and can be made to fail in tests.
 *
 * Tests arm a countdown (zc_fault_arm, or ZCFS_FAULT=CALL:N:ERRNO[:always] in the environment of
 * a build with -Dfault_injection=true): the Nth call of that kind fails. Without that option the
 * check is compiled out.
 */
#ifndef ZC_SYS_H
#define ZC_SYS_H

#include <errno.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef ZC_FAULT_INJECTION
/* -errno to fail with, or 0. */
int zc_fault(const char *call);
/* The `nth` call (1 = next) of `call` ("*": any) fails with `err`; and all after it if `always`. */
void zc_fault_arm(const char *call, int nth, int err, int always);
/* How often the armed call was seen since it was armed. */
int zc_fault_seen(void);
#define ZC_SYS(call, expr)                                           \
	__extension__({                                              \
		int f_ = zc_fault(call);                             \
		long r_ = 0;                                         \
		if (!f_ && (r_ = (long)(expr)) < 0)                  \
			f_ = -errno;                                 \
		f_ ? (ssize_t)f_ : (ssize_t)r_;                      \
	})
#else
#define ZC_SYS(call, expr)                                           \
	__extension__({                                              \
		long r_ = (long)(expr);                              \
		r_ < 0 ? (ssize_t)-errno : (ssize_t)r_;              \
	})
#endif
#define ZC_SYSI(call, expr) ((int)ZC_SYS(call, expr))

#endif
