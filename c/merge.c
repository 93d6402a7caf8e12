/* SPDX-License-Identifier: Apache-2.0
 *
 * merge.c - a stack of indexes seen as one: a higher record wins, zeroed
 * ones included, gaps fall through (spec lsmt 10).
 *
 * A tournament hands out the records of all layers by lba; a sweep keeps
 * one current record a layer and writes the topmost.  Both are O(1) a
 * record but for the log2(layers) steps of the tournament.
 */
#include "index.h"

#include <stdlib.h>

#define LAYERS_MAX (OBD_MAX_LOWERS + 1)
#define WORDS (LAYERS_MAX / 64)
#define NONE UINT64_MAX

/* A contestant is lba << 8 | layer in one word: one compare orders by lba
 * and then by height.  NONE loses to all. */
struct merge {
	const struct obd_record *next[LAYERS_MAX], *end[LAYERS_MAX];
	uint64_t loser[LAYERS_MAX];
	uint32_t leaves;                       /* a power of two */
	struct obd_record current[LAYERS_MAX]; /* valid when live */
	uint64_t live[WORDS];
	uint32_t words;
	uint64_t pos; /* what lies before it is written */
	struct obd_record *out;
	uint64_t count, cap;
};

static inline uint64_t head_of(const struct merge *m, uint32_t layer)
{
	if (m->next[layer] == m->end[layer])
		return NONE;
	return rec_lba(*m->next[layer]) << 8 | layer;
}

/* Sends key up from its leaf: the loser of each match stays there, the
 * winner is returned. */
static inline uint64_t play(struct merge *m, uint32_t layer, uint64_t key)
{
	uint32_t i;

	for (i = (m->leaves + layer) / 2; i; i /= 2) {
		uint64_t other = m->loser[i];

		m->loser[i] = other > key ? other : key;
		key = other > key ? key : other;
	}
	return key;
}

/* First round: matches are decided as soon as both sides are there. */
static uint64_t play_first(struct merge *m, uint32_t node)
{
	uint64_t a, b;

	if (node >= m->leaves)
		return head_of(m, node - m->leaves);
	a = play_first(m, 2 * node);
	b = play_first(m, 2 * node + 1);
	m->loser[node] = a > b ? a : b;
	return a > b ? b : a;
}

/* The topmost live layer, or LAYERS_MAX. */
static inline uint32_t topmost(const struct merge *m)
{
	uint32_t w;

	for (w = 0; w < m->words; w++)
		if (m->live[w])
			return w * 64 +
			       (uint32_t)__builtin_ctzll(m->live[w]);
	return LAYERS_MAX;
}

/* A record of `layer` begins at `until`: writes the pieces that are whole
 * by now.  The topmost record stays open across what begins under it. */
static int sweep(struct merge *m, uint64_t until, uint32_t layer)
{
	for (;;) {
		uint32_t top = topmost(m);
		struct obd_record r;
		uint64_t end;

		if (top == LAYERS_MAX) {
			m->pos = until;
			return 0;
		}
		r = m->current[top];
		end = rec_end(r);
		if (end > until && (top < layer || m->pos == until))
			return 0;
		if (end <= until)
			m->live[top / 64] &= ~(1ull << (top % 64));
		else
			end = until;
		if (end <= m->pos)
			continue;
		if (m->count == m->cap)
			return -E2BIG;
		m->out[m->count++] = rec_cut(r, m->pos, end);
		m->pos = end;
	}
}

static int merge_all(struct merge *m)
{
	uint64_t key = play_first(m, 1);
	int rc;

	while (key != NONE) {
		uint32_t layer = key & 255;
		struct obd_record r = *m->next[layer]++;

		rc = sweep(m, key >> 8, layer);
		if (rc)
			return rc;
		r.w1 = (r.w1 << 8 >> 8) | (uint64_t)layer << 56;
		m->current[layer] = r;
		m->live[layer / 64] |= 1ull << (layer % 64);
		key = play(m, layer, head_of(m, layer));
	}
	return sweep(m, OBD_LBA_MASK + 1, LAYERS_MAX);
}

static void merge_setup(struct merge *m, struct obd_index *const *layers,
			uint32_t n)
{
	uint32_t i;

	m->leaves = 1;
	while (m->leaves < n)
		m->leaves *= 2;
	m->words = (n + 63) / 64;
	for (i = 0; i < n; i++) {
		m->next[i] = layers[i]->records;
		m->end[i] = layers[i]->records + layers[i]->count;
		m->cap += layers[i]->count;
	}
	/* n records have 2n ends, which bound at most 2n - 1 pieces. */
	m->cap *= 2;
	if (m->cap > OBD_MAX_RW_RECORDS)
		m->cap = OBD_MAX_RW_RECORDS;
}

int32_t obd_index_merge(struct obd_index *const *layers, uint32_t n,
			struct obd_index **out)
{
	struct obd_block block;
	struct merge *m;
	int rc;

	if (!n || n > LAYERS_MAX)
		return -EINVAL;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	merge_setup(m, layers, n);
	rc = obd_block_alloc(&block, obd_records_bytes(m->cap));
	if (rc)
		goto out;
	m->out = block.base;
	rc = merge_all(m);
	if (!rc)
		rc = obd_index_finish(&block, m->count, out);
	if (rc)
		obd_block_free(&block);
out:
	free(m);
	return rc;
}
