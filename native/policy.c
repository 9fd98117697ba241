/* Policies: which engine serves a file, by the first glob that its path matches.
 *
 * Owns the list of rules, which is made from the command line and never changes after, and what
 * of it each inode remembers. A file is matched under the name by which the kernel asks for it
 * (LOOKUP, CREATE, LINK, RENAME …), which is the only time that we know a name; the open uses
 * what was found then. So a file with several names has the policy of the one that was last
 * looked up.
 *
 * The path of a directory is asked of the kernel (/proc/self/fd), and only where the last
 * component of a glob matches the name. Without rules nothing of this costs anything.
 *
 * Threading: any worker. What an inode remembers is one word.
 */
#include <fnmatch.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ops.h"
#include "sys.h"

/* Of inode->policy: rule number + 1 in the low bits; 0: no rule. */
#define RULE_MASK 0xffu
#define WANTS_PIN 0x100u

/* Globs ------------------------------------------------------------------------------------ */

static size_t component(const char *p)
{
	return strcspn(p, "/");
}

static const char *after(const char *p)
{
	p += component(p);
	return *p ? p + 1 : NULL;
}

/* The '[' at `p` to what ends it; NULL: nothing does. */
static const char *bracket_end(const char *p)
{
	p += p[1] == '!' || p[1] == '^' ? 2 : 1;
	if (*p == ']')
		p++;
	while (*p && *p != ']' && *p != '/')
		p++;
	return *p == ']' ? p : NULL;
}

static const char *component_wrong(const char *p, size_t len)
{
	if (!len)
		return "an empty component (globs are relative to the mount: no '/' in front)";
	if (p[0] == '.' && (len == 1 || (len == 2 && p[1] == '.')))
		return "a component '.' or '..'";
	for (const char *end = p + len; p < end; p++) {
		if (*p == '\\') {
			if (++p == end)
				return "a backslash with nothing behind it";
		} else if (*p == '[' && !(p = bracket_end(p))) {
			return "a '[' that nothing closes";
		}
	}
	return NULL;
}

const char *zc_glob_wrong(const char *glob)
{
	const char *wrong = NULL;
	for (const char *p = glob; p && !wrong; p = after(p)) {
		size_t len = component(p);
		char copy[NAME_MAX + 1] = "";
		if (len > NAME_MAX)
			return "a component that is longer than any name";
		memcpy(copy, p, len);
		wrong = component_wrong(copy, len);
	}
	return wrong;
}

static bool is_any(const char *glob)
{
	return component(glob) == 2 && !strncmp(glob, "**", 2);
}

static bool component_match(const char *glob, const char *name)
{
	char g[NAME_MAX + 1], n[NAME_MAX + 1];
	size_t glen = component(glob), nlen = component(name);
	if (glen > NAME_MAX || nlen > NAME_MAX)
		return false;
	memcpy(g, glob, glen);
	memcpy(n, name, nlen);
	g[glen] = n[nlen] = '\0';
	return !fnmatch(g, n, 0);
}

/* Of a failed match only the last "**" can take more: one place to come back to is enough. */
bool zc_glob_match(const char *glob, const char *path)
{
	const char *any = NULL, *from = NULL;
	while (path) {
		if (glob && is_any(glob)) {
			any = glob = after(glob);
			from = path;
			if (!glob)
				return true;
		} else if (glob && component_match(glob, path)) {
			glob = after(glob);
			path = after(path);
		} else if (any) {
			glob = any;
			path = from = after(from);
		} else {
			return false;
		}
	}
	return !glob;
}

/* Whether the path of a file called `name` can match. */
static bool name_may_match(const char *glob, const char *name)
{
	const char *last = strrchr(glob, '/');
	last = last ? last + 1 : glob;
	return is_any(last) || component_match(last, name);
}

/* Rules ------------------------------------------------------------------------------------ */

static const struct {
	const char *name;
	const struct zc_engine *engine;
} engines[] = {
	{"kernel", &zc_engine_kernel},
	{"pool", &zc_engine_pool},
	{"buffered", &zc_engine_buffered},
	{"pinned", &zc_engine_pinned},
};

static int rule_add(struct zc_policies *p, const char *glob, size_t len,
		    const struct zc_engine *engine, const char **wrong)
{
	char *copy = strndup(glob, len);
	*wrong = NULL;
	if (!copy)
		return -ENOMEM;
	*wrong = zc_glob_wrong(copy);
	if (!*wrong && p->count == ZC_MAX_RULES)
		*wrong = "more rules than there may be";
	if (*wrong) {
		free(copy);
		return -EINVAL;
	}
	p->rules[p->count++] = (struct zc_rule){copy, engine};
	return 0;
}

int zc_policy_add(struct zc_policies *p, const char *text, const char **wrong)
{
	const char *eq = strrchr(text, '=');
	*wrong = "no '=ENGINE' behind the glob";
	if (!eq)
		return -EINVAL;
	for (size_t i = 0; i < sizeof(engines) / sizeof(*engines); i++)
		if (!strcmp(eq + 1, engines[i].name))
			return rule_add(p, text, (size_t)(eq - text), engines[i].engine, wrong);
	*wrong = "an engine that is not kernel, pool, buffered or pinned";
	return -EINVAL;
}

int zc_policy_add_pin(struct zc_policies *p, const char *glob, const char **wrong)
{
	return rule_add(p, glob, strlen(glob), NULL, wrong);
}

bool zc_policy_names(const struct zc_policies *p, const struct zc_engine *engine)
{
	for (unsigned i = 0; i < p->count; i++)
		if (p->rules[i].engine == engine)
			return true;
	return false;
}

/* Files ------------------------------------------------------------------------------------ */

/* Where the directory of `dirfd` is below the source, with a '/' at the end unless it is the source.
 * -ENOENT: nowhere that could be named. */
static int dir_path(const struct zc_session *s, int dirfd, char *out, size_t cap)
{
	char root[PATH_MAX];
	ssize_t n = ZC_SYS("readlink", readlink(zc_link_of(dirfd).path, out, cap - 1));
	ssize_t skip = ZC_SYS("readlink", readlink(zc_link_of(s->source_fd).path, root, sizeof(root)));
	if (n < 0 || skip < 0)
		return n < 0 ? (int)n : (int)skip;
	if (skip == 1) /* "/": a private mount */
		skip = 0;
	if ((size_t)n >= cap - 1 || n < skip || strncmp(out, root, (size_t)skip) ||
	    (n > skip && out[skip] != '/'))
		return -ENOENT;
	if (n == skip || n == skip + 1) {
		*out = '\0';
		return 0;
	}
	n -= skip + 1;
	memmove(out, out + skip + 1, (size_t)n);
	memcpy(out + n, "/", 2);
	return 0;
}

int zc_source_path(const struct zc_session *s, int fd, char *out, size_t cap)
{
	int err = dir_path(s, fd, out, cap);
	size_t len = err ? 0 : strlen(out);
	if (len)
		out[len - 1] = '\0';
	return err ? err : len ? 0 : -ENOENT;
}

struct subject {
	struct zc_session *s;
	struct zc_inode *parent;
	const char *name;
	char path[PATH_MAX + NAME_MAX + 2]; /* once it was needed */
	bool known, lost;
};

static bool subject_matches(struct subject *f, const char *glob)
{
	if (f->lost || !name_may_match(glob, f->name))
		return false;
	if (!f->known) {
		ZC_FD(dir);
		f->lost = zc_inode_fd(f->s->inodes, f->parent, &dir) ||
			  dir_path(f->s, dir.fd, f->path, PATH_MAX);
		if (f->lost)
			return false;
		strncat(f->path, f->name, NAME_MAX);
		f->known = true;
	}
	return zc_glob_match(glob, f->path);
}

void zc_policy_found(struct zc_session *s, struct zc_inode *parent, const char *name,
		     struct zc_inode *inode)
{
	const struct zc_policies *p = &s->opt.policies;
	struct subject f = {.s = s, .parent = parent, .name = name};
	unsigned found = 0;
	if (inode->fmt != S_IFREG || !*name)
		return;
	for (unsigned i = 0; i < p->count; i++) {
		const struct zc_rule *rule = &p->rules[i];
		unsigned mine = rule->engine ? RULE_MASK : WANTS_PIN;
		if (!(found & mine) && subject_matches(&f, rule->glob))
			found |= rule->engine ? i + 1 : WANTS_PIN;
	}
	if (found & RULE_MASK && p->rules[(found & RULE_MASK) - 1].engine == &zc_engine_pinned)
		found |= WANTS_PIN;
	atomic_store(&inode->policy, (uint16_t)found);
}

void zc_policy_renamed(struct zc_session *s, struct zc_inode *dir, int dirfd, const char *name)
{
	struct statx stx;
	struct zc_inode *inode;
	if (!s->opt.policies.count || zc_inode_adopt_at(s->inodes, dir, dirfd, name, &stx, &inode))
		return;
	zc_policy_found(s, dir, name, inode);
	zc_inode_forget(s->inodes, zc_inode_id(s->inodes, inode), 1);
	zc_inode_put(s->inodes, inode);
}

/* The engine that a rule names if it works here, else the mount's. */
static const struct zc_engine *engine_of(const struct zc_session *s, const struct zc_engine *named)
{
	bool kernel = named == &zc_engine_kernel;
	if (named == &zc_engine_pinned || (kernel && !zc_has(s, FUSE_PASSTHROUGH)))
		return s->engine;
	return named;
}

const struct zc_engine *zc_policy_engine(const struct zc_session *s, const struct zc_inode *inode)
{
	unsigned rule = atomic_load(&inode->policy) & RULE_MASK;
	return rule ? engine_of(s, s->opt.policies.rules[rule - 1].engine) : s->engine;
}

bool zc_policy_pins(const struct zc_inode *inode)
{
	return atomic_load(&inode->policy) & WANTS_PIN;
}
