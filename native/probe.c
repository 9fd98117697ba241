/* What this machine grants, line by line with the reason: `zcfsd --probe PATH`, and the native part
 * of `mountctl probe`.
 *
 * One function per line of the answer, in one table. Each tries the thing itself where it can be
 * tried, reads the kernel's settings where it cannot, and says how to get what is missing. Nothing
 * that is tried is left behind.
 *
 * Single thread: runs instead of the daemon, not in it.
 */
#include <linux/aio_abi.h>
#include <linux/capability.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "internal.h"
#include "probe.h"
#include "sys.h"

#define SQE128 (1u << 10)	     /* IORING_SETUP_SQE128, Linux 5.19 */
#define URING_PARAMS 30		     /* words of struct io_uring_params */
#define REGISTER_BUFFERS 0	     /* of io_uring_register */
#define HUGE_PAGE (2u << 20)
#define FILES_LEAST 4096

#define URING_SWITCH "/sys/module/fuse/parameters/enable_uring"
#define THP "/sys/kernel/mm/transparent_hugepage/"

enum granted { NO, YES, UNKNOWN };

/* One line of the answer. */
struct item {
	enum granted granted;
	bool number;	/* the value is one */
	char value[128]; /* empty: null */
	char reason[400];
};

struct machine {
	const char *path;
	int fd;	    /* of the path's directory, O_PATH */
	int sample; /* zc_probe_sample() */
	unsigned kernel_major, kernel_minor;
	char release[65];
	uint64_t caps; /* effective */
	int ring_error, ring128_error;
	int buffers_error; /* of registering one with a ring */
	struct zc_probe_fuse fuse;
	struct zc_probe_direct direct;
};

/* Filling a line -------------------------------------------------------------------------- */

#define PRINTF(f, a) __attribute__((format(printf, f, a)))

static void PRINTF(3, 4) say(struct item *i, enum granted granted, const char *fmt, ...)
{
	va_list ap;

	i->granted = granted;
	va_start(ap, fmt);
	vsnprintf(i->reason, sizeof(i->reason), fmt, ap);
	va_end(ap);
}

static void PRINTF(2, 3) say_more(struct item *i, const char *fmt, ...)
{
	size_t used = strlen(i->reason);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(i->reason + used, sizeof(i->reason) - used, fmt, ap);
	va_end(ap);
}

static void PRINTF(2, 3) value(struct item *i, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(i->value, sizeof(i->value), fmt, ap);
	va_end(ap);
}

static void number(struct item *i, unsigned long long n)
{
	i->number = true;
	value(i, "%llu", n);
}

/* Questions ------------------------------------------------------------------------------- */

/* The text of a small file without its last newline; its length, or -errno. */
static int read_text(const char *path, char *buf, size_t size)
{
	int fd = ZC_SYSI("open", open(path, O_RDONLY | O_CLOEXEC));
	size_t len = 0;
	ssize_t n = 0;

	if (fd < 0)
		return fd;
	while (len < size - 1 && (n = ZC_SYS("read", read(fd, buf + len, size - 1 - len))) > 0)
		len += (size_t)n;
	close(fd);
	if (n < 0)
		return (int)n;
	if (len && buf[len - 1] == '\n')
		len--;
	buf[len] = 0;
	return (int)len;
}

/* Whether one of the words of `text`, cut at any of `between`, is `word`. */
static bool has_word(const char *text, const char *word, const char *between)
{
	size_t len = strlen(word);

	for (const char *p = text; *p; p += strspn(p, between)) {
		size_t n = strcspn(p, between);
		if (n == len && !strncmp(p, word, len))
			return true;
		p += n;
	}
	return false;
}

static bool kernel_since(const struct machine *m, unsigned major, unsigned minor)
{
	return m->kernel_major > major || (m->kernel_major == major && m->kernel_minor >= minor);
}

static bool has_cap(const struct machine *m, int cap)
{
	return m->caps >> cap & 1;
}

static uint64_t own_caps(void)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct d[2] = {{0}};

	if (ZC_SYSI("capget", syscall(SYS_capget, &h, d)))
		return 0;
	return d[0].effective | (uint64_t)d[1].effective << 32;
}

/* 0, or -errno: may we have a ring of this kind? */
static int try_ring(uint32_t flags)
{
	uint32_t params[URING_PARAMS] = {[2] = flags};
	int fd = ZC_SYSI("io_uring_setup", syscall(SYS_io_uring_setup, 8, params));

	if (fd < 0)
		return fd;
	close(fd);
	return 0;
}

/* 0, or -errno: may a ring have registered buffers? A page counts against the limit already. */
static int try_buffers(void)
{
	static char page[4096] __attribute__((aligned(4096)));
	struct iovec iov = {page, sizeof(page)};
	uint32_t params[URING_PARAMS] = {0};
	int fd = ZC_SYSI("io_uring_setup", syscall(SYS_io_uring_setup, 8, params));

	if (fd < 0)
		return fd;
	int err = ZC_SYSI("io_uring_register", syscall(SYS_io_uring_register, fd,
						       REGISTER_BUFFERS, &iov, 1));
	close(fd);
	return err;
}

static const char *filesystem_name(int fd)
{
	static const struct {
		unsigned magic;
		const char *name;
	} names[] = {{0x794c7630, "overlay"}, {0xf15f, "ecryptfs"},   {0x65735546, "FUSE"},
		     {0xef53, "ext4"},	      {0x58465342, "xfs"},    {0x9123683e, "btrfs"},
		     {0x01021994, "tmpfs"},   {0x6969, "nfs"},	      {0x01021997, "9p"},
		     {0x2fc12fc1, "zfs"},     {0x73717368, "squashfs"}};
	static char other[32];
	struct statfs st = {0};

	if (!ZC_SYSI("fstatfs", fstatfs(fd, &st)))
		for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
			if (names[i].magic == (unsigned)st.f_type)
				return names[i].name;
	snprintf(other, sizeof(other), "type 0x%lx", (unsigned long)st.f_type);
	return other;
}

/* FUSE ------------------------------------------------------------------------------------ */

static void probe_fuse(const struct machine *m, struct item *i)
{
	int fd = ZC_SYSI("open", open("/dev/fuse", O_RDWR | O_CLOEXEC));

	(void)m;
	value(i, "/dev/fuse");
	if (fd >= 0) {
		close(fd);
		say(i, YES, "opened for reading and writing");
	} else if (fd == -ENOENT || fd == -ENODEV || fd == -ENXIO) {
		say(i, NO, "%s: `modprobe fuse`, or give the container --device /dev/fuse",
		    strerror(-fd));
	} else {
		say(i, NO, "%s: run as root, or allow this user to open /dev/fuse", strerror(-fd));
	}
}

static void probe_kernel(const struct machine *m, struct item *i)
{
	value(i, "%s", m->release);
	if (!kernel_since(m, 5, 4))
		say(i, NO, "older than 5.12");
	else if (!kernel_since(m, 6, 9))
		say(i, YES, "6.9 has passthrough, 6.14 FUSE over io_uring");
	else if (!kernel_since(m, 6, 14))
		say(i, YES, "6.14 has FUSE over io_uring");
	else
		say(i, YES, "new enough for all of zcfs");
}

static void probe_protocol(const struct machine *m, struct item *i)
{
	const struct zc_probe_fuse *f = &m->fuse;

	if (f->failed_at) {
		say(i, UNKNOWN, "no mount to try it on: %s: %s", f->failed_at, strerror(-f->error));
		return;
	}
	value(i, "%u.%u", f->major, f->minor);
	say(i, f->major == FUSE_MAJOR && f->minor >= FUSE_MINOR_LEAST ? YES : NO,
	    "INIT flags 0x%016llx%s", (unsigned long long)f->flags,
	    f->in_user_ns ? ", in a user namespace" : "");
	if (i->granted == NO)
		say_more(i, ": zcfs needs %u.%u", FUSE_MAJOR, FUSE_MINOR_LEAST);
}

static void passthrough_refused(const struct machine *m, int error, struct item *i)
{
	if (error == -EPERM)
		say(i, NO, "no CAP_SYS_ADMIN%s", has_cap(m, CAP_SYS_ADMIN) ?
		    " in the first user namespace (a container?)" : ": run as root");
	else if (error == -ELOOP)
		say(i, NO, "%s (%s) is stacked on other filesystems as high as the kernel allows",
		    m->path, filesystem_name(m->fd));
	else
		say(i, NO, "the kernel refused a backing file on %s (%s): %s", m->path,
		    filesystem_name(m->fd), strerror(-error));
}

static void probe_passthrough(const struct machine *m, struct item *i)
{
	const struct zc_probe_fuse *f = &m->fuse;

	if (f->failed_at && !kernel_since(m, 6, 9))
		say(i, NO, "kernel older than 6.9");
	else if (f->failed_at)
		say(i, UNKNOWN, "not tried: %s: %s", f->failed_at, strerror(-f->error));
	else if (!(f->flags & FUSE_PASSTHROUGH))
		say(i, NO, "%s", kernel_since(m, 6, 9) ?
		    "the kernel does not offer it (CONFIG_FUSE_PASSTHROUGH)" :
		    "kernel older than 6.9");
	else if (f->memfd_id < 1)
		passthrough_refused(m, f->memfd_id, i);
	else if (f->sample_id < 0)
		passthrough_refused(m, f->sample_id, i);
	else if (!f->sample_id)
		say(i, YES, "tried with a memfd; no file in %s can be opened to try", m->path);
	else
		say(i, YES, "tried with a file on %s%s%s", m->path, f->stack_depth > 1 ?
		    ", a stacking filesystem: " : "",
		    f->stack_depth > 1 ? filesystem_name(m->fd) : "");
	if (i->granted == YES)
		number(i, f->stack_depth);
}

static void probe_fuse_uring(const struct machine *m, struct item *i)
{
	char enabled[8];
	int err = read_text(URING_SWITCH, enabled, sizeof(enabled));

	if (err < 0) {
		say(i, NO, "%s", kernel_since(m, 6, 14) ?
		    "the kernel lacks it (CONFIG_FUSE_IO_URING), or the fuse module is not loaded" :
		    "kernel older than 6.14");
		return;
	}
	value(i, "%s", enabled);
	if (enabled[0] != 'Y' && enabled[0] != '1')
		say(i, NO, "switched off: `echo Y > " URING_SWITCH "`");
	else if (m->ring_error || m->ring128_error)
		say(i, NO, "io_uring%s: %s", m->ring_error ? "" : " with large entries",
		    strerror(m->ring_error ? -m->ring_error : -m->ring128_error));
	else if (m->fuse.failed_at)
		say(i, UNKNOWN, "not tried: %s: %s", m->fuse.failed_at, strerror(-m->fuse.error));
	else if (!(m->fuse.flags & FUSE_OVER_IO_URING))
		say(i, NO, "enabled, but the kernel's INIT does not offer it");
	else
		say(i, YES, "enabled, offered in INIT, and io_uring has large entries");
}

static void probe_fusermount(const struct machine *m, struct item *i)
{
	const char *path = getenv("PATH");
	char file[512];
	struct stat st;

	(void)m;
	for (const char *p = path ? path : ""; *p; p += *p == ':') {
		size_t n = strcspn(p, ":");
		snprintf(file, sizeof(file), "%.*s/fusermount3", (int)n, p);
		p += n;
		if (access(file, X_OK) || stat(file, &st))
			continue;
		value(i, "%s", file);
		if (st.st_mode & S_ISUID || geteuid() == 0)
			say(i, YES, "mounts for users who are not root");
		else
			say(i, NO, "not set-user-id root: `chmod u+s %s`", file);
		return;
	}
	say(i, NO, "not in PATH: `apt install fuse3` (root can do without)");
}

static void probe_allow_other(const struct machine *m, struct item *i)
{
	char line[256];
	bool found = false;
	FILE *f = fopen("/etc/fuse.conf", "re");

	/* as fusermount3 reads it: alone on its line, which the comment that explains it is not */
	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "#\n")] = '\0';
		char *word = strtok(line, " \t\r");
		found = found || (word && !strcmp(word, "user_allow_other") && !strtok(NULL, " \t\r"));
	}
	if (f)
		fclose(f);
	if (found)
		say(i, YES, "in /etc/fuse.conf");
	else if (has_cap(m, CAP_SYS_ADMIN))
		say(i, YES, "not in /etc/fuse.conf, and not needed by root");
	else
		say(i, NO, "add `user_allow_other` to /etc/fuse.conf");
}

/* Asynchronous I/O ------------------------------------------------------------------------ */

static void ring_refused(int error, struct item *i)
{
	char off[8] = "";

	read_text("/proc/sys/kernel/io_uring_disabled", off, sizeof(off));
	if (error == -ENOSYS)
		say(i, NO, "the kernel lacks it, or a seccomp filter hides it");
	else if (error == -EPERM && off[0] == '2')
		say(i, NO, "switched off: `sysctl kernel.io_uring_disabled=0`");
	else if (error == -EPERM && off[0] == '1')
		say(i, NO, "kernel.io_uring_disabled=1: needs CAP_SYS_ADMIN or membership in the "
		    "group of kernel.io_uring_group");
	else if (error == -EPERM)
		say(i, NO, "forbidden, by a seccomp filter (a container?)");
	else if (error == -ENOMEM)
		say(i, NO, "rings count against memlock too: raise `ulimit -l`, or grant "
		    "CAP_IPC_LOCK");
	else
		say(i, NO, "io_uring_setup: %s", strerror(-error));
}

static void probe_io_uring(const struct machine *m, struct item *i)
{
	if (m->ring_error) {
		ring_refused(m->ring_error, i);
		return;
	}
	if (m->ring128_error)
		say(i, YES, "without large entries (Linux 5.19), which FUSE over io_uring needs");
	else
		say(i, YES, "with large entries");
	if (m->buffers_error)
		say_more(i, "; buffers cannot be registered: %s: grant CAP_IPC_LOCK or raise "
			 "`ulimit -l`", strerror(-m->buffers_error));
	else
		say_more(i, "; buffers can be registered%s", has_cap(m, CAP_IPC_LOCK) ?
			 "" : " as far as memlock allows");
	value(i, "%s", m->buffers_error ? "" : "registered buffers");
}

static void probe_aio(const struct machine *m, struct item *i)
{
	aio_context_t ctx = 0;
	int err = ZC_SYSI("io_setup", syscall(SYS_io_setup, 1, &ctx));

	(void)m;
	if (!err) {
		syscall(SYS_io_destroy, ctx);
		say(i, YES, "io_setup works");
	} else if (err == -EAGAIN) {
		say(i, NO, "all contexts are in use: raise the sysctl fs.aio-max-nr");
	} else {
		say(i, NO, "io_setup: %s", strerror(-err));
	}
}

/* Direct I/O ------------------------------------------------------------------------------ */

static const char *read_result(int error)
{
	return !error		  ? "right"
	       : error == -EBADMSG ? "WRONG DATA"
	       : error == -EFAULT  ? "MEMORY OVERWRITTEN"
	       : error == -ENODATA ? "not tried"
				   : strerror(-error);
}

static void say_statx(const struct zc_probe_direct *d, struct item *i)
{
	if (d->statx_error == -ENOSYS)
		say_more(i, "statx does not tell");
	else if (d->statx_error)
		say_more(i, "statx: %s", strerror(-d->statx_error));
	else
		say_more(i, "statx says memory %u, offset %u", d->statx_mem, d->statx_offset);
}

/* The smallest alignments that were measured to be right, never below what statx says. */
static void direct_value(const struct zc_probe_direct *d, struct item *i)
{
	unsigned offset = d->reads[1].error ? 4096 : 512;
	unsigned mem = d->reads[2].error || (offset == 512 && d->reads[3].error) ? 4096 : 512;

	mem = d->statx_mem > mem ? d->statx_mem : mem;
	offset = d->statx_offset > offset ? d->statx_offset : offset;
	value(i, "memory=%u,offset=%u", mem, offset);
}

static void probe_o_direct(const struct machine *m, struct item *i)
{
	const struct zc_probe_direct *d = &m->direct;
	const char *between = "; measured, memory/offset: ";

	if (m->sample < 0) {
		say(i, UNKNOWN, "%s: no file to read, and none can be made: %s", m->path,
		    strerror(-m->sample));
		return;
	}
	if (d->open_error) {
		say(i, NO, "O_DIRECT on %s (%s): %s", m->path, filesystem_name(m->fd),
		    strerror(-d->open_error));
		return;
	}
	i->granted = d->reads[0].error == -ENODATA ? UNKNOWN : d->reads[0].error ? NO : YES;
	say_statx(d, i);
	for (int k = 0; k < ZC_PROBE_READS; k++, between = ", ")
		say_more(i, "%s%u/%u %s", between, d->reads[k].mem, d->reads[k].offset,
			 read_result(d->reads[k].error));
	if (i->granted == YES)
		direct_value(d, i);
}

/* The words of the kernel command line that send DMA through bounce buffers. */
static const char *bounced_by_cmdline(const char *cmdline)
{
	char word[64];

	for (const char *p = cmdline; (p = strstr(p, "swiotlb=")); p++) {
		snprintf(word, sizeof(word), "%.*s", (int)strcspn(p, " "), p);
		if (has_word(word, "force", "=,"))
			return "swiotlb=force";
	}
	return has_word(cmdline, "iommu=soft", " ") ? "iommu=soft" : NULL;
}

/* Encrypted guests: devices cannot reach their memory. */
static const char *bounced_by_cpu(const char *cpuinfo)
{
	static const char *const guests[] = {"tdx_guest", "sev_snp", "sev_es", "sev"};
	const char *flags = strstr(cpuinfo, "\nflags");
	char line[8192];

	if (!flags)
		return NULL;
	snprintf(line, sizeof(line), "%.*s", (int)strcspn(flags + 1, "\n"), flags + 1);
	for (size_t k = 0; k < sizeof(guests) / sizeof(guests[0]); k++)
		/* a host that can run such guests shows the flags too */
		if (has_word(line, guests[k], " \t") && has_word(line, "hypervisor", " \t"))
			return guests[k];
	return NULL;
}

static void note_iommu(const char *cmdline, struct item *i)
{
	for (const char *p = cmdline; *p; p += strspn(p, " ")) {
		int n = (int)strcspn(p, " ");
		if (memmem(p, strcspn(p, "= "), "iommu", 5))
			say_more(i, ", %.*s", n, p);
		p += n;
	}
}

static void probe_dma(const struct machine *m, struct item *i)
{
	static char cmdline[4096], cpuinfo[16384];
	const char *why;

	(void)m;
	if (read_text("/proc/cmdline", cmdline, sizeof(cmdline)) < 0 ||
	    read_text("/proc/cpuinfo", cpuinfo, sizeof(cpuinfo)) < 0) {
		say(i, UNKNOWN, "/proc cannot be read");
		return;
	}
	why = bounced_by_cmdline(cmdline);
	why = why ? why : bounced_by_cpu(cpuinfo);
	value(i, "%s", why ? why : "");
	if (why)
		say(i, NO, "%s: every device transfer is copied once more by the kernel", why);
	else
		say(i, YES, "no forced SWIOTLB, no encrypted guest");
	note_iommu(cmdline, i);
}

/* Memory and limits ----------------------------------------------------------------------- */

static void probe_memlock(const struct machine *m, struct item *i)
{
	struct rlimit r = {0, 0};

	getrlimit(RLIMIT_MEMLOCK, &r);
	if (r.rlim_cur == RLIM_INFINITY)
		value(i, "unlimited");
	else
		number(i, r.rlim_cur);
	if (has_cap(m, CAP_IPC_LOCK))
		say(i, YES, "CAP_IPC_LOCK: the limit does not bind");
	else if (r.rlim_cur == RLIM_INFINITY)
		say(i, YES, "no limit");
	else
		say(i, NO, "bytes; without CAP_IPC_LOCK memory above that is not registered with "
		    "io_uring: raise `ulimit -l`");
}

static int try_hugetlb(void)
{
	int fd = ZC_SYSI("memfd_create", memfd_create("zcfs-probe", MFD_CLOEXEC | MFD_HUGETLB));
	int err;

	if (fd < 0)
		return fd;
	err = ZC_SYSI("ftruncate", ftruncate(fd, HUGE_PAGE));
	void *p = err ? MAP_FAILED : mmap(NULL, HUGE_PAGE, PROT_READ, MAP_SHARED, fd, 0);
	if (!err && p == MAP_FAILED)
		err = -errno;
	if (p != MAP_FAILED)
		munmap(p, HUGE_PAGE);
	close(fd);
	return err;
}

/* "[always] madvise never": the word in brackets. */
static void chosen(const char *file, char *out, size_t size)
{
	char text[128], *open, *end;

	snprintf(out, size, "absent");
	if (read_text(file, text, sizeof(text)) < 0)
		return;
	open = strchr(text, '[');
	end = open ? strchr(open, ']') : NULL;
	if (end)
		snprintf(out, size, "%.*s", (int)(end - open - 1), open + 1);
}

static void probe_huge_pages(const struct machine *m, struct item *i)
{
	char thp[32], shmem[32], count[32] = "?";
	int err = try_hugetlb();
	bool transparent;

	(void)m;
	chosen(THP "enabled", thp, sizeof(thp));
	chosen(THP "shmem_enabled", shmem, sizeof(shmem));
	read_text("/proc/sys/vm/nr_hugepages", count, sizeof(count));
	transparent = !strcmp(shmem, "always") || !strcmp(shmem, "advise") ||
		      !strcmp(shmem, "within_size") || !strcmp(shmem, "force");
	value(i, "%s", !err ? "hugetlb" : transparent ? "transparent" : "");
	say(i, !err || transparent ? YES : NO,
	    "a hugetlb memfd: %s; nr_hugepages %s; transparent: %s, for memfds: %s",
	    err ? strerror(-err) : "works", count, thp, shmem);
	if (i->granted == NO)
		say_more(i, ": `sysctl vm.nr_hugepages=N`, or "
			 "`echo advise > " THP "shmem_enabled`");
}

static void probe_nofile(const struct machine *m, struct item *i)
{
	struct rlimit r = {0, 0};

	(void)m;
	getrlimit(RLIMIT_NOFILE, &r);
	number(i, r.rlim_max);
	say(i, r.rlim_max >= FILES_LEAST ? YES : NO, "hard limit; soft %llu",
	    (unsigned long long)r.rlim_cur);
	if (i->granted == NO)
		say_more(i, ": raise `ulimit -n` to keep more descriptors cached");
}

/* The source ------------------------------------------------------------------------------ */

static void handles_refused(const struct machine *m, const char *call, int error, struct item *i)
{
	if (error == -EOPNOTSUPP)
		say(i, NO, "%s (%s) has none", m->path, filesystem_name(m->fd));
	else if (error == -EPERM && !has_cap(m, CAP_DAC_READ_SEARCH))
		say(i, NO, "%s: no CAP_DAC_READ_SEARCH: run as root", call);
	else
		say(i, NO, "%s on %s: %s", call, m->path, strerror(-error));
}

static void probe_handles(const struct machine *m, struct item *i)
{
	union {
		struct file_handle h;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u = {.h = {.handle_bytes = MAX_HANDLE_SZ}};
	int mount_id;
	int err = ZC_SYSI("name_to_handle_at",
			  name_to_handle_at(m->fd, "", &u.h, &mount_id, AT_EMPTY_PATH));

	if (err) {
		handles_refused(m, "name_to_handle_at", err, i);
		return;
	}
	number(i, u.h.handle_bytes);
	/* open_by_handle_at() takes no O_PATH descriptor for the mount */
	int mount = ZC_SYSI("openat", openat(m->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	int fd = mount < 0 ? mount : ZC_SYSI("open_by_handle_at",
					     open_by_handle_at(mount, &u.h, O_PATH | O_CLOEXEC));
	if (mount >= 0)
		close(mount);
	if (fd < 0) {
		handles_refused(m, "open_by_handle_at", fd, i);
		return;
	}
	close(fd);
	say(i, u.h.handle_bytes <= ZC_HANDLE_BYTES ? YES : NO, "bytes of a handle; opened by it");
	if (i->granted == NO)
		say_more(i, "; zcfs keeps %d at most", ZC_HANDLE_BYTES);
}

/* 0, or -errno: may we watch all of the path's filesystem, or just one directory? */
static int try_fanotify(const struct machine *m, unsigned scope)
{
	unsigned flags = FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_FID;
	int fd = ZC_SYSI("fanotify_init", fanotify_init(flags, O_RDONLY));
	int err;

	if (fd < 0)
		return fd;
	err = ZC_SYSI("fanotify_mark",
		      fanotify_mark(fd, FAN_MARK_ADD | scope, FAN_ATTRIB, m->fd, "."));
	close(fd);
	return err;
}

static void probe_fanotify(const struct machine *m, struct item *i)
{
	int err = try_fanotify(m, FAN_MARK_FILESYSTEM);
	int one = err ? try_fanotify(m, FAN_MARK_INODE) : 0;

	if (!err) {
		value(i, "filesystem");
		say(i, YES, "a whole filesystem can be watched");
	} else if (!one) {
		value(i, "directory");
		say(i, NO, "single directories only: %s", has_cap(m, CAP_SYS_ADMIN) ?
		    strerror(-err) : "no CAP_SYS_ADMIN");
	} else {
		say(i, NO, "%s (%s): %s", m->path, filesystem_name(m->fd), strerror(-one));
	}
}

/* The answer ------------------------------------------------------------------------------ */

static const struct {
	const char *name;
	void (*probe)(const struct machine *m, struct item *i);
} lines[] = {
	{"fuse", probe_fuse},
	{"kernel", probe_kernel},
	{"fuse_protocol", probe_protocol},
	{"passthrough", probe_passthrough},
	{"fuse_io_uring", probe_fuse_uring},
	{"io_uring", probe_io_uring},
	{"linux_aio", probe_aio},
	{"o_direct", probe_o_direct},
	{"dma_bounce", probe_dma},
	{"memlock", probe_memlock},
	{"huge_pages", probe_huge_pages},
	{"nofile", probe_nofile},
	{"file_handles", probe_handles},
	{"fanotify", probe_fanotify},
	{"fusermount3", probe_fusermount},
	{"user_allow_other", probe_allow_other},
};
#define LINES (sizeof(lines) / sizeof(lines[0]))

/* Bytes of the UTF-8 character at `s`, or 0 where there is none. */
static size_t utf8_length(const char *s)
{
	const unsigned char *p = (const unsigned char *)s;
	size_t n = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;

	if (p[0] > 0xf4)
		return 0;
	for (size_t k = 1; k < n; k++)
		if ((p[k] & 0xc0) != 0x80)
			return 0;
	return n;
}

/* A path may be any bytes: what is not UTF-8 is escaped as Python's os.fsdecode() does. */
static void put_string(const char *s)
{
	putchar('"');
	while (*s) {
		size_t n = utf8_length(s);
		unsigned char c = (unsigned char)*s;
		if (!n)
			printf("\\udc%02x", c);
		else if (c < 0x20)
			printf("\\u%04x", c);
		else
			printf("%s%.*s", c == '"' || c == '\\' ? "\\" : "", (int)n, s);
		s += n ? n : 1;
	}
	putchar('"');
}

static void put_item(const char *name, const struct item *i)
{
	static const char *const words[] = {[NO] = "false", [YES] = "true", [UNKNOWN] = "null"};

	printf("  {\"name\": \"%s\", \"granted\": %s, \"value\": ", name, words[i->granted]);
	if (i->number || !i->value[0])
		fputs(i->value[0] ? i->value : "null", stdout);
	else
		put_string(i->value);
	fputs(", \"reason\": ", stdout);
	put_string(i->reason);
	putchar('}');
}

/* The directory of `path`, or of the file that it names. */
static int open_directory(const char *path)
{
	char *copy, *slash;
	int fd = ZC_SYSI("open", open(path, O_PATH | O_DIRECTORY | O_CLOEXEC));

	if (fd != -ENOTDIR)
		return fd;
	copy = strdup(path);
	if (!copy)
		return -ENOMEM;
	slash = strrchr(copy, '/');
	if (slash)
		slash[slash == copy] = 0;
	fd = ZC_SYSI("open", open(slash ? copy : ".", O_PATH | O_DIRECTORY | O_CLOEXEC));
	free(copy);
	return fd;
}

static int look(const char *path, struct machine *m)
{
	struct utsname u;

	m->path = path;
	m->fd = open_directory(path);
	if (m->fd < 0)
		return m->fd;
	if (!uname(&u)) {
		snprintf(m->release, sizeof(m->release), "%s", u.release);
		sscanf(u.release, "%u.%u", &m->kernel_major, &m->kernel_minor);
	}
	m->caps = own_caps();
	m->ring_error = try_ring(0);
	m->ring128_error = try_ring(SQE128);
	m->buffers_error = try_buffers();
	m->sample = zc_probe_sample(m->fd);
	zc_probe_fuse(m->sample, &m->fuse);
	if (m->sample >= 0)
		zc_probe_direct(m->sample, &m->direct);
	return 0;
}

int zc_probe(const char *path)
{
	struct machine m = {.fd = -1, .sample = -1};
	int err = look(path, &m);

	if (err)
		return err;
	for (size_t k = 0; k < LINES; k++) {
		struct item i = {0};
		lines[k].probe(&m, &i);
		fputs(k ? ",\n" : "[\n", stdout);
		put_item(lines[k].name, &i);
	}
	puts("\n]");
	if (m.sample >= 0)
		close(m.sample);
	close(m.fd);
	return fflush(stdout) ? -errno : 0;
}
