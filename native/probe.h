/* Between the files of the probe: what is shared about the machine and the path asked about. */
#ifndef ZC_PROBE_H
#define ZC_PROBE_H

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

/* What a throw-away FUSE mount found out (probe_fuse.c). */
struct zc_probe_fuse {
	const char *failed_at; /* NULL: INIT was received */
	int error;	       /* -errno there */
	uint32_t major, minor;
	uint64_t flags;	    /* both words of INIT */
	bool in_user_ns;    /* mounted as root of a user namespace of its own */
	int32_t memfd_id;   /* backing id, or -errno; 0: not tried */
	int32_t sample_id;  /* the same for the file below the path */
	uint32_t stack_depth; /* that the session was told */
};

/* One kind of direct read. */
struct zc_probe_read {
	uint32_t mem, offset; /* alignments tried */
	int error; /* 0: right; -EBADMSG: wrong data; -EFAULT: memory beside it changed; -ENODATA */
};

#define ZC_PROBE_READS 4

/* Direct I/O below the path (probe_direct.c). */
struct zc_probe_direct {
	int open_error;				/* of O_DIRECT itself */
	int statx_error;			/* -ENOSYS: the kernel does not tell */
	uint32_t statx_mem, statx_offset;	/* 0: no direct I/O, says statx */
	struct zc_probe_read reads[ZC_PROBE_READS];
};

/* Mounts in a child's private namespace, gets INIT, tries backing files; `sample` may be -1.
 * Never hangs; nothing of it is left. */
void zc_probe_fuse(int sample, struct zc_probe_fuse *out);

/* A regular file on the filesystem of `dirfd`: one without a name where it can be written, else
 * one that is there, for reading. -errno: neither. The caller closes it. */
int zc_probe_sample(int dirfd);

/* Changes the flags of `sample` (O_DIRECT). */
void zc_probe_direct(int sample, struct zc_probe_direct *out);

#endif
