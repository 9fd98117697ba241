/* Mounting and unmounting: mount(2) as root, fusermount3 otherwise.
 *
 * Nothing here touches what is mounted: a stat() of a mount whose daemon is dead would hang. What
 * the kernel knows of it stands in /proc/self/mountinfo.
 */
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"
#include "sys.h"

extern char **environ;

/* fsname may hold commas, which separate options: escaped as libfuse does it. */
static void escape(const char *in, char *out, size_t cap)
{
	size_t n = 0;
	for (; *in && n + 2 < cap; in++) {
		if (*in == ',' || *in == '\\')
			out[n++] = '\\';
		out[n++] = *in;
	}
	out[n] = '\0';
}

static const char *fsname_of(const struct zc_options *o)
{
	return o->fsname ? o->fsname : o->source;
}

static int mount_direct(const struct zc_options *o, char *err, size_t err_len)
{
	char data[256], type[64];
	struct stat st;
	int fd = ZC_SYSI("open", open("/dev/fuse", O_RDWR | O_CLOEXEC));
	if (fd < 0) {
		snprintf(err, err_len, "/dev/fuse cannot be opened: %s%s", strerror(-fd),
			 fd == -ENOENT ? " (is the fuse module loaded? try: modprobe fuse)" : "");
		return fd;
	}
	int r = ZC_SYSI("fstat", fstat(fd, &st));
	if (!r && !S_ISCHR(st.st_mode)) {
		snprintf(err, err_len, "/dev/fuse is not a device (mknod /dev/fuse c 10 229)");
		close(fd);
		return -ENODEV;
	}
	if (!r)
		r = ZC_SYSI("stat", stat(o->mountpoint, &st));
	if (!r) {
		snprintf(data, sizeof(data), "fd=%d,rootmode=%o,user_id=0,group_id=0,default_permissions%s",
			 fd, st.st_mode & S_IFMT, o->allow_other ? ",allow_other" : "");
		snprintf(type, sizeof(type), "fuse%s%s", *o->subtype ? "." : "", o->subtype);
		r = ZC_SYSI("mount", mount(fsname_of(o), o->mountpoint, type,
					   o->mount_flags | (o->read_only ? MS_RDONLY : 0), data));
	}
	if (!r)
		return fd;
	snprintf(err, err_len, "%s cannot be mounted on: %s", o->mountpoint, strerror(-r));
	close(fd);
	return r;
}

static int receive_fd(int sock)
{
	char byte, control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = {&byte, 1};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control,
			     .msg_controllen = sizeof(control)};
	int fd;
	if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) <= 0)
		return -EPERM;
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	if (!c || c->cmsg_type != SCM_RIGHTS)
		return -EPERM;
	memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	return fd;
}

/* Flags by name; fusermount3 sets nosuid and nodev itself, and refuses what it does not know. What
 * concerns access times but noatime it does not, and they are the source's anyway. */
static void append_flags(const struct zc_options *o, char *opts, size_t cap)
{
	static const struct {
		unsigned long flag;
		const char *name;
	} names[] = {{MS_NOEXEC, "noexec"},
		     {MS_NOATIME, "noatime"},
		     {MS_SYNCHRONOUS, "sync"},
		     {MS_DIRSYNC, "dirsync"},
		     {MS_NOSYMFOLLOW, "nosymfollow"}};
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (o->mount_flags & names[i].flag) {
			size_t n = strlen(opts);
			snprintf(opts + n, cap - n, ",%s", names[i].name);
		}
}

/* fusermount3 mounts for an ordinary user and hands the descriptor over a socket. Its own message
 * goes where ours go. */
static int mount_helper(const struct zc_options *o, char *err, size_t err_len)
{
	char opts[8192], name[4200], comm[48];
	int pair[2], status;
	pid_t pid;
	escape(fsname_of(o), name, sizeof(name));
	snprintf(opts, sizeof(opts), "fsname=%s%s%s,default_permissions%s%s", name,
		 *o->subtype ? ",subtype=" : "", o->subtype, o->allow_other ? ",allow_other" : "",
		 o->read_only ? ",ro" : "");
	append_flags(o, opts, sizeof(opts));
	int r = ZC_SYSI("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	if (r)
		return r;
	fcntl(pair[1], F_SETFD, FD_CLOEXEC);
	snprintf(comm, sizeof(comm), "%d", pair[0]);
	setenv("_FUSE_COMMFD", comm, 1);
	char *argv[] = {"fusermount3", "-o", opts, "--", o->mountpoint, NULL};
	posix_spawn_file_actions_t streams;
	posix_spawn_file_actions_init(&streams);
	posix_spawn_file_actions_adddup2(&streams, zc_log_fd(), STDERR_FILENO);
	r = -posix_spawnp(&pid, argv[0], &streams, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&streams);
	unsetenv("_FUSE_COMMFD");
	close(pair[0]);
	if (r) {
		snprintf(err, err_len, "fusermount3 cannot be run (%s): install fuse3, or be root",
			 strerror(-r));
	} else {
		r = receive_fd(pair[1]);
		waitpid(pid, &status, 0);
		if (r < 0)
			snprintf(err, err_len, "%s cannot be mounted on: fusermount3 refused, as it says; may this user "
				 "open /dev/fuse (chmod 666 /dev/fuse) and write to the mount point?",
				 o->mountpoint);
	}
	close(pair[1]);
	return r;
}

int zc_mount(const struct zc_options *o, char *err, size_t err_len)
{
	return geteuid() == 0 ? mount_direct(o, err, err_len) : mount_helper(o, err, err_len);
}

int zc_unmount(const struct zc_options *o, bool lazy)
{
	if (geteuid() == 0)
		return ZC_SYSI("umount2", umount2(o->mountpoint, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)));
	pid_t pid;
	int status = 0;
	char *argv[] = {"fusermount3", "-u", "-q", lazy ? "-z" : "--", o->mountpoint, NULL};
	int r = -posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);
	if (r)
		return r;
	waitpid(pid, &status, 0);
	return status ? -EBUSY : 0;
}

/* mountinfo writes space, tab, newline and backslash as octal. */
static void unescape(char *s)
{
	char *out = s;
	for (; *s; s++) {
		if (s[0] == '\\' && s[1] && s[2] && s[3]) {
			*out++ = (char)((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
			s += 3;
		} else {
			*out++ = *s;
		}
	}
	*out = '\0';
}

int zc_mount_device(const char *path, unsigned *major, unsigned *minor)
{
	char *line = NULL;
	size_t cap = 0;
	int found = -ENOENT;
	FILE *f = fopen("/proc/self/mountinfo", "re");
	if (!f)
		return -errno;
	while (getline(&line, &cap, f) > 0) {
		unsigned ma, mi;
		int at = 0, end = 0;
		if (sscanf(line, "%*d %*d %u:%u %*s %n%*s%n", &ma, &mi, &at, &end) < 2 || !end)
			continue;
		const char *type = strstr(line + end, " - ");
		line[end] = '\0';
		unescape(line + at);
		if (strcmp(line + at, path) || !type || strncmp(type + 3, "fuse", 4))
			continue;
		*major = ma; /* the last line is the topmost mount */
		*minor = mi;
		found = 0;
	}
	free(line);
	fclose(f);
	return found;
}
