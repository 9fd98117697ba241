/* The data plane's internal interfaces, in the order of the files.
 *
 * One rule for errors everywhere: 0 or a count on success, -errno on failure, out-parameters
 * untouched then. A function that takes ownership of a descriptor says so.
 */
#ifndef ZC_INTERNAL_H
#define ZC_INTERNAL_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "bufvec.h"
#include "wire/abi.h"

#define ZC_VERSION "0.1.0"
#define ZC_MAX_WRITE (1u << 20) /* bytes of one READ or WRITE; the kernel's default limit is 256 pages */
#define ZC_ZCFS_NAME ".zcfs"
#define ZC_COMPUTED_BIT (1ULL << 63) /* nodeids of the computed tree */
#define ZC_COMPUTED_ROOT (ZC_COMPUTED_BIT + 1) /* .zcfs itself, in zcfs/fs/contents.py too */

struct zc_session;
struct zc_worker;
struct zc_file;
struct zc_pool;
struct zc_pool_file;
struct zc_pin;
struct zc_engine;

/* log.c ---------------------------------------------------------------------------------- */

/* One line on stderr or in the log file: `zcfsd: …`. */
void zc_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* From here on to `fd`, which it takes over unless it is a standard stream. */
void zc_log_to(int fd);
int zc_log_fd(void);

/* inode.c -------------------------------------------------------------------------------- */

#define ZC_HANDLE_BYTES 32

/* One source inode that the kernel knows. Identity is the file handle where the source has them
 * (so a reused inode number is another inode), else device and inode number. */
struct zc_inode {
	_Atomic uint64_t fdw;	/* cached O_PATH descriptor: pins << 32 | fd + 1 */
	_Atomic uint32_t refs;	/* requests, open files, children; one for nlookup > 0 */
	uint32_t ring_pos;	/* place in the descriptor ring, when cached there */
	uint64_t nlookup;	/* under the shard lock */
	uint64_t ino;		/* the source's, as told to applications */
	_Atomic uint64_t told;	/* digest of size, mtime and ctime last told to the kernel */
	/* of the data in the kernel's cache (coherence.c), under the inode lock: */
	uint64_t seen;		/* its digest; 0: none was ever cached */
	uint32_t changes;	/* of our own, under way */
	bool clean;		/* nobody else had changed the source when the first of them began */
	bool set_id;		/* and it had set-id bits */
	_Atomic uint32_t unseen_writers; /* open for writing where we do not see the writes */
	struct zc_opened *opened; /* while open; under the inode lock */
	struct zc_pin *_Atomic pin; /* pin.c */
	_Atomic uint16_t policy; /* policy.c */
	_Atomic bool unpinned;	/* by hand: no glob pins it again */
	uint32_t hash, hash_next;
	uint32_t generation;	/* tells a reused nodeid apart */
	uint16_t fmt;		/* S_IFMT */
	uint16_t mount;		/* index of the source mount */
	bool by_path;		/* located by parent and name, not by handle */
	uint8_t handle_len;
	int32_t handle_type;
	union {
		uint8_t handle[ZC_HANDLE_BYTES];
		struct {
			uint64_t dev, btime; /* a reused number has another time of birth */
			uint64_t parent;     /* nodeid, holds a reference; under the shard lock */
			char *name;	     /* likewise */
		} path;
	};
};

struct zc_inode_table;

/* `root_fd`: the source directory; ownership stays with the caller. `fd_limit`: descriptors to
 * cache. */
int zc_inodes_create(int root_fd, unsigned fd_limit, bool want_handles, struct zc_inode_table **out);
void zc_inodes_destroy(struct zc_inode_table *t);
struct zc_inode *zc_inode_get(struct zc_inode_table *t, uint64_t nodeid); /* NULL: unknown */
void zc_inode_put(struct zc_inode_table *t, struct zc_inode *inode);
/* The first regular file from `nodeid` on; 0: there is none. */
uint64_t zc_inode_next_file(struct zc_inode_table *t, uint64_t nodeid);
uint64_t zc_inode_id(const struct zc_inode_table *t, const struct zc_inode *inode);
#define ZC_STATX_MASK (STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID)
/* The inode of `fd` (kept by the caller), with one lookup and one reference added; its attributes
 * in `stx`. `name` in `parent` is where it was found. */
int zc_inode_adopt(struct zc_inode_table *t, struct zc_inode *parent, const char *name, int fd,
		   struct statx *stx, struct zc_inode **out);
/* The same for what `name` below `dirfd`, which is `parent`'s, leads to. */
int zc_inode_adopt_at(struct zc_inode_table *t, struct zc_inode *parent, int dirfd,
		      const char *name, struct statx *stx, struct zc_inode **out);
void zc_inode_forget(struct zc_inode_table *t, uint64_t nodeid, uint64_t nlookup);
/* One lookup and one reference more, if the kernel still knows it: the same file stays this inode. */
bool zc_inode_hold(struct zc_inode_table *t, struct zc_inode *inode);
/* What is located by path must stay findable. Before a rename: the inode that is to move, with a
 * reference, or NULL if it is not known or needs nothing; after it: where it is now. */
int zc_inode_moving(struct zc_inode_table *t, struct zc_inode *parent, const char *name,
		    struct zc_inode **out);
void zc_inode_moved(struct zc_inode_table *t, struct zc_inode *inode, struct zc_inode *parent,
		    const char *name);
/* Fails if what is open could not be found again after its last name is gone. */
int zc_inode_unlinking(struct zc_inode_table *t, struct zc_inode *parent, const char *name);
/* Where the inode is located by path: keeps a descriptor of `fd`'s file for good, for it has no
 * name (O_TMPFILE). */
void zc_inode_keep(struct zc_inode_table *t, struct zc_inode *inode, int fd);
pthread_mutex_t *zc_inode_lock(struct zc_inode_table *t, const struct zc_inode *inode);
uint64_t zc_inodes_count(const struct zc_inode_table *t);
uint64_t zc_inodes_descriptors(const struct zc_inode_table *t);
/* A new descriptor of the inode with open(2) flags (O_PATH included); caller closes. */
int zc_inode_open(struct zc_inode_table *t, struct zc_inode *inode, int flags);

/* A borrowed O_PATH descriptor; end it with zc_fd_done (or declare it with ZC_FD). */
struct zc_fd {
	int fd;
	struct zc_inode *owner; /* NULL: ours to close */
};
#define ZC_FD(name) struct zc_fd name __attribute__((cleanup(zc_fd_done))) = {-1, NULL}
int zc_inode_fd(struct zc_inode_table *t, struct zc_inode *inode, struct zc_fd *out);
void zc_fd_done(struct zc_fd *fd);

/* request.c ------------------------------------------------------------------------------ */

/* One request. `arg` (names or data) and `out` may be the same memory: read before you write. */
struct zc_req {
	struct zc_session *s;
	struct zc_worker *w;
	struct fuse_in_header hdr;
	const void *in;	 /* the fixed part, 8-aligned, at least the size of the table */
	const char *arg; /* what follows it; names are checked to end with NUL */
	size_t arg_len;
	const void *ext; /* extensions (supplementary groups), unaligned; or NULL */
	size_t ext_len;
	bool piped; /* the data of this WRITE is in the worker's pipe, not at `arg` */
	char *out; /* body of the reply; of a READ in w->data instead, which may lie here */
	size_t out_cap, out_len;
};

typedef int (*zc_op)(struct zc_req *r); /* 0 with out_len set, or -errno */

/* What the table says of an opcode; name NULL: unknown. */
struct zc_opinfo {
	const char *name;
	uint16_t in_size;
	uint16_t flags;
};
extern const struct zc_opinfo zc_opinfo[FUSE_OPCODE_END];

/* Splits a message as /dev/fuse gives it (header, fixed part, rest, extensions). Checks lengths
 * and names, never believes them. */
int zc_req_parse(const void *msg, size_t len, struct zc_req *r);
/* Checks a request whose parts were given separately, and cuts the extensions off `arg`: once. */
int zc_req_check(struct zc_req *r);
/* The error to answer a request with that did not parse; logs what nobody should send. */
int zc_req_refuse(const struct zc_req *r, int err);
/* Runs the handler, counts, and returns the error for the header (0 or -errno). */
int zc_req_serve(struct zc_req *r);
static inline const char *zc_req_name2(const struct zc_req *r)
{
	const char *p = r->arg;
	while (*p)
		p++;
	return p + 1;
}

/* cred.c --------------------------------------------------------------------------------- */

struct zc_cred {
	bool can;	  /* privileged: we can act as others */
	bool own_umask;	  /* this thread has one of its own */
	bool no_fsetid;	  /* CAP_FSETID is off now */
	struct __user_cap_data_struct caps[2]; /* as started */
	bool as_other, as_user; /* fsgid is not ours now; neither are fsuid and groups */
};
void zc_cred_init(struct zc_cred *c);
/* From here to zc_as_self file-system access of this thread is the caller's (uid, gid,
 * supplementary groups); new files get `umask`. */
int zc_as_caller(struct zc_req *r, uint32_t umask);
void zc_as_self(struct zc_req *r);
/* After -EACCES as the caller: the kernel has let him, by a group that we were not told of. Until
 * zc_as_self permissions bind no longer; false if there is nothing to override. */
bool zc_override(struct zc_req *r);
/* Runs `call` as the caller, and once more with zc_override if it was refused. */
#define ZC_AS_CALLER(r, mask, call)                                          \
	__extension__({                                                      \
		int e_ = zc_as_caller(r, mask);                              \
		if (!e_ && (e_ = (call)) == -EACCES && zc_override(r))       \
			e_ = (call);                                         \
		zc_as_self(r);                                               \
		e_;                                                          \
	})
/* Without CAP_FSETID the source itself drops set-id bits and capabilities on a write. It stays off
 * until zc_fsetid_on, which zc_req_serve calls before every operation that could notice. */
void zc_fsetid_off(struct zc_worker *w);
void zc_fsetid_on(struct zc_worker *w);
/* CAP_FSETID off, and in the caller's group until zc_as_self: a member keeps set-gid on a file that
 * his group may not execute. */
void zc_no_privilege(struct zc_req *r);

/* engine.c ------------------------------------------------------------------------------- */

/* An open file (or directory): what `fh` points to. */
struct zc_file {
	struct zc_inode *inode; /* holds a reference */
	int flags;		/* the application's */
	_Atomic int fd;		/* -1 until needed */
	int fds;		/* counted in open_fds */
	const struct zc_engine *engine;
	struct zc_dir *dir;	/* directories */
	bool fresh;		/* zc_pin_open has said so */
	struct zc_pool_file *_Atomic pool; /* pool engine; NULL until needed */
};

/* What all opens of one inode share. */
struct zc_opened {
	uint32_t count, writers;
	_Atomic bool accessed; /* pool engine: since it was opened or written, by a READ */
	const struct zc_engine *engine;
	int32_t backing_id;
	struct zc_lock_owner *locks;
};

struct zc_engine {
	const char *name;
	unsigned index; /* in zc_session.open_files */
	bool needs_fd;	/* every open file has a descriptor of its own, not only writers */
	int more_fds;	/* that an open file takes beside it */
	bool sees_data; /* reads and writes come to the daemon; what the kernel caches is ours to drop */
	/* Under the inode lock; must not touch the disk. `fd`: a descriptor of the inode, or -1.
	 * Fills open_flags and backing_id of the reply. -EAGAIN: call again with a descriptor;
	 * -EOPNOTSUPP: cannot serve this inode, take the next engine. */
	int (*open)(struct zc_req *r, struct zc_file *file, struct zc_opened *o, int fd,
		    struct fuse_open_out *out);
	/* The data of a READ into `to`, which is begun: less than `size` only at the end of the file.
	 * Memory at r->out may be used, in its place: what goes n bytes into the reply at r->out + n. */
	int (*read)(struct zc_req *r, struct zc_file *file, size_t size, off_t at,
		    struct zc_bufvec *to);
	/* Bytes written; `r` is a WRITE, whose flags may matter. `from` may be gathered at r->out. */
	ssize_t (*write)(struct zc_req *r, struct zc_file *file, struct zc_bufvec *from, off_t at);
	/* When the last open file of the inode has gone. */
	void (*last_close)(struct zc_session *s, struct zc_opened *o);
};
extern const struct zc_engine zc_engine_kernel, zc_engine_buffered, zc_engine_pool,
	zc_engine_pinned;
#define ZC_ENGINES 4
/* Makes the file behind `fd` the inode's backing file, without CAP_FSETID; sets o->backing_id. */
int zc_backing_open(struct zc_req *r, struct zc_opened *o, int fd);
void zc_backing_close(struct zc_session *s, struct zc_opened *o);
/* Closes the pool's side of the file. */
void zc_pool_file_done(struct zc_file *file);
/* The bytes from … to - 1 of the file behind `fd` were changed by us, but not through the pool. */
void zc_pool_changed(struct zc_session *s, int fd, uint64_t from, uint64_t to);
int zc_buffered_read(struct zc_req *r, struct zc_file *file, size_t size, off_t at,
		     struct zc_bufvec *to);
ssize_t zc_buffered_write(struct zc_req *r, struct zc_file *file, struct zc_bufvec *from, off_t at);

/* Opens the engine's side of `file`; `fd` >= 0 is handed over. */
int zc_file_open(struct zc_req *r, struct zc_inode *inode, int flags, int fd,
		 struct fuse_open_out *out);
void zc_file_close(struct zc_session *s, struct zc_file *file);
int zc_file_fd(struct zc_session *s, struct zc_file *file); /* >= 0, stays with the file */
static inline struct zc_file *zc_file_of(uint64_t fh)
{
	return (struct zc_file *)(uintptr_t)fh;
}

static inline bool zc_is_writer(int flags)
{
	return (flags & O_ACCMODE) != O_RDONLY;
}

/* policy.c ------------------------------------------------------------------------------- */

#define ZC_MAX_RULES 255u

struct zc_rule {
	char *glob;
	const struct zc_engine *engine; /* NULL: --pin */
};
struct zc_policies {
	unsigned count;
	struct zc_rule rules[ZC_MAX_RULES];
};

/* What is wrong with a glob, or NULL. */
const char *zc_glob_wrong(const char *glob);
/* Whether a glob matches the whole path: '*', '?' and '[…]' as in fnmatch(3) within one component, a
 * dot in front being like any other byte; '**' as a component stands for any number of them. */
bool zc_glob_match(const char *glob, const char *path);
/* `text`: GLOB=ENGINE. -EINVAL: `*wrong` says why. */
int zc_policy_add(struct zc_policies *p, const char *text, const char **wrong);
int zc_policy_add_pin(struct zc_policies *p, const char *glob, const char **wrong);
/* Whether a rule has this engine; NULL: is a --pin. */
bool zc_policy_names(const struct zc_policies *p, const struct zc_engine *engine);
/* The kernel has been told that `name` in `parent` is this inode. */
void zc_policy_found(struct zc_session *s, struct zc_inode *parent, const char *name,
		     struct zc_inode *inode);
/* What `name` below `dirfd`, which is `dir`'s, leads to has come there by a rename. */
void zc_policy_renamed(struct zc_session *s, struct zc_inode *dir, int dirfd, const char *name);
/* The engine for a file that is not pinned. */
const struct zc_engine *zc_policy_engine(const struct zc_session *s, const struct zc_inode *inode);
bool zc_policy_pins(const struct zc_inode *inode);
/* Where the file of `fd` is below the source. -ENOENT: not known. */
int zc_source_path(const struct zc_session *s, int fd, char *out, size_t cap);

/* pin.c ---------------------------------------------------------------------------------- */

struct zc_pins;
/* `limit`: bytes of memory for pinned files; 0: a quarter of the machine's. */
int zc_pins_create(struct zc_session *s, uint64_t limit, struct zc_pins **out);
/* Before an open: loads what is small, sees to it that the rest is loaded, and that no reader of a
 * pinned file gets anything older than its source. For an open that changes the file: -ETXTBSY where
 * somebody reads it pinned; else ZC_PIN_HELD where there is a pin, and nothing can be opened pinned
 * until zc_pin_opened. ZC_PIN_FRESH: it may be opened pinned. Else 0. */
enum { ZC_PIN_HELD = 1, ZC_PIN_FRESH };
int zc_pin_open(struct zc_req *r, struct zc_inode *inode, int flags);
/* What zc_pin_open has answered with ZC_PIN_HELD is done, well or not. */
void zc_pin_opened(struct zc_session *s, struct zc_inode *inode);
/* Under the inode lock. Whether the next open may be served pinned; the memfd then, the pin's own. */
bool zc_pin_usable(struct zc_session *s, struct zc_inode *inode);
int zc_pin_memfd(const struct zc_inode *inode);
/* The memfd cannot be registered (-errno). Under the inode lock. */
void zc_pin_unusable(struct zc_session *s, struct zc_inode *inode, int err);
/* Nobody has the inode open any more. */
void zc_pin_closed(struct zc_session *s, struct zc_inode *inode);
/* A name has gone: pins whose file is gone go too, soon. */
void zc_pins_removed(struct zc_session *s);

struct zc_pin_info {
	const char *path, *state, *reason; /* reason: "" when there is none */
	uint64_t size, loaded;		   /* bytes */
};
typedef void (*zc_pin_visit)(void *arg, const struct zc_pin_info *info);
struct zc_pins_totals {
	uint64_t limit, used, files;
};
/* Calls `visit` for the first `most` pins, under a lock. */
void zc_pins_each(struct zc_session *s, unsigned most, zc_pin_visit visit, void *arg,
		  struct zc_pins_totals *totals);
/* Pins or unpins the file at `path` below the source, and calls `visit` with what came of it. */
void zc_pin_by_hand(struct zc_session *s, const char *path, bool pin, zc_pin_visit visit, void *arg);

/* coherence.c ---------------------------------------------------------------------------- */

/* At an open: tells the kernel to ask for attributes again, or not to keep its cached data, where
 * the source has changed since it was last told. `fd`: any descriptor of the inode. */
void zc_open_refresh(struct zc_req *r, struct zc_file *file, int fd, struct fuse_open_out *out);
/* The same for a file that the request has made, and told the kernel of. */
void zc_open_made(struct zc_req *r, struct zc_file *file, int fd);
/* After a lock was granted: whoever held it before, on the source, may have written. Drops the
 * kernel's cached data if the source has changed. */
void zc_lock_refresh(struct zc_req *r, struct zc_file *file);
/* Before attributes go out: drops the cached data of an open file that the source has changed. */
void zc_attr_refresh(struct zc_session *s, struct zc_inode *inode);
/* Bracket a change of the file that the kernel asked for: its cache holds that change, which must
 * not be taken for somebody else's. `fd`: any descriptor of it; `begun`: what begin returned. */
bool zc_change_begin(struct zc_session *s, struct zc_inode *inode, int fd);
void zc_change_end(struct zc_session *s, struct zc_inode *inode, int fd, bool begun);

/* lock.c --------------------------------------------------------------------------------- */

void zc_locks_release(struct zc_session *s, struct zc_inode *inode, uint64_t owner);
void zc_locks_release_file(struct zc_session *s, struct zc_file *file);
void zc_locks_destroy(struct zc_opened *o);

/* Counted by each worker for itself; add up over the session's list. `ns` is extrapolated from a
 * sample. */
struct zc_opstat {
	_Atomic uint64_t count, errors, ns;
};

/* worker.c ------------------------------------------------------------------------------- */

/* One source of requests and the threads that serve it: with io_uring one queue per CPU, with
 * /dev/fuse as many as there are clones of the descriptor. */
struct zc_queue {
	struct zc_session *s;
	const struct zc_transport *transport;
	unsigned index; /* io_uring: the kernel's queue id, which is a CPU */
	int fd;		/* this queue's clone of /dev/fuse */
	unsigned max;	/* threads at most */
	_Atomic unsigned threads, idle, waiting; /* waiting: for locks or the relay */
	pthread_mutex_t lock;
	pthread_cond_t unpark;
	unsigned parked; /* threads that left the line; under lock */
	unsigned wanted; /* of them, called back; under lock */
};

struct zc_worker {
	struct zc_queue *q;
	struct zc_worker *next; /* in the session's list, never removed */
	bool stand_in;		/* started because all others may be busy */
	pthread_t thread;
	struct zc_cred cred;
	_Atomic uint64_t unique; /* in service; 0: none */
	_Atomic bool interrupted;
	struct zc_req req;
	uint64_t in[16]; /* fixed part of the request */
	void *priv;	 /* the transport's */
	_Atomic int started; /* 0: not yet, 1: yes, -errno */
	struct zc_opstat ops[FUSE_OPCODE_END];
	struct zc_ledger ledger[ZC_ENGINES][2]; /* reads, writes */
	struct zc_bufvec data;	/* of the READ or WRITE in service */
	struct zc_ledger *moves; /* the ledger of that; NULL: another request */
	struct zc_pipe pipe;
	bool no_pipe; /* none is to be had */
	size_t touched; /* of the buffer at req.out: bytes that are in memory */
};

struct zc_transport {
	const char *name;
	unsigned keep_idle; /* more idle threads than this leave the line; 0: they may stay */
	/* In the worker's own thread. */
	int (*start)(struct zc_worker *w);
	/* Waits for the next request. 0: w->req holds it. -ENODEV: the session has ended.
	 * -EINTR, -EAGAIN: call again. */
	int (*next)(struct zc_worker *w);
	/* The request in service is done: error (0 or -errno) and w->data, or w->req.out if that is
	 * empty, go to the kernel, at the latest with the following call of `next`; w->data is
	 * ended. */
	void (*reply)(struct zc_worker *w, int error);
	void (*stop)(struct zc_worker *w);
};
extern const struct zc_transport zc_transport_dev, zc_transport_uring;

int zc_queue_start(struct zc_queue *q, unsigned threads);
/* Call before anything that may wait: makes sure that somebody else takes the next request. */
/* So much of the buffer at req.out has been written to. */
void zc_buffer_touched(struct zc_worker *w, size_t bytes);
/* What is in the buffer is no longer needed: with a pool, it is given back if all hold too much. */
void zc_buffer_done(struct zc_worker *w);
bool zc_buffers_full(const struct zc_worker *w);
bool zc_may_block(struct zc_worker *w); /* false: nobody stands in */
/* Brackets a wait of unbounded length (a lock, Python). -EAGAIN when half of the queue waits, or nobody
 * can stand in. */
int zc_wait_begin(struct zc_worker *w);
void zc_wait_end(struct zc_worker *w);
/* Wakes the thread that serves `unique`; false if none does. */
bool zc_interrupt(struct zc_session *s, uint64_t unique);

/* splice.c ------------------------------------------------------------------------------- */

bool zc_splice_always(const struct zc_session *s);
bool zc_splice_never(const struct zc_session *s);
/* Whether the data of a READ of a file through the source's page cache is to go by splice; `direct`: past
 * the mount's own. Makes the pipe. */
bool zc_splice_read(struct zc_worker *w, bool direct, off_t at, size_t size);
/* Whether requests are to be taken by splice. Likewise. */
bool zc_splice_take(struct zc_worker *w);

/* relay.c -------------------------------------------------------------------------------- */

struct zc_relay;
/* Starts the control plane (`argv0 -m zcfs.fs …`) and keeps it running. */
int zc_relay_create(struct zc_session *s, const char *python, struct zc_relay *_Atomic *out);
void zc_relay_destroy(struct zc_relay *relay); /* ends the child; NULL is fine */
/* Serves a request of the computed tree; waits for the answer. Never returns -ENOSYS. */
int zc_relay_serve(struct zc_req *r);
void zc_relay_forget(struct zc_relay *relay, uint64_t nodeid, uint64_t nlookup);
struct zc_relay_status {
	const char *state; /* starting, running, restarting */
	pid_t pid;
	uint64_t restarts, requests, outstanding;
};
void zc_relay_status(struct zc_relay *relay, struct zc_relay_status *out);

/* rundir.c ------------------------------------------------------------------------------- */

/* A socket at <runtime dir>/<minor>.<suffix>. */
struct zc_listener {
	int fd;	   /* listens, does not block; -1: none */
	ino_t ino; /* of the socket's file; 0: there is none */
	char path[PATH_MAX - 32];
};
/* `type`: SOCK_STREAM or SOCK_SEQPACKET. On failure, which is logged, `out` can be ended all the
 * same. */
int zc_listen(const struct zc_session *s, const char *suffix, int type, struct zc_listener *out);
/* Closes, and removes the file unless another daemon has its own there by now. */
void zc_unlisten(struct zc_listener *l);
/* Removes what a daemon that died has left there. */
void zc_listen_clean(const struct zc_session *s, const char *suffix);
/* Whether the process that connected is root's or our own user's; `pid` (may be NULL): its. */
bool zc_peer_is_welcome(int fd, pid_t *pid);

/* lease.c -------------------------------------------------------------------------------- */

struct zc_leases;
/* The socket <runtime dir>/<minor>.lease, by which other processes borrow pages of the session's pool
 * (lease_wire.h). `*out` stays NULL where there is no pool. */
int zc_leases_create(struct zc_session *s, struct zc_leases **out);
/* Disconnects all clients and waits for them, two seconds at most; NULL is fine. -ETIMEDOUT: one waits
 * for the disk, and the session and its pool must stay. */
int zc_leases_destroy(struct zc_leases *l);
struct zc_lease_status {
	const char *socket;
	uint64_t clients, files, leases; /* now */
	uint64_t borrowed, borrow_limit; /* bytes, now, of the whole pool */
	uint64_t pages;			 /* leased since the start */
	uint64_t refused, dropped;	 /* clients, likewise: too many or not welcome; garbage */
};
void zc_leases_status(struct zc_leases *l, struct zc_lease_status *out);

/* control.c ------------------------------------------------------------------------------ */

struct zc_control;
/* The socket <dir>/<minor>.sock, served by a thread of its own. */
int zc_control_create(struct zc_session *s, struct zc_control **out);
void zc_control_destroy(struct zc_control *c);
/* One JSON document for the verb (`status`, `stats`), malloc()ed, NUL-terminated. */
char *zc_control_answer(struct zc_session *s, const char *verb);
/* The same for `pin` and `unpin` of the paths in `text`, each of which ends with a NUL. */
char *zc_control_pin(struct zc_session *s, const char *verb, const char *text, size_t len);

/* mount.c -------------------------------------------------------------------------------- */

struct zc_options {
	char *source, *mountpoint; /* absolute, resolved */
	const char *engine, *transport, *locks;
	bool read_only, allow_other, foreground, nonempty;
	unsigned threads;
	size_t pool_size, pin_size; /* pin_size 0: a quarter of the memory */
	uint32_t frame_size;
	const char *io;
	const char *splice; /* auto, always, never */
	struct zc_policies policies;
	double attr_timeout, entry_timeout;
	const char *fsname, *subtype; /* NULL: the source; "": none */
	unsigned long mount_flags;    /* MS_* */
	const char *log, *python;
	int ready_fd;
	bool default_subtype;
};

/* Mounts; returns the session's descriptor of /dev/fuse. Message in `err` on failure. */
int zc_mount(const struct zc_options *o, char *err, size_t err_len);
/* 0, or -EBUSY and friends. */
int zc_unmount(const struct zc_options *o, bool lazy);
/* Device number of what is mounted at `path`, from mountinfo (the mount itself is not touched). */
int zc_mount_device(const char *path, unsigned *major, unsigned *minor);

/* session.c ------------------------------------------------------------------------------ */

#define ZC_MAX_DEGRADATIONS 16
#define EARLY_INTERRUPTS 16

struct zc_session {
	struct zc_options opt;
	int fd;		 /* /dev/fuse */
	int source_fd;	 /* the source directory, O_RDONLY, on a private mount where possible */
	int tree_fd;	 /* keeps that private mount; -1: none */
	bool privileged; /* CAP_SYS_ADMIN and friends */
	unsigned dev_major, dev_minor;
	uint64_t features; /* INIT flags in force */
	uint32_t kernel_minor, max_write;
	struct zc_inode_table *inodes;
	struct zc_queue *queues;
	unsigned queue_count;
	struct zc_worker *_Atomic workers;
	const struct zc_transport *transport;
	const struct zc_engine *engine; /* the policy in force */
	struct zc_pool *pool;		/* NULL: no file is served from it */
	struct zc_pins *pins;		/* NULL: this session has none */
	sem_t unpinned;			/* pool engine: READs that may fill a buffer at a time */
	_Atomic size_t buffers;		/* bytes of the workers' buffers that are in memory */
	struct zc_relay *_Atomic relay; /* NULL: no computed tree */
	struct zc_control *control;
	struct zc_leases *leases; /* NULL: no pool */
	uint64_t started_ns, started_s; /* monotonic; wall clock */
	_Atomic bool ended;
	int end_efd; /* eventfd: readable when the session has ended */
	_Atomic int open_fds; /* descriptors that open files hold */
	int open_fds_most;    /* more would leave none for names; 0: no bound */
	_Atomic uint64_t open_files[ZC_ENGINES], backing_ids;
	_Atomic uint64_t early_interrupts[EARLY_INTERRUPTS]; /* perhaps not yet taken up */
	_Atomic unsigned early_next;
	_Atomic uint64_t echo_nodeid; /* a regular file, for zc_notify_echo */
	pthread_mutex_t degr_lock;
	struct {
		char what[32], reason[160];
	} degr[ZC_MAX_DEGRADATIONS];
	unsigned degr_count;
};

/* Notes once that `what` is not possible, and why; logs it. */
void zc_degrade(struct zc_session *s, const char *what, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void zc_session_end(struct zc_session *s);
/* Attribute-only invalidation; never blocks. */
void zc_notify_inval_attr(struct zc_session *s, uint64_t nodeid);
/* And of all cached data; may wait for pages that are being read or written by other workers. */
void zc_notify_inval_data(struct zc_session *s, uint64_t nodeid);
/* Makes the kernel send a request that asks for nothing (NOTIFY_REPLY) to the queue of the CPU that
 * runs this thread. It takes a regular file that the kernel knows; without one nothing happens. */
void zc_notify_echo(struct zc_session *s);
static inline bool zc_has(const struct zc_session *s, uint64_t feature)
{
	return (s->features & feature) == feature;
}
uint64_t zc_now_ns(void);

/* probe.c -------------------------------------------------------------------------------- */

/* Prints what this machine grants as JSON: [{name, granted, value, reason}]. */
int zc_probe(const char *path);

#endif
