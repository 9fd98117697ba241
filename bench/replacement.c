/* Replacement policies over a trace: how many accesses each would have found in the cache.
 *
 *     replacement TRACE PAGE_SIZE PAGES…
 *
 * TRACE: 64-bit words, file << 32 | block of 4 KiB (bench/replacement.py records them). PAGES: sizes of
 * the cache. The policies are the pool's own code (native/pool/replace.h), driven as the pool does: a
 * hit counts in the page's access byte, and reading on in the page that was read last is no hit. One
 * line of JSON for each policy and size.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../native/pool/replace.h"

#define FILES 65536u

/* Page numbers of the trace, made dense. */
static uint32_t *pages;
static size_t accesses, distinct;

struct cache {
	struct zc_rnode *nodes; /* of the frames */
	uint32_t *frame_of;     /* by page; ZC_NO_FRAME: not there */
	uint32_t *page_of;      /* by frame */
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void *zeros(size_t count, size_t size)
{
	void *p = calloc(count, size);

	if (!p)
		die("calloc");
	return p;
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 32)) * 0xff51afd7ed558ccdULL;
	x = (x ^ (x >> 29)) * 0x9e3779b97f4a7c15ULL;
	return x ^ (x >> 32);
}

/* The number of a key, given in the order of first use. */
static uint32_t number_of(uint64_t *keys, uint32_t *numbers, size_t mask, uint64_t key)
{
	size_t i = mix(key) & mask;

	while (keys[i] && keys[i] != key + 1)
		i = (i + 1) & mask;
	if (!keys[i]) {
		keys[i] = key + 1;
		numbers[i] = (uint32_t)distinct++;
	}
	return numbers[i];
}

/* Leaves out reads that go on in the page that was read last in that file. */
static void load(const char *path, uint64_t page_size)
{
	FILE *in = fopen(path, "rb");
	uint64_t *last = zeros(FILES, sizeof(*last)), word;
	size_t mask = ((size_t)1 << 24) - 1, room = 1 << 16;
	uint64_t *keys = zeros(mask + 1, sizeof(*keys));
	uint32_t *numbers = zeros(mask + 1, sizeof(*numbers));

	if (!in)
		die(path);
	pages = zeros(room, sizeof(*pages));
	while (fread(&word, sizeof(word), 1, in) == 1) {
		uint64_t file = word >> 32, page = (word & UINT32_MAX) / (page_size / 4096);

		if (last[file % FILES] == page + 1)
			continue;
		last[file % FILES] = page + 1;
		if (accesses == room) {
			pages = realloc(pages, (room *= 2) * sizeof(*pages));
			if (!pages)
				die("realloc");
		}
		pages[accesses++] = number_of(keys, numbers, mask, file << 32 | page);
	}
	fclose(in);
	free(last);
	free(keys);
	free(numbers);
}

static bool take(void *ctx, uint32_t i)
{
	struct cache *c = ctx;

	c->frame_of[c->page_of[i]] = ZC_NO_FRAME;
	return true;
}

static void used(const struct zc_replace_kind *kind, struct zc_replace *r, struct zc_rnode *n,
		 uint32_t i)
{
	uint8_t count = zc_rnode_access(n);

	if (count < ZC_ACCESS_MOST)
		zc_rnode_set_access(n, (uint8_t)(count + 1));
	if (kind->hit)
		kind->hit(r, i);
}

static size_t hits_of(const struct zc_replace_kind *kind, struct cache *c, uint32_t frames)
{
	struct zc_replace_config config = {
		.base = c->nodes, .stride = sizeof(*c->nodes), .capacity = frames};
	struct zc_replace *r;
	size_t hits = 0;
	uint32_t filled = 0;

	if (kind->create(&config, &r))
		die(kind->name);
	for (size_t k = 0; k < accesses; k++) {
		uint32_t page = pages[k], i = c->frame_of[page];

		if (i != ZC_NO_FRAME) {
			hits++;
			used(kind, r, &c->nodes[i], i);
			continue;
		}
		i = filled < frames ? filled++ : kind->evict(r, take, c);
		c->page_of[i] = page;
		c->frame_of[page] = i;
		c->nodes[i].hash = (uint32_t)mix(page + 1);
		zc_rnode_set_access(&c->nodes[i], 0);
		kind->insert(r, i);
	}
	kind->destroy(r);
	return hits;
}

static void measure(const struct zc_replace_kind *kind, uint32_t frames)
{
	struct cache c = {.nodes = zeros(frames, sizeof(*c.nodes)),
			  .frame_of = zeros(distinct, sizeof(*c.frame_of)),
			  .page_of = zeros(frames, sizeof(*c.page_of))};

	memset(c.frame_of, 0xff, distinct * sizeof(*c.frame_of));
	printf("{\"policy\": \"%s\", \"frames\": %u, \"accesses\": %zu, \"pages\": %zu, "
	       "\"hits\": %zu}\n",
	       kind->name, frames, accesses, distinct, hits_of(kind, &c, frames));
	free(c.nodes);
	free(c.frame_of);
	free(c.page_of);
}

int main(int argc, char **argv)
{
	const struct zc_replace_kind *kind;

	if (argc < 4 || atol(argv[2]) < 4096)
		return fprintf(stderr, "usage: replacement TRACE PAGE_SIZE PAGES…\n"), 2;
	load(argv[1], (uint64_t)atol(argv[2]));
	for (int a = 3; a < argc; a++)
		for (unsigned i = 0; (kind = zc_replace_number(i)); i++) {
			/* a share of what the trace has, as “1/20”, or a number */
			char *slash = strchr(argv[a], '/');
			size_t frames = (size_t)atol(argv[a]);

			if (slash)
				frames = distinct * frames / (size_t)atol(slash + 1);
			measure(kind, frames < 16 ? 16 : (uint32_t)frames);
		}
	free(pages);
	return 0;
}
