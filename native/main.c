/* zcfsd: options, the checks that need no mount, daemonizing, and the life of the process. */
#include <ctype.h>
#include <dirent.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pool/pool.h"
#include "session.h"
#include "sys.h"

#define UNPINNED_MOST 16 /* READs at a time, of 1 MiB at most, that find no frames to pin */

enum { EXIT_CANNOT = 1, EXIT_USAGE = 2 };

static int ready_fd = -1;

/* One line for whoever waits, one for people; then the end. */
static void __attribute__((format(printf, 2, 3), noreturn)) die(int status, const char *fmt, ...)
{
	char msg[1024];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(msg, sizeof(msg), fmt, ap);
	va_end(ap);
	zc_log("%s", msg);
	if (ready_fd >= 0)
		dprintf(ready_fd, "error: %s\n", msg);
	_exit(status);
}

/* options ---------------------------------------------------------------------------------- */

static const char usage[] =
	"usage: zcfsd [options] SOURCE MOUNTPOINT\n"
	"  --engine auto|kernel|pool|buffered\n"
	"                                  how file bytes are served\n"
	"  --policy GLOB=ENGINE            how files are served whose path below the mount matches; the first\n"
	"                                  that matches counts; '*' stops at '/', '**' does not; also pinned\n"
	"  --pin GLOB                      pin such files at their first open: hold them in memory\n"
	"  --pin-size SIZE                 memory of pinned files (a quarter of the machine's)\n"
	"  --pool-size SIZE                memory of the pool, as 256M (the default) or 4G\n"
	"  --frame-size SIZE               of its frames, 4K to 64K (16K)\n"
	"  --io io_uring|aio|threads       how the pool reads the disk (the best that works)\n"
	"  --transport auto|dev|uring      how requests reach the daemon\n"
	"  --locks source|local            where POSIX and flock locks are taken\n"
	"  --splice auto|always|never      whether data is moved through pipes instead of copied (auto: large\n"
	"                                  O_DIRECT reads of the buffered engine)\n"
	"  --read-only                     write nothing to the source, access times included\n"
	"  --allow-other                   let other users in\n"
	"  --threads N                     threads per queue at the start (3)\n"
	"  -o OPT[,OPT...]                 nonempty, fsname=X, subtype=X, attr_timeout=S, entry_timeout=S,\n"
	"                                  what is above (ro, engine=X ...), and mount(8)'s own\n"
	"  --log FILE  --foreground  --ready-fd N  --control-plane PYTHON\n"
	"  --probe PATH                    print what this machine grants, as JSON\n"
	"  --version\n";

static bool one_of(const char *value, const char *const *choices)
{
	for (; *choices; choices++)
		if (!strcmp(value, *choices))
			return true;
	return false;
}

static void set_choice(const char **to, const char *name, const char *value)
{
	static const char *const engines[] = {"auto", "kernel", "pool", "buffered", NULL};
	static const char *const transports[] = {"auto", "dev", "uring", NULL};
	static const char *const locks[] = {"source", "local", NULL};
	static const char *const io[] = {"io_uring", "aio", "threads", NULL};
	static const char *const splice[] = {"auto", "always", "never", NULL};
	const char *const *choices = *name == 's' ? splice : *name == 'e' ? engines : *name == 't' ? transports :
				     *name == 'i' ? io : locks;
	if (!one_of(value, choices))
		die(EXIT_USAGE, "--%s: unknown value '%s' (see --help)", name, value);
	*to = value;
}

static double number_of(const char *name, const char *value, double max)
{
	char *end;
	double v = strtod(value, &end);
	if (end == value || *end || !(v >= 0) || v > max)
		die(EXIT_USAGE, "%s: '%s' is not a number from 0 to %g", name, value, max);
	return v;
}

static unsigned threads_of(const char *name, const char *value)
{
	unsigned n = (unsigned)number_of(name, value, 256);
	if (n < 1)
		die(EXIT_USAGE, "%s: at least 1 thread is needed", name);
	return n;
}

/* "4096", "64K", "256M", "256MiB", "1.5G" */
static size_t size_of(const char *name, const char *value)
{
	static const char units[] = "KMGT";
	char *end;
	double v = strtod(value, &end);
	bool ok = end != value && v >= 0;
	const char *unit = ok && *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
	if (unit) {
		v *= (double)(1ULL << (10 * (unit - units + 1)));
		end++;
		if (!strcasecmp(end, "ib") || !strcasecmp(end, "b"))
			end += strlen(end);
	}
	if (!ok || *end || v > 1e15)
		die(EXIT_USAGE, "%s: '%s' is not a size, as 256M or 1GiB", name, value);
	return (size_t)v;
}

static void set_policy(struct zc_options *o, const char *name, const char *value)
{
	const char *wrong;
	int err = strstr(name, "policy") ? zc_policy_add(&o->policies, value, &wrong)
					 : zc_policy_add_pin(&o->policies, value, &wrong);
	if (err)
		die(EXIT_USAGE, "%s: '%s' has %s", name, value, wrong ? wrong : strerror(-err));
}

static void set_pin_size(struct zc_options *o, const char *name, const char *value)
{
	o->pin_size = size_of(name, value);
	if (o->pin_size < 4096)
		die(EXIT_USAGE, "%s: '%s' is less than the 4K of a page", name, value);
}

static void set_pool_size(struct zc_options *o, const char *name, const char *value)
{
	o->pool_size = size_of(name, value);
	if (o->pool_size < ZC_POOL_MIN_SIZE)
		die(EXIT_USAGE, "%s: '%s' is less than the %zu MiB that a pool needs", name, value,
		    ZC_POOL_MIN_SIZE >> 20);
}

static void set_frame_size(struct zc_options *o, const char *name, const char *value)
{
	size_t size = size_of(name, value);
	if (size < ZC_PAGE_MIN || size > ZC_PAGE_MAX || size & (size - 1))
		die(EXIT_USAGE, "%s: '%s' is no power of two from 4K to 64K", name, value);
	o->frame_size = (uint32_t)size;
}

struct flag_option {
	const char *name;
	unsigned long set, clear;
};

static const struct flag_option flag_options[] = {
	{"nosuid", MS_NOSUID, 0},	  {"suid", 0, MS_NOSUID},
	{"nodev", MS_NODEV, 0},		  {"dev", 0, MS_NODEV},
	{"noexec", MS_NOEXEC, 0},	  {"exec", 0, MS_NOEXEC},
	{"noatime", MS_NOATIME, 0},	  {"atime", 0, MS_NOATIME},
	{"nodiratime", MS_NODIRATIME, 0}, {"diratime", 0, MS_NODIRATIME},
	{"relatime", 0, 0},		  {"strictatime", MS_STRICTATIME, 0},
	{"lazytime", MS_LAZYTIME, 0},	  {"sync", MS_SYNCHRONOUS, 0},
	{"async", 0, MS_SYNCHRONOUS},	  {"dirsync", MS_DIRSYNC, 0},
	{"nosymfollow", MS_NOSYMFOLLOW, 0}, {"symfollow", 0, MS_NOSYMFOLLOW},
	{"defaults", 0, 0},		  {"rw", 0, 0},
	{"default_permissions", 0, 0},	  {NULL, 0, 0},
};

static void set_mount_option(struct zc_options *o, char *opt)
{
	char *value = strchr(opt, '=');
	if (value)
		*value++ = '\0';
	for (const struct flag_option *f = flag_options; f->name && !value; f++)
		if (!strcmp(opt, f->name)) {
			o->mount_flags = (o->mount_flags | f->set) & ~f->clear;
			return;
		}
	if (!strcmp(opt, "ro") && !value)
		o->read_only = true;
	else if (!strcmp(opt, "allow_other") && !value)
		o->allow_other = true;
	else if (!strcmp(opt, "nonempty") && !value)
		o->nonempty = true;
	else if (!value)
		die(EXIT_USAGE, "-o %s: unknown option (see --help)", opt);
	else if (!strcmp(opt, "fsname"))
		o->fsname = value;
	else if (!strcmp(opt, "subtype"))
		o->subtype = value;
	else if (!strcmp(opt, "attr_timeout"))
		o->attr_timeout = number_of(opt, value, 86400);
	else if (!strcmp(opt, "entry_timeout"))
		o->entry_timeout = number_of(opt, value, 86400);
	else if (!strcmp(opt, "engine"))
		set_choice(&o->engine, opt, value);
	else if (!strcmp(opt, "transport"))
		set_choice(&o->transport, opt, value);
	else if (!strcmp(opt, "locks"))
		set_choice(&o->locks, opt, value);
	else if (!strcmp(opt, "splice"))
		set_choice(&o->splice, opt, value);
	else if (!strcmp(opt, "threads"))
		o->threads = threads_of(opt, value);
	else if (!strcmp(opt, "log"))
		o->log = value;
	else if (!strcmp(opt, "policy") || !strcmp(opt, "pin"))
		set_policy(o, opt, value);
	else if (!strcmp(opt, "pin-size"))
		set_pin_size(o, opt, value);
	else if (!strcmp(opt, "pool-size"))
		set_pool_size(o, opt, value);
	else if (!strcmp(opt, "frame-size"))
		set_frame_size(o, opt, value);
	else if (!strcmp(opt, "io"))
		set_choice(&o->io, opt, value);
	else
		die(EXIT_USAGE, "-o %s: unknown option (see --help)", opt);
}

static void set_mount_options(struct zc_options *o, char *list)
{
	for (char *save, *opt = strtok_r(list, ",", &save); opt; opt = strtok_r(NULL, ",", &save))
		set_mount_option(o, opt);
}

enum { OPT_ENGINE = 256, OPT_POLICY, OPT_PIN, OPT_PIN_SIZE, OPT_POOL_SIZE, OPT_FRAME_SIZE, OPT_IO,
       OPT_TRANSPORT, OPT_LOCKS, OPT_SPLICE, OPT_READ_ONLY, OPT_ALLOW_OTHER, OPT_THREADS,
       OPT_LOG, OPT_FOREGROUND, OPT_READY_FD, OPT_CONTROL_PLANE, OPT_PROBE, OPT_VERSION, OPT_HELP };

static const struct option long_options[] = {
	{"engine", required_argument, NULL, OPT_ENGINE},
	{"policy", required_argument, NULL, OPT_POLICY},
	{"pin", required_argument, NULL, OPT_PIN},
	{"pin-size", required_argument, NULL, OPT_PIN_SIZE},
	{"pool-size", required_argument, NULL, OPT_POOL_SIZE},
	{"frame-size", required_argument, NULL, OPT_FRAME_SIZE},
	{"io", required_argument, NULL, OPT_IO},
	{"transport", required_argument, NULL, OPT_TRANSPORT},
	{"locks", required_argument, NULL, OPT_LOCKS},
	{"splice", required_argument, NULL, OPT_SPLICE},
	{"read-only", no_argument, NULL, OPT_READ_ONLY},
	{"allow-other", no_argument, NULL, OPT_ALLOW_OTHER},
	{"threads", required_argument, NULL, OPT_THREADS},
	{"log", required_argument, NULL, OPT_LOG},
	{"foreground", no_argument, NULL, OPT_FOREGROUND},
	{"ready-fd", required_argument, NULL, OPT_READY_FD},
	{"control-plane", required_argument, NULL, OPT_CONTROL_PLANE},
	{"probe", required_argument, NULL, OPT_PROBE},
	{"version", no_argument, NULL, OPT_VERSION},
	{"help", no_argument, NULL, OPT_HELP},
	{NULL, 0, NULL, 0},
};

static void __attribute__((noreturn)) probe(const char *path)
{
	int err = zc_probe(path);
	if (err)
		die(EXIT_CANNOT, "--probe %s: %s", path, strerror(-err));
	exit(0);
}

static void set_option(struct zc_options *o, int c, char *value)
{
	switch (c) {
	case OPT_ENGINE:
		return set_choice(&o->engine, "engine", value);
	case OPT_POLICY:
		return set_policy(o, "--policy", value);
	case OPT_PIN:
		return set_policy(o, "--pin", value);
	case OPT_PIN_SIZE:
		return set_pin_size(o, "--pin-size", value);
	case OPT_POOL_SIZE:
		return set_pool_size(o, "--pool-size", value);
	case OPT_FRAME_SIZE:
		return set_frame_size(o, "--frame-size", value);
	case OPT_IO:
		return set_choice(&o->io, "io", value);
	case OPT_TRANSPORT:
		return set_choice(&o->transport, "transport", value);
	case OPT_LOCKS:
		return set_choice(&o->locks, "locks", value);
	case OPT_SPLICE:
		return set_choice(&o->splice, "splice", value);
	case OPT_READ_ONLY:
		o->read_only = true;
		return;
	case OPT_ALLOW_OTHER:
		o->allow_other = true;
		return;
	case OPT_THREADS:
		o->threads = threads_of("--threads", value);
		return;
	case OPT_LOG:
		o->log = value;
		return;
	case OPT_FOREGROUND:
		o->foreground = true;
		return;
	case OPT_READY_FD:
		ready_fd = o->ready_fd = (int)number_of("--ready-fd", value, 1 << 20);
		fcntl(ready_fd, F_SETFD, FD_CLOEXEC);
		return;
	case OPT_CONTROL_PLANE:
		o->python = value;
		return;
	case 'o':
		return set_mount_options(o, value);
	case OPT_PROBE:
		probe(value);
	case OPT_VERSION:
		puts(ZC_VERSION);
		exit(0);
	case OPT_HELP:
		fputs(usage, stdout);
		exit(0);
	default:
		die(EXIT_USAGE, "unknown option (see zcfsd --help)");
	}
}

static void parse_options(struct zc_options *o, int argc, char **argv)
{
	int c;
	opterr = 0;
	while ((c = getopt_long(argc, argv, "o:", long_options, NULL)) != -1) {
		if (c == '?')
			die(EXIT_USAGE, "unknown option or missing value: %s (see zcfsd --help)",
			    argv[optind - 1]);
		set_option(o, c, optarg);
	}
	if (argc - optind != 2)
		die(EXIT_USAGE, "a source directory and a mount point are needed (see zcfsd --help)");
	o->source = argv[optind];
	o->mountpoint = argv[optind + 1];
}

/* checks ----------------------------------------------------------------------------------- */

static bool is_below(const char *path, const char *dir)
{
	size_t n = strlen(dir);
	return !strncmp(path, dir, n) && (path[n] == '/' || path[n] == '\0' || n == 1);
}

static bool is_empty(const char *dir)
{
	DIR *d = opendir(dir);
	const struct dirent *e;
	bool empty = true;
	while (d && (e = readdir(d)))
		empty &= !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
	if (d)
		closedir(d);
	return empty;
}

static char *resolve_dir(const char *what, const char *path)
{
	struct stat st;
	char *full = realpath(path, NULL);
	if (!full || stat(full, &st))
		die(EXIT_CANNOT, "%s %s: %s%s", what, path, strerror(errno),
		    errno == ENOTCONN ? " (a mount whose daemon died: mountctl umount cleans it up)"
		    : errno != ENOENT ? ""
		    : *what == 'm'    ? " (make it with mkdir)" : " (name a directory that is there)");
	if (!S_ISDIR(st.st_mode))
		die(EXIT_CANNOT, "%s %s is not a directory (%s)", what, path,
		    *what == 'm' ? "make one with mkdir" : "name the one that holds it");
	return full;
}

/* The mount point is looked at last and by mountinfo first: it may be a dead mount. */
static void check_places(struct zc_options *o)
{
	unsigned major, minor;
	o->source = resolve_dir("source", o->source);
	if (!zc_mount_device(o->mountpoint, &major, &minor))
		die(EXIT_CANNOT, "mount point %s is already mounted (mountctl umount %s)",
		    o->mountpoint, o->mountpoint);
	o->mountpoint = resolve_dir("mount point", o->mountpoint);
	if (!zc_mount_device(o->mountpoint, &major, &minor))
		die(EXIT_CANNOT, "mount point %s is already mounted (mountctl umount %s)",
		    o->mountpoint, o->mountpoint);
	if (is_below(o->source, o->mountpoint))
		die(EXIT_CANNOT, "source %s lies below the mount point %s, which would hide it; "
		    "choose another mount point", o->source, o->mountpoint);
	if (!o->nonempty && !is_empty(o->mountpoint))
		die(EXIT_CANNOT, "mount point %s is not empty (choose another, or -o nonempty)",
		    o->mountpoint);
	if (access(o->source, R_OK | X_OK))
		die(EXIT_CANNOT, "source %s: %s", o->source, strerror(errno));
}

/* life ------------------------------------------------------------------------------------- */

static bool has_capability(unsigned cap)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
	struct __user_cap_data_struct d[2];
	return !syscall(SYS_capget, &h, d) && d[cap / 32].effective >> cap % 32 & 1;
}

/* The parent waits for the child's word; returns in the child, with the descriptor for it. */
static int daemonize(void)
{
	int word[2], status = EXIT_CANNOT;
	if (pipe2(word, O_CLOEXEC))
		die(EXIT_CANNOT, "pipe: %s", strerror(errno));
	pid_t pid = fork();
	if (pid < 0)
		die(EXIT_CANNOT, "fork: %s", strerror(errno));
	if (pid == 0) {
		close(word[0]);
		setsid();
		return word[1];
	}
	close(word[1]);
	unsigned char byte;
	if (read(word[0], &byte, 1) == 1)
		status = byte;
	else if (waitpid(pid, &status, 0) == pid)
		status = WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_CANNOT;
	_exit(status);
}

static void tell_ready(int word)
{
	unsigned char zero = 0;
	if (ready_fd >= 0) {
		dprintf(ready_fd, "ready\n");
		close(ready_fd);
		ready_fd = -1;
	}
	if (word < 0)
		return;
	if (write(word, &zero, 1) != 1)
		zc_log("nobody waits for the mount");
	close(word);
}

/* A daemon must not keep a terminal or a pipe, and neither must its child, which inherits descriptor
 * 2: it is the log from here on. What goes wrong before the mount is ready is still said where we
 * were started. */
static void redirect_streams(const struct zc_options *o)
{
	const char *log = o->log ? o->log : "/dev/null";
	int saved = fcntl(2, F_DUPFD_CLOEXEC, 3);
	int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die(EXIT_CANNOT, "--log %s: %s", log, strerror(errno));
	if (saved >= 0)
		zc_log_to(saved);
	if (o->log || !o->foreground)
		dup2(fd, 2);
	if (!o->foreground)
		for (int i = 0; i < 2 && null >= 0; i++)
			dup2(null, i);
	if (!o->foreground && chdir("/"))
		zc_log("chdir /: %s", strerror(errno));
}

static void nothing(int sig)
{
	(void)sig;
}

/* SIGUSR1 only interrupts system calls; the ends are read from a descriptor. */
static int take_signals(void)
{
	sigset_t set;
	struct sigaction sa = {.sa_handler = nothing};
	sigaction(SIGUSR1, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	/* the source's limits on file size are the caller's, not ours */
	signal(SIGXFSZ, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC);
}

/* The limits and privileges of whoever mounted are not those of every caller: no limit on file size,
 * and quotas and reserved blocks bind as they do in place. */
static void raise_limits(void)
{
	struct rlimit lim;
	if (!getrlimit(RLIMIT_FSIZE, &lim)) {
		lim.rlim_cur = lim.rlim_max;
		setrlimit(RLIMIT_FSIZE, &lim);
	}
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
	struct __user_cap_data_struct d[2];
	if (syscall(SYS_capget, &h, d))
		return;
	d[0].effective &= ~(1u << CAP_SYS_RESOURCE);
	d[0].permitted &= ~(1u << CAP_SYS_RESOURCE);
	syscall(SYS_capset, &h, d);
}

static void make_pool(struct zc_session *s)
{
	struct zc_pool_options o = {.size = s->opt.pool_size, .frame_size = s->opt.frame_size,
				    .io = s->opt.io};
	sem_init(&s->unpinned, 0, UNPINNED_MOST);
	int err = zc_pool_create(&o, &s->pool);
	if (err == -ENOMEM)
		die(EXIT_CANNOT, "--pool-size: there is no memory for a pool of %zu MiB",
		    o.size >> 20);
	if (err)
		die(EXIT_CANNOT, "--engine pool: the pool cannot be made%s%s: %s",
		    o.io ? " with --io " : "", o.io ? o.io : "", strerror(-err));
}

static void start(struct zc_session *s)
{
	char err[512];
	s->privileged = geteuid() == 0 && has_capability(CAP_SYS_ADMIN) &&
			has_capability(CAP_DAC_READ_SEARCH);
	raise_limits();
	int r = zc_source_open(s);
	if (!r && s->tree_fd < 0 && is_below(s->opt.mountpoint, s->opt.source))
		die(EXIT_CANNOT, "mount point %s lies in the source %s, which without a private mount "
		    "would show itself without end; choose another", s->opt.mountpoint, s->opt.source);
	if (r)
		die(EXIT_CANNOT, "source %s: %s", s->opt.source, strerror(-r));
	if (!strcmp(s->opt.engine, "pool") ||
	    zc_policy_names(&s->opt.policies, &zc_engine_pool))
		make_pool(s);
	zc_choose_transport(s);
	s->fd = zc_mount(&s->opt, err, sizeof(err));
	if (s->fd < 0)
		die(EXIT_CANNOT, "%s", err);
	r = zc_session_init(s);
	if (!r)
		r = zc_mount_device(s->opt.mountpoint, &s->dev_major, &s->dev_minor);
	if (!r)
		r = zc_pins_create(s, s->opt.pin_size, &s->pins);
	if (!r)
		r = zc_session_start(s);
	if (!r)
		r = zc_leases_create(s, &s->leases);
	if (!r)
		r = zc_control_create(s, &s->control);
	if (!r && s->opt.python)
		r = zc_relay_create(s, s->opt.python, &s->relay);
	if (r) {
		zc_unmount(&s->opt, true);
		die(EXIT_CANNOT, "%s: the session cannot be started: %s", s->opt.mountpoint,
		    strerror(-r));
	}
	zc_read_ahead(s);
}

/* Whether what is mounted there (the topmost, if several) is ours. */
static bool is_ours(const struct zc_session *s)
{
	unsigned major, minor;
	return !zc_mount_device(s->opt.mountpoint, &major, &minor) && minor == s->dev_minor;
}

/* Waits for the end: unmounted by somebody, or told to go. */
static void run(struct zc_session *s, int signals)
{
	struct pollfd p[2] = {{.fd = s->end_efd, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
	while (!atomic_load(&s->ended)) {
		if (poll(p, 2, -1) < 0 || !(p[1].revents & POLLIN))
			continue;
		struct signalfd_siginfo info;
		if (read(signals, &info, sizeof(info)) != sizeof(info))
			continue;
		if (is_ours(s) && zc_unmount(&s->opt, false) && zc_unmount(&s->opt, true))
			zc_log("%s cannot be unmounted: %s", s->opt.mountpoint, strerror(errno));
		poll(p, 1, 10000); /* whoever has files open may finish */
		return;
	}
}

/* Whether the connection was aborted (by root, by a time-out) rather than unmounted. */
static bool was_aborted(const struct zc_session *s)
{
	struct pollfd p = {.fd = s->fd, .events = POLLIN};
	char byte;
	return poll(&p, 1, 0) == 1 && p.revents & POLLERR && read(s->fd, &byte, 1) < 0 &&
	       errno == ECONNABORTED;
}

static void stop(struct zc_session *s)
{
	atomic_store(&s->ended, true);
	zc_relay_destroy(s->relay);
	zc_control_destroy(s->control);
	zc_leases_destroy(s->leases);
	/* A dead mount goes too. Only then: the number of one that is gone may be another's already. */
	if (was_aborted(s) && is_ours(s))
		zc_unmount(&s->opt, true);
}

int main(int argc, char **argv)
{
	static struct zc_session s = {
		.opt = {.engine = "auto", .transport = "auto", .locks = "source", .splice = "auto", .subtype = "zcfs",
			.attr_timeout = 1, .entry_timeout = 1, .ready_fd = -1, .threads = 3,
			.pool_size = (size_t)256 << 20, .frame_size = 16384},
		.fd = -1,
	};
	/* descriptors 0 to 2 must be taken before anything of ours could land there */
	for (int fd = open("/dev/null", O_RDWR); fd >= 0 && fd < 3;)
		fd = dup(fd);
	parse_options(&s.opt, argc, argv);
	check_places(&s.opt);
	int word = s.opt.foreground ? -1 : daemonize();
	int signals = take_signals();
	pthread_mutex_init(&s.degr_lock, NULL);
	s.started_ns = zc_now_ns();
	s.started_s = (uint64_t)time(NULL);
	s.end_efd = eventfd(0, EFD_CLOEXEC);
	if (s.end_efd < 0 || signals < 0)
		die(EXIT_CANNOT, "eventfd: %s", strerror(errno));
	redirect_streams(&s.opt);
	start(&s);
	zc_log_to(2);
	tell_ready(word);
	run(&s, signals);
	stop(&s);
	_exit(0); /* workers may still stand in the source's calls */
}
