/* Globs and rules of policies: what matches what, and what is refused. */
#include "../internal.h"

#include <stdio.h>
#include <string.h>

static int failures;

static void match(const char *glob, const char *path, bool want)
{
	if (zc_glob_match(glob, path) == want)
		return;
	failures++;
	printf("'%s' %s '%s'\n", glob, want ? "should match" : "should not match", path);
}

static void test_match(void)
{
	static const char *const yes[][2] = {
		{"a", "a"}, {"*", "a"}, {"*.db", "x.db"}, {"*", ".hidden"}, {"?", "x"},
		{"[a-c]x", "bx"}, {"[!a]x", "bx"}, {"\\*", "*"}, {"a/b", "a/b"}, {"a/*", "a/b"},
		{"**", "a"}, {"**", "a/b/c"}, {"**/c", "c"}, {"**/c", "a/b/c"}, {"a/**", "a/b/c"},
		{"a/**/d", "a/d"}, {"a/**/d", "a/b/c/d"}, {"**/b/c", "b/b/c"}, {"**/b", "b/c/b"},
		{"**/a/**/b", "x/a/y/a/z/b"}, {"**/*.ibd", "db/t.ibd"}, {"a**b", "aXXb"},
		{"*/*", "a/b"}, {"**/**", "a"}, {"**/**", "a/b"}, {"[]]", "]"}, {"\xff*", "\xff\xfe"},
	};
	static const char *const no[][2] = {
		{"a", "b"}, {"a", "a/b"}, {"*", "a/b"}, {"*.db", "d/x.db"}, {"?", "xy"},
		{"a*c", "ab/c"}, {"a**c", "ab/c"}, {"a/**", "a"}, {"a/**", "b/a"}, {"**/c", "a/cc"},
		{"a/**/d", "a/b/c"}, {"*/*", "a"}, {"*/*", "a/b/c"}, {"[a/b]", "a"}, {"a/b", "a"},
		{"**/a/**/b", "x/b/a"}, {"\\*", "x"}, {"A", "a"},
	};
	for (size_t i = 0; i < sizeof(yes) / sizeof(*yes); i++)
		match(yes[i][0], yes[i][1], true);
	for (size_t i = 0; i < sizeof(no) / sizeof(*no); i++)
		match(no[i][0], no[i][1], false);
}

static void refuse(const char *text, const char *word)
{
	static struct zc_policies p;
	const char *wrong = "";
	if (zc_policy_add(&p, text, &wrong) == -EINVAL && strstr(wrong, word))
		return;
	failures++;
	printf("'%s' is taken, or refused with '%s', not '%s'\n", text, wrong, word);
}

static void test_rules(void)
{
	static struct zc_policies p;
	const char *wrong;
	refuse("*.db", "ENGINE");
	refuse("*.db=", "engine");
	refuse("*.db=warp", "engine");
	refuse("=pool", "empty");
	refuse("/a=pool", "empty");
	refuse("a//b=pool", "empty");
	refuse("a/=pool", "empty");
	refuse("../a=pool", "'..'");
	refuse("a/./b=pool", "'.'");
	refuse("a[b=pool", "'['");
	refuse("a[b/c]=pool", "'['");
	refuse("a\\=pool", "backslash");
	for (unsigned i = 0; i < ZC_MAX_RULES; i++)
		failures += zc_policy_add(&p, i % 2 ? "a=b=pool" : "\\[x=kernel", &wrong) != 0;
	failures += p.count != ZC_MAX_RULES || strcmp(p.rules[1].glob, "a=b");
	failures += zc_policy_add_pin(&p, "x", &wrong) != -EINVAL || !strstr(wrong, "more rules");
	failures += !zc_policy_names(&p, &zc_engine_pool) || zc_policy_names(&p, &zc_engine_pinned) ||
		    zc_policy_names(&p, NULL);
}

int main(void)
{
	test_match();
	test_rules();
	return failures != 0;
}
