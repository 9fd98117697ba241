/* The pool engine: reads come by O_DIRECT into the daemon's pool and are answered from its frames;
 * writes go through the pool to the disk. The source's page cache stays empty, and so does the
 * mount's but for what is mapped.
 *
 * A READ is answered from the frames themselves, pinned until the reply is sent; one whose pages are
 * all there waits for nothing and wakes nobody.
 *
 * Every open file has a pool file of its own, made at its first READ or WRITE, outside the inode's
 * lock; those of one inode share their frames. What the pool is not made for goes by the page cache
 * of the source, and the frames are dropped: appends (the end is the source's to find) and writes
 * that take set-id bits away (which needs this thread's own credentials).
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ops.h"
#include "pool/pool.h"
#include "sys.h"

static int pool_open(struct zc_req *r, struct zc_file *file, struct zc_opened *o, int fd,
		     struct fuse_open_out *out)
{
	(void)r;
	if (fd < 0)
		return -EAGAIN;
	if (file->inode->fmt != S_IFREG)
		return -EOPNOTSUPP;
	atomic_store(&o->accessed, false);
	out->open_flags |= FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
	return 0;
}

static void pool_last_close(struct zc_session *s, struct zc_opened *o)
{
	(void)s;
	(void)o;
}

static int pool_file_of(struct zc_req *r, struct zc_file *file, struct zc_pool_file **out)
{
	struct zc_pool_file *made, *none = NULL;
	*out = atomic_load(&file->pool);
	if (*out)
		return 0;
	zc_may_block(r->w); /* the source is opened again */
	int fd = zc_file_fd(r->s, file);
	int err = fd < 0 ? fd : zc_pool_open(r->s->pool, fd, 0, &made);
	if (err)
		return err;
	struct zc_pool_file_info info;
	if (!zc_pool_file_info(made, &info) && !info.direct)
		zc_degrade(r->s, "pool", "the source refuses O_DIRECT: files go through its page cache");
	if (atomic_compare_exchange_strong(&file->pool, &none, made)) {
		*out = made;
	} else {
		zc_pool_close(made);
		*out = none;
	}
	return 0;
}

void zc_pool_file_done(struct zc_file *file)
{
	if (atomic_load(&file->pool))
		zc_pool_close(atomic_load(&file->pool));
}

void zc_pool_changed(struct zc_session *s, int fd, uint64_t from, uint64_t to)
{
	struct zc_pool_file *file;
	if (!s->pool || zc_pool_open(s->pool, fd, 0, &file))
		return;
	zc_pool_invalidate(file, from, to);
	zc_pool_close(file);
}

/* Moves the access time as a read of the file would, by the rules of its mount: a mapping counts as a
 * read and needs no disk. Once after each open and each write is enough for relatime. */
static void access_once(struct zc_req *r, struct zc_file *file)
{
	atomic_bool *accessed = &file->inode->opened->accessed;
	if (file->flags & O_NOATIME || atomic_load_explicit(accessed, memory_order_relaxed) ||
	    atomic_exchange(accessed, true))
		return;
	zc_may_block(r->w);
	zc_may_block(r->w); /* a time is written */
	int fd = zc_file_fd(r->s, file);
	void *map = fd < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	if (map != MAP_FAILED)
		munmap(map, 4096);
}

/* What pins could not be had for: too much is borrowed, or a page cannot be read. To its place in
 * r->out. */
static int read_rest(struct zc_req *r, struct zc_pool_file *pf, size_t size, off_t at,
		     struct zc_bufvec *to)
{
	size_t from = to->size, n = from;
	ssize_t got = 1;
	while (sem_wait(&r->s->unpinned))
		;
	while (n < size && got > 0) { /* short before what cannot be read, too */
		got = zc_pool_read(pf, (uint64_t)at + n, r->out + n, size - n);
		n += got > 0 ? (size_t)got : 0;
	}
	zc_buffer_touched(r->w, n);
	sem_post(&r->s->unpinned);
	if (got < 0)
		return (int)got;
	zc_ledger_add(&to->ledger->copied_user, n - from);
	return zc_bufvec_add_memory(to, r->out + from, n - from);
}

static int read_pinned(struct zc_req *r, struct zc_pool_file *pf, size_t size, off_t at,
		       struct zc_bufvec *to)
{
	unsigned count = ZC_SEGS - 1; /* one for the rest */
	int err = 0;
	ssize_t n = zc_pool_read_cached(pf, (uint64_t)at, size, to->pin, &count);
	if (n >= 0)
		return zc_bufvec_add_pins(to, r->s->pool, count);
	zc_buffer_done(r->w);
	zc_may_block(r->w);
	n = zc_pool_read_segments(pf, (uint64_t)at, size, to->pin, &count);
	if (n > 0)
		err = zc_bufvec_add_pins(to, r->s->pool, count);
	return err ? err : read_rest(r, pf, size, at, to);
}

static int pool_read(struct zc_req *r, struct zc_file *file, size_t size, off_t at,
		     struct zc_bufvec *to)
{
	struct zc_pool_file *pf;
	int err = pool_file_of(r, file, &pf);
	if (!err)
		err = read_pinned(r, pf, size, at, to);
	if (!err && to->size)
		access_once(r, file);
	return err;
}

static ssize_t past_the_pool(struct zc_req *r, struct zc_file *file, struct zc_bufvec *from, off_t at)
{
	ssize_t n = zc_buffered_write(r, file, from, at);
	zc_pool_changed(r->s, zc_file_fd(r->s, file), 0, UINT64_MAX);
	return n;
}

static ssize_t pool_write(struct zc_req *r, struct zc_file *file, struct zc_bufvec *from, off_t at)
{
	const struct fuse_write_in *in = r->in;
	struct zc_pool_file *pf;
	atomic_store(&file->inode->opened->accessed, false);
	if (file->flags & O_APPEND || in->write_flags & FUSE_WRITE_KILL_SUIDGID)
		return past_the_pool(r, file, from, at);
	int err = pool_file_of(r, file, &pf);
	if (err)
		return err;
	int sync = (file->flags & O_SYNC) == O_SYNC ? RWF_SYNC : file->flags & O_DSYNC ? RWF_DSYNC : 0;
	ssize_t n = zc_bufvec_gather(from, r->out, r->out_cap);
	if (n <= 0)
		return n;
	n = zc_pool_write(pf, (uint64_t)at, from->seg[0].ptr, from->size, sync);
	if (n > 0)
		zc_ledger_add(&from->ledger->copied_user, (uint64_t)n);
	return n;
}

const struct zc_engine zc_engine_pool = {
	.name = "pool",
	.index = 2,
	.needs_fd = true,
	.more_fds = 2, /* the pool's, with O_DIRECT and without */
	.sees_data = true,
	.open = pool_open,
	.read = pool_read,
	.write = pool_write,
	.last_close = pool_last_close,
};
