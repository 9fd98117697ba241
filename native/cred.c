/* Acting as the caller, so that what is created belongs to the right user and group and the
 * source decides about set-id bits.
 *
 * The kernel has checked permissions already (default_permissions); what is left to us is whose
 * name the source sees. The C library's setresuid and friends change all threads: these are the
 * bare system calls, which change one. Leaving fsuid 0 also takes the file-system capabilities away
 * and returning to it gives them back.
 *
 * Threading: each worker has its own struct zc_cred and its own umask (unshare(CLONE_FS)).
 */
#include "internal.h"

#include <linux/capability.h>
#include <sched.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys.h"

#define MAX_GROUPS 64

static int set_groups(size_t n, const uint32_t *groups)
{
	return ZC_SYSI("setgroups", syscall(SYS_setgroups, n, groups));
}

static void fsetid_set(struct zc_cred *c, bool off)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
	struct __user_cap_data_struct d[2] = {c->caps[0], c->caps[1]};
	if (off)
		d[0].effective &= ~(1u << CAP_FSETID);
	syscall(SYS_capset, &h, d);
	c->no_fsetid = off;
}

/* A thread inherits whatever the thread that started it was at that moment: perhaps somebody else,
 * perhaps without CAP_FSETID. So this starts from what the process is allowed, not from what is. */
void zc_cred_init(struct zc_cred *c)
{
	*c = (struct zc_cred){.own_umask = !unshare(CLONE_FS)};
	if (c->own_umask)
		umask(0);
	c->can = c->own_umask && geteuid() == 0;
	if (!c->can)
		return;
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
	c->can = !syscall(SYS_capget, &h, c->caps);
	syscall(SYS_setfsuid, 0);
	syscall(SYS_setfsgid, 0);
	set_groups(0, NULL);
	for (unsigned i = 0; i < 2; i++)
		c->caps[i].effective = c->caps[i].permitted;
	fsetid_set(c, false);
}

/* The supplementary group that the kernel sent with a create, if any. Sizes were checked. */
static int caller_groups(const struct zc_req *r)
{
	const char *p = r->ext;
	for (size_t left = r->ext_len; left;) {
		struct fuse_ext_header eh;
		uint32_t groups[1 + MAX_GROUPS]; /* how many, and which */
		memcpy(&eh, p, sizeof(eh));
		size_t len = eh.size - sizeof(eh);
		if (eh.type == FUSE_EXT_GROUPS && len <= sizeof(groups)) {
			memcpy(groups, p + sizeof(eh), len);
			return set_groups(groups[0], groups + 1);
		}
		p += eh.size;
		left -= eh.size;
	}
	return set_groups(0, NULL);
}

int zc_as_caller(struct zc_req *r, uint32_t mask)
{
	struct zc_cred *c = &r->w->cred;
	if (c->own_umask)
		umask(mask & 0777);
	if (!c->can)
		return 0; /* one user's mount: everything is his anyway */
	zc_as_self(r);
	if (r->hdr.uid == 0 && r->hdr.gid == 0)
		return 0;
	int err = caller_groups(r);
	if (err)
		return err;
	c->as_other = c->as_user = true;
	syscall(SYS_setfsgid, r->hdr.gid);
	syscall(SYS_setfsuid, r->hdr.uid);
	if ((uint32_t)syscall(SYS_setfsuid, -1) == r->hdr.uid)
		return 0;
	zc_as_self(r);
	return -EPERM;
}

void zc_as_self(struct zc_req *r)
{
	struct zc_cred *c = &r->w->cred;
	if (c->as_other)
		syscall(SYS_setfsgid, 0);
	c->as_other = false;
	if (!c->as_user)
		return;
	syscall(SYS_setfsuid, 0); /* which raises CAP_FSETID again, too */
	c->no_fsetid = false;
	c->as_user = set_groups(0, NULL) != 0; /* if they stay, the next call tries again */
}

void zc_fsetid_off(struct zc_worker *w)
{
	if (w->cred.can && !w->cred.no_fsetid)
		fsetid_set(&w->cred, true);
}

void zc_fsetid_on(struct zc_worker *w)
{
	if (w->cred.no_fsetid)
		fsetid_set(&w->cred, false);
}

void zc_no_privilege(struct zc_req *r)
{
	zc_fsetid_off(r->w);
	if (!r->w->cred.can || !r->hdr.gid)
		return;
	r->w->cred.as_other = true;
	syscall(SYS_setfsgid, r->hdr.gid);
}

bool zc_override(struct zc_req *r)
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
	struct __user_cap_data_struct d[2];
	if (!r->w->cred.as_user || syscall(SYS_capget, &h, d))
		return false;
	d[0].effective |= d[0].permitted & (1u << CAP_DAC_OVERRIDE);
	return !syscall(SYS_capset, &h, d);
}
