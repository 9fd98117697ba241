/* FUSE over io_uring: a request arrives in memory, and one system call answers it and waits for the
 * next.
 *
 * The kernel has one queue per possible CPU and puts a request on the queue of the CPU that made
 * it. Each worker has a ring with one entry on its queue: a worker that blocks holds up its own
 * entry only, and the kernel gives a request to the entry that was used last, so that with one
 * request at a time one thread, warm in the cache, serves them all.
 *
 * The kernel looks for a waiting request when one is answered, not when an entry is registered. So a
 * stand-in, registered while all others of its queue were busy, has the kernel send it a request
 * that asks for nothing, and with its answer fetches what waits.
 *
 * An entry's payload buffer holds what follows the fixed part of a request, and then the body of
 * the reply. FORGET and INTERRUPT still come over /dev/fuse.
 */
#include <assert.h>
#include <liburing.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"
#include "sys.h"

struct ring {
	struct io_uring uring;
	struct fuse_uring_req_header *header;
	char *payload;
	struct iovec iov[2];
	bool commit; /* the entry holds an answered request; else register it */
	bool roams;
	bool deferred; /* the kernel fills the buffer inside our calls only */
	unsigned answered;
};

#define DEPTH_SAMPLE 16u /* one request of so many is asked for the depth of its queue */
#define RING_MEMORY (4096u + ZC_MAX_WRITE)

static int ring_setup(struct io_uring *uring, bool *deferred)
{
	struct io_uring_params p = {.flags = IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER |
					     IORING_SETUP_DEFER_TASKRUN};
	int err = io_uring_queue_init_params(4, uring, &p);
	*deferred = !err;
	if (err != -EINVAL)
		return err;
	p = (struct io_uring_params){.flags = IORING_SETUP_SQE128};
	return io_uring_queue_init_params(4, uring, &p);
}

static void roam(struct zc_worker *w, bool roams)
{
	struct ring *ring = w->priv;
	cpu_set_t cpus;
	CPU_ZERO(&cpus);
	for (unsigned i = 0; i < CPU_SETSIZE; i++)
		if (roams || i == w->q->index)
			CPU_SET(i, &cpus);
	(void)sched_setaffinity(0, sizeof(cpus), &cpus); /* forbidden in some containers: slower */
	ring->roams = roams;
}

static int uring_start(struct zc_worker *w)
{
	struct ring *ring = calloc(1, sizeof(*ring));
	if (!ring)
		return -ENOMEM;
	char *mem = mmap(NULL, RING_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int err = mem == MAP_FAILED ? -ENOMEM : ring_setup(&ring->uring, &ring->deferred);
	if (err) {
		if (mem != MAP_FAILED)
			munmap(mem, RING_MEMORY);
		free(ring);
		return err;
	}
	io_uring_register_ring_fd(&ring->uring); /* saves a look-up per call where it is granted */
	ring->header = (void *)mem;
	ring->payload = mem + 4096;
	ring->iov[0] = (struct iovec){ring->header, sizeof(*ring->header)};
	ring->iov[1] = (struct iovec){ring->payload, ZC_MAX_WRITE};
	w->priv = ring;
	w->req.out = ring->payload;
	w->req.out_cap = ZC_MAX_WRITE;
	roam(w, false);
	return 0;
}

static void uring_stop(struct zc_worker *w)
{
	struct ring *ring = w->priv;
	io_uring_queue_exit(&ring->uring);
	munmap(ring->header, RING_MEMORY);
	free(ring);
}

static void prepare(struct zc_worker *w, struct ring *ring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
	struct fuse_uring_cmd_req cmd = {.qid = (uint16_t)w->q->index};
	assert(sqe); /* one at a time */
	memset((char *)sqe, 0, 128);
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = w->q->s->fd;
	if (ring->commit) {
		sqe->cmd_op = FUSE_IO_URING_CMD_COMMIT_AND_FETCH;
		cmd.commit_id = ring->header->ring_ent_in_out.commit_id;
	} else {
		sqe->cmd_op = FUSE_IO_URING_CMD_REGISTER;
		sqe->addr = (uintptr_t)ring->iov;
		sqe->len = 2;
	}
	memcpy((char *)sqe + offsetof(struct io_uring_sqe, cmd), &cmd, sizeof(cmd));
}

/* Requests wait in line if the next was there when this one was answered. That is looked at now and
 * then only: it costs a system call. */
static int look_for_depth(struct zc_worker *w, struct ring *ring)
{
	int err = io_uring_submit(&ring->uring);
	bool deep = io_uring_cq_ready(&ring->uring);
	if (deep != ring->roams)
		roam(w, deep);
	if (!deep && ring->deferred) /* the next comes in when we ask for it, not before */
		zc_buffer_done(w);
	return err < 0 ? err : 0;
}

/* After an entry was registered: what waits in its queue is to be fetched. */
static int fetch_waiting(struct zc_worker *w, struct ring *ring)
{
	int err = io_uring_submit(&ring->uring);
	if (err >= 0)
		zc_notify_echo(w->q->s);
	return err < 0 ? err : 0;
}

static int wait_cqe(struct ring *ring, int *res)
{
	struct io_uring_cqe *cqe;
	int err = io_uring_submit_and_wait(&ring->uring, 1);
	while (io_uring_peek_cqe(&ring->uring, &cqe)) {
		if (err < 0 && err != -EINTR && err != -EAGAIN)
			return err;
		err = io_uring_submit_and_wait(&ring->uring, 1);
	}
	*res = cqe->res;
	io_uring_cqe_seen(&ring->uring, cqe);
	return 0;
}

/* The parts stand apart already. */
static int unpack(struct zc_worker *w, struct ring *ring)
{
	struct zc_req *r = &w->req;
	memcpy(&r->hdr, ring->header->in_out, sizeof(r->hdr));
	memcpy(w->in, ring->header->op_in, sizeof(w->in));
	r->in = w->in;
	r->arg = ring->payload;
	r->arg_len = ring->header->ring_ent_in_out.payload_sz;
	zc_buffer_touched(w, r->arg_len);
	r->out_len = 0;
	return zc_req_check(r);
}

static void uring_reply(struct zc_worker *w, int error)
{
	struct ring *ring = w->priv;
	struct fuse_out_header h = {.unique = w->req.hdr.unique, .error = error};
	size_t len = error ? 0 : w->req.out_len;
	if (!error && w->data.size) {
		ssize_t n = zc_bufvec_gather(&w->data, ring->payload, ZC_MAX_WRITE);
		h.error = n < 0 ? (int)n : 0;
		len = n < 0 ? 0 : (size_t)n;
		zc_ledger_add(&w->moves->copied_kernel, len); /* with the commit */
		zc_ledger_add(&w->moves->delivered, len);
	}
	if (w->moves)
		zc_ledger_add(&w->moves->syscalls, 1);
	w->moves = NULL;
	zc_bufvec_end(&w->data);
	zc_buffer_touched(w, len);
	h.len = (uint32_t)(sizeof(h) + len);
	memcpy(ring->header->in_out, &h, sizeof(h));
	ring->header->ring_ent_in_out.payload_sz = (uint32_t)len;
	ring->commit = true;
}

static int uring_next(struct zc_worker *w)
{
	struct ring *ring = w->priv;
	int res;
	prepare(w, ring);
	int err = 0;
	if (!ring->commit && w->stand_in)
		err = fetch_waiting(w, ring);
	else if (++ring->answered % DEPTH_SAMPLE == 0 || zc_buffers_full(w))
		err = look_for_depth(w, ring);
	if (!err)
		err = wait_cqe(ring, &res);
	if (err)
		return err;
	if (res == -ENOENT && ring->commit) { /* the request is gone; the entry with it */
		ring->commit = false;
		w->stand_in = true;
		return -EAGAIN;
	}
	if (res < 0)
		return -ENODEV;
	if (((struct fuse_in_header *)(void *)ring->header->in_out)->opcode == FUSE_NOTIFY_REPLY) {
		w->req.hdr.unique = ring->header->ring_ent_in_out.commit_id;
		w->req.out_len = 0;
		uring_reply(w, 0); /* our own echo */
		return -EAGAIN;
	}
	err = unpack(w, ring);
	if (err) {
		uring_reply(w, zc_req_refuse(&w->req, err));
		return -EAGAIN;
	}
	return 0;
}

const struct zc_transport zc_transport_uring = {
	.name = "uring",
	.start = uring_start,
	.next = uring_next,
	.reply = uring_reply,
	.stop = uring_stop,
};
