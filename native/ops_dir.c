/* Directories: OPENDIR, READDIR, READDIRPLUS, RELEASEDIR, FSYNCDIR.
 *
 * An open directory has a descriptor of its own and a buffer of entries read ahead. The offset the
 * kernel gives is the source's own cookie (d_off); when it is not where the buffer stands, we seek.
 */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ops.h"
#include "sys.h"

#define DIR_BUFFER 32768u

struct zc_dir {
	pthread_mutex_t lock;
	off_t next; /* cookie of the first entry not yet given out */
	size_t pos, len;
	char buf[DIR_BUFFER];
};

struct sys_dirent {
	uint64_t d_ino;
	int64_t d_off;
	uint16_t d_reclen;
	uint8_t d_type;
	char d_name[];
};

int zc_op_OPENDIR(struct zc_req *r)
{
	ZC_INODE(ino, r->s, r->hdr.nodeid);
	if (!ino.i)
		return -ESTALE;
	struct zc_file *file = calloc(1, sizeof(*file));
	if (!file)
		return -ENOMEM;
	int fd = zc_inode_open(r->s->inodes, ino.i, O_RDONLY | O_DIRECTORY);
	if (fd < 0 || !(file->dir = malloc(sizeof(*file->dir)))) {
		if (fd >= 0)
			close(fd);
		free(file);
		return fd < 0 ? fd : -ENOMEM;
	}
	pthread_mutex_init(&file->dir->lock, NULL);
	file->dir->next = 0;
	file->dir->pos = file->dir->len = 0;
	atomic_init(&file->fd, fd);
	file->inode = ino.i;
	ino.i = NULL; /* the reference is the file's now */
	struct fuse_open_out *out = (void *)r->out;
	*out = (struct fuse_open_out){.fh = (uintptr_t)file};
	return zc_reply(r, sizeof(*out));
}

int zc_op_RELEASEDIR(struct zc_req *r)
{
	const struct fuse_release_in *in = r->in;
	struct zc_file *file = zc_file_of(in->fh);
	close(atomic_load(&file->fd));
	pthread_mutex_destroy(&file->dir->lock);
	free(file->dir);
	zc_inode_put(r->s->inodes, file->inode);
	free(file);
	return 0;
}

int zc_op_FSYNCDIR(struct zc_req *r)
{
	const struct fuse_fsync_in *in = r->in;
	int fd = atomic_load(&zc_file_of(in->fh)->fd);
	return in->fsync_flags & FUSE_FSYNC_FDATASYNC ? ZC_SYSI("fdatasync", fdatasync(fd))
						      : ZC_SYSI("fsync", fsync(fd));
}

/* The next entry, or NULL at the end (then *err is 0) or on failure. */
static const struct sys_dirent *dir_peek(struct zc_dir *dir, int fd, int *err)
{
	*err = 0;
	if (dir->pos == dir->len) {
		ssize_t n = ZC_SYS("getdents64", syscall(SYS_getdents64, fd, dir->buf, DIR_BUFFER));
		dir->pos = 0;
		dir->len = n > 0 ? (size_t)n : 0;
		if (n <= 0) {
			*err = (int)n;
			return NULL;
		}
	}
	return (const void *)(dir->buf + dir->pos);
}

static int dir_seek(struct zc_dir *dir, int fd, off_t offset)
{
	if (offset == dir->next)
		return 0;
	off_t at = ZC_SYS("lseek", lseek(fd, offset, SEEK_SET));
	if (at < 0)
		return (int)at;
	dir->pos = dir->len = 0;
	dir->next = offset;
	return 0;
}

static bool is_dots(const char *name)
{
	return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/* A source entry called .zcfs in the root is hidden by the computed tree. */
static bool is_hidden(const struct zc_req *r, const char *name)
{
	return r->hdr.nodeid == FUSE_ROOT_ID && !strcmp(name, ZC_ZCFS_NAME);
}

static void fill_dirent(struct fuse_dirent *out, const struct sys_dirent *e, size_t namelen)
{
	*out = (struct fuse_dirent){.ino = e->d_ino,
				    .off = (uint64_t)e->d_off,
				    .namelen = (uint32_t)namelen,
				    .type = e->d_type};
	memcpy(out->name, e->d_name, namelen);
	memset(out->name + namelen, 0, -namelen & 7);
}

/* What cannot be looked up (gone meanwhile) goes out with nodeid 0: the kernel asks again. */
static void fill_entry(struct zc_req *r, const struct zc_file *file, const char *name,
		       struct fuse_entry_out *out)
{
	*out = (struct fuse_entry_out){0};
	if (is_dots(name))
		return;
	ZC_INODE(ino, r->s, 0);
	if (zc_entry_at(r, file->inode, atomic_load(&file->fd), name, out, &ino.i))
		*out = (struct fuse_entry_out){0};
}

static size_t emit(struct zc_req *r, const struct zc_file *file, const struct sys_dirent *e,
		   bool plus, char *at, size_t room)
{
	size_t namelen = strlen(e->d_name);
	size_t head = plus ? sizeof(struct fuse_entry_out) : 0;
	size_t need = head + ((sizeof(struct fuse_dirent) + namelen + 7) & ~(size_t)7);
	if (need > room)
		return 0;
	if (plus)
		fill_entry(r, file, e->d_name, (void *)at);
	fill_dirent((void *)(at + head), e, namelen);
	return need;
}

static int read_dir(struct zc_req *r, bool plus)
{
	const struct fuse_read_in *in = r->in;
	struct zc_file *file = zc_file_of(in->fh);
	struct zc_dir *dir = file->dir;
	size_t used = 0, room = in->size < r->out_cap ? in->size : r->out_cap;
	int fd = atomic_load(&file->fd);
	pthread_mutex_lock(&dir->lock);
	int err = dir_seek(dir, fd, (off_t)in->offset);
	while (!err) {
		const struct sys_dirent *e = dir_peek(dir, fd, &err);
		if (!e)
			break;
		if (!is_hidden(r, e->d_name)) {
			size_t n = emit(r, file, e, plus, r->out + used, room - used);
			if (!n)
				break;
			used += n;
		}
		dir->pos += e->d_reclen;
		dir->next = e->d_off;
	}
	pthread_mutex_unlock(&dir->lock);
	return err && !used ? err : zc_reply(r, used);
}

int zc_op_READDIR(struct zc_req *r)
{
	return read_dir(r, false);
}

int zc_op_READDIRPLUS(struct zc_req *r)
{
	return read_dir(r, true);
}
