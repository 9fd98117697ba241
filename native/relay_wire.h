/* How requests and replies change on their way between the kernel and the control plane. */
#ifndef ZC_RELAY_WIRE_H
#define ZC_RELAY_WIRE_H

#include "internal.h"

#define ZC_RELAY_MAX_DATA (128u << 10) /* bytes of one READ or WRITE, as libfuse has it */
#define ZC_RELAY_MAX_MESSAGE (ZC_RELAY_MAX_DATA + FUSE_BUFFER_HEADER_SIZE)

/* A request as the control plane gets it: hdr, in_len bytes of in, data_len bytes at data. */
struct zc_relay_msg {
	struct fuse_in_header hdr;
	uint64_t in[16];
	size_t in_len;
	const void *data; /* the request's */
	size_t data_len;
	size_t limit; /* the longest body of the reply, where that varies */
};

/* What a reply handed out and somebody has to give back. */
struct zc_relay_handle {
	uint64_t nodeid, fh;
	bool dir;
};

/* True: answered here, *result is 0 with out_len set, or -errno. */
bool zc_relay_local(struct zc_req *r, int *result);
/* 0, or -errno for the caller. `max_data`: what one message to the child may carry. */
int zc_relay_encode(const struct zc_req *r, uint32_t max_data, struct zc_relay_msg *m);
/* Checks the body of a reply and makes r's out of it. -EIO: not a reply to this request. */
int zc_relay_decode(struct zc_req *r, const struct zc_relay_msg *m, const void *body, size_t len);
/* What the kernel is told instead of `error` (a -errno); 0 comes with out_len set. */
int zc_relay_error(struct zc_req *r, int error);

/* The open file in a reply to `opcode` (as sent) for `nodeid`; false: none. */
bool zc_relay_handle_of(uint32_t opcode, uint64_t nodeid, const void *body, size_t len,
			struct zc_relay_handle *out);
/* The lookups in a reply; returns their number, at most `cap` are stored. */
size_t zc_relay_lookups_of(uint32_t opcode, const void *body, size_t len,
			   struct fuse_forget_one *out, size_t cap);

/* Whether a whole unsolicited message may go to the kernel. */
bool zc_relay_may_notify(const void *msg, size_t len);

#endif
