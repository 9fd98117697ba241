/* The state of frames: pins, claims, publication, detachment; and the limit of what is borrowed.
 *
 * Pins and the limit take no lock. The limit counts frames, not borrows: whoever pins a frame that
 * nobody had pinned takes its units (4 KiB each) from the credit of its thread's shard, and the last to
 * let go gives them to that of its own. Shards without credit take some of the pool's, and when that
 * has none left, what other shards have and do not need.
 */
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../sys.h"
#include "core.h"

#define NONE ZC_NO_FRAME

unsigned zc_shard_of_thread(void)
{
	static _Atomic unsigned next;
	static _Thread_local unsigned mine = UINT_MAX;

	if (__builtin_expect(mine == UINT_MAX, 0))
		mine = atomic_fetch_add(&next, 1) % ZC_SHARDS;
	return mine;
}

/* the limit ----------------------------------------------------------------------------------- */

static void sweep(struct zc_pool *p)
{
	for (unsigned i = 0; i < ZC_SHARDS; i++) {
		int64_t c = atomic_load(&p->shards[i].credit);
		while (c > 0 && !atomic_compare_exchange_weak(&p->shards[i].credit, &c, 0))
			;
		if (c > 0)
			atomic_fetch_sub(&p->reserved, c);
	}
}

static bool reserve(struct zc_pool *p, int64_t units, bool force)
{
	int64_t r = atomic_load(&p->reserved);
	do {
		if (!force && r + units > p->limit)
			return false;
	} while (!atomic_compare_exchange_weak(&p->reserved, &r, r + units));
	return true;
}

int zc_budget_take(struct zc_pool *p, int64_t units, bool force)
{
	struct zc_shard *s = zc_shard(p);
	int64_t c = atomic_load_explicit(&s->credit, memory_order_relaxed);
	while (c >= units)
		if (atomic_compare_exchange_weak_explicit(&s->credit, &c, c - units,
							  memory_order_relaxed,
							  memory_order_relaxed))
			return 0;
	if (reserve(p, units + p->chunk, false)) {
		atomic_fetch_add(&s->credit, p->chunk);
		return 0;
	}
	sweep(p);
	return reserve(p, units, force) ? 0 : -ENOBUFS;
}

void zc_budget_give(struct zc_pool *p, int64_t units)
{
	if (!units)
		return;
	if (atomic_load_explicit(&p->reserved, memory_order_relaxed) > p->limit) /* no credit then */
		atomic_fetch_sub(&p->reserved, units);
	else
		atomic_fetch_add_explicit(&zc_shard(p)->credit, units, memory_order_relaxed);
}

int64_t zc_budget_used(struct zc_pool *p)
{
	sweep(p);
	return atomic_load(&p->reserved);
}

/* pins ---------------------------------------------------------------------------------------- */

static int futex(_Atomic uint64_t *word, int op, uint32_t value)
{
	/* the low half, which has all flags */
	uint32_t *half = (uint32_t *)(void *)word;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	half++;
#endif
	return ZC_SYSI("futex", syscall(SYS_futex, half, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0));
}

static void set_state(struct zc_frame *f, uint64_t state)
{
	if (atomic_exchange_explicit(&f->state, state, memory_order_acq_rel) & S_WAIT)
		futex(&f->state, FUTEX_WAKE, INT_MAX);
}

static void room(struct zc_pool *p)
{
	if (p->room_waiters)
		pthread_cond_broadcast(&p->room);
}

/* The last borrow of a frame that left the table. */
static void free_orphan(struct zc_pool *p, uint32_t frame)
{
	pthread_mutex_lock(&p->lock);
	zc_frame_discard(p, frame);
	pthread_mutex_unlock(&p->lock);
}

void zc_unpin_raw(struct zc_pool *p, uint32_t frame, int64_t *units)
{
	struct zc_frame *f = &p->frames[frame];
	int64_t n = zc_units(f->r.class);
	uint64_t old = atomic_fetch_sub_explicit(&f->state, 1, memory_order_acq_rel);
	if ((old & S_SHARED) != 1)
		return;
	*units += n;
	if (old & S_ORPHAN)
		free_orphan(p, frame);
}

void zc_unpin(struct zc_pool *p, uint32_t frame)
{
	int64_t units = 0;
	zc_unpin_raw(p, frame, &units);
	zc_budget_give(p, units);
}

void zc_unpin_refused(struct zc_pool *p, uint32_t frame)
{
	zc_budget_take(p, zc_units(p->frames[frame].r.class), true);
	zc_unpin(p, frame);
}

bool zc_touch(struct zc_pool *p, uint32_t frame)
{
	struct zc_rnode *r = &p->frames[frame].r;
	uint8_t a = atomic_load_explicit(&r->access, memory_order_relaxed);
	if (a != ZC_ACCESS_MOST) {
		uint8_t count = a & ZC_ACCESS_COUNT;
		if (!(a & ZC_ACCESS_AHEAD) && count < ZC_ACCESS_MOST)
			count++;
		atomic_store_explicit(&r->access, count, memory_order_relaxed);
	}
	if (p->policy->hit) {
		pthread_mutex_lock(&p->lock);
		if (r->queue)
			p->policy->hit(p->classes[r->class].replace, frame);
		pthread_mutex_unlock(&p->lock);
	}
	return a & ZC_ACCESS_MARK;
}

/* under the lock ------------------------------------------------------------------------------ */

static uint64_t key_hash(const struct zc_frame *f)
{
	return zc_hash(atomic_load_explicit(&f->view_id, memory_order_relaxed),
		       atomic_load_explicit(&f->page, memory_order_relaxed));
}

static void view_link(struct zc_pool *p, struct zc_view *v, uint32_t frame)
{
	struct zc_frame *f = &p->frames[frame];
	f->view = v;
	f->view_prev = NONE;
	f->view_next = v->first_frame;
	if (v->first_frame != NONE)
		p->frames[v->first_frame].view_prev = frame;
	v->first_frame = frame;
	v->frames++;
}

static void view_unlink(struct zc_pool *p, uint32_t frame)
{
	struct zc_frame *f = &p->frames[frame];
	struct zc_view *v = f->view;
	if (f->view_prev != NONE)
		p->frames[f->view_prev].view_next = f->view_next;
	else
		v->first_frame = f->view_next;
	if (f->view_next != NONE)
		p->frames[f->view_next].view_prev = f->view_prev;
	f->view = NULL;
	v->frames--;
	zc_view_gone(p, v);
}

void zc_frame_claim(struct zc_pool *p, uint32_t frame, struct zc_view *v, uint64_t page)
{
	struct zc_frame *f = &p->frames[frame];
	uint64_t hash = zc_hash(v->id, page);
	atomic_store_explicit(&f->view_id, v->id, memory_order_relaxed);
	atomic_store_explicit(&f->page, page, memory_order_relaxed);
	f->r.hash = (uint32_t)(hash >> 32) ^ (uint32_t)hash;
	f->r.queue = 0;
	zc_rnode_set_access(&f->r, 0);
	view_link(p, v, frame);
	zc_table_insert(&p->table, hash, frame);
}

void zc_frame_publish(struct zc_pool *p, uint32_t frame, uint32_t valid, uint32_t shared)
{
	struct zc_frame *f = &p->frames[frame];
	atomic_store_explicit(&f->valid, valid, memory_order_relaxed);
	if (!f->r.queue)
		p->policy->insert(p->classes[f->r.class].replace, frame);
	set_state(f, ++p->version << S_VERSION | shared);
	room(p);
}

void zc_frame_unlink(struct zc_pool *p, uint32_t frame)
{
	struct zc_frame *f = &p->frames[frame];
	if (!f->view)
		return;
	zc_table_remove(&p->table, key_hash(f), frame);
	view_unlink(p, frame);
}

void zc_frame_discard(struct zc_pool *p, uint32_t frame)
{
	struct zc_frame *f = &p->frames[frame];
	if (f->r.queue)
		p->policy->remove(p->classes[f->r.class].replace, frame);
	zc_frame_unlink(p, frame);
	uint64_t s = atomic_load_explicit(&f->state, memory_order_relaxed);
	set_state(f, (s & ~((1ULL << S_VERSION) - 1)) | S_EXCL);
	zc_frame_free(p, frame);
	room(p);
}

bool zc_frame_take(struct zc_pool *p, uint32_t frame)
{
	struct zc_frame *f = &p->frames[frame];
	uint64_t s = atomic_load_explicit(&f->state, memory_order_relaxed);
	return !(s & (S_SHARED | S_EXCL | S_ORPHAN)) &&
	       atomic_compare_exchange_strong_explicit(&f->state, &s, s | S_EXCL,
						       memory_order_acq_rel, memory_order_relaxed);
}

void zc_frame_detach(struct zc_pool *p, uint32_t frame)
{
	struct zc_frame *f = &p->frames[frame];
	for (;;) {
		if (zc_frame_take(p, frame)) {
			zc_frame_discard(p, frame);
			return;
		}
		uint64_t s = atomic_load_explicit(&f->state, memory_order_relaxed);
		if (s & (S_SHARED | S_EXCL) &&
		    atomic_compare_exchange_strong(&f->state, &s, s | S_ORPHAN))
			break;
	}
	if (f->r.queue)
		p->policy->remove(p->classes[f->r.class].replace, frame);
	zc_frame_unlink(p, frame);
}

void zc_flight(struct zc_pool *p, int units)
{
	p->in_flight += (uint32_t)units;
	if (units < 0)
		room(p);
}

void zc_frame_wait_unlock(struct zc_pool *p, uint32_t frame)
{
	struct zc_frame *f = &p->frames[frame];
	uint64_t s = atomic_fetch_or(&f->state, S_WAIT) | S_WAIT;
	pthread_mutex_unlock(&p->lock);
	ZC_COUNT(p, waits, 1);
	ZC_COUNT(p, syscalls, 1);
	futex(&f->state, FUTEX_WAIT, (uint32_t)s);
}
