/* The control plane's process and the sockets to it. */
#ifndef ZC_RELAY_CHILD_H
#define ZC_RELAY_CHILD_H

#include <stdbool.h>
#include <sys/types.h>

struct zc_child {
	pid_t pid;
	int pidfd;   /* readable when the process has ended; -1: this kernel has none */
	int relay;   /* our ends, SOCK_SEQPACKET */
	int control;
};

/* Starts `python -P -m zcfs.fs --relay-fd N --control-fd M`. It has the two sockets, and /dev/null
 * for input. Modules are not looked for in the current directory. */
int zc_child_start(const char *python, struct zc_child *out);
/* Waits for the end (asked for with SIGTERM if `ask`) for `grace_ms`, then kills; returns the wait
 * status. Closes control and pidfd; the relay socket stays open, and the caller's. */
int zc_child_end(struct zc_child *c, bool ask, long grace_ms);

#endif
