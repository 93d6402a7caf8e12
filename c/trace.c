/* SPDX-License-Identifier: Apache-2.0
 *
 * trace.c - which bytes of which lower a device's reads were served from,
 * in the order in which they ended, while somebody wants to know.
 */
#include <stdlib.h>

#include "core.h"

#define FIRST_ENTRIES 1024u

/* Made by the first obd_device_trace(), freed with the device, so that a
 * request may use it without a reference.  All members under lock. */
struct obd_trace {
	pthread_mutex_t lock;
	struct obd_trace_read *entries;
	uint64_t count, room, max;   /* max 0: nothing is noted */
	uint64_t lost;
};

static int trace_make(struct obd_device *dev)
{
	struct obd_trace *none = NULL, *trace = calloc(1, sizeof(*trace));

	if (!trace)
		return -ENOMEM;
	pthread_mutex_init(&trace->lock, NULL);
	if (!atomic_compare_exchange_strong(&dev->trace, &none, trace))
		obd_trace_free(trace);
	return 0;
}

void obd_trace_free(struct obd_trace *trace)
{
	if (!trace)
		return;
	pthread_mutex_destroy(&trace->lock);
	free(trace->entries);
	free(trace);
}

int32_t obd_device_trace(struct obd_device *dev, uint64_t max)
{
	struct obd_trace *trace;
	int err;

	if (!atomic_load(&dev->trace)) {
		err = max ? trace_make(dev) : 0;
		if (err || !max)
			return err;
	}
	trace = atomic_load(&dev->trace);
	pthread_mutex_lock(&trace->lock);
	trace->max = max;
	if (!max) {
		free(trace->entries);
		trace->entries = NULL;
		trace->count = trace->room = trace->lost = 0;
	}
	pthread_mutex_unlock(&trace->lock);
	return 0;
}

int32_t obd_device_trace_take(struct obd_device *dev,
			      struct obd_trace_read *out, uint32_t max,
			      uint64_t *lost)
{
	struct obd_trace *trace = atomic_load(&dev->trace);
	uint64_t n;

	*lost = 0;
	if (!trace)
		return 0;
	if (max > INT32_MAX)
		max = INT32_MAX;
	pthread_mutex_lock(&trace->lock);
	n = trace->count < max ? trace->count : max;
	if (n) {
		memcpy(out, trace->entries, n * sizeof(*out));
		trace->count -= n;
		memmove(trace->entries, trace->entries + n,
			trace->count * sizeof(*out));
	}
	*lost = trace->lost;
	pthread_mutex_unlock(&trace->lock);
	return (int32_t)n;
}

/* ---- noting ------------------------------------------------------------- */

static bool trace_grow(struct obd_trace *trace)
{
	uint64_t room = trace->room ? trace->room * 2 : FIRST_ENTRIES;
	struct obd_trace_read *entries;

	if (room > trace->max)
		room = trace->max;
	entries = room > trace->room ?
		  realloc(trace->entries, room * sizeof(*entries)) : NULL;
	if (!entries)
		return false;
	trace->entries = entries;
	trace->room = room;
	return true;
}

/* What goes on where the last read ended is the same entry. */
static void trace_add(struct obd_trace *trace, uint32_t layer, uint64_t at,
		      uint64_t n)
{
	struct obd_trace_read *last =
		trace->count ? &trace->entries[trace->count - 1] : NULL;

	if (last && last->layer == layer && last->at + last->length == at) {
		last->length += n;
		return;
	}
	if (trace->count == trace->room && !trace_grow(trace)) {
		trace->lost++;
		return;
	}
	trace->entries[trace->count++] = (struct obd_trace_read){
		.at = at, .length = n, .layer = layer,
	};
}

/* The number of a source from the bottom; view->n: it is none of a lower. */
static uint32_t layer_of(const struct obd_view *view,
			 const struct obd_source *src)
{
	uint32_t tag;

	for (tag = 0; tag < view->n; tag++)
		if (view->sources[tag] == src)
			return view->n - 1 - tag;
	return view->n;
}

void obd_trace_note(struct obd_trace *trace, const struct obd_request *req)
{
	uint64_t lba = req->offset / OBD_SECTOR;
	struct obd_piece piece;
	struct obd_walk w;
	uint32_t layer;

	pthread_mutex_lock(&trace->lock);
	if (trace->max) {
		obd_walk_start(&w, req->view, LEVEL_UPPER, lba,
			       lba + req->length / OBD_SECTOR);
		while (obd_walk_next(&w, &piece)) {
			if (!piece.src)
				continue;
			layer = layer_of(req->view, piece.src);
			if (layer < req->view->n)
				trace_add(trace, layer, piece.at,
					  piece.sectors * OBD_SECTOR);
		}
	}
	pthread_mutex_unlock(&trace->lock);
}
