/* The control socket: its documents, byte by byte where that matters, and clients that do not
 * behave. Runs as root and as anybody; as root it puts a socket into /run/zcfs for a moment.
 */
#include <grp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../internal.h"

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

#define NOBODY 65534
#define MINOR 1000001u /* more than the kernel gives out */

/* What control.c needs of the rest --------------------------------------------------------- */

static char last_log[1024];

void zc_log(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(last_log, sizeof(last_log), fmt, ap);
	va_end(ap);
}

uint64_t zc_now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t zc_inodes_count(const struct zc_inode_table *t)
{
	(void)t;
	return 17;
}

uint64_t zc_inodes_descriptors(const struct zc_inode_table *t)
{
	(void)t;
	return 20;
}

void zc_relay_status(struct zc_relay *relay, struct zc_relay_status *out)
{
	(void)relay;
	*out = (struct zc_relay_status){.state = "running", .pid = 4243, .restarts = 1,
					.requests = 9, .outstanding = 2};
}

void zc_leases_status(struct zc_leases *l, struct zc_lease_status *out)
{
	(void)l;
	*out = (struct zc_lease_status){.socket = "/run/zcfs/7.lease", .clients = 1, .files = 2,
					.leases = 3, .borrowed = 4, .borrow_limit = 5, .pages = 6,
					.refused = 7, .dropped = 8};
}

void zc_pool_statistics(struct zc_pool *pool, struct zc_pool_stats *out)
{
	(void)pool;
	*out = (struct zc_pool_stats){.hits = 11, .misses = 4};
}

const struct zc_engine zc_engine_kernel = {.name = "kernel", .index = 0};
const struct zc_engine zc_engine_buffered = {.name = "buffered", .index = 1, .needs_fd = true};
const struct zc_engine zc_engine_pool = {.name = "pool", .index = 2, .needs_fd = true};
const struct zc_engine zc_engine_pinned = {.name = "pinned", .index = 3};

static char glob_of_policy[] = "**/*.db", glob_of_pin[] = "hot/*";
static const struct zc_pin_info a_pin = {
	.path = "hot/a.db", .state = "loading", .reason = "", .size = 4096, .loaded = 1024};

void zc_pins_each(struct zc_session *s, unsigned most, zc_pin_visit visit, void *arg,
		  struct zc_pins_totals *totals)
{
	(void)s;
	*totals = (struct zc_pins_totals){.limit = 65536, .used = 4096, .files = 1};
	if (most)
		visit(arg, &a_pin);
}

void zc_pin_by_hand(struct zc_session *s, const char *path, bool pin, zc_pin_visit visit, void *arg)
{
	struct zc_pin_info info = {.path = path, .state = pin ? "loading" : "unpinned", .reason = ""};
	(void)s;
	visit(arg, &info);
}
static const struct zc_transport transport = {.name = "dev"};

/* The documents ---------------------------------------------------------------------------- */

static struct zc_queue queues[2] = {{.threads = 3, .idle = 1}, {.threads = 2, .idle = 2}};
static struct zc_worker workers[2];
static struct zc_session session;

static void session_init(void)
{
	session.opt.source = "/srv/data";
	session.opt.mountpoint = "/mnt/data";
	session.opt.locks = "source";
	session.opt.splice = "auto";
	session.opt.allow_other = true;
	session.dev_minor = MINOR;
	session.kernel_minor = 45;
	session.max_write = 1 << 20;
	session.features = FUSE_PASSTHROUGH;
	session.queues = queues;
	session.queue_count = 2;
	session.transport = &transport;
	session.engine = &zc_engine_kernel;
	session.started_ns = zc_now_ns() - 12345678901u;
	workers[0].ledger[1][0] = (struct zc_ledger){
		.requests = 3, .delivered = 16000, .copied_user = 8000, .copied_kernel = 16000,
		.moved = 5, .passthrough = 6, .syscalls = 9};
	workers[1].ledger[2][0].delivered = 384;
	workers[1].ledger[1][1].delivered = 512;
	session.pool = (struct zc_pool *)&session;
	session.open_files[0] = 3;
	session.open_files[1] = 1;
	session.open_files[3] = 2;
	session.opt.policies = (struct zc_policies){
		.count = 2, .rules = {{glob_of_policy, &zc_engine_pool}, {glob_of_pin, NULL}}};
	session.backing_ids = 2;
	pthread_mutex_init(&session.degr_lock, NULL);
	workers[0].next = &workers[1];
	workers[0].ops[FUSE_LOOKUP].count = 7;
	workers[0].ops[FUSE_LOOKUP].errors = 2;
	workers[1].ops[FUSE_LOOKUP].count = 3;
	workers[1].ops[FUSE_LOOKUP].ns = 1500000;
	workers[1].ops[FUSE_READ].count = 4;
	session.workers = &workers[0];
}

static bool has(const char *text, const char *part)
{
	if (strstr(text, part))
		return true;
	printf("no %s in %s\n", part, text);
	return false;
}

static void test_status(void)
{
	char *text = zc_control_answer(&session, "status"), pid[32];

	snprintf(pid, sizeof(pid), "\"pid\": %d, ", (int)getpid());
	EXPECT(!strncmp(text, "{\"version\": \"0.1.0\", ", 20));
	EXPECT(has(text, pid));
	EXPECT(has(text, "\"source\": \"/srv/data\", \"mountpoint\": \"/mnt/data\", "
			 "\"device\": \"0:1000001\", \"protocol\": \"7.45\", \"uptime_s\": 12."));
	EXPECT(has(text, "\"engine\": \"kernel\", \"transport\": \"dev\", \"threads\": 5, "
			 "\"splice\": \"auto\", \"locks\": \"source\", \"read_only\": false, \"allow_other\": true, "
			 "\"max_write\": 1048576, \"control_plane\": {\"state\": \"off\", "
			 "\"pid\": 0, \"restarts\": 0}, \"engines\": {\"kernel\": "
			 "{\"open_files\": 3}, \"buffered\": {\"open_files\": 1}, "
			 "\"pool\": {\"open_files\": 0}, \"pinned\": {\"open_files\": 2}}, "
			 "\"policies\": [{\"glob\": \"**/*.db\", \"engine\": \"pool\"}], "
			 "\"pins\": {\"globs\": [\"hot/*\"], \"list\": [{\"path\": \"hot/a.db\", "
			 "\"size\": 4096, \"loaded\": 1024, \"state\": \"loading\", "
			 "\"reason\": \"\"}], \"files\": 1, \"used\": 4096, \"limit\": 65536}, "
			 "\"inodes\": 17, \"backing_ids\": 2, \"descriptors\": 21, "));
	EXPECT(has(text, "\"passthrough\": true, "));
	EXPECT(has(text, "\"over_io_uring\": false, "));
	EXPECT(has(text, "}, \"degradations\": []}"));
	free(text);

	session.relay = (struct zc_relay *)&session;
	session.leases = (struct zc_leases *)&session;
	session.degr_count = 2;
	strcpy(session.degr[0].what, "locks");
	strcpy(session.degr[0].reason, "say \"why\"\n");
	strcpy(session.degr[1].what, "uring");
	text = zc_control_answer(&session, "status");
	EXPECT(has(text, "\"control_plane\": {\"state\": \"running\", \"pid\": 4243, "
			 "\"restarts\": 1}"));
	EXPECT(has(text, "\"leases\": {\"socket\": \"/run/zcfs/7.lease\", \"clients\": 1, "
			 "\"files\": 2, \"leases\": 3, \"borrowed\": 4, \"borrow_limit\": 5, "
			 "\"pages\": 6, \"refused\": 7, \"dropped\": 8}"));
	EXPECT(has(text, "[{\"what\": \"locks\", \"reason\": \"say \\\"why\\\"\\u000a\"}, "
			 "{\"what\": \"uring\", \"reason\": \"\"}]}"));
	free(text);
}

static void test_stats(void)
{
	char *text = zc_control_answer(&session, "stats");

	EXPECT(!strncmp(text, "{\"uptime_s\": 12.", 16));
	EXPECT(has(text, "\"requests\": {\"LOOKUP\": {\"count\": 10, \"errors\": 2, "
			 "\"ns\": 1500000}, \"READ\": {\"count\": 4, \"errors\": 0, \"ns\": 0}}, "
			 "\"bytes_read\": 16384, \"bytes_written\": 512, \"ledger\": {"));
	EXPECT(has(text, "\"buffered\": {\"read\": {\"requests\": 3, \"bytes_delivered\": 16000, "
			 "\"bytes_copied_user\": 8000, \"bytes_copied_kernel\": 16000, "
			 "\"bytes_moved\": 5, \"bytes_passthrough\": 6, \"syscalls\": 9, "
			 "\"copies_per_byte\": 1.500}, \"write\": {\"requests\": 0, "
			 "\"bytes_delivered\": 512, "));
	EXPECT(has(text, "\"pool\": {\"hits\": 11, \"misses\": 4, "));
	EXPECT(has(text, "\"relay\": "
			 "{\"requests\": 9, \"outstanding\": 2, \"restarts\": 1}, \"workers\": "
			 "{\"threads\": 5, \"jobs\": 2}, \"inodes\": 17, \"descriptors\": 21}"));
	free(text);
}

static void test_names(void)
{
	static const char *const names[][2] = {
		{"plain", "plain"},
		{"a\"b\\c", "a\\\"b\\\\c"},
		{"\x01\t\n\x7f", "\\u0001\\u0009\\u000a\\u007f"},
		{"\xc3\xa4 \xe2\x82\xac", "\xc3\xa4 \xe2\x82\xac"},
		{"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80"},
		{"\xff" "a", "\\udcffa"},
		{"\xc3", "\\udcc3"},
		{"\xc3\xc3\xa4", "\\udcc3\xc3\xa4"},
		{"\xe2\x82", "\\udce2\\udc82"},
		{"\xc0\xaf", "\\udcc0\\udcaf"},			/* a long form */
		{"\xe0\x80\xaf", "\\udce0\\udc80\\udcaf"},	/* another */
		{"\xed\xa0\x80", "\\udced\\udca0\\udc80"},	/* a surrogate */
		{"\xf0\x80\x80\x80", "\\udcf0\\udc80\\udc80\\udc80"},
		{"\xf4\x90\x80\x80", "\\udcf4\\udc90\\udc80\\udc80"}, /* beyond the last */
		{"\xf5\x80\x80\x80", "\\udcf5\\udc80\\udc80\\udc80"},
	};
	char want[256], longest[5000];

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		session.opt.source = (char *)(uintptr_t)names[i][0];
		char *text = zc_control_answer(&session, "status");
		snprintf(want, sizeof(want), "\"source\": \"%s\", ", names[i][1]);
		EXPECT(has(text, want));
		free(text);
	}
	memset(longest, '\xff', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = 0;
	session.opt.source = longest;
	char *text = zc_control_answer(&session, "status");
	EXPECT(strlen(text) > 6 * 4999);
	free(text);
	session.opt.source = "/srv/data";
}

/* The socket ------------------------------------------------------------------------------- */

static char path[200];

static int dial(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = 10};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(addr.sun_path, path);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (!connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		return fd;
	close(fd);
	return -errno;
}

static size_t query_bytes(const char *line, size_t line_len, char *out, size_t len)
{
	int fd = dial();
	size_t used = 0;
	ssize_t n;

	EXPECT(fd >= 0);
	send(fd, line, line_len, MSG_NOSIGNAL);
	while ((n = recv(fd, out + used, len - 1 - used, 0)) > 0)
		used += (size_t)n;
	EXPECT(n == 0 || errno == ECONNRESET);
	out[used] = 0;
	close(fd);
	return used;
}

static size_t query(const char *line, char *out, size_t len)
{
	return query_bytes(line, strlen(line), out, len);
}

static double seconds_since(uint64_t begin)
{
	return (double)(zc_now_ns() - begin) / 1e9;
}

static void test_clients(void)
{
	char text[16384], line[200];
	uint64_t begin = zc_now_ns();

	EXPECT(query("status\n", text, sizeof(text)) > 500);
	EXPECT(!strcmp(text + strlen(text) - 2, "}\n"));
	EXPECT(query("stats\nstatus\n", text, sizeof(text)) > 100);
	EXPECT(!strncmp(text, "{\"uptime_s\"", 11));
	query("nonsense\n", text, sizeof(text));
	EXPECT(!strcmp(text, "{\"error\": \"unknown verb 'nonsense'; there are: status, "
			     "stats, pin, unpin\"}\n"));
	query("\n", text, sizeof(text));
	EXPECT(!strncmp(text, "{\"error\"", 8));
	memset(line, 'x', sizeof(line));
	line[199] = 0;
	query(line, text, sizeof(text));
	EXPECT(!strncmp(text, "{\"error\"", 8) || !*text);
	EXPECT(seconds_since(begin) < 1.5);

	EXPECT(query_bytes("pin 5\na/b\0" "c", 10, text, sizeof(text)) == 0); /* the last has no NUL */
	query_bytes("pin 6\na/b\0c", 12, text, sizeof(text));
	EXPECT(has(text, "{\"pins\": [{\"path\": \"a/b\", \"size\": 0, \"loaded\": 0, "
			 "\"state\": \"loading\", \"reason\": \"\"}, {\"path\": \"c\", "));
	query_bytes("unpin 2\nc", 10, text, sizeof(text));
	EXPECT(has(text, "\"state\": \"unpinned\""));
	query("pin 99999999999\n", text, sizeof(text));
	EXPECT(!strncmp(text, "{\"error\"", 8));
	query("pin x\n", text, sizeof(text));
	EXPECT(!strncmp(text, "{\"error\"", 8));

	int silent = dial();
	begin = zc_now_ns();
	EXPECT(query("status\n", text, sizeof(text)) > 500); /* waits for the silent one's end */
	EXPECT(seconds_since(begin) > 1.5 && seconds_since(begin) < 10);
	EXPECT_IS(recv(silent, text, sizeof(text), 0), 0);
	close(silent);

	int gone = dial();
	send(gone, "status\n", 7, 0);
	close(gone);
	EXPECT(query("status\n", text, sizeof(text)) > 500);
}

static void test_place(void)
{
	struct stat st;
	char dir[200];

	EXPECT_IS(lstat(path, &st), 0);
	EXPECT_IS(st.st_mode, S_IFSOCK | 0600);
	strcpy(dir, path);
	*strrchr(dir, '/') = 0;
	EXPECT_IS(lstat(dir, &st), 0);
	EXPECT_IS(st.st_mode, S_IFDIR | 0700);
}

/* A second daemon on the same minor takes the place; the first does not remove its socket. */
static void test_takeover(void)
{
	struct zc_control *first = NULL, *second = NULL;
	char text[16384];

	EXPECT_IS(zc_control_create(&session, &first), 0);
	EXPECT_IS(zc_control_create(&session, &second), 0);
	zc_control_destroy(first);
	EXPECT(query("stats\n", text, sizeof(text)) > 100);
	zc_control_destroy(second);
	EXPECT_IS(dial(), -ENOENT);
	zc_control_destroy(NULL);
}

static void test_all(void)
{
	struct zc_control *c = NULL;

	session.control = NULL;
	EXPECT_IS(zc_control_create(&session, &c), 0);
	if (!c)
		return;
	test_place();
	test_clients();
	int stuck = dial();
	uint64_t begin = zc_now_ns();
	zc_control_destroy(c);
	EXPECT(seconds_since(begin) < 1);
	close(stuck);
	EXPECT_IS(dial(), -ENOENT);
	test_takeover();
}

static void test_bad_dirs(const char *base)
{
	struct zc_control *c = NULL;
	char dir[200], target[200];

	snprintf(dir, sizeof(dir), "%s/zcfs", base);
	snprintf(target, sizeof(target), "%s/target", base);
	EXPECT_IS(chmod(dir, 0750), 0);
	EXPECT_IS(zc_control_create(&session, &c), -EPERM);
	EXPECT(has(last_log, dir));
	EXPECT_IS(rmdir(dir), 0);
	EXPECT_IS(mkdir(target, 0700), 0);
	EXPECT_IS(symlink("target", dir), 0);
	EXPECT_IS(zc_control_create(&session, &c), -EPERM);
	unlink(dir);
	rmdir(target);
	setenv("XDG_RUNTIME_DIR", "/", 1);
	EXPECT(zc_control_create(&session, &c) == -EACCES);
	snprintf(target, sizeof(target), "%s/%0150d", base, 0);
	EXPECT_IS(mkdir(target, 0700), 0);
	setenv("XDG_RUNTIME_DIR", target, 1);
	EXPECT_IS(zc_control_create(&session, &c), -ENAMETOOLONG);
	EXPECT(c == NULL);
	strcat(target, "/zcfs");
	rmdir(target);
	*strrchr(target, '/') = 0;
	rmdir(target);
}

/* As an ordinary user, in a directory of his. */
static void test_user(const char *base)
{
	setenv("XDG_RUNTIME_DIR", base, 1);
	snprintf(path, sizeof(path), "%s/zcfs/%u.sock", base, MINOR);
	umask(0);
	test_all();
	test_bad_dirs(base);
}

/* A stranger is not served, even where the modes would let him in. */
static void test_stranger(void)
{
	struct zc_control *c = NULL;
	int fd, pipes[2];
	char text[64];

	EXPECT_IS(zc_control_create(&session, &c), 0);
	chmod("/run/zcfs", 0711);
	chmod(path, 0666);
	if (pipe(pipes))
		return;
	pid_t pid = fork();
	if (!pid) {
		if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
		    setresuid(NOBODY, NOBODY, NOBODY))
			_exit(2);
		fd = dial();
		send(fd, "status\n", 7, MSG_NOSIGNAL);
		_exit(recv(fd, text, sizeof(text), 0) > 0);
	}
	int status = 0;
	waitpid(pid, &status, 0);
	EXPECT_IS(status, 0);
	chmod("/run/zcfs", 0700);
	zc_control_destroy(c);
}

static void in_child(void (*test)(const char *), const char *base)
{
	int status = 0;
	pid_t pid = fork();

	if (!pid) {
		if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
		    setresuid(NOBODY, NOBODY, NOBODY))
			_exit(2);
		failures = 0;
		test(base);
		fflush(stdout);
		_exit(failures != 0);
	}
	waitpid(pid, &status, 0);
	EXPECT_IS(status, 0);
}

int main(void)
{
	char base[] = "/tmp/zcfs-test-XXXXXX";

	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(60);
	session_init();
	test_status();
	test_stats();
	test_names();
	if (!mkdtemp(base))
		return 1;
	if (geteuid()) {
		test_user(base);
	} else {
		EXPECT_IS(chown(base, NOBODY, NOBODY), 0);
		in_child(test_user, base);
		snprintf(path, sizeof(path), "/run/zcfs/%u.sock", MINOR);
		test_all();
		test_stranger();
	}
	rmdir(base);
	if (!failures)
		puts("ok");
	return failures != 0;
}
