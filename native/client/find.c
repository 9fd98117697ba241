/* From a mount point to the daemon's lease socket, as `mountctl` finds the control socket: the
 * mount's minor device number and owner from /proc/self/mountinfo, then the runtime directories of
 * that owner.
 *
 * The mount itself is never touched: where its daemon hangs, so would the caller. Any thread.
 */
#include "find.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static_assert(sizeof(((struct zcfs_place *)0)->mountpoint) >= PATH_MAX, "a path fits");

struct mount {
	unsigned minor;
	uid_t owner;
	char type[32];
};

/* Undoes the octal escapes of mountinfo, in place. */
static void unescape(char *text)
{
	char *out = text;

	while (*text) {
		unsigned value;

		if (*text == '\\' && sscanf(text + 1, "%3o", &value) == 1) {
			*out++ = (char)value;
			text += 4;
		} else {
			*out++ = *text++;
		}
	}
	*out = 0;
}

/* One line: 36 35 98:0 /root /mnt rw,noatime master:1 - fuse.zcfs source rw,user_id=0 */
static int parse(char *line, const char *mountpoint, struct mount *out)
{
	char *end = strstr(line, " - "), *owner;
	struct mount m = {0};
	char *point = NULL;
	int found = 0;

	if (end && sscanf(line, "%*s %*s %*u:%u %*s %ms ", &m.minor, &point) == 2 &&
	    sscanf(end + 3, "%31s", m.type) == 1) {
		unescape(point);
		owner = strstr(end, "user_id=");
		m.owner = owner ? (uid_t)strtoul(owner + 8, NULL, 10) : 0;
		found = !strcmp(point, mountpoint);
	}
	free(point);
	if (found)
		*out = m;
	return found;
}

/* The uppermost mount at exactly this path. */
static int mount_at(const char *mountpoint, struct mount *out)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t cap = 0;
	int found = 0;

	if (!f)
		return 0;
	while (getline(&line, &cap, f) > 0)
		found |= parse(line, mountpoint, out);
	free(line);
	fclose(f);
	return found;
}

/* Appends the parts of `path` to the absolute path `out`, undoing "." and ".."; no link is read. */
static int append(const char *path, char *out)
{
	size_t len = strlen(out);

	while (*path) {
		size_t n = strcspn(path, "/");

		if (n == 2 && !strncmp(path, "..", 2)) {
			while (len && out[--len] != '/')
				;
		} else if (n && !(n == 1 && *path == '.')) {
			if (len + n + 2 > PATH_MAX)
				return -ENAMETOOLONG;
			out[len++] = '/';
			memcpy(out + len, path, n);
			len += n;
		}
		out[len] = 0;
		path += n + (path[n] == '/');
	}
	return 0;
}

static int absolute(const char *path, char *out)
{
	char here[PATH_MAX];
	int err = 0;

	*out = 0;
	if (*path != '/') {
		if (!getcwd(here, sizeof(here)))
			return -errno;
		err = append(here, out);
	}
	if (!err)
		err = append(path, out);
	if (!*out)
		strcpy(out, "/");
	return err;
}

/* The links on the way to the last name are resolved, that name itself only if nothing is mounted
 * there. */
static int locate(const char *path, char *out, struct mount *m)
{
	char given[PATH_MAX], *slash, *parent;
	int err = absolute(path, given);

	if (err)
		return err;
	strcpy(out, given);
	if (mount_at(out, m))
		return 0;
	slash = strrchr(given, '/');
	*slash = 0;
	parent = realpath(*given ? given : "/", NULL);
	if (!parent)
		return -errno;
	*out = 0;
	err = append(parent, out);
	free(parent);
	if (!err)
		err = append(slash + 1, out);
	if (err)
		return err;
	if (mount_at(out, m))
		return 0;
	if (!realpath(out, given))
		return -errno;
	strcpy(out, given);
	return mount_at(out, m) ? 0 : -ENODEV;
}

/* 0: it is there. -EOPNOTSUPP: only the daemon's other socket is. */
static int look_in(const char *dir, unsigned minor, char *out, size_t cap)
{
	char path[PATH_MAX + 32];
	struct stat st;

	if ((size_t)snprintf(path, sizeof(path), "%.4095s/%u.lease", dir, minor) >= cap)
		return -ENAMETOOLONG;
	int err = lstat(path, &st) ? errno : 0;
	if (!err && S_ISSOCK(st.st_mode)) {
		strcpy(out, path);
		return 0;
	}
	if (err == EACCES)
		return -EACCES;
	snprintf(path, sizeof(path), "%.4095s/%u.sock", dir, minor);
	return !lstat(path, &st) && S_ISSOCK(st.st_mode) ? -EOPNOTSUPP : -ENOENT;
}

/* The directories of one user, the likeliest first. */
static int look_for(uid_t uid, unsigned minor, char *out, size_t cap)
{
	const char *own = uid == geteuid() ? getenv("XDG_RUNTIME_DIR") : NULL;
	char dirs[3][PATH_MAX] = {"", "", ""};
	int worst = -ENOENT;

	if (!uid) {
		strcpy(dirs[0], "/run/zcfs");
	} else {
		if (own && *own == '/')
			snprintf(dirs[0], sizeof(dirs[0]), "%.4000s/zcfs", own);
		snprintf(dirs[1], sizeof(dirs[1]), "/run/user/%u/zcfs", (unsigned)uid);
		snprintf(dirs[2], sizeof(dirs[2]), "/tmp/zcfs-%u", (unsigned)uid);
	}
	for (int i = 0; i < 3; i++) {
		int err = *dirs[i] ? look_in(dirs[i], minor, out, cap) : -ENOENT;
		if (!err)
			return 0;
		if (err != -ENOENT)
			worst = err;
	}
	return worst;
}

int zcfs_find(const char *mountpoint, struct zcfs_place *out)
{
	struct mount m;
	int err = locate(mountpoint, out->mountpoint, &m);

	if (err)
		return err;
	if (strcmp(m.type, "fuse.zcfs") && strcmp(m.type, "fuse"))
		return -ENODEV;
	out->owner = m.owner;
	err = look_for(m.owner, m.minor, out->path, sizeof(out->path));
	if (err == -ENOENT && geteuid() != m.owner)
		err = look_for(geteuid(), m.minor, out->path, sizeof(out->path));
	if (err == -ENOENT)
		err = geteuid() && geteuid() != m.owner ? -EACCES : -ENOTCONN;
	return err;
}
