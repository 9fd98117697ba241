/* The lease protocol: how another process borrows pages of a mount's pool. docs/leases.md explains
 * it.
 *
 * A client connects to <runtime dir>/<minor>.lease, a SOCK_SEQPACKET socket: one message, one
 * struct with what follows it. All numbers are in the byte order of the machine, and structs have
 * no padding.
 *
 * The daemon speaks first: a hello, with the descriptor of the arena (SCM_RIGHTS) unless it
 * refuses. Then the client sends requests. Each gets one reply, in order; a RELEASE gets none.
 * Whoever sends what is no request is disconnected. The end of the connection ends all leases and
 * closes all files.
 *
 * The daemon and the client library include this file; it needs nothing but the fixed-width types.
 */
#ifndef ZC_LEASE_WIRE_H
#define ZC_LEASE_WIRE_H

#include <stdint.h>

#define ZC_LEASE_MAGIC 0x534c435au /* "ZCLS" in memory */
#define ZC_LEASE_VERSION 1u
#define ZC_LEASE_BATCH 256u   /* pages of one request, at most */
#define ZC_LEASE_PATH 4095u   /* bytes of a path */
#define ZC_LEASE_CLIENTS 64u  /* at a time */
#define ZC_LEASE_FILES 256u   /* open at a time, each client */
#define ZC_LEASE_MOST 131072u /* leases at a time, each client */

struct zc_lease_hello {
	uint32_t magic, version;
	int32_t error;	     /* 0, or -errno: the connection ends after this message */
	uint32_t frame_size; /* page size of files opened with page size 0 */
	uint64_t arena;	     /* bytes to map, of the descriptor that comes with it */
	uint64_t page_limit; /* bytes that all clients together may have borrowed */
	char text[224];	     /* the reason for `error`, in English; ends with NUL */
};

enum zc_lease_op {
	ZC_LEASE_OPEN = 1, /* `arg`: page size, or 0; followed by `count` bytes of path */
	ZC_LEASE_CLOSE,	   /* `file`; its leases stay */
	ZC_LEASE_SIZE,	   /* `file` */
	ZC_LEASE_PAGES,	   /* `file`; followed by `count` page numbers of 8 bytes */
	ZC_LEASE_RELEASE,  /* followed by `count` leases of 4 bytes; no reply */
};

struct zc_lease_request {
	uint32_t op;
	uint32_t file;
	uint32_t count;
	uint32_t arg;
};

struct zc_lease_reply {
	uint32_t op;	/* of the request */
	int32_t error;	/* 0 or -errno, of the request as a whole */
	uint32_t file;	/* OPEN: its number, for the other requests */
	uint32_t count; /* PAGES: of the structs that follow, as many as were asked for */
	uint64_t size;	/* OPEN, SIZE: of the file, in bytes */
	uint32_t page_size; /* OPEN */
	uint32_t zero;
};

struct zc_lease_page {
	uint64_t offset;  /* in the arena */
	uint64_t version; /* grows with each change of the page */
	uint32_t valid;	  /* bytes up to the end of the file; zeros follow up to the page size */
	int32_t lease;	  /* to release it by; or -errno, and it is not leased */
};

#endif
