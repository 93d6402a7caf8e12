/* SPDX-License-Identifier: Apache-2.0
 *
 * index.h - what index.c, lookup.c and merge.c share: the records of an
 * immutable index, its look-up tree, and the memory both lie in.
 */
#ifndef OBD_INDEX_H
#define OBD_INDEX_H

#include "internal.h"

/* A leaf of the look-up tree is 8 records, an inner node 16 keys: both two
 * cache lines, which the hardware fetches as a pair. */
#define OBD_LEAF 8u
#define OBD_NODE 16u
/* 128,000,000 records are 16,000,000 leaves, less than 16^6. */
#define OBD_DEPTH_MAX 6u

/* On disk the padding record; in memory what fills up the last leaf: it
 * ends behind every sector but the last, and intersects nothing. */
#define OBD_PADDING ((struct obd_record){ OBD_INVALID_LBA, 0 })

/* Memory of an index.  Large blocks are mapped, so that they can lie in
 * huge pages and be cut to size without a copy. */
struct obd_block {
	void *base;
	size_t bytes;
	bool mapped;
};

/* 128-byte aligned; -ENOMEM. */
OBD_HIDDEN int obd_block_alloc(struct obd_block *block, size_t bytes);
/* Gives back what lies behind the first bytes. */
OBD_HIDDEN void obd_block_trim(struct obd_block *block, size_t bytes);
OBD_HIDDEN void obd_block_free(struct obd_block *block);

/* Immutable once made: sorted by lba, disjoint, no record is empty, none
 * reaches past sector 2^50.  Any thread may read it; only refs changes. */
struct obd_index {
	const struct obd_record *records; /* count, then >= 1 of padding */
	uint64_t count;
	/* level[0] has one key a leaf, level[i + 1] one key a node of
	 * level[i]: the end of the child's last record, and "infinite" for
	 * the last child and the padding, so that every search ends in a
	 * real leaf. */
	const uint64_t *level[OBD_DEPTH_MAX];
	uint32_t depth;
	_Atomic uint32_t refs;
	struct obd_block record_block, key_block;
};

/* Bytes to allocate for count records and their padding. */
static inline size_t obd_records_bytes(uint64_t count)
{
	return (count / OBD_LEAF + 1) * OBD_LEAF * sizeof(struct obd_record);
}

/* Makes an index of the first count records of block, which is taken over
 * on success and must have room for their padding. -ENOMEM. */
OBD_HIDDEN int obd_index_finish(struct obd_block *block, uint64_t count,
				struct obd_index **out);

/* [from, to) is not empty and ends before the last sector, 2^50 - 1.  May
 * write to all of out. */
typedef uint32_t obd_find_fn(const struct obd_index *index, uint64_t from,
			     uint64_t to, struct obd_record *out,
			     uint32_t max);
/* The code path for a level, or the best one below it that this machine
 * can run. */
OBD_HIDDEN obd_find_fn *obd_find_select(enum obd_cpu level);
/* obd_index_find() at a level, for tests. */
OBD_HIDDEN uint32_t obd_find_at(enum obd_cpu level,
				const struct obd_index *index, uint64_t lba,
				uint64_t sectors, struct obd_record *out,
				uint32_t max);

#endif
