/* The control socket: what a mount says of itself, as JSON.
 *
 * Owns <runtime dir>/<minor>.sock (rundir.c) and the thread that serves it, one client at a time: a
 * client sends one line, a verb, and gets one document. Every wait has an end, so that a stuck client
 * delays the others by two seconds and nobody for ever. It exists in C so that status and stats
 * work whatever Python does. The documents are also what the control plane shows in .zcfs.
 *
 * File names are bytes, JSON is Unicode: a byte that is not part of valid UTF-8 is written as the
 * escape \udcXX, a lone surrogate, as Python has it (os.fsencode gives back the name).
 *
 * Threading: zc_control_answer may be called by any thread; it only reads counters, and takes
 * the relay's and the degradations' locks for a moment. The rest is the control thread's.
 */
#include "internal.h"

#include <assert.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pool/pool.h"
#include "sys.h"

#define LINE_MOST 64
#define CLIENT_MS 2000
#define RETRY_MS 100
#define NS_PER_MS 1000000ULL
#define FIRST_CAP 4096
#define PINS_SHOWN 256u
#define PATHS_MOST ((size_t)1 << 20) /* bytes that `pin` and `unpin` take */

/* A growing string, and whether the next value needs a comma. A failed allocation sticks. */
struct json {
	char *text;
	size_t len, cap;
	bool comma, failed;
};

/* Writing JSON ----------------------------------------------------------------------------- */

static bool json_room(struct json *j, size_t more)
{
	size_t cap = j->cap ? j->cap : FIRST_CAP;
	char *text;

	if (j->failed || j->len + more < j->cap)
		return !j->failed;
	while (cap <= j->len + more)
		cap *= 2;
	text = realloc(j->text, cap);
	if (!text) {
		j->failed = true;
		return false;
	}
	j->text = text;
	j->cap = cap;
	return true;
}

static void json_bytes(struct json *j, const char *p, size_t len)
{
	if (!json_room(j, len))
		return;
	memcpy(j->text + j->len, p, len);
	j->len += len;
	j->text[j->len] = 0;
}

__attribute__((format(printf, 2, 3))) static void json_format(struct json *j, const char *fmt, ...)
{
	char part[64];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(part, sizeof(part), fmt, ap);
	va_end(ap);
	json_bytes(j, part, (size_t)n < sizeof(part) ? (size_t)n : sizeof(part) - 1);
}

/* Before every key and every value without one. */
static void json_next(struct json *j)
{
	if (j->comma)
		json_bytes(j, ", ", 2);
	j->comma = false;
}

/* Bytes of the valid UTF-8 sequence that p begins with; 0: none. The string ends with NUL. */
static size_t utf8_len(const unsigned char *p)
{
	size_t len = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3
		   : p[0] < 0xf5 ? 4 : 0;
	unsigned char low = 0x80, high = 0xbf; /* of the second byte: no long forms, surrogates */

	if (p[0] == 0xe0)
		low = 0xa0;
	if (p[0] == 0xed)
		high = 0x9f;
	if (p[0] == 0xf0)
		low = 0x90;
	if (p[0] == 0xf4)
		high = 0x8f;
	if (len > 1 && (p[1] < low || p[1] > high))
		return 0;
	for (size_t i = 2; i < len; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	return len;
}

static void json_quoted(struct json *j, const char *s)
{
	const unsigned char *p = (const unsigned char *)(s ? s : "");

	json_bytes(j, "\"", 1);
	while (*p) {
		size_t len = utf8_len(p);
		if (!len)
			json_format(j, "\\udc%02x", *p);
		else if (*p == '"' || *p == '\\')
			json_format(j, "\\%c", *p);
		else if (*p < 0x20 || *p == 0x7f)
			json_format(j, "\\u%04x", *p);
		else
			json_bytes(j, (const char *)p, len);
		p += len ? len : 1;
	}
	json_bytes(j, "\"", 1);
}

static void json_key(struct json *j, const char *key)
{
	json_next(j);
	if (!key)
		return;
	json_quoted(j, key);
	json_bytes(j, ": ", 2);
}

/* `key` is NULL for what is not in an object. */
static void json_open(struct json *j, const char *key, const char *bracket)
{
	json_key(j, key);
	json_bytes(j, bracket, 1);
	j->comma = false;
}

static void json_close(struct json *j, const char *bracket)
{
	json_bytes(j, bracket, 1);
	j->comma = true;
}

static void json_string(struct json *j, const char *key, const char *value)
{
	json_key(j, key);
	json_quoted(j, value);
	j->comma = true;
}

static void json_number(struct json *j, const char *key, uint64_t value)
{
	json_key(j, key);
	json_format(j, "%llu", (unsigned long long)value);
	j->comma = true;
}

static void json_bool(struct json *j, const char *key, bool value)
{
	json_key(j, key);
	json_format(j, "%s", value ? "true" : "false");
	j->comma = true;
}

/* Thousandths, written as a fraction. */
static void json_milli(struct json *j, const char *key, uint64_t value)
{
	json_key(j, key);
	json_format(j, "%llu.%03u", (unsigned long long)(value / 1000), (unsigned)(value % 1000));
	j->comma = true;
}

/* The documents ---------------------------------------------------------------------------- */

static const struct {
	const char *name;
	uint64_t flag;
} features[] = {
	{"async_read", FUSE_ASYNC_READ},
	{"posix_locks", FUSE_POSIX_LOCKS},
	{"atomic_o_trunc", FUSE_ATOMIC_O_TRUNC},
	{"big_writes", FUSE_BIG_WRITES},
	{"dont_mask", FUSE_DONT_MASK},
	{"flock_locks", FUSE_FLOCK_LOCKS},
	{"has_ioctl_dir", FUSE_HAS_IOCTL_DIR},
	{"auto_inval_data", FUSE_AUTO_INVAL_DATA},
	{"do_readdirplus", FUSE_DO_READDIRPLUS},
	{"readdirplus_auto", FUSE_READDIRPLUS_AUTO},
	{"async_dio", FUSE_ASYNC_DIO},
	{"parallel_dirops", FUSE_PARALLEL_DIROPS},
	{"posix_acl", FUSE_POSIX_ACL},
	{"max_pages", FUSE_MAX_PAGES},
	{"cache_symlinks", FUSE_CACHE_SYMLINKS},
	{"handle_killpriv_v2", FUSE_HANDLE_KILLPRIV_V2},
	{"setxattr_ext", FUSE_SETXATTR_EXT},
	{"create_supp_group", FUSE_CREATE_SUPP_GROUP},
	{"has_expire_only", FUSE_HAS_EXPIRE_ONLY},
	{"direct_io_allow_mmap", FUSE_DIRECT_IO_ALLOW_MMAP},
	{"passthrough", FUSE_PASSTHROUGH},
	{"has_resend", FUSE_HAS_RESEND},
	{"allow_idmap", FUSE_ALLOW_IDMAP},
	{"over_io_uring", FUSE_OVER_IO_URING},
	{"request_timeout", FUSE_REQUEST_TIMEOUT},
};

#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))

static const struct zc_engine *const engines[] = {&zc_engine_kernel, &zc_engine_buffered,
						    &zc_engine_pool, &zc_engine_pinned};

static uint64_t uptime_ms(const struct zc_session *s)
{
	return (zc_now_ns() - s->started_ns) / NS_PER_MS;
}

static void count_threads(const struct zc_session *s, uint64_t *threads, uint64_t *busy)
{
	*threads = *busy = 0;
	for (unsigned i = 0; i < s->queue_count; i++) {
		unsigned all = s->queues[i].threads, idle = s->queues[i].idle;
		*threads += all;
		*busy += all > idle ? all - idle : 0;
	}
}

/* Descriptors of the source: cached ones, and those of open files. */
static uint64_t count_descriptors(const struct zc_session *s)
{
	uint64_t n = zc_inodes_descriptors(s->inodes);

	for (size_t i = 0; i < COUNT_OF(engines); i++)
		if (engines[i]->needs_fd)
			n += s->open_files[engines[i]->index];
	return n;
}

static void put_control_plane(struct json *j, struct zc_session *s)
{
	struct zc_relay_status st = {.state = "off"};

	if (s->relay)
		zc_relay_status(s->relay, &st);
	json_open(j, "control_plane", "{");
	json_string(j, "state", st.state);
	json_number(j, "pid", (uint64_t)st.pid);
	json_number(j, "restarts", st.restarts);
	json_close(j, "}");
}

static void put_engines(struct json *j, const struct zc_session *s)
{
	json_open(j, "engines", "{");
	for (size_t i = 0; i < COUNT_OF(engines); i++) {
		json_open(j, engines[i]->name, "{");
		json_number(j, "open_files", s->open_files[engines[i]->index]);
		json_close(j, "}");
	}
	json_close(j, "}");
}

static void put_policies(struct json *j, const struct zc_session *s)
{
	const struct zc_policies *p = &s->opt.policies;

	json_open(j, "policies", "[");
	for (unsigned i = 0; i < p->count; i++) {
		if (!p->rules[i].engine)
			continue;
		json_open(j, NULL, "{");
		json_string(j, "glob", p->rules[i].glob);
		json_string(j, "engine", p->rules[i].engine->name);
		json_close(j, "}");
	}
	json_close(j, "]");
}

static void put_pin(void *arg, const struct zc_pin_info *info)
{
	struct json *j = arg;

	json_open(j, NULL, "{");
	json_string(j, "path", info->path);
	json_number(j, "size", info->size);
	json_number(j, "loaded", info->loaded);
	json_string(j, "state", info->state);
	json_string(j, "reason", info->reason);
	json_close(j, "}");
}

static void put_pins(struct json *j, struct zc_session *s)
{
	const struct zc_policies *p = &s->opt.policies;
	struct zc_pins_totals totals;

	json_open(j, "pins", "{");
	json_open(j, "globs", "[");
	for (unsigned i = 0; i < p->count; i++)
		if (!p->rules[i].engine)
			json_string(j, NULL, p->rules[i].glob);
	json_close(j, "]");
	json_open(j, "list", "[");
	zc_pins_each(s, PINS_SHOWN, put_pin, j, &totals);
	json_close(j, "]");
	json_number(j, "files", totals.files);
	json_number(j, "used", totals.used);
	json_number(j, "limit", totals.limit);
	json_close(j, "}");
}

static void put_features(struct json *j, const struct zc_session *s)
{
	json_open(j, "features", "{");
	for (size_t i = 0; i < COUNT_OF(features); i++)
		json_bool(j, features[i].name, zc_has(s, features[i].flag));
	json_close(j, "}");
}

static void put_degradations(struct json *j, struct zc_session *s)
{
	json_open(j, "degradations", "[");
	pthread_mutex_lock(&s->degr_lock);
	for (unsigned i = 0; i < s->degr_count; i++) {
		json_open(j, NULL, "{");
		json_string(j, "what", s->degr[i].what);
		json_string(j, "reason", s->degr[i].reason);
		json_close(j, "}");
	}
	pthread_mutex_unlock(&s->degr_lock);
	json_close(j, "]");
}

static void put_identity(struct json *j, const struct zc_session *s)
{
	char part[32];

	json_string(j, "version", ZC_VERSION);
	json_number(j, "pid", (uint64_t)getpid());
	json_string(j, "source", s->opt.source);
	json_string(j, "mountpoint", s->opt.mountpoint);
	snprintf(part, sizeof(part), "%u:%u", s->dev_major, s->dev_minor);
	json_string(j, "device", part);
	snprintf(part, sizeof(part), "%d.%u", FUSE_MAJOR, s->kernel_minor);
	json_string(j, "protocol", part);
	json_milli(j, "uptime_s", uptime_ms(s));
}

static void put_leases(struct json *j, struct zc_session *s)
{
	struct zc_lease_status st;

	if (!s->leases)
		return;
	zc_leases_status(s->leases, &st);
	json_open(j, "leases", "{");
	json_string(j, "socket", st.socket);
	json_number(j, "clients", st.clients);
	json_number(j, "files", st.files);
	json_number(j, "leases", st.leases);
	json_number(j, "borrowed", st.borrowed);
	json_number(j, "borrow_limit", st.borrow_limit);
	json_number(j, "pages", st.pages);
	json_number(j, "refused", st.refused);
	json_number(j, "dropped", st.dropped);
	json_close(j, "}");
}

static void put_status(struct json *j, struct zc_session *s)
{
	uint64_t threads, busy;

	count_threads(s, &threads, &busy);
	put_identity(j, s);
	json_string(j, "engine", s->engine ? s->engine->name : "");
	json_string(j, "transport", s->transport ? s->transport->name : "");
	json_number(j, "threads", threads);
	json_string(j, "splice", s->opt.splice);
	json_string(j, "locks", s->opt.locks);
	json_bool(j, "read_only", s->opt.read_only);
	json_bool(j, "allow_other", s->opt.allow_other);
	json_number(j, "max_write", s->max_write);
	put_control_plane(j, s);
	put_engines(j, s);
	put_policies(j, s);
	put_pins(j, s);
	json_number(j, "inodes", zc_inodes_count(s->inodes));
	json_number(j, "backing_ids", s->backing_ids);
	json_number(j, "descriptors", count_descriptors(s));
	put_leases(j, s);
	put_features(j, s);
	put_degradations(j, s);
}

static void put_request(struct json *j, struct zc_session *s, uint32_t opcode)
{
	uint64_t count = 0, errors = 0, ns = 0;

	for (struct zc_worker *w = s->workers; w; w = w->next) {
		count += w->ops[opcode].count;
		errors += w->ops[opcode].errors;
		ns += w->ops[opcode].ns;
	}
	if (!count)
		return;
	json_open(j, zc_opinfo[opcode].name, "{");
	json_number(j, "count", count);
	json_number(j, "errors", errors);
	json_number(j, "ns", ns);
	json_close(j, "}");
}

static void put_relay(struct json *j, struct zc_session *s)
{
	struct zc_relay_status st = {0};

	if (s->relay)
		zc_relay_status(s->relay, &st);
	json_open(j, "relay", "{");
	json_number(j, "requests", st.requests);
	json_number(j, "outstanding", st.outstanding);
	json_number(j, "restarts", st.restarts);
	json_close(j, "}");
}

/* The sums of all workers' ledgers. */
struct moves {
	uint64_t requests, delivered, copied_user, copied_kernel, moved, passthrough, syscalls;
};

static struct moves moves_of(const struct zc_session *s, unsigned engine, bool writes)
{
	struct moves sum = {0};

	for (const struct zc_worker *w = s->workers; w; w = w->next) {
		const struct zc_ledger *l = &w->ledger[engine][writes];
		sum.requests += l->requests;
		sum.delivered += l->delivered;
		sum.copied_user += l->copied_user;
		sum.copied_kernel += l->copied_kernel;
		sum.moved += l->moved;
		sum.passthrough += l->passthrough;
		sum.syscalls += l->syscalls;
	}
	return sum;
}

static uint64_t delivered(const struct zc_session *s, bool writes)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < COUNT_OF(engines); i++)
		sum += moves_of(s, engines[i]->index, writes).delivered;
	return sum;
}

static void put_moves(struct json *j, const char *key, const struct moves *m)
{
	uint64_t copied = m->copied_user + m->copied_kernel;

	json_open(j, key, "{");
	json_number(j, "requests", m->requests);
	json_number(j, "bytes_delivered", m->delivered);
	json_number(j, "bytes_copied_user", m->copied_user);
	json_number(j, "bytes_copied_kernel", m->copied_kernel);
	json_number(j, "bytes_moved", m->moved);
	json_number(j, "bytes_passthrough", m->passthrough);
	json_number(j, "syscalls", m->syscalls);
	if (m->delivered) /* in two steps, or it would overflow after 16 PiB */
		json_milli(j, "copies_per_byte", copied / m->delivered * 1000 +
			   (uint64_t)((double)(copied % m->delivered) * 1000 / (double)m->delivered));
	json_close(j, "}");
}

static void put_ledger(struct json *j, const struct zc_session *s)
{
	json_open(j, "ledger", "{");
	for (size_t i = 0; i < COUNT_OF(engines); i++) {
		struct moves reads = moves_of(s, engines[i]->index, false);
		struct moves writes = moves_of(s, engines[i]->index, true);
		json_open(j, engines[i]->name, "{");
		put_moves(j, "read", &reads);
		put_moves(j, "write", &writes);
		json_close(j, "}");
	}
	json_close(j, "}");
}

static void put_pool(struct json *j, const struct zc_session *s)
{
	struct zc_pool_stats st;

	if (!s->pool)
		return;
	zc_pool_statistics(s->pool, &st);
	json_open(j, "pool", "{");
	json_number(j, "hits", st.hits);
	json_number(j, "misses", st.misses);
	json_number(j, "readahead", st.readahead);
	json_number(j, "evictions", st.evictions);
	json_number(j, "bytes_read", st.bytes_read);
	json_number(j, "bytes_written", st.bytes_written);
	json_number(j, "bytes_copied", st.bytes_copied);
	json_number(j, "bypass_bytes", st.bypass_bytes);
	json_number(j, "waits", st.waits);
	json_number(j, "requests", st.requests);
	json_number(j, "syscalls", st.syscalls);
	json_number(j, "borrowed", st.borrowed);
	json_number(j, "size", st.size);
	json_close(j, "}");
}

static void put_stats(struct json *j, struct zc_session *s)
{
	uint64_t threads, busy;

	count_threads(s, &threads, &busy);
	json_milli(j, "uptime_s", uptime_ms(s));
	json_open(j, "requests", "{");
	for (uint32_t op = 0; op < FUSE_OPCODE_END; op++)
		if (zc_opinfo[op].name)
			put_request(j, s, op);
	json_close(j, "}");
	json_number(j, "bytes_read", delivered(s, false));
	json_number(j, "bytes_written", delivered(s, true));
	put_ledger(j, s);
	put_pool(j, s);
	put_relay(j, s);
	json_open(j, "workers", "{");
	json_number(j, "threads", threads);
	json_number(j, "jobs", busy);
	json_close(j, "}");
	json_number(j, "inodes", zc_inodes_count(s->inodes));
	json_number(j, "descriptors", count_descriptors(s));
}

static void put_unknown(struct json *j, const char *verb)
{
	char text[LINE_MOST + 64];

	snprintf(text, sizeof(text), "unknown verb '%.*s'; there are: status, stats, pin, unpin",
		 LINE_MOST, verb);
	json_string(j, "error", text);
}

/* NULL: out of memory. */
char *zc_control_answer(struct zc_session *s, const char *verb)
{
	struct json j = {0};

	json_open(&j, NULL, "{");
	if (!strcmp(verb, "status"))
		put_status(&j, s);
	else if (!strcmp(verb, "stats"))
		put_stats(&j, s);
	else
		put_unknown(&j, verb);
	json_close(&j, "}");
	if (!j.failed)
		return j.text;
	free(j.text);
	return NULL;
}

char *zc_control_pin(struct zc_session *s, const char *verb, const char *text, size_t len)
{
	struct json j = {0};

	json_open(&j, NULL, "{");
	json_open(&j, "pins", "[");
	for (size_t at = 0; at < len; at += strlen(text + at) + 1)
		zc_pin_by_hand(s, text + at, *verb == 'p', put_pin, &j);
	json_close(&j, "]");
	json_close(&j, "}");
	if (!j.failed)
		return j.text;
	free(j.text);
	return NULL;
}

struct zc_control {
	struct zc_session *s;
	pthread_t thread;
	struct zc_listener at;
	int end;     /* an eventfd, readable when the thread has to end */
	int reserve; /* a descriptor to give up, so that one can always ask what is wrong */
};

/* Clients ---------------------------------------------------------------------------------- */

/* Waits for `events` on fd until `end` (0: for ever). 0: look again; else -errno: it is over. */
static int wait_until(const struct zc_control *c, int fd, short events, uint64_t end)
{
	struct pollfd p[2] = {{fd, events, 0}, {c->end, POLLIN, 0}};
	uint64_t now = zc_now_ns();
	int n, timeout = -1;

	if (end && now >= end)
		return -ETIMEDOUT;
	if (end)
		timeout = (int)((end - now) / NS_PER_MS) + 1;
	n = ZC_SYSI("poll", poll(p, 2, timeout));
	if (n < 0)
		return n == -EINTR ? 0 : n;
	return p[1].revents ? -ECANCELED : 0;
}

/* Some bytes, or 0 at the end of the stream. */
static ssize_t read_some(const struct zc_control *c, int fd, char *buf, size_t cap, uint64_t end)
{
	for (;;) {
		ssize_t n = ZC_SYS("recv", recv(fd, buf, cap, MSG_DONTWAIT));
		if (n >= 0 || (n != -EAGAIN && n != -EINTR))
			return n;
		int err = wait_until(c, fd, POLLIN, end);
		if (err)
			return err;
	}
}

/* A line without its end, in at most LINE_MOST + 1 bytes; `line` has one more. `*more`: what came
 * behind it, `*more_len` bytes. */
static int read_line(const struct zc_control *c, int fd, char *line, char **more, size_t *more_len,
		     uint64_t end)
{
	size_t len = 0;

	while (!memchr(line, '\n', len) && len <= LINE_MOST) {
		ssize_t n = read_some(c, fd, line + len, LINE_MOST + 1 - len, end);
		if (n < 0)
			return (int)n;
		if (!n)
			break;
		len += (size_t)n;
	}
	line[len] = 0;
	*more = line + strcspn(line, "\n");
	*more += **more != 0;
	*more_len = len - (size_t)(*more - line);
	line[strcspn(line, "\n")] = 0;
	return 0;
}

static int send_all(const struct zc_control *c, int fd, const char *text, uint64_t end)
{
	size_t len = strlen(text);

	while (len) {
		ssize_t n = ZC_SYS("send", send(fd, text, len, MSG_NOSIGNAL | MSG_DONTWAIT));
		if (n > 0) {
			text += n;
			len -= (size_t)n;
			continue;
		}
		if (n != -EAGAIN && n != -EINTR)
			return (int)n;
		int err = wait_until(c, fd, POLLOUT, end);
		if (err)
			return err;
	}
	return 0;
}

/* `pin LEN` or `unpin LEN`: as many bytes follow, paths that end with NUL each. `verb` is cut off
 * behind its word. false: it is none of these. */
static bool takes_paths(char *verb, size_t *len)
{
	char *space = strchr(verb, ' '), *rest;

	if (!space || (strncmp(verb, "pin ", 4) && strncmp(verb, "unpin ", 6)))
		return false;
	*len = strtoul(space + 1, &rest, 10);
	if (*rest || rest == space + 1 || !*len || *len > PATHS_MOST)
		return false;
	*space = 0;
	return true;
}

/* NULL: it did not come, or there is no memory for it. */
static char *answer_paths(struct zc_control *c, int fd, const char *verb, const char *more,
			  size_t have, size_t len, uint64_t end)
{
	char *text = malloc(len), *answer = NULL;

	if (!text)
		return NULL;
	have = have < len ? have : len;
	memcpy(text, more, have);
	while (have < len) {
		ssize_t n = read_some(c, fd, text + have, len - have, end);
		if (n <= 0)
			break;
		have += (size_t)n;
	}
	if (have == len && !text[len - 1])
		answer = zc_control_pin(c->s, verb, text, len);
	free(text);
	return answer;
}

static void serve_client(struct zc_control *c, int fd)
{
	uint64_t end = zc_now_ns() + CLIENT_MS * NS_PER_MS;
	char line[LINE_MOST + 2], *answer, *more = line;
	size_t have = 0, len;

	if (!zc_peer_is_welcome(fd, NULL) || read_line(c, fd, line, &more, &have, end))
		return;
	answer = takes_paths(line, &len) ? answer_paths(c, fd, line, more, have, len, end)
					 : zc_control_answer(c->s, line);
	if (answer && !send_all(c, fd, answer, end))
		send_all(c, fd, "\n", end);
	free(answer);
}

static void hold_reserve(struct zc_control *c)
{
	if (c->reserve < 0)
		c->reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* Out of descriptors: the reserve makes room for one client. */
static int accept_in_reserve(struct zc_control *c)
{
	if (c->reserve < 0)
		return -EMFILE;
	close(c->reserve);
	c->reserve = -1;
	return ZC_SYSI("accept", accept4(c->at.fd, NULL, NULL, SOCK_CLOEXEC));
}

static void *control_run(void *arg)
{
	struct zc_control *c = arg;

	while (wait_until(c, c->at.fd, POLLIN, 0) != -ECANCELED) {
		int fd = ZC_SYSI("accept", accept4(c->at.fd, NULL, NULL, SOCK_CLOEXEC));
		if (fd == -EMFILE || fd == -ENFILE)
			fd = accept_in_reserve(c);
		if (fd >= 0) {
			serve_client(c, fd);
			close(fd);
			hold_reserve(c);
		} else if (fd != -EAGAIN) { /* out of descriptors: try again later, and not hot */
			wait_until(c, -1, 0, zc_now_ns() + RETRY_MS * NS_PER_MS);
		}
	}
	return NULL;
}

/* Beginning and end ------------------------------------------------------------------------ */

/* The thread takes no signals: those are main's and the workers'. */
static int thread_start(struct zc_control *c)
{
	sigset_t all, old;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&c->thread, NULL, control_run, c);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -err;
}

static void control_free(struct zc_control *c)
{
	zc_unlisten(&c->at);
	if (c->end >= 0)
		close(c->end);
	if (c->reserve >= 0)
		close(c->reserve);
	free(c);
}

int zc_control_create(struct zc_session *s, struct zc_control **out)
{
	struct zc_control *c = calloc(1, sizeof(*c));
	int err;

	if (!c)
		return -ENOMEM;
	c->s = s;
	c->at.fd = -1;
	c->reserve = -1;
	hold_reserve(c);
	c->end = ZC_SYSI("eventfd", eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	err = c->end < 0 ? c->end : zc_listen(s, "sock", SOCK_STREAM, &c->at);
	if (!err)
		err = thread_start(c);
	if (err)
		control_free(c);
	else
		*out = c;
	return err;
}

void zc_control_destroy(struct zc_control *c)
{
	uint64_t one = 1;

	if (!c)
		return;
	if (write(c->end, &one, sizeof(one)) < 0)
		assert(!"an eventfd takes eight bytes");
	pthread_join(c->thread, NULL);
	control_free(c);
}
