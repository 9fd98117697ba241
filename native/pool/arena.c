/* The arena: one memfd, mapped writable once, then sealed against that and against another size; cut
 * into slabs of 2 MiB (in a small pool less, so that there are enough of them) and these into frames of one size
 * class each.
 *
 * Owns the memory, the slabs and their free frames. A slab gets a class when a frame of that class is
 * needed, and loses it when all of its frames are free. Room is made by eviction within the class; a
 * class that evicts much more than another takes slabs from that one.
 *
 * Threads: under the pool's lock, but for creation and the end.
 */
#include <fcntl.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../sys.h"
#include "core.h"

#define NONE ZC_NO_FRAME
#define EVICT_AT_ONCE 32 /* frames: neighbours come free together, for large requests */
#define PRESSURE_RATIO 4
#define STEAL_TRIES 8
#define SLABS_LEAST 32 /* unless they became smaller than the largest frame */

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* creation ------------------------------------------------------------------------------------ */

/* An address range aligned to a slab. */
static int map_aligned(struct zc_pool *p, int fd)
{
	size_t len = p->arena_len + ZC_SLAB_SIZE;
	void *m = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m == MAP_FAILED)
		return -errno;
	uintptr_t at = ((uintptr_t)m + ZC_SLAB_SIZE - 1) & ~(uintptr_t)(ZC_SLAB_SIZE - 1);
	int err = ZC_SYSI("mmap", mmap((void *)at, p->arena_len, PROT_READ | PROT_WRITE,
				       MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ? -1 : 0);
	if (err) {
		munmap(m, len);
		return err;
	}
	p->mapping = m;
	p->mapping_len = len;
	p->arena = (uint8_t *)at;
	return 0;
}

static int make_memfd(struct zc_pool *p)
{
	int fd = ZC_SYSI("memfd_create", memfd_create("zcfs-pool", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	if (fd < 0)
		return fd;
	int err = ZC_SYSI("ftruncate", ftruncate(fd, (off_t)p->arena_len));
	if (!err)
		err = map_aligned(p, fd);
	if (!err)
		err = ZC_SYSI("seal", fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW |
							    F_SEAL_FUTURE_WRITE | F_SEAL_SEAL));
	char path[48];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int read_fd = err ? err : ZC_SYSI("open", open(path, O_RDONLY | O_CLOEXEC));
	p->arena_fd = fd;
	p->read_fd = read_fd;
	return read_fd < 0 ? read_fd : 0;
}

/* Huge pages, where the kernel grants them: for slabs that have some memory already, and before an I/O
 * back end pins the arena, which also gives it all of its memory. */
static void ask_huge(struct zc_pool *p)
{
	for (size_t at = 0; at < p->arena_len; at += ZC_SLAB_SIZE) {
		*(volatile uint8_t *)(p->arena + at) = 0;
		if (ZC_SYSI("madvise", madvise(p->arena + at, ZC_SLAB_SIZE, MADV_COLLAPSE)))
			return;
		p->huge = true;
	}
}

static void list_push(struct zc_pool *p, struct zc_slab_list *l, uint32_t i)
{
	struct zc_slab *s = &p->slabs[i];
	s->prev = NONE;
	s->next = l->head;
	if (l->head != NONE)
		p->slabs[l->head].prev = i;
	l->head = i;
	l->count++;
	s->listed = true;
}

static void list_remove(struct zc_pool *p, struct zc_slab_list *l, uint32_t i)
{
	struct zc_slab *s = &p->slabs[i];
	if (s->prev != NONE)
		p->slabs[s->prev].next = s->next;
	else
		l->head = s->next;
	if (s->next != NONE)
		p->slabs[s->next].prev = s->prev;
	l->count--;
	s->listed = false;
}

static int make_frames(struct zc_pool *p)
{
	void *mem = NULL;
	size_t len = p->units * sizeof(struct zc_frame);
	if (posix_memalign(&mem, ZC_SLAB_SIZE, len))
		return -ENOMEM;
	madvise(mem, len, MADV_HUGEPAGE);
	memset(mem, 0, len);
	p->frames = mem;
	for (uint32_t i = 0; i < p->units; i++)
		atomic_init(&p->frames[i].state, S_EXCL);
	p->slabs = calloc(p->slab_count, sizeof(*p->slabs));
	if (!p->slabs)
		return -ENOMEM;
	for (uint32_t i = p->slab_count; i-- > 0;)
		list_push(p, &p->free_slabs, i);
	return 0;
}

static int make_class(struct zc_pool *p, unsigned c)
{
	struct zc_replace_config config = {.base = &p->frames[0].r, .stride = sizeof(struct zc_frame),
					   .capacity = p->units >> c};
	p->classes[c].partial.head = NONE;
	return p->policy->create(&config, &p->classes[c].replace);
}

int zc_arena_create(struct zc_pool *p, size_t len)
{
	p->arena_len = len;
	p->units = (uint32_t)(len >> ZC_UNIT_SHIFT);
	p->slab_units = ZC_SLAB_UNITS;
	while (p->units / p->slab_units < SLABS_LEAST && p->slab_units > zc_units(ZC_PAGE_CLASSES - 1))
		p->slab_units /= 2;
	p->slab_count = p->units / p->slab_units;
	p->free_slabs.head = NONE;
	p->arena_fd = p->read_fd = -1;
	int err = make_memfd(p);
	if (!err)
		err = make_frames(p);
	if (!err)
		ask_huge(p);
	for (unsigned c = 0; !err && c < ZC_PAGE_CLASSES; c++)
		err = make_class(p, c);
	return err;
}

void zc_arena_destroy(struct zc_pool *p)
{
	for (unsigned c = 0; c < ZC_PAGE_CLASSES; c++)
		if (p->classes[c].replace)
			p->policy->destroy(p->classes[c].replace);
	free(p->slabs);
	free(p->frames);
	if (p->mapping)
		munmap(p->mapping, p->mapping_len);
	if (p->arena_fd >= 0)
		close(p->arena_fd);
	if (p->read_fd >= 0)
		close(p->read_fd);
}

/* slabs --------------------------------------------------------------------------------------- */

static bool slab_assign(struct zc_pool *p, unsigned class)
{
	uint32_t i = p->free_slabs.head;
	if (i == NONE)
		return false;
	struct zc_slab *s = &p->slabs[i];
	struct zc_class *c = &p->classes[class];
	list_remove(p, &p->free_slabs, i);
	s->class = (uint8_t)class;
	s->free = s->total = (uint16_t)(p->slab_units >> class);
	for (unsigned b = 0; b < s->total; b++)
		s->bits[b / 64] |= 1ULL << b % 64;
	list_push(p, &c->partial, i);
	c->slabs++;
	return true;
}

static uint32_t slab_pop(struct zc_pool *p, struct zc_class *c)
{
	uint32_t i = c->partial.head;
	if (i == NONE)
		return NONE;
	struct zc_slab *s = &p->slabs[i];
	unsigned w = 0;
	while (!s->bits[w])
		w++;
	unsigned b = (unsigned)__builtin_ctzll(s->bits[w]);
	s->bits[w] &= s->bits[w] - 1;
	if (--s->free == 0)
		list_remove(p, &c->partial, i);
	c->used++;
	uint32_t frame = i * p->slab_units + ((w * 64 + b) << s->class);
	p->frames[frame].r.class = s->class;
	return frame;
}

void zc_frame_free(struct zc_pool *p, uint32_t frame)
{
	uint32_t i = frame / p->slab_units;
	struct zc_slab *s = &p->slabs[i];
	struct zc_class *c = &p->classes[s->class];
	unsigned b = (frame % p->slab_units) >> s->class;
	s->bits[b / 64] |= 1ULL << b % 64;
	c->used--;
	if (++s->free == s->total) {
		if (s->listed)
			list_remove(p, &c->partial, i);
		memset(s->bits, 0, sizeof(s->bits));
		c->slabs--;
		list_push(p, &p->free_slabs, i);
	} else if (!s->listed) {
		list_push(p, &c->partial, i);
	}
}

/* eviction ------------------------------------------------------------------------------------ */

static bool take(void *ctx, uint32_t frame)
{
	return zc_frame_take(ctx, frame);
}

/* A frame that the policy has let go; still in the table. */
static void evicted(struct zc_pool *p, uint32_t frame)
{
	struct zc_class *c = &p->classes[p->frames[frame].r.class];
	c->pressure += (uint64_t)zc_units(p->frames[frame].r.class) << ZC_UNIT_SHIFT;
	p->evictions++;
	zc_frame_unlink(p, frame);
	zc_frame_free(p, frame);
}

static bool evict_some(struct zc_pool *p, unsigned class)
{
	struct zc_class *c = &p->classes[class];
	uint32_t most = c->used / 64 + 1, n = 0;
	for (; n < most && n < EVICT_AT_ONCE; n++) {
		uint32_t frame = p->policy->evict(c->replace, take, p);
		if (frame == NONE)
			break;
		evicted(p, frame);
	}
	return n > 0;
}

/* Empties the slab, as far as its frames are idle. */
static bool slab_drain(struct zc_pool *p, uint32_t i)
{
	struct zc_slab *s = &p->slabs[i];
	struct zc_class *c = &p->classes[s->class];
	unsigned class = s->class, total = s->total, used = total - s->free;
	for (unsigned b = 0; b < total && used; b++) {
		uint32_t frame = i * p->slab_units + (b << class);
		if (s->bits[b / 64] >> b % 64 & 1)
			continue;
		if (!zc_frame_take(p, frame))
			return false;
		p->policy->remove(c->replace, frame);
		evicted(p, frame);
		used--;
	}
	return true;
}

/* The slab around the page that the class would evict next, and so on. */
static bool steal_from(struct zc_pool *p, unsigned class)
{
	for (unsigned i = 0; i < STEAL_TRIES && p->classes[class].slabs; i++) {
		uint32_t frame = p->policy->evict(p->classes[class].replace, take, p);
		if (frame == NONE)
			return false;
		evicted(p, frame);
		uint32_t slab = frame / p->slab_units;
		if (p->free_slabs.count || slab_drain(p, slab))
			return true;
	}
	return false;
}

static int calmest_class(const struct zc_pool *p, unsigned but)
{
	int best = -1;
	for (unsigned c = 0; c < ZC_PAGE_CLASSES; c++)
		if (c != but && p->classes[c].slabs &&
		    (best < 0 || p->classes[c].pressure < p->classes[best].pressure))
			best = (int)c;
	return best;
}

/* After a slab's worth of evictions: is there a class that evicts far less? */
static void balance(struct zc_pool *p, unsigned class)
{
	struct zc_class *c = &p->classes[class];
	if (c->pressure < (uint64_t)p->slab_units << ZC_UNIT_SHIFT)
		return;
	int calm = calmest_class(p, class);
	if (calm >= 0 && p->classes[calm].pressure < c->pressure / PRESSURE_RATIO)
		steal_from(p, (unsigned)calm);
	for (unsigned i = 0; i < ZC_PAGE_CLASSES; i++)
		p->classes[i].pressure /= 2;
}

static bool steal_any(struct zc_pool *p, unsigned class)
{
	bool tried[ZC_PAGE_CLASSES] = {false};
	tried[class] = true;
	for (;;) {
		int most = -1;
		for (int c = 0; c < ZC_PAGE_CLASSES; c++)
			if (!tried[c] && p->classes[c].slabs &&
			    (most < 0 || p->classes[c].slabs > p->classes[most].slabs))
				most = c;
		if (most < 0)
			return false;
		tried[most] = true;
		if (steal_from(p, (unsigned)most))
			return true;
	}
}

uint32_t zc_frame_alloc(struct zc_pool *p, unsigned class)
{
	struct zc_class *c = &p->classes[class];
	uint32_t frame = slab_pop(p, c);
	if (frame != NONE)
		return frame;
	if (p->free_slabs.head == NONE) {
		balance(p, class);
		if (p->free_slabs.head == NONE && !evict_some(p, class))
			steal_any(p, class);
	}
	if (c->partial.head == NONE)
		slab_assign(p, class);
	return slab_pop(p, c);
}
