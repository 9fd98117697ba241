/* Starts and ends the control plane's process.
 *
 * Owns nothing between calls. It exists apart from relay.c because all that is said here is about
 * processes and descriptors, and nothing about FUSE.
 *
 * Threading: the process asks to be killed when the thread that started it ends
 * (PR_SET_PDEATHSIG), so that thread must live as long as the process is wanted.
 */
#include "relay_child.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

#define SOCKET_BUFFER (4 << 20)
#define MS 1000000ULL /* ns */
#define REAP_SLICE_MS 10

extern char **environ;

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* A message must fit into them as a whole, so raises a socket's buffers as far as we may. */
static void raise_buffers(int fd)
{
	int size = SOCKET_BUFFER;

	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)))
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)))
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
}

static int socket_pair(int fds[2])
{
	int err = ZC_SYSI("socketpair",
			  socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds));

	if (err)
		return err;
	raise_buffers(fds[0]);
	raise_buffers(fds[1]);
	return 0;
}

/* The daemon's blocked and ignored signals are not the child's. */
static int spawn_attributes(posix_spawnattr_t *attr)
{
	sigset_t none, all;

	if (posix_spawnattr_init(attr))
		return -ENOMEM;
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_setsigmask(attr, &none);
	posix_spawnattr_setsigdefault(attr, &all);
	posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	return 0;
}

/* The child gets these two and the standard three descriptors; all else is close-on-exec. (Neither
 * socket is descriptor 0, as long as the daemon has its own standard input open.) */
static int spawn_files(posix_spawn_file_actions_t *files, int relay_fd, int control_fd)
{
	if (posix_spawn_file_actions_init(files))
		return -ENOMEM;
	if (posix_spawn_file_actions_addopen(files, 0, "/dev/null", O_RDONLY, 0) ||
	    posix_spawn_file_actions_adddup2(files, relay_fd, relay_fd) ||
	    posix_spawn_file_actions_adddup2(files, control_fd, control_fd)) {
		posix_spawn_file_actions_destroy(files);
		return -ENOMEM;
	}
	return 0;
}

/* -P: no modules from the current directory, which may be anybody's. */
static int spawn(const char *python, int relay_fd, int control_fd, pid_t *pid)
{
	char relay_arg[16], control_arg[16];
	char *argv[] = {(char *)(uintptr_t)python, "-P", "-m", "zcfs.fs", "--relay-fd", relay_arg,
			"--control-fd", control_arg, NULL};
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	int err;

	snprintf(relay_arg, sizeof(relay_arg), "%d", relay_fd);
	snprintf(control_arg, sizeof(control_arg), "%d", control_fd);
	err = spawn_attributes(&attr);
	if (err)
		return err;
	err = spawn_files(&files, relay_fd, control_fd);
	if (!err) {
		err = ZC_SYSI("spawn", (errno = posix_spawnp(pid, python, &files, &attr, argv,
							     environ)) ? -1 : 0);
		posix_spawn_file_actions_destroy(&files);
	}
	posix_spawnattr_destroy(&attr);
	return err;
}

int zc_child_start(const char *python, struct zc_child *out)
{
	int relay[2] = {-1, -1}, control[2] = {-1, -1};
	pid_t pid = 0;
	int err = socket_pair(relay);

	if (!err)
		err = socket_pair(control);
	if (!err)
		err = spawn(python, relay[1], control[1], &pid);
	close_fd(&relay[1]);
	close_fd(&control[1]);
	if (err) {
		close_fd(&relay[0]);
		close_fd(&control[0]);
		return err;
	}
	*out = (struct zc_child){.pid = pid, .relay = relay[0], .control = control[0]};
	out->pidfd = ZC_SYSI("pidfd_open", syscall(SYS_pidfd_open, pid, 0));
	return 0;
}

static bool reap_within(const struct zc_child *c, long ms, int *status)
{
	struct pollfd p = {c->pidfd, POLLIN, 0};
	uint64_t end = zc_now_ns() + (uint64_t)ms * MS;

	for (;;) {
		pid_t pid = waitpid(c->pid, status, WNOHANG);
		if (pid == c->pid || (pid < 0 && errno != EINTR))
			return true;
		if (zc_now_ns() >= end)
			return false;
		poll(&p, 1, REAP_SLICE_MS);
	}
}

int zc_child_end(struct zc_child *c, bool ask, long grace_ms)
{
	int status = 0;

	if (ask)
		kill(c->pid, SIGTERM);
	if (!reap_within(c, grace_ms, &status)) {
		kill(c->pid, SIGKILL);
		while (waitpid(c->pid, &status, 0) < 0 && errno == EINTR)
			;
	}
	close_fd(&c->control);
	close_fd(&c->pidfd);
	return status;
}
