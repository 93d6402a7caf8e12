/* SPDX-License-Identifier: Apache-2.0
 *
 * slow.c - reads that waited long for a disk, for the audit file.  Only
 * reads that may wait are timed, and only while somebody wants to know: one
 * that the page cache serves costs nothing here.
 */
#include <pthread.h>

#include "core.h"

#define SLOTS 256u /* each took milliseconds: seldom two at once */

static _Atomic uint64_t floor_ns[2]; /* by OBD_SLOW_*; 0: not noted */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct obd_slow_read slots[SLOTS]; /* all below under lock */
static uint32_t oldest, count;
static uint64_t lost;

int32_t obd_slow_watch(uint64_t cache_ns, uint64_t local_ns)
{
	atomic_store(&floor_ns[OBD_SLOW_CACHE], cache_ns);
	atomic_store(&floor_ns[OBD_SLOW_LOCAL], local_ns);
	if (cache_ns || local_ns)
		return 0;
	pthread_mutex_lock(&lock);
	count = 0;
	lost = 0;
	pthread_mutex_unlock(&lock);
	return 0;
}

uint64_t obd_slow_begin(uint32_t kind)
{
	if (!atomic_load_explicit(&floor_ns[kind], memory_order_relaxed))
		return 0;
	return obd_now_ns();
}

void obd_slow_end(uint64_t began, const struct obd_slow_read *read)
{
	uint64_t ns = obd_now_ns() - began, floor;
	struct obd_slow_read *slot;
	bool wake = false;

	floor = atomic_load_explicit(&floor_ns[read->kind],
				     memory_order_relaxed);
	if (!floor || ns < floor)
		return;
	pthread_mutex_lock(&lock);
	if (count < SLOTS) {
		wake = !count;
		slot = &slots[(oldest + count++) % SLOTS];
		*slot = *read;
		slot->ns = ns;
	} else {
		lost++;
	}
	pthread_mutex_unlock(&lock);
	if (wake)
		obd_wake();
}

int32_t obd_slow_drain(struct obd_slow_read *out, uint32_t max,
		       uint64_t *dropped)
{
	uint32_t n = 0;

	pthread_mutex_lock(&lock);
	for (; n < max && count; count--) {
		out[n++] = slots[oldest];
		oldest = (oldest + 1) % SLOTS;
	}
	*dropped = lost;
	lost = 0;
	pthread_mutex_unlock(&lock);
	return (int32_t)n;
}
