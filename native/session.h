/* The steps of a session's life, in order, for main.c. */
#ifndef ZC_SESSION_H
#define ZC_SESSION_H

#include "internal.h"

/* Opens the source (on a private mount where possible) and makes the inode table. */
int zc_source_open(struct zc_session *s);
void zc_choose_transport(struct zc_session *s);
/* Reads and answers the kernel's INIT on s->fd. */
int zc_session_init(struct zc_session *s);
/* Starts the queues. */
int zc_session_start(struct zc_session *s);
/* Raises the read-ahead of the mount. */
void zc_read_ahead(const struct zc_session *s);

#endif
