/* Whether to splice (--splice): the choice, and the pipes of the workers.
 *
 * `always` moves whatever can be moved, `never` nothing. `auto` does what the measurements in
 * docs/decisions/ found to be faster. Only /dev/fuse can be spliced; FUSE over io_uring has the data
 * copied to and from the memory of its entries.
 *
 * Threads: in the worker's own.
 */
#include <string.h>

#include "internal.h"

#define AUTO_LEAST (256u << 10)	     /* bytes of a READ that `auto` splices */
#define PIPE_BYTES ((size_t)2 << 20) /* where that much is granted; else the most that is */
#define PIPE_LEAST 16u		     /* pages: with fewer nothing of use fits */

static bool has_pipe(struct zc_worker *w)
{
	if (w->pipe.slots)
		return true;
	if (w->no_pipe)
		return false;
	int err = zc_pipe_open(&w->pipe, PIPE_BYTES);
	if (!err && w->pipe.slots < PIPE_LEAST) {
		zc_pipe_close(&w->pipe);
		err = -EPERM;
	}
	w->no_pipe = err != 0;
	if (err && zc_splice_always(w->q->s))
		zc_degrade(w->q->s, "splice", "no pipe of a useful size is granted (%s): data is copied",
			   strerror(-err));
	return !err;
}

bool zc_splice_always(const struct zc_session *s)
{
	return s->opt.splice && !strcmp(s->opt.splice, "always");
}

bool zc_splice_never(const struct zc_session *s)
{
	return !s->opt.splice || !strcmp(s->opt.splice, "never");
}

bool zc_splice_read(struct zc_worker *w, bool direct, off_t at, size_t size)
{
	const struct zc_session *s = w->q->s;
	bool wanted = zc_splice_always(s) || (!zc_splice_never(s) && direct && size >= AUTO_LEAST);
	return wanted && w->q->transport == &zc_transport_dev && has_pipe(w) &&
	       zc_pipe_fits(&w->pipe, at, size, 1);
}

/* A request of the largest size must fit with its header, or the kernel would fail it. */
bool zc_splice_take(struct zc_worker *w)
{
	return zc_splice_always(w->q->s) && w->q->transport == &zc_transport_dev && has_pipe(w) &&
	       zc_pipe_fits(&w->pipe, 1, w->q->s->max_write, 2);
}
