/* The probe's throw-away FUSE mount: the only way to learn what the kernel offers is to be told in
 * INIT, and the only way to learn whether passthrough works is to register a backing file.
 *
 * A child process does it, in a mount namespace of its own, over "/": nobody else sees the mount,
 * and nobody can walk into it. It ends with the child, which an alarm ends at the latest. The child
 * writes what it finds to a shared page, so a child that is killed still tells how far it got.
 *
 * Single thread: called before the daemon starts any.
 */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"
#include "probe.h"
#include "sys.h"

#define SECONDS_MOST 5
#define INIT_ROOM 8192 /* the least that the kernel accepts for a read */

static int write_file(const char *path, const char *text)
{
	int fd = ZC_SYSI("open", open(path, O_WRONLY | O_CLOEXEC));
	if (fd < 0)
		return fd;
	int err = ZC_SYSI("write", write(fd, text, strlen(text)));
	close(fd);
	return err < 0 ? err : 0;
}

/* Root of a user namespace may mount FUSE too, though not use passthrough. */
static int enter_user_ns(void)
{
	char map[32];
	unsigned uid = geteuid(), gid = getegid();

	int err = ZC_SYSI("unshare", unshare(CLONE_NEWUSER | CLONE_NEWNS));
	if (err)
		return err;
	snprintf(map, sizeof(map), "0 %u 1", uid);
	err = write_file("/proc/self/uid_map", map);
	if (!err)
		err = write_file("/proc/self/setgroups", "deny");
	snprintf(map, sizeof(map), "0 %u 1", gid);
	return err ? err : write_file("/proc/self/gid_map", map);
}

static int enter_namespace(struct zc_probe_fuse *out)
{
	int err = ZC_SYSI("unshare", unshare(CLONE_NEWNS));

	if (err == -EPERM) {
		out->in_user_ns = true;
		err = enter_user_ns();
	}
	/* never mount where it could propagate */
	return err ? err : ZC_SYSI("mount", mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
}

static int mount_over_root(int fuse)
{
	char opts[80];

	snprintf(opts, sizeof(opts), "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
	return ZC_SYSI("mount", mount("zcfs-probe", "/", "fuse", MS_NOSUID | MS_NODEV, opts));
}

static int receive_init(int fuse, struct zc_req *r, void *buf)
{
	ssize_t n = ZC_SYS("read", read(fuse, buf, INIT_ROOM));

	if (n < 0)
		return (int)n;
	int err = zc_req_parse(buf, (size_t)n, r);
	return err ? err : r->hdr.opcode == FUSE_INIT ? 0 : -EPROTO;
}

static void note_init(const struct fuse_init_in *in, struct zc_probe_fuse *out)
{
	out->major = in->major;
	out->minor = in->minor;
	out->flags = in->flags;
	if (in->flags & FUSE_INIT_EXT)
		out->flags |= (uint64_t)in->flags2 << 32;
}

static int answer_init(int fuse, const struct zc_req *r, uint32_t stack_depth)
{
	uint64_t flags = FUSE_INIT_EXT | FUSE_PASSTHROUGH;
	const struct fuse_init_in *in = r->in;
	struct {
		struct fuse_out_header h;
		struct fuse_init_out init;
	} reply = {
		.h = {.len = sizeof(reply), .unique = r->hdr.unique},
		.init = {.major = FUSE_MAJOR,
			 .minor = in->minor < FUSE_MINOR ? in->minor : FUSE_MINOR,
			 .max_write = 4096,
			 .time_gran = 1,
			 .flags = (uint32_t)flags,
			 .flags2 = (uint32_t)(flags >> 32),
			 .max_stack_depth = stack_depth},
	};
	ssize_t n = ZC_SYS("write", write(fuse, &reply, sizeof(reply)));

	return n < 0 ? (int)n : 0;
}

/* A backing id, or -errno. */
static int32_t register_backing(int fuse, int fd)
{
	struct fuse_backing_map map = {.fd = fd};
	int id = ZC_SYSI("backing_open", ioctl(fuse, FUSE_DEV_IOC_BACKING_OPEN, &map));
	uint32_t close_id = (uint32_t)id;

	if (id >= 1)
		ioctl(fuse, FUSE_DEV_IOC_BACKING_CLOSE, &close_id);
	return id ? id : -EPROTO;
}

static void try_passthrough(int fuse, const struct zc_req *r, int sample, struct zc_probe_fuse *out)
{
	int err = answer_init(fuse, r, out->stack_depth);
	if (err) {
		out->memfd_id = err;
		return;
	}
	int memfd = ZC_SYSI("memfd_create", memfd_create("zcfs-probe", MFD_CLOEXEC));
	out->memfd_id = memfd < 0 ? memfd : register_backing(fuse, memfd);
	if (sample >= 0)
		out->sample_id = register_backing(fuse, sample);
}

static int run_session(int sample, struct zc_probe_fuse *out)
{
	static _Alignas(8) char buf[INIT_ROOM];
	struct zc_req r = {0};

	out->failed_at = "a private mount namespace";
	int err = enter_namespace(out);
	if (err)
		return err;
	/* only now: who mounts must have opened it in the same user namespace */
	out->failed_at = "open /dev/fuse";
	int fuse = ZC_SYSI("open", open("/dev/fuse", O_RDWR | O_CLOEXEC));
	if (fuse < 0)
		return fuse;
	out->failed_at = "mount";
	err = mount_over_root(fuse);
	if (err)
		return err;
	out->failed_at = "the kernel's INIT";
	err = receive_init(fuse, &r, buf);
	if (err)
		return err;
	note_init(r.in, out);
	out->failed_at = NULL;
	if (out->flags & FUSE_PASSTHROUGH)
		try_passthrough(fuse, &r, sample, out);
	return 0;
}

static void __attribute__((noreturn)) child(int sample, struct zc_probe_fuse *out)
{
	sigset_t none;

	sigemptyset(&none);
	signal(SIGALRM, SIG_DFL);
	sigprocmask(SIG_SETMASK, &none, NULL);
	alarm(SECONDS_MOST);
	out->error = run_session(sample, out);
	_exit(0);
}

static void one_session(int sample, uint32_t stack_depth, struct zc_probe_fuse *out)
{
	struct zc_probe_fuse *shared;
	int status;

	*out = (struct zc_probe_fuse){.failed_at = "fork", .stack_depth = stack_depth};
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (shared == MAP_FAILED) {
		out->error = -ENOMEM;
		return;
	}
	*shared = *out;
	pid_t pid = ZC_SYSI("fork", fork());
	if (!pid)
		child(sample, shared);
	if (pid < 0)
		shared->error = pid;
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (pid > 0 && !WIFEXITED(status))
		shared->error = -ETIMEDOUT;
	*out = *shared;
	munmap(shared, sizeof(*shared));
}

void zc_probe_fuse(int sample, struct zc_probe_fuse *out)
{
	one_session(sample, 1, out);
	if (!out->failed_at && out->sample_id == -ELOOP)
		one_session(sample, 2, out);
}
