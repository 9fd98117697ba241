/* The runtime directory: where a daemon's sockets are, one name for each mount, and who may use
 * them.
 *
 * The directory is open to our user alone. A socket is <dir>/<minor>.<suffix>, minor being the
 * mount's minor device number: whoever knows the mount point finds it by mountinfo.
 *
 * Threading: a listener belongs to whoever made it; the functions may be called by any thread.
 */
#include "internal.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "sys.h"

#define BACKLOG 16

static int runtime_dir(char *out, size_t len)
{
	const char *xdg = getenv("XDG_RUNTIME_DIR");
	int n;

	if (!geteuid())
		n = snprintf(out, len, "/run/zcfs");
	else if (xdg && xdg[0] == '/')
		n = snprintf(out, len, "%s/zcfs", xdg);
	else
		n = snprintf(out, len, "/tmp/zcfs-%u", (unsigned)geteuid());
	return n < 0 || (size_t)n >= len ? -ENAMETOOLONG : 0;
}

/* Ours, a directory and no link to one, and closed to all others: /tmp is everybody's. */
static int check_dir(const char *dir)
{
	struct stat st;
	int err = ZC_SYSI("lstat", lstat(dir, &st));

	if (err)
		return err;
	if (S_ISDIR(st.st_mode) && st.st_uid == geteuid() && !(st.st_mode & 077))
		return 0;
	zc_log("%s: not a directory that only uid %u may enter; remove it, or chmod 700", dir,
	       (unsigned)geteuid());
	return -EPERM;
}

static int make_dir(const char *dir)
{
	int err = ZC_SYSI("mkdir", mkdir(dir, 0700));

	if (err && err != -EEXIST) {
		zc_log("%s: cannot make the directory of the control socket: %s", dir,
		       strerror(-err));
		return err;
	}
	return check_dir(dir);
}

/* fchmod rather than umask, which is all threads': the file gets the socket's mode. */
static int bind_at(int fd, const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int err;

	if ((size_t)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path) >=
	    sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	err = ZC_SYSI("fchmod", fchmod(fd, 0600));
	if (!err)
		err = ZC_SYSI("bind", bind(fd, (struct sockaddr *)&addr, sizeof(addr)));
	return err;
}

/* The kernel gives a minor to one mount at a time, and it is ours: what is found at the path is of
 * a daemon that died, or that has unmounted and is about to end. It is replaced in one step. */
static int listen_at(struct zc_listener *l)
{
	char temporary[PATH_MAX];
	struct stat st;
	int err;

	snprintf(temporary, sizeof(temporary), "%s.%d", l->path, (int)getpid());
	unlink(temporary); /* of a daemon of the same pid, long ago */
	err = bind_at(l->fd, temporary);
	if (err)
		return err;
	err = ZC_SYSI("listen", listen(l->fd, BACKLOG));
	if (!err)
		err = ZC_SYSI("lstat", lstat(temporary, &st));
	if (!err)
		err = ZC_SYSI("rename", rename(temporary, l->path));
	if (err)
		unlink(temporary);
	else
		l->ino = st.st_ino;
	return err;
}

static int path_of(const struct zc_session *s, const char *suffix, char *out, size_t len)
{
	char dir[PATH_MAX - 64];
	int err = runtime_dir(dir, sizeof(dir));

	if (!err)
		err = make_dir(dir);
	if (!err && (size_t)snprintf(out, len, "%s/%u.%s", dir, s->dev_minor, suffix) >= len)
		err = -ENAMETOOLONG;
	return err;
}

int zc_listen(const struct zc_session *s, const char *suffix, int type, struct zc_listener *l)
{
	int err;

	*l = (struct zc_listener){.fd = -1};
	err = path_of(s, suffix, l->path, sizeof(l->path));
	if (err)
		return err;
	l->fd = ZC_SYSI("socket", socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
	err = l->fd < 0 ? l->fd : listen_at(l);
	if (err)
		zc_log("%s: cannot listen: %s", l->path, strerror(-err));
	return err;
}

void zc_unlisten(struct zc_listener *l)
{
	struct stat st;

	if (l->ino && !lstat(l->path, &st) && st.st_ino == l->ino)
		ZC_SYS("unlink", unlink(l->path));
	if (l->fd >= 0)
		close(l->fd);
	*l = (struct zc_listener){.fd = -1};
}

void zc_listen_clean(const struct zc_session *s, const char *suffix)
{
	char path[PATH_MAX];

	if (!path_of(s, suffix, path, sizeof(path)))
		ZC_SYS("unlink", unlink(path));
}

bool zc_peer_is_welcome(int fd, pid_t *pid)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	if (ZC_SYSI("getsockopt", getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len)))
		return false;
	if (pid)
		*pid = peer.pid;
	return peer.uid == 0 || peer.uid == geteuid();
}
