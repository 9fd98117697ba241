/* The relay against a control plane that lies, hangs and dies. That control plane is this program
 * itself, started again by the relay: what it does, the name in a LOOKUP says.
 */
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../internal.h"
#include "../relay_wire.h"

static int failures;

#define EXPECT(cond)                                                    \
	do {                                                            \
		if (!(cond)) {                                          \
			failures++;                                     \
			printf("%s:%d: %s\n", __FILE__, __LINE__, #cond); \
		}                                                       \
	} while (0)
#define EXPECT_IS(got, want)                                                              \
	do {                                                                              \
		long long got_ = (long long)(got), want_ = (long long)(want);             \
		if (got_ != want_) {                                                      \
			failures++;                                                       \
			printf("%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #got, \
			       got_, want_);                                              \
		}                                                                         \
	} while (0)

#define ID(n) (ZC_COMPUTED_BIT | (n))
#define DIR_ENTRIES 40 /* of the child's only directory, with "." and ".." */

/* The control plane ------------------------------------------------------------------------ */

static struct {
	int relay, control;
	uint64_t forgotten, released, interrupted, opened;
	uint64_t held, held_open; /* uniques of a LOOKUP and an OPEN that are not answered */
	struct fuse_init_in init;
} fake;

static char message[ZC_RELAY_MAX_MESSAGE];
static char answer[ZC_RELAY_MAX_MESSAGE];

static void reply(uint64_t unique, int error, const void *body, size_t len)
{
	struct fuse_out_header h = {.len = (uint32_t)(sizeof(h) + len), .error = error,
				    .unique = unique};
	memcpy(answer, &h, sizeof(h));
	if (len)
		memmove(answer + sizeof(h), body, len);
	if (send(fake.relay, answer, sizeof(h) + len, 0) < 0)
		_exit(9);
}

static struct fuse_entry_out entry_of(uint64_t nodeid, uint64_t size)
{
	return (struct fuse_entry_out){.nodeid = nodeid, .generation = 1,
				       .attr = {.ino = nodeid, .size = size, .mode = S_IFREG | 0444,
						.rdev = 0x12304, .mtime = 5, .mtimensec = 6}};
}

static void reply_entry(uint64_t unique, uint64_t nodeid, uint64_t size)
{
	struct fuse_entry_out e = entry_of(nodeid, size);
	reply(unique, 0, &e, sizeof(e));
}

/* Its answer's length, or 0 if it is not what the stub below says to this verb. */
static uint64_t ask_control(const char *verb)
{
	char text[256] = "", want[64];
	send(fake.control, verb, strlen(verb), 0);
	ssize_t n = recv(fake.control, text, sizeof(text), 0);
	snprintf(want, sizeof(want), "{\"you asked\": \"%s\"}", verb);
	return n > 0 && !strcmp(text, want) ? (uint64_t)n : 0;
}

static void send_raw(uint32_t len, int32_t error, uint64_t unique, size_t real)
{
	struct fuse_out_header h = {.len = len, .error = error, .unique = unique};
	memset(answer, 0, sizeof(answer));
	memcpy(answer, &h, sizeof(h));
	send(fake.relay, answer, real, 0);
}

static void notify_entry(uint64_t parent, const char *name)
{
	struct {
		struct fuse_out_header h;
		uint64_t parent;
		uint32_t namelen, flags;
		char name[32];
	} m = {.parent = parent, .namelen = (uint32_t)strlen(name)};
	strcpy(m.name, name);
	size_t len = sizeof(m.h) + 16 + strlen(name) + 1;
	m.h = (struct fuse_out_header){.len = (uint32_t)len, .error = FUSE_NOTIFY_INVAL_ENTRY};
	send(fake.relay, &m, len, 0);
}

static void notify_inode(uint64_t nodeid)
{
	struct {
		struct fuse_out_header h;
		struct fuse_notify_inval_inode_out body;
	} m = {.body.ino = nodeid};
	m.h = (struct fuse_out_header){.len = sizeof(m), .error = FUSE_NOTIFY_INVAL_INODE};
	send(fake.relay, &m, sizeof(m), 0);
}

/* Descriptors that stay open in a child, besides 0, 1 and 2. */
static uint64_t inherited(void)
{
	uint64_t n = 0;
	for (int fd = 3; fd < 256; fd++) {
		int flags = fcntl(fd, F_GETFD);
		n += flags >= 0 && !(flags & FD_CLOEXEC);
	}
	return n;
}

static uint64_t blocked_signals(void)
{
	sigset_t set;
	uint64_t n = 0;
	sigprocmask(SIG_BLOCK, NULL, &set);
	for (int i = 1; i < 32; i++)
		n += (uint64_t)sigismember(&set, i);
	return n;
}

static const struct fuse_open_out handle_out = {
	.fh = 77, .open_flags = FOPEN_PASSTHROUGH | FOPEN_KEEP_CACHE, .backing_id = 9};

static void reply_opened(uint64_t unique)
{
	reply(unique, 0, &handle_out, sizeof(handle_out));
}

static void lookup_counter(uint64_t u, const char *name)
{
	const struct {
		const char *name;
		uint64_t value;
	} counters[] = {
		{"?forgotten", fake.forgotten},
		{"?released", fake.released},
		{"?interrupted", fake.interrupted},
		{"?opened", fake.opened},
		{"?pid", (uint64_t)getpid()},
		{"?inherited", inherited()},
		{"?blocked", blocked_signals()},
		{"?control", ask_control("status")},
		{"?minor", fake.init.minor},
		{"?max_pages", (fake.init.flags & FUSE_MAX_PAGES) != 0},
		{"?readdirplus", (fake.init.flags & FUSE_DO_READDIRPLUS) != 0},
	};
	for (size_t i = 0; i < sizeof(counters) / sizeof(*counters); i++)
		if (!strcmp(name, counters[i].name)) {
			reply_entry(u, ID(50), counters[i].value);
			return;
		}
	reply(u, -ENOENT, NULL, 0);
}

static void lookup(const struct fuse_in_header *h, const char *name)
{
	uint64_t u = h->unique;
	if (!strcmp(name, ".zcfs") && h->nodeid == FUSE_ROOT_ID) {
		reply_entry(u, ID(1), 0);
	} else if (!strcmp(name, "good")) {
		reply_entry(u, ID(10), 4711);
	} else if (!strcmp(name, "none")) {
		reply_entry(u, 0, 0);
	} else if (!strcmp(name, "foreign")) {
		reply_entry(u, 10, 0);
	} else if (!strcmp(name, "short")) {
		reply(u, 0, "12345678", 8);
	} else if (!strcmp(name, "liar")) {
		send_raw(500, 0, u, 144);
	} else if (!strcmp(name, "huge")) {
		send_raw(ZC_RELAY_MAX_MESSAGE, 0, u, ZC_RELAY_MAX_MESSAGE);
	} else if (!strcmp(name, "positive")) {
		send_raw(16, 5, u, 16);
	} else if (!strcmp(name, "beyond")) {
		send_raw(16, -5000, u, 16);
	} else if (!strcmp(name, "restart")) {
		send_raw(16, -512, u, 16);
	} else if (!strcmp(name, "enosys")) {
		reply(u, -ENOSYS, NULL, 0);
	} else if (!strcmp(name, "nobody")) {
		send_raw(16, 0, u + 1000, 16);
		send_raw(4, 0, 0, 4);
		reply(u, -ENOENT, NULL, 0);
	} else if (!strcmp(name, "hold")) {
		fake.held = u;
	} else if (!strcmp(name, "let go")) {
		if (fake.held)
			reply_entry(fake.held, ID(11), 0);
		if (fake.held_open)
			reply_opened(fake.held_open);
		fake.held = fake.held_open = 0;
		reply(u, -ENOENT, NULL, 0);
	} else if (!strcmp(name, "die")) {
		_exit(3);
	} else if (!strcmp(name, "close")) {
		close(fake.relay);
		pause();
	} else if (!strcmp(name, "notify")) {
		notify_entry(FUSE_ROOT_ID, "passwd");
		notify_entry(FUSE_ROOT_ID, ".zcfs");
		notify_inode(5);
		notify_inode(ID(10));
		reply(u, -ENOENT, NULL, 0);
	} else if (!strcmp(name, "sleep")) {
		usleep(700000);
		reply(u, -ENOENT, NULL, 0);
	} else {
		lookup_counter(u, name);
	}
}

static size_t put_entry(char *out, const char *name, uint64_t nodeid, uint64_t off)
{
	struct fuse_direntplus e = {.entry_out = entry_of(nodeid, 0)};
	size_t namelen = strlen(name), head = offsetof(struct fuse_direntplus, dirent.name);
	e.dirent = (struct fuse_dirent){.ino = nodeid, .off = off, .namelen = (uint32_t)namelen,
					.type = 8};
	memset(out, 0, (head + namelen + 7) & ~7ul);
	memcpy(out, &e, head);
	memcpy(out + head, name, namelen);
	return (head + namelen + 7) & ~7ul;
}

/* Directory 20 is in order, 21 has a slash in a name, 22 a mirror's nodeid, 23 ends in the middle
 * of an entry. */
static void readdirplus(const struct fuse_in_header *h, uint64_t offset, uint32_t size)
{
	static char body[ZC_RELAY_MAX_DATA];
	char one[512], name[32];
	size_t used = 0;
	for (uint64_t i = offset; i < DIR_ENTRIES; i++) {
		bool bad = i == 5;
		snprintf(name, sizeof(name), i == 0 ? "." : i == 1 ? ".."
			 : bad && h->nodeid == ID(21) ? "a/b" : "entry-%02d", (int)i);
		uint64_t nodeid = bad && h->nodeid == ID(22) ? 7 : ID(100 + i);
		size_t n = put_entry(one, name, nodeid, i + 1);
		if (n > size - used)
			break;
		memcpy(body + used, one, n);
		used += n;
	}
	reply(h->unique, 0, body, h->nodeid == ID(23) ? used - 8 : used);
}

static void opened(const struct fuse_in_header *h)
{
	struct {
		struct fuse_entry_out e;
		struct fuse_open_out o;
	} r = {entry_of(ID(30), 0), handle_out};
	fake.opened++;
	if (h->opcode == FUSE_CREATE)
		reply(h->unique, 0, &r, sizeof(r));
	else if (h->nodeid == ID(98))
		fake.held_open = h->unique;
	else
		reply_opened(h->unique);
}

static void xattr(const struct fuse_in_header *h, uint32_t size)
{
	struct fuse_getxattr_out out = {.size = 5};
	if (h->nodeid == ID(40)) /* says too much */
		reply(h->unique, 0, message, size + 1);
	else if (size)
		reply(h->unique, 0, "value", 5);
	else
		reply(h->unique, 0, &out, sizeof(out));
}

static void setxattr(const struct fuse_in_header *h, const char *body)
{
	const struct fuse_setxattr_in *in = (const void *)body;
	bool good = h->len == sizeof(*h) + 8 + 7 + 5 && in->size == 5 && in->flags == 2 &&
		    !memcmp(body + 8, "user.x\0value", 12);
	reply(h->unique, good ? 0 : -EBADMSG, NULL, 0);
}

static void rw(const struct fuse_in_header *h, const char *body)
{
	static char data[ZC_RELAY_MAX_DATA];
	const struct fuse_read_in *in = (const void *)body;
	struct fuse_write_out out = {.size = in->size};
	if (h->opcode == FUSE_WRITE) {
		bool good = h->len == 80 + in->size;
		for (uint32_t i = 0; i < in->size && good; i++)
			good = body[40 + i] == (char)(i % 251);
		if (h->nodeid == ID(41))
			out.size++;
		reply(h->unique, good ? 0 : -EBADMSG, &out, good ? sizeof(out) : 0);
		return;
	}
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (char)((i + in->offset) % 253);
	reply(h->unique, 0, data, h->nodeid == ID(42) ? in->size + 1 : in->size);
}

static void attr(const struct fuse_in_header *h)
{
	struct fuse_attr_out out = {.attr_valid = 3, .attr = entry_of(h->nodeid, 99).attr};
	const struct fuse_getattr_in *in = (const void *)(h + 1);
	bool good = h->len == sizeof(*h) + sizeof(*in) && in->fh == 77;
	reply(h->unique, good ? 0 : -EBADMSG, &out, good ? sizeof(out) : 0);
}

static void made(const struct fuse_in_header *h, const char *body)
{
	const struct fuse_mkdir_in *in = (const void *)body;
	reply_entry(h->unique, ID(31), in->mode);
}

static void serve(const struct fuse_in_header *h, const char *body)
{
	const struct fuse_batch_forget_in *batch = (const void *)body;
	const struct fuse_forget_in *forget = (const void *)body;
	const struct fuse_read_in *read_in = (const void *)body;
	struct fuse_init_out init = {.major = 7, .minor = 38, .max_write = 1 << 20};

	switch (h->opcode) {
	case FUSE_INIT:
		memcpy(&fake.init, body, sizeof(fake.init));
		reply(h->unique, 0, &init, sizeof(init));
		break;
	case FUSE_LOOKUP:
		lookup(h, body);
		break;
	case FUSE_FORGET:
		fake.forgotten += forget->nlookup;
		break;
	case FUSE_BATCH_FORGET:
		fake.forgotten += batch->count;
		break;
	case FUSE_INTERRUPT:
		fake.interrupted++;
		reply(h->unique, -EAGAIN, NULL, 0);
		break;
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		fake.released++;
		reply(h->unique, -EBADF, NULL, 0);
		break;
	case FUSE_OPEN:
	case FUSE_OPENDIR:
	case FUSE_CREATE:
		opened(h);
		break;
	case FUSE_READDIRPLUS:
		readdirplus(h, read_in->offset, read_in->size);
		break;
	case FUSE_GETATTR:
		attr(h);
		break;
	case FUSE_READ:
	case FUSE_WRITE:
		rw(h, body);
		break;
	case FUSE_GETXATTR:
		xattr(h, ((const struct fuse_getxattr_in *)(const void *)body)->size);
		break;
	case FUSE_SETXATTR:
		setxattr(h, body);
		break;
	case FUSE_MKDIR:
		made(h, body);
		break;
	case FUSE_RENAME:
		reply(h->unique, 0, NULL, 0);
		break;
	case FUSE_UNLINK:
		reply(h->unique, -EROFS, NULL, 0);
		break;
	default:
		reply(h->unique, -ENOSYS, NULL, 0);
	}
}

static int control_plane(char **argv)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (strcmp(argv[2], "-m") || strcmp(argv[3], "zcfs.fs") || strcmp(argv[4], "--relay-fd") ||
	    strcmp(argv[6], "--control-fd"))
		return 2;
	fake.relay = atoi(argv[5]);
	fake.control = atoi(argv[7]);
	if (getenv("FAKE_EXIT"))
		return 1;
	for (;;) {
		ssize_t n = recv(fake.relay, message, sizeof(message), 0);
		const struct fuse_in_header *h = (const void *)message;
		if (n <= 0 || (size_t)n != h->len)
			return 4;
		serve(h, message + sizeof(*h));
	}
}

/* What relay.c needs of the rest ----------------------------------------------------------- */

static char last_log[1024];
static _Atomic int logged;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;

void zc_log(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	pthread_mutex_lock(&log_lock);
	vsnprintf(last_log, sizeof(last_log), fmt, ap);
	if (getenv("VERBOSE"))
		printf("log: %s\n", last_log);
	pthread_mutex_unlock(&log_lock);
	va_end(ap);
	logged++;
}

/* Whether the last line of the log has `text` in it. */
static bool said(const char *text)
{
	pthread_mutex_lock(&log_lock);
	bool found = strstr(last_log, text) != NULL;
	pthread_mutex_unlock(&log_lock);
	return found;
}

uint64_t zc_now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static _Atomic int waiting, wait_error;

int zc_wait_begin(struct zc_worker *w)
{
	(void)w;
	if (!wait_error)
		waiting++;
	return wait_error;
}

void zc_wait_end(struct zc_worker *w)
{
	(void)w;
	waiting--;
}

char *zc_control_answer(struct zc_session *s, const char *verb)
{
	char *text;
	(void)s;
	return asprintf(&text, "{\"you asked\": \"%s\"}", verb) < 0 ? NULL : text;
}

/* The kernel ------------------------------------------------------------------------------- */

static struct zc_session session;

/* A request in the making: the data is in the same memory as the reply, as over io_uring. */
struct client {
	struct zc_worker w;
	char *out;
	uint64_t in[16];
	int result;
};

static void client_init(struct client *c)
{
	memset(c, 0, sizeof(*c));
	c->out = malloc(ZC_MAX_WRITE);
	memset(c->out, 0xee, ZC_MAX_WRITE);
}

static int request(struct client *c, uint32_t op, uint64_t nodeid, const void *in, size_t in_len,
		   const void *arg, size_t arg_len)
{
	struct zc_req *r = &c->w.req;
	memset(c->in, 0, sizeof(c->in));
	if (in_len)
		memcpy(c->in, in, in_len);
	if (arg_len)
		memcpy(c->out, arg, arg_len);
	*r = (struct zc_req){.s = &session, .w = &c->w, .in = c->in, .arg = c->out,
			     .arg_len = arg_len, .out = c->out, .out_cap = ZC_MAX_WRITE};
	r->hdr = (struct fuse_in_header){.opcode = op, .nodeid = nodeid, .unique = 4, .uid = 1,
					 .total_extlen = 2};
	c->result = zc_relay_serve(r);
	return c->result;
}

static struct client main_client;

static int look(const char *name)
{
	return request(&main_client, FUSE_LOOKUP, ID(1), NULL, 0, name, strlen(name) + 1);
}

/* What the child says to a name with a question mark. */
static uint64_t counter(const char *name)
{
	const struct fuse_entry_out *e = (const void *)main_client.out;
	return look(name) ? UINT64_MAX : e->attr.size;
}

static bool counts(const char *name, uint64_t want)
{
	for (int i = 0; i < 3000; i++) { /* a minute */
		if (counter(name) == want)
			return true;
		usleep(20000);
	}
	printf("%s is %llu, not %llu\n", name, (unsigned long long)counter(name),
	       (unsigned long long)want);
	return false;
}

static void test_lookup(void)
{
	const struct fuse_entry_out *e = (const void *)main_client.out;

	EXPECT_IS(request(&main_client, FUSE_LOOKUP, FUSE_ROOT_ID, NULL, 0, ".zcfs", 6), 0);
	EXPECT_IS(main_client.w.req.out_len, sizeof(*e));
	EXPECT(e->nodeid == ID(1));
	EXPECT_IS(look("good"), 0);
	EXPECT_IS(e->attr.size, 4711);
	EXPECT_IS(look("none"), 0);
	EXPECT_IS(look("missing"), -ENOENT);
	EXPECT_IS(look("enosys"), -EOPNOTSUPP);
}

static void test_child(void)
{
	EXPECT_IS(counter("?inherited"), inherited() + 2);
	EXPECT_IS(counter("?blocked"), 0);
	EXPECT_IS(counter("?minor"), 45);
	EXPECT_IS(counter("?max_pages"), 0);
	EXPECT_IS(counter("?readdirplus"), 1);
	EXPECT_IS(counter("?control"), strlen("{\"you asked\": \"status\"}"));
}

static void test_lies(void)
{
	static const char *const lies[] = {"foreign", "short", "liar", "huge", "positive", "beyond",
					   "restart"};
	int before = logged;
	for (size_t i = 0; i < sizeof(lies) / sizeof(*lies); i++)
		EXPECT_IS(look(lies[i]), -EIO);
	EXPECT_IS(look("nobody"), -ENOENT);
	EXPECT_IS(logged, before + 1);
	EXPECT_IS(look("good"), 0);
}

static void test_names(void)
{
	char name[300];
	memset(name, 'n', sizeof(name));
	name[256] = 0;
	EXPECT_IS(look(name), -ENAMETOOLONG);
	name[255] = 0;
	EXPECT_IS(look(name), -ENOENT);
	EXPECT_IS(request(&main_client, FUSE_LOOKUP, ID(1), NULL, 0, "abc", 3), -EINVAL);
	EXPECT_IS(request(&main_client, FUSE_RENAME, ID(1), &(uint64_t){ID(1)}, 8, "a\0bc", 4),
		  -EINVAL);
}

static void test_open(void)
{
	const struct fuse_open_out *o = (const void *)main_client.out;
	struct fuse_open_in in = {0};
	struct fuse_release_in rel = {.fh = 77};
	uint64_t released = counter("?released");

	EXPECT_IS(request(&main_client, FUSE_OPEN, ID(10), &in, sizeof(in), NULL, 0), 0);
	EXPECT_IS(main_client.w.req.out_len, sizeof(*o));
	EXPECT_IS(o->fh, 77);
	EXPECT_IS(o->open_flags, FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE);
	EXPECT_IS(o->backing_id, 0);
	EXPECT_IS(request(&main_client, FUSE_OPENDIR, ID(20), &in, sizeof(in), NULL, 0), 0);
	EXPECT_IS(o->open_flags, 0);
	struct fuse_create_in create = {0};
	EXPECT_IS(request(&main_client, FUSE_CREATE, ID(20), &create, sizeof(create), "f", 2), 0);
	EXPECT_IS(main_client.w.req.out_len, 144);
	o = (const void *)(main_client.out + 128);
	EXPECT_IS(o->open_flags, FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE);
	EXPECT_IS(request(&main_client, FUSE_RELEASE, ID(10), &rel, sizeof(rel), NULL, 0), 0);
	EXPECT_IS(request(&main_client, FUSE_RELEASEDIR, ID(20), &rel, sizeof(rel), NULL, 0), 0);
	EXPECT(counts("?released", released + 2));
}

static void test_data(void)
{
	struct fuse_read_in in = {.fh = 77, .offset = 3, .size = 1 << 20};
	struct fuse_write_in out = {.fh = 77, .size = 1 << 20};
	char *data = malloc(1 << 20);
	bool good = true;

	EXPECT_IS(request(&main_client, FUSE_READ, ID(10), &in, sizeof(in), NULL, 0), 0);
	EXPECT_IS(main_client.w.req.out_len, ZC_RELAY_MAX_DATA);
	for (size_t i = 0; i < ZC_RELAY_MAX_DATA && good; i++)
		good = main_client.out[i] == (char)((i + 3) % 253);
	EXPECT(good);
	EXPECT_IS((unsigned char)main_client.out[ZC_RELAY_MAX_DATA], 0xee);
	in.size = 100;
	EXPECT_IS(request(&main_client, FUSE_READ, ID(42), &in, sizeof(in), NULL, 0), -EIO);

	for (size_t i = 0; i < 1 << 20; i++)
		data[i] = (char)(i % 251);
	EXPECT_IS(request(&main_client, FUSE_WRITE, ID(10), &out, sizeof(out), data, 1 << 20), 0);
	EXPECT_IS(*(uint32_t *)(void *)main_client.out, ZC_RELAY_MAX_DATA);
	out.size = 10;
	EXPECT_IS(request(&main_client, FUSE_WRITE, ID(10), &out, sizeof(out), data, 10), 0);
	EXPECT_IS(*(uint32_t *)(void *)main_client.out, 10);
	EXPECT_IS(request(&main_client, FUSE_WRITE, ID(41), &out, sizeof(out), data, 10), -EIO);
	out.size = 11;
	EXPECT_IS(request(&main_client, FUSE_WRITE, ID(10), &out, sizeof(out), data, 10), -EIO);
	memset(main_client.out, 0xee, ZC_MAX_WRITE);
	free(data);
}

static void test_xattr(void)
{
	struct fuse_getxattr_in in = {.size = 100};
	struct fuse_setxattr_in set = {.size = 5, .flags = 2};

	EXPECT_IS(request(&main_client, FUSE_GETXATTR, ID(10), &in, sizeof(in), "user.x", 7), 0);
	EXPECT_IS(main_client.w.req.out_len, 5);
	EXPECT_IS(request(&main_client, FUSE_GETXATTR, ID(40), &in, sizeof(in), "user.x", 7), -EIO);
	in.size = 0;
	EXPECT_IS(request(&main_client, FUSE_GETXATTR, ID(10), &in, sizeof(in), "user.x", 7), 0);
	EXPECT_IS(main_client.w.req.out_len, 8);
	EXPECT_IS(request(&main_client, FUSE_SETXATTR, ID(10), &set, sizeof(set), "user.x\0value",
			  12), 0);
	set.size = 6;
	EXPECT_IS(request(&main_client, FUSE_SETXATTR, ID(10), &set, sizeof(set), "user.x\0value",
			  12), -EIO);
	EXPECT_IS(request(&main_client, FUSE_LISTXATTR, ID(10), &in, sizeof(in), NULL, 0),
		  -EOPNOTSUPP);
	EXPECT_IS(request(&main_client, FUSE_REMOVEXATTR, ID(10), NULL, 0, "user.x", 7),
		  -EOPNOTSUPP);
}

static void test_attr(void)
{
	const struct fuse_statx_out *out = (const void *)main_client.out;
	struct fuse_statx_in sx = {.getattr_flags = 1, .fh = 77};
	struct fuse_getattr_in in = {.getattr_flags = 1, .fh = 77};

	EXPECT_IS(request(&main_client, FUSE_GETATTR, ID(10), &in, sizeof(in), NULL, 0), 0);
	EXPECT_IS(main_client.w.req.out_len, sizeof(struct fuse_attr_out));
	EXPECT_IS(request(&main_client, FUSE_STATX, ID(10), &sx, sizeof(sx), NULL, 0), 0);
	EXPECT_IS(main_client.w.req.out_len, sizeof(*out));
	EXPECT_IS(out->attr_valid, 3);
	EXPECT_IS(out->stat.mask, STATX_BASIC_STATS);
	EXPECT_IS(out->stat.size, 99);
	EXPECT_IS(out->stat.mode, S_IFREG | 0444);
	EXPECT_IS(out->stat.mtime.tv_nsec, 6);
	EXPECT_IS(out->stat.rdev_major, 0x123);
	EXPECT_IS(out->stat.rdev_minor, 4);
	EXPECT(out->stat.ino == ID(10));
}

/* The whole of directory `nodeid` through a buffer of `size` bytes; returns its entries, or the
 * error. */
static int list(uint64_t nodeid, uint32_t op, uint32_t size)
{
	struct fuse_read_in in = {.fh = 77, .size = size};
	size_t skip = op == FUSE_READDIRPLUS ? sizeof(struct fuse_entry_out) : 0;
	int n = 0;
	for (;;) {
		int err = request(&main_client, op, nodeid, &in, sizeof(in), NULL, 0);
		size_t at = 0, len = main_client.w.req.out_len;
		if (err)
			return err;
		EXPECT(len <= size);
		if (!len)
			return n;
		while (at < len) {
			const struct fuse_dirent *d = (const void *)(main_client.out + at + skip);
			EXPECT_IS(d->off, n + 1);
			EXPECT(d->ino == ID(100 + (uint64_t)n));
			EXPECT(n < 2 || d->namelen == 8);
			in.offset = d->off;
			at += (skip + offsetof(struct fuse_dirent, name) + d->namelen + 7) & ~7ul;
			n++;
		}
		EXPECT_IS(at, len);
	}
}

static void test_readdir(void)
{
	static const uint32_t sizes[] = {40, 100, 1000, 4096, 1 << 20};
	struct fuse_read_in tiny = {.fh = 77, .size = 16};
	uint64_t forgotten = counter("?forgotten");

	EXPECT_IS(list(ID(20), FUSE_READDIRPLUS, 4096), DIR_ENTRIES);
	EXPECT_IS(counter("?forgotten"), forgotten);
	EXPECT_IS(list(ID(20), FUSE_READDIR, 1 << 20), DIR_ENTRIES);
	EXPECT(counts("?forgotten", forgotten + DIR_ENTRIES - 2));
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
		EXPECT_IS(list(ID(20), FUSE_READDIR, sizes[i]), DIR_ENTRIES);
	EXPECT_IS(request(&main_client, FUSE_READDIR, ID(20), &tiny, sizeof(tiny), NULL, 0),
		  -EINVAL);
	forgotten = counter("?forgotten");
	for (uint64_t bad = 21; bad <= 23; bad++) {
		EXPECT_IS(list(ID(bad), FUSE_READDIR, 1 << 20), -EIO);
		EXPECT_IS(list(ID(bad), FUSE_READDIRPLUS, 1 << 20), -EIO);
	}
	/* what was good in them was given back */
	EXPECT(counts("?forgotten",
		      forgotten + 2 * (3 + (DIR_ENTRIES - 3) + (DIR_ENTRIES - 3))));
}

static void test_trees(void)
{
	struct fuse_rename2_in to = {.newdir = 5};
	struct fuse_copy_file_range_in copy = {.nodeid_out = 5};

	EXPECT_IS(request(&main_client, FUSE_RENAME2, ID(1), &to, sizeof(to), "a\0b", 4), -EXDEV);
	EXPECT_IS(request(&main_client, FUSE_RENAME, ID(1), &to, 8, "a\0b", 4), -EXDEV);
	EXPECT_IS(request(&main_client, FUSE_LINK, ID(1), &to, 8, "a", 2), -EXDEV);
	to.newdir = ID(2);
	EXPECT_IS(request(&main_client, FUSE_RENAME, ID(1), &to, 8, "a\0b", 4), 0);
	EXPECT_IS(request(&main_client, FUSE_RENAME2, ID(1), &to, sizeof(to), "a\0b", 4),
		  -EOPNOTSUPP);
	EXPECT_IS(request(&main_client, FUSE_COPY_FILE_RANGE, ID(1), &copy, sizeof(copy), NULL, 0),
		  -EXDEV);
	copy.nodeid_out = ID(1);
	EXPECT_IS(request(&main_client, FUSE_COPY_FILE_RANGE_64, ID(1), &copy, sizeof(copy), NULL,
			  0), -EOPNOTSUPP);
}

/* Every opcode, with nothing in it: no answer is ENOSYS, and the child survives. */
static void test_opcodes(void)
{
	static const struct {
		uint32_t op;
		int result;
	} want[] = {
		{FUSE_IOCTL, -ENOTTY}, {FUSE_LSEEK, -EINVAL}, {FUSE_FALLOCATE, -EOPNOTSUPP},
		{FUSE_SYNCFS, 0}, {FUSE_TMPFILE, -EOPNOTSUPP}, {FUSE_GETLK, -ENOLCK},
		{FUSE_SETLK, -ENOLCK}, {FUSE_SETLKW, -ENOLCK}, {FUSE_FLUSH, 0}, {FUSE_ACCESS, 0},
		{FUSE_FSYNC, 0}, {FUSE_FSYNCDIR, 0}, {FUSE_STATFS, 0}, {FUSE_READLINK, -EOPNOTSUPP},
		{FUSE_UNLINK, -EROFS}, {FUSE_SETATTR, -EOPNOTSUPP}, {FUSE_DESTROY, 0},
		{7, -EOPNOTSUPP}, {63, -EOPNOTSUPP}, {64, -EOPNOTSUPP}, {4096, -EOPNOTSUPP},
	};
	for (uint32_t op = 0; op < FUSE_OPCODE_END; op++)
		EXPECT(request(&main_client, op, ID(1), NULL, 0, "a\0b", 4) != -ENOSYS);
	for (size_t i = 0; i < sizeof(want) / sizeof(*want); i++) {
		int result = request(&main_client, want[i].op, ID(1), NULL, 0, "a\0b", 4);
		if (result != want[i].result)
			printf("opcode %u:\n", want[i].op);
		EXPECT_IS(result, want[i].result);
	}
	EXPECT_IS(request(&main_client, FUSE_STATFS, ID(1), NULL, 0, NULL, 0), 0);
	EXPECT_IS(main_client.w.req.out_len, sizeof(struct fuse_statfs_out));
	struct fuse_poll_in in = {.events = POLLIN | POLLPRI | POLLRDNORM};
	EXPECT_IS(request(&main_client, FUSE_POLL, ID(1), &in, sizeof(in), NULL, 0), 0);
	EXPECT_IS(*(uint32_t *)(void *)main_client.out, POLLIN | POLLRDNORM);
	struct fuse_lk_in lk = {.lk.type = F_UNLCK};
	EXPECT_IS(request(&main_client, FUSE_SETLK, ID(1), &lk, sizeof(lk), NULL, 0), 0);
}

static void test_umask(void)
{
	const struct fuse_entry_out *e = (const void *)main_client.out;
	struct fuse_mkdir_in in = {.mode = 0777, .umask = 027};

	session.features = 0;
	EXPECT_IS(request(&main_client, FUSE_MKDIR, ID(1), &in, sizeof(in), "d", 2), 0);
	EXPECT_IS(e->attr.size, 0777); /* the fake says the mode there */
	session.features = FUSE_DONT_MASK;
	EXPECT_IS(request(&main_client, FUSE_MKDIR, ID(1), &in, sizeof(in), "d", 2), 0);
	EXPECT_IS(e->attr.size, 0750);
}

static void test_forget(void)
{
	uint64_t forgotten = counter("?forgotten");
	zc_relay_forget(session.relay, ID(10), 3);
	EXPECT(counts("?forgotten", forgotten + 3));
}

static void test_notify(int kernel)
{
	char buf[256];
	const struct fuse_out_header *h = (const void *)buf;

	EXPECT_IS(look("notify"), -ENOENT);
	EXPECT_IS(read(kernel, buf, sizeof(buf)), 16 + 16 + 6);
	EXPECT_IS(h->error, FUSE_NOTIFY_INVAL_ENTRY);
	EXPECT(!strcmp(buf + 32, ".zcfs"));
	EXPECT_IS(read(kernel, buf, sizeof(buf)), 40);
	EXPECT_IS(h->error, FUSE_NOTIFY_INVAL_INODE);
	EXPECT_IS(recv(kernel, buf, sizeof(buf), MSG_DONTWAIT), -1);
}

/* Interruptions ---------------------------------------------------------------------------- */

static void *hold_main(void *arg)
{
	struct client *c = arg;
	request(c, FUSE_LOOKUP, ID(1), NULL, 0, "hold", 5);
	return NULL;
}

static void *open_main(void *arg)
{
	struct client *c = arg;
	struct fuse_open_in in = {0};
	request(c, FUSE_OPEN, ID(98), &in, sizeof(in), NULL, 0);
	return NULL;
}

static uint64_t outstanding(void)
{
	struct zc_relay_status st;
	zc_relay_status(session.relay, &st);
	return st.outstanding;
}

static void interrupt_one(void *(*run)(void *))
{
	struct client c;
	pthread_t t;

	client_init(&c);
	pthread_create(&t, NULL, run, &c);
	while (!outstanding())
		usleep(1000);
	usleep(50000); /* most likely asleep by now; either way is right */
	c.w.interrupted = true;
	pthread_kill(t, SIGUSR1);
	pthread_join(t, NULL); /* nobody answers: only the interrupt can end it */
	EXPECT_IS(c.result, -EINTR);
	EXPECT_IS(outstanding(), 0);
	EXPECT_IS(c.out[0], run == hold_main ? 'h' : (char)0xee);
	free(c.out);
}

static void test_interrupt(void)
{
	uint64_t forgotten = counter("?forgotten"), interrupted = counter("?interrupted");
	uint64_t released = counter("?released");

	interrupt_one(hold_main);
	EXPECT(counts("?interrupted", interrupted + 1));
	EXPECT_IS(look("let go"), -ENOENT); /* the late reply */
	EXPECT(counts("?forgotten", forgotten + 1));
	interrupt_one(open_main);
	EXPECT_IS(look("let go"), -ENOENT);
	EXPECT(counts("?released", released + 1));
	main_client.w.interrupted = true;
	EXPECT_IS(look("good"), -EINTR);
	main_client.w.interrupted = false;
	EXPECT_IS(look("good"), 0);
}

/* Many at once, while the child is stopped: its socket fills up, and nobody hangs in a send. */
static void *write_main(void *arg)
{
	struct client *c = arg;
	struct fuse_write_in in = {.size = ZC_RELAY_MAX_DATA};
	static char data[ZC_RELAY_MAX_DATA];
	request(c, FUSE_WRITE, ID(10), &in, sizeof(in), data, sizeof(data));
	return NULL;
}

static void test_full_socket(void)
{
	enum { MANY = 100 };
	static struct client c[MANY];
	pthread_t t[MANY];
	pid_t pid = (pid_t)counter("?pid");
	uint64_t forgotten = counter("?forgotten");

	kill(pid, SIGSTOP);
	for (int i = 0; i < MANY; i++) {
		client_init(&c[i]);
		pthread_create(&t[i], NULL, write_main, &c[i]);
	}
	while (outstanding() < MANY)
		usleep(1000);
	usleep(100000);
	for (int i = 0; i < 1000; i++)
		zc_relay_forget(session.relay, ID(10), 1);
	for (int i = 0; i < MANY; i += 2) {
		c[i].w.interrupted = true;
		pthread_kill(t[i], SIGUSR1);
		pthread_join(t[i], NULL);
		EXPECT_IS(c[i].result, -EINTR);
	}
	kill(pid, SIGCONT);
	for (int i = 1; i < MANY; i += 2) {
		pthread_join(t[i], NULL);
		EXPECT_IS(c[i].result, -EBADMSG); /* zeros are not the pattern: it came whole */
	}
	EXPECT(counts("?forgotten", forgotten + 1000));
	for (int i = 0; i < MANY; i++)
		free(c[i].out);
	EXPECT_IS(outstanding(), 0);
}

/* Deaths ----------------------------------------------------------------------------------- */

static void test_death(void)
{
	struct zc_relay_status st;
	struct client c;
	pthread_t t;

	zc_relay_status(session.relay, &st);
	uint64_t restarts = st.restarts;
	client_init(&c);
	pthread_create(&t, NULL, hold_main, &c);
	while (!outstanding())
		usleep(1000);
	int before = logged;
	EXPECT_IS(look("die"), -EIO);
	pthread_join(t, NULL);
	EXPECT_IS(c.result, -EIO);
	EXPECT_IS(look("good"), 0); /* waits for the next child */
	zc_relay_status(session.relay, &st);
	EXPECT_IS(st.restarts, restarts + 1);
	EXPECT(!strcmp(st.state, "running"));
	EXPECT_IS(st.pid, counter("?pid"));
	EXPECT_IS(logged, before + 1);
	EXPECT(said("ended: exit status 3"));
	EXPECT_IS(look("close"), -EIO);
	EXPECT_IS(look("good"), 0);
	EXPECT(said("ended: signal 9"));
	zc_relay_status(session.relay, &st);
	restarts = st.restarts;
	kill(st.pid, SIGKILL);
	while (st.restarts == restarts) {
		usleep(1000);
		zc_relay_status(session.relay, &st);
	}
	EXPECT_IS(look("good"), 0);
	free(c.out);
}

/* Requests from several threads while the child is killed again and again. */
static _Atomic bool storm_over;

static void *storm_main(void *arg)
{
	struct client *c = arg;
	struct fuse_read_in in = {.fh = 77, .size = 4096};
	while (!storm_over) {
		request(c, FUSE_READDIR, ID(20), &in, sizeof(in), NULL, 0);
		EXPECT(!c->result || c->result == -EIO);
		request(c, FUSE_LOOKUP, ID(1), NULL, 0, "good", 5);
		EXPECT(!c->result || c->result == -EIO);
		if (c->result)
			usleep(1000);
	}
	return NULL;
}

static void test_storm(void)
{
	enum { THREADS = 4, KILLS = 3 };
	static struct client c[THREADS];
	pthread_t t[THREADS];
	struct zc_relay_status st;

	for (int i = 0; i < THREADS; i++) {
		client_init(&c[i]);
		pthread_create(&t[i], NULL, storm_main, &c[i]);
	}
	for (int i = 0; i < KILLS; i++) {
		usleep(100000);
		zc_relay_status(session.relay, &st);
		if (st.pid)
			kill(st.pid, SIGKILL);
	}
	storm_over = true;
	for (int i = 0; i < THREADS; i++) {
		pthread_join(t[i], NULL);
		free(c[i].out);
	}
	EXPECT_IS(look("good"), 0);
	EXPECT_IS(outstanding(), 0);
	EXPECT_IS(waiting, 0);
}

static void start(const char *python)
{
	EXPECT_IS(zc_relay_create(&session, python, &session.relay), 0);
}

static void stop(void)
{
	zc_relay_destroy(session.relay);
	session.relay = NULL;
}

static void test_no_child(void)
{
	struct zc_relay_status st;
	uint64_t begin = zc_now_ns();

	start("/nonexistent/python3");
	usleep(50000);
	zc_relay_status(session.relay, &st);
	EXPECT(!strcmp(st.state, "starting"));
	EXPECT_IS(st.pid, 0);
	zc_relay_forget(session.relay, ID(10), 1);
	struct fuse_release_in rel = {.fh = 77};
	EXPECT_IS(request(&main_client, FUSE_RELEASE, ID(10), &rel, sizeof(rel), NULL, 0), 0);
	EXPECT_IS(look("good"), -EIO);
	EXPECT(zc_now_ns() - begin > 4900000000u);
	EXPECT(said("/nonexistent/python3 cannot be started"));
	begin = zc_now_ns();
	stop();
	EXPECT(zc_now_ns() - begin < 1000000000u);

	setenv("FAKE_EXIT", "1", 1);
	start("/proc/self/exe");
	do {
		usleep(10000);
		zc_relay_status(session.relay, &st);
	} while (st.restarts < 2);
	EXPECT(said("exit status 1"));
	stop();
	unsetenv("FAKE_EXIT");
}

static void test_refused(void)
{
	wait_error = -ENOLCK;
	EXPECT_IS(look("good"), -ENOLCK);
	wait_error = 0;
	EXPECT_IS(look("good"), 0);
	session.ended = true;
	EXPECT_IS(look("good"), -EIO);
	session.ended = false;
}

static void on_signal(int sig)
{
	(void)sig;
}

int main(int argc, char **argv)
{
	int kernel[2];

	if (argc > 1 && !strcmp(argv[1], "-P"))
		return control_plane(argv);
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGUSR1, on_signal);
	signal(SIGPIPE, SIG_IGN);
	alarm(120);
	socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, kernel);
	session.fd = kernel[0];
	client_init(&main_client);

	start("/proc/self/exe"); /* the first request waits for it */
	test_lookup();
	test_child();
	test_lies();
	test_names();
	test_open();
	test_data();
	test_xattr();
	test_attr();
	test_trees();
	test_opcodes();
	test_umask();
	test_forget();
	test_interrupt();
	test_full_socket();
	EXPECT_IS(logged, 1); /* one complaint a process */
	test_notify(kernel[1]);
	test_readdir();
	test_refused();
	test_death();
	test_storm();
	pid_t pid = (pid_t)counter("?pid");
	stop();
	EXPECT(kill(pid, 0) < 0 && errno == ESRCH);
	EXPECT(waitpid(-1, NULL, 0) < 0 && errno == ECHILD);
	test_no_child();
	EXPECT_IS(waiting, 0);
	free(main_client.out);
	if (!failures)
		puts("ok");
	return failures != 0;
}
