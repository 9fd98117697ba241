/* File data on its way: the segments, the pipes, and /dev/fuse's transport with failing and short calls.
 *
 * The transport's side of /dev/fuse is a file here: a message lies in one and is taken from it, and the
 * reply is found in another. Needs a build of the data plane with -DZC_FAULT_INJECTION.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../ops.h"
#include "../sys.h"
#include "harness.h"

#define SIZE 300000u
#define HEAD (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))

static char content[SIZE], got[2 * SIZE];
static struct zc_session session;
static struct zc_queue queue;
static struct zc_worker worker;
static struct zc_ledger ledger;

static int file_of(const void *data, size_t len)
{
	int fd = memfd_create("test", MFD_CLOEXEC);
	EXPECT(fd >= 0);
	EXPECT_IS(pwrite(fd, data, len, 0), len);
	return fd;
}

static void begin(struct zc_bufvec *v)
{
	memset(&ledger, 0, sizeof(ledger));
	zc_bufvec_begin(v, &ledger);
}

/* segments ----------------------------------------------------------------------------------- */

static void test_gather(void)
{
	struct zc_bufvec *v = &worker.data;
	struct zc_pipe pipe;
	int fd = file_of(content, SIZE);
	EXPECT_IS(zc_pipe_open(&pipe, 65536), 0);
	EXPECT_IS(write(pipe.in, content + 5000, 1000), 1000);
	begin(v);
	memcpy(got, content, 1000);
	EXPECT_IS(zc_bufvec_add_memory(v, got, 1000), 0); /* in its place already */
	EXPECT_IS(zc_bufvec_add_memory(v, content, 0), 0);
	EXPECT_IS(zc_bufvec_add_file(v, fd, 1000, 4000), 0);
	EXPECT_IS(zc_bufvec_add_pipe(v, pipe.out, 1000), 0);
	EXPECT_IS(zc_bufvec_add_memory(v, content + 6000, 50), 0);
	EXPECT(zc_bufvec_has_descriptor(v));
	EXPECT_IS(zc_bufvec_gather(v, got, 6049), -EMSGSIZE);
	EXPECT_IS(zc_bufvec_gather(v, got, sizeof(got)), 6050);
	EXPECT(!memcmp(got, content, 6050));
	EXPECT_IS(v->size, 6050);
	EXPECT(!zc_bufvec_has_descriptor(v));
	EXPECT_IS(ledger.copied_user, 50);
	EXPECT_IS(ledger.copied_kernel, 5000);
	begin(v);
	EXPECT_IS(zc_bufvec_add_file(v, fd, SIZE - 10, 100), 0);
	EXPECT_IS(zc_bufvec_gather(v, got, sizeof(got)), 10); /* the file is shorter */
	EXPECT_IS(v->size, 10);
	begin(v);
	EXPECT_IS(zc_bufvec_add_file(v, fd, 0, 100), 0);
	zc_fault_arm("pread", 1, EIO, 0);
	EXPECT_IS(zc_bufvec_gather(v, got, sizeof(got)), -EIO);
	begin(v);
	for (unsigned i = 0; i < ZC_SEGS; i++)
		EXPECT_IS(zc_bufvec_add_memory(v, content + i, 1), 0);
	EXPECT_IS(zc_bufvec_add_memory(v, content, 1), -ENOBUFS);
	zc_bufvec_advance(v, 200);
	struct iovec iov[4];
	EXPECT_IS(zc_bufvec_iov(v, iov, 4), 4);
	EXPECT(iov[0].iov_base == content + 200);
	zc_bufvec_end(v);
	EXPECT_IS(v->size, 0);
	zc_pipe_close(&pipe);
	close(fd);
}

/* More segments than one call takes, from memory and a pipe; an error after some of it. */
static void test_to_file(void)
{
	struct zc_bufvec *v = &worker.data;
	struct zc_pipe pipe;
	for (int fault = 0; fault < 3; fault++) {
		int fd = file_of("", 0);
		EXPECT_IS(zc_pipe_open(&pipe, 65536), 0);
		EXPECT_IS(write(pipe.in, content + 2000, 3000), 3000);
		begin(v);
		for (unsigned i = 0; i < 200; i++)
			EXPECT_IS(zc_bufvec_add_memory(v, content + 10 * i, 10), 0);
		EXPECT_IS(zc_bufvec_add_pipe(v, pipe.out, 3000), 0);
		zc_fault_arm(fault == 0 ? "" : fault == 1 ? "pwritev2" : "splice",
			     fault == 1 ? 2 : 1, ENOSPC, 0);
		size_t want = fault == 0 ? 5000 : fault == 1 ? 640 : 2000;
		EXPECT_IS(zc_bufvec_to_file(v, fd, 7, 0), want);
		EXPECT_IS(ledger.copied_kernel, want);
		EXPECT_IS(pread(fd, got, 6000, 7), want);
		EXPECT(!memcmp(got, content, want));
		EXPECT_IS(v->size, 5000 - want);
		zc_fault_arm("", 0, 0, 0);
		zc_pipe_close(&pipe);
		close(fd);
	}
	begin(v);
	EXPECT_IS(zc_bufvec_add_memory(v, content, 10), 0);
	zc_fault_arm("pwritev2", 1, ENOSPC, 0);
	EXPECT_IS(zc_bufvec_to_file(v, -1, 0, 0), -ENOSPC);
	zc_bufvec_end(v);
}

static void test_pipe(void)
{
	struct zc_pipe pipe = {0};
	zc_fault_arm("pipe2", 1, EMFILE, 0);
	EXPECT_IS(zc_pipe_open(&pipe, 65536), -EMFILE);
	zc_fault_arm("fcntl", 1, EPERM, 0); /* half of it is granted */
	EXPECT_IS(zc_pipe_open(&pipe, 262144), 0);
	EXPECT_IS(pipe.slots, 32);
	zc_pipe_close(&pipe);
	int fds = harness_fds();
	zc_fault_arm("fcntl", 1, EPERM, 1);
	EXPECT_IS(zc_pipe_open(&pipe, 262144), -EPERM);
	zc_fault_arm("", 0, 0, 0);
	EXPECT_IS(harness_fds(), fds);
	EXPECT_IS(zc_pipe_open(&pipe, 65536), 0);
	EXPECT(zc_pipe_fits(&pipe, 0, 15 * 4096, 1));
	EXPECT(!zc_pipe_fits(&pipe, 1, 15 * 4096, 1));
	EXPECT(!zc_pipe_fits(&pipe, 0, 16 * 4096, 1));
	EXPECT_IS(write(pipe.in, content, 5000), 5000);
	pipe.dirty = true;
	zc_pipe_empty(&pipe, got, 100);
	EXPECT(!pipe.dirty && pipe.slots);
	EXPECT_IS(read(pipe.out, got, 1), -1);
	EXPECT_IS(write(pipe.in, content, 50), 50);
	zc_fault_arm("read", 1, EINTR, 0); /* asked again */
	EXPECT_IS(zc_pipe_read(&pipe, got, 50, &ledger), 0);
	EXPECT(!memcmp(got, content, 50));
	pipe.dirty = true;
	zc_fault_arm("read", 1, EIO, 0); /* cannot be emptied */
	zc_pipe_empty(&pipe, got, 100);
	EXPECT_IS(pipe.slots, 0);
	EXPECT_IS(harness_fds(), fds);
	zc_fault_arm("", 0, 0, 0);
}

/* the transport --------------------------------------------------------------------------------- */

static void start(const char *splice)
{
	memset(&worker, 0, sizeof(worker));
	session.opt.splice = splice;
	session.max_write = ZC_MAX_WRITE / 2;
	session.degr_count = 0;
	queue = (struct zc_queue){.s = &session, .transport = &zc_transport_dev, .max = 1, .idle = 1};
	worker.q = &queue;
	worker.req.s = &session;
	worker.req.w = &worker;
	EXPECT_IS(zc_transport_dev.start(&worker), 0);
	worker.moves = &ledger;
	begin(&worker.data);
}

static void stop(void)
{
	zc_transport_dev.stop(&worker);
	close(queue.fd);
}

/* The reply is the `len` bytes of content from `at` on, or `error`. */
static void expect_reply(int error, size_t at, size_t len)
{
	struct fuse_out_header h;
	EXPECT_IS(pread(queue.fd, &h, sizeof(h), 0), sizeof(h));
	EXPECT_IS(h.unique, 77);
	EXPECT_IS(h.error, error);
	EXPECT_IS(h.len, sizeof(h) + len);
	EXPECT_IS(lseek(queue.fd, 0, SEEK_END), sizeof(h) + len);
	EXPECT_IS(pread(queue.fd, got, SIZE, sizeof(h)), len);
	EXPECT(!memcmp(got, content + at, len));
	EXPECT_IS(worker.pipe.dirty, false);
	EXPECT_IS(worker.data.size, 0);
	EXPECT_IS(ledger.delivered, error ? 0 : len);
}

/* A READ of `len` bytes of the file from `at` on, with the `nth` of `call` failing. */
static void read_with(const char *call, int nth, int err, bool always, size_t at, size_t len, int error,
		      size_t want)
{
	int fd = file_of(content, SIZE);
	snprintf(harness_context, sizeof(harness_context), "read, %s %d fails with %d", call, nth, err);
	start("always");
	queue.fd = memfd_create("reply", MFD_CLOEXEC);
	worker.req.hdr = (struct fuse_in_header){.opcode = FUSE_READ, .unique = 77};
	EXPECT(zc_splice_read(&worker, true, (off_t)at, len));
	EXPECT_IS(zc_bufvec_add_file(&worker.data, fd, (off_t)at, len), 0);
	zc_fault_arm(call, nth, err, always);
	zc_transport_dev.reply(&worker, 0);
	zc_fault_arm("", 0, 0, 0);
	expect_reply(error, at, want);
	stop();
	close(fd);
	*harness_context = 0;
}

static void test_read(void)
{
	read_with("", 0, 0, false, 4096, 200000, 0, 200000);
	EXPECT_IS(ledger.moved, 200000);
	EXPECT_IS(ledger.copied_kernel, 200000);
	read_with("", 0, 0, false, 77, 100, 0, 100);
	read_with("", 0, 0, false, SIZE - 5000, 131072, 0, 5000); /* the file ends: a short splice */
	read_with("", 0, 0, false, SIZE, 4096, 0, 0);
	read_with("write", 1, EAGAIN, false, 0, 100000, 0, 100000);
	read_with("splice", 1, EAGAIN, false, 3, 250000, 0, 250000);
	read_with("splice", 1, EINVAL, false, 3, 250000, 0, 250000);
	read_with("splice", 1, EIO, false, 3, 250000, 0, 250000); /* a read may still do */
	read_with("splice", 2, EINVAL, false, 3, 250000, -EIO, 0); /* the kernel refuses the reply */
	read_with("splice", 1, EINTR, true, 3, 250000, 0, 250000);
	read_with("pread", 1, EIO, true, 0, 1000, 0, 1000); /* is not asked for */
}

/* Neither a splice nor a read does. */
static void test_read_error(void)
{
	int fd = file_of(content, SIZE);
	start("always");
	queue.fd = memfd_create("reply", MFD_CLOEXEC);
	worker.req.hdr = (struct fuse_in_header){.opcode = FUSE_READ, .unique = 77};
	EXPECT(zc_splice_read(&worker, true, 0, 4096));
	EXPECT_IS(zc_bufvec_add_file(&worker.data, -1, 0, 4096), 0);
	zc_transport_dev.reply(&worker, 0);
	expect_reply(-EBADF, 0, 0);
	stop();
	close(fd);
}

/* A pipe that is too small for the reply is full in the middle of it, or an error comes there. */
static void full_pipe(const char *call)
{
	int fd = file_of(content, SIZE);
	start("always");
	queue.fd = memfd_create("reply", MFD_CLOEXEC);
	worker.req.hdr = (struct fuse_in_header){.opcode = FUSE_READ, .unique = 77};
	EXPECT_IS(zc_pipe_open(&worker.pipe, 65536), 0);
	EXPECT(!zc_splice_read(&worker, true, 0, 131072));
	EXPECT_IS(zc_bufvec_add_file(&worker.data, fd, 0, 131072), 0);
	zc_fault_arm(call, 2, EIO, 0);
	zc_transport_dev.reply(&worker, 0);
	zc_fault_arm("", 0, 0, 0);
	expect_reply(0, 0, 131072);
	EXPECT(ledger.moved > 0 && ledger.moved < 131072);
	stop();
	close(fd);
}

static void test_no_pipe(void)
{
	start("always");
	zc_fault_arm("fcntl", 1, EPERM, 1);
	EXPECT(!zc_splice_read(&worker, true, 0, 4096));
	EXPECT(!zc_splice_take(&worker));
	zc_fault_arm("", 0, 0, 0);
	EXPECT(!zc_splice_read(&worker, true, 0, 4096)); /* not tried at each request */
	EXPECT_IS(session.degr_count, 1);
	EXPECT(!strcmp(session.degr[0].what, "splice"));
	queue.fd = memfd_create("reply", MFD_CLOEXEC);
	stop();
	start("auto"); /* large READs only */
	EXPECT(!zc_splice_read(&worker, true, 0, 131072));
	EXPECT(!zc_splice_read(&worker, false, 0, 262144));
	EXPECT_IS(worker.pipe.slots, 0);
	EXPECT(zc_splice_read(&worker, true, 0, 262144));
	EXPECT(!zc_splice_take(&worker));
	zc_pipe_close(&worker.pipe);
	zc_fault_arm("fcntl", 1, EPERM, 1);
	EXPECT(!zc_splice_read(&worker, true, 0, 262144)); /* and nobody was promised one */
	zc_fault_arm("", 0, 0, 0);
	EXPECT_IS(session.degr_count, 0);
	queue.fd = memfd_create("reply", MFD_CLOEXEC);
	stop();
	start("never");
	EXPECT(!zc_splice_read(&worker, true, 0, 262144));
	EXPECT_IS(worker.pipe.slots, 0);
	queue.fd = memfd_create("reply", MFD_CLOEXEC);
	stop();
}

/* A WRITE of `len` bytes is taken; its data, left in the pipe, goes to a file. */
static void write_with(const char *call, int nth, int err, size_t len, ssize_t written, rlim_t limit)
{
	static char message[HEAD + SIZE];
	struct fuse_in_header h = {.len = (uint32_t)(HEAD + len), .opcode = FUSE_WRITE, .unique = 77,
				   .nodeid = 2};
	struct fuse_write_in in = {.size = (uint32_t)len};
	int to = file_of("", 0);
	snprintf(harness_context, sizeof(harness_context), "write, %s %d fails with %d", call, nth, err);
	memcpy(message, &h, sizeof(h));
	memcpy(message + sizeof(h), &in, sizeof(in));
	memcpy(message + HEAD, content, len);
	start("always");
	queue.fd = file_of(message, HEAD + len);
	zc_fault_arm(call, nth, err, 0);
	EXPECT_IS(zc_transport_dev.next(&worker), 0);
	EXPECT_IS(worker.req.hdr.unique, 77);
	EXPECT(worker.req.piped);
	EXPECT_IS(((const struct fuse_write_in *)worker.req.in)->size, len);
	EXPECT_IS(zc_bufvec_add_pipe(&worker.data, worker.pipe.out, len), 0);
	struct rlimit old, most;
	EXPECT_IS(getrlimit(RLIMIT_FSIZE, &old), 0);
	most = (struct rlimit){.rlim_cur = limit, .rlim_max = old.rlim_max};
	EXPECT_IS(setrlimit(RLIMIT_FSIZE, &most), 0);
	EXPECT_IS(zc_bufvec_to_file(&worker.data, to, 0, 0), written);
	EXPECT_IS(setrlimit(RLIMIT_FSIZE, &old), 0);
	zc_fault_arm("", 0, 0, 0);
	zc_bufvec_end(&worker.data);
	zc_transport_dev.reply(&worker, 0);
	EXPECT(!worker.pipe.dirty);
	size_t in_file = written > 0 ? (size_t)written : 0;
	EXPECT_IS(pread(to, got, SIZE, 0), in_file);
	EXPECT(!memcmp(got, content, in_file));
	char byte;
	EXPECT_IS(read(worker.pipe.out, &byte, 1), -1); /* nothing is left for the next */
	stop();
	close(to);
	*harness_context = 0;
}

static void test_write(void)
{
	write_with("", 0, 0, 100000, 100000, RLIM_INFINITY);
	write_with("", 0, 0, 10, 10, RLIM_INFINITY);
	write_with("read", 1, EINTR, 5000, 5000, RLIM_INFINITY);
	write_with("splice", 2, ENOSPC, 200000, -ENOSPC, RLIM_INFINITY);
	/* in the middle; the rest is thrown away */
	write_with("", 0, 0, 200000, 65536, 65536);
}

/* What is no WRITE of the mirror is taken out of the pipe whole. */
static void test_take_others(void)
{
	struct {
		struct fuse_in_header h;
		char name[8];
	} lookup = {{.len = sizeof(lookup), .opcode = FUSE_LOOKUP, .unique = 77, .nodeid = 1}, "content"};
	start("always");
	queue.fd = file_of(&lookup, sizeof(lookup));
	EXPECT_IS(zc_transport_dev.next(&worker), 0);
	EXPECT(!worker.req.piped && !worker.pipe.dirty);
	EXPECT(!strcmp(worker.req.arg, "content"));
	stop();
	start("always");
	queue.fd = file_of(&lookup, sizeof(lookup));
	zc_fault_arm("splice", 1, ENODEV, 0);
	EXPECT_IS(zc_transport_dev.next(&worker), -ENODEV);
	zc_fault_arm("read", 1, EIO, 1); /* lost; the daemon lives */
	EXPECT_IS(zc_transport_dev.next(&worker), -EAGAIN);
	zc_fault_arm("", 0, 0, 0);
	EXPECT(!worker.pipe.dirty);
	stop();
}

int main(void)
{
	for (size_t i = 0; i < SIZE; i++)
		content[i] = (char)(i * 2654435761u >> 11);
	pthread_mutex_init(&session.degr_lock, NULL);
	signal(SIGXFSZ, SIG_IGN);
	zc_log_to(file_of("", 0));
	test_gather();
	test_to_file();
	test_pipe();
	int fds = harness_fds();
	test_read();
	test_read_error();
	full_pipe("");
	full_pipe("splice");
	full_pipe("read"); /* of what is in it: asked again */
	test_no_pipe();
	test_write();
	test_take_others();
	EXPECT_IS(harness_fds(), fds);
	return harness_end();
}
