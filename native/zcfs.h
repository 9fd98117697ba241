/* The C library's public interface, and what its Python extension sees of it.
 *
 * Errors: 0 or a count on success, -errno on failure, out-parameters untouched then. All functions
 * may be called from any thread.
 *
 * python/zcfs_native_build.py reads this file: declarations that a C parser without a preprocessor
 * understands, and no macros.
 */
#ifndef ZCFS_H
#define ZCFS_H

#include <stddef.h>
#include <stdint.h>

/* The version of zcfs, such as "0.1.0". Static. */
const char *zc_version(void);

/* The name of a FUSE opcode that the data plane serves, such as "LOOKUP"; NULL: none. Static. */
const char *zc_opcode_name(uint32_t opcode);

/* Where the parts of a request message are. Offsets are in bytes from its start. */
struct zc_message {
	uint32_t opcode;
	uint32_t names; /* how many */
	size_t fixed_size;
	size_t name_at[2], name_len[2]; /* without the NUL */
	size_t data_at, data_len;
	size_t ext_at, ext_len;
};

/* Checks a message as /dev/fuse gives it, with the data plane's own parser. -EPROTO: lengths that
 * disagree; -EOPNOTSUPP: unknown opcode; -EINVAL, -ENAMETOOLONG: a name that cannot be. */
int zc_message_parse(const void *message, size_t len, struct zc_message *out);

/* Fault injection, for tests: the `nth` system call of kind `call` ("*": any) from now on fails
 * with `error`, and all after it if `always`. -ENOTSUP: not built with it. */
int zc_faults_arm(const char *call, int nth, int error, int always);
/* How often the armed call was seen since. */
int zc_faults_seen(void);

#endif
