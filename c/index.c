/* SPDX-License-Identifier: Apache-2.0
 *
 * index.c - immutable indexes: loading with the checks of spec lsmt 8, and
 * building the tree that lookup.c searches.
 */
#include "index.h"

#include <stdlib.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define MAPPED_FROM (2 * HUGE_PAGE)
/* Small enough to be checked while it is still in the cache. */
#define LOAD_CHUNK ((uint64_t)16384)

/* ---- memory --------------------------------------------------------- */

static int block_map(struct obd_block *block, size_t bytes)
{
	size_t room = (bytes + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
	size_t head, spare;
	char *p = mmap(NULL, room + HUGE_PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return -ENOMEM;
	head = -(uintptr_t)p & (HUGE_PAGE - 1);
	spare = HUGE_PAGE - head;
	if (head)
		munmap(p, head);
	munmap(p + head + room, spare);
	/* Only speed depends on it. */
	(void)madvise(p + head, room, MADV_HUGEPAGE);
	*block = (struct obd_block){ p + head, room, true };
	return 0;
}

int obd_block_alloc(struct obd_block *block, size_t bytes)
{
	void *p;

	if (bytes >= MAPPED_FROM)
		return block_map(block, bytes);
	bytes = (bytes + 127) & ~(size_t)127;
	p = aligned_alloc(128, bytes);
	if (!p)
		return -ENOMEM;
	*block = (struct obd_block){ p, bytes, false };
	return 0;
}

void obd_block_free(struct obd_block *block)
{
	if (block->mapped)
		munmap(block->base, block->bytes);
	else
		free(block->base);
	*block = (struct obd_block){ 0 };
}

void obd_block_trim(struct obd_block *block, size_t bytes)
{
	struct obd_block small;
	size_t page = 4096;

	if (bytes < MAPPED_FROM) {
		if (block->bytes - bytes < page ||
		    obd_block_alloc(&small, bytes))
			return;
		memcpy(small.base, block->base, bytes);
		obd_block_free(block);
		*block = small;
		return;
	}
	page = (size_t)sysconf(_SC_PAGESIZE);
	bytes = (bytes + page - 1) & ~(page - 1);
	if (bytes < block->bytes) {
		munmap((char *)block->base + bytes, block->bytes - bytes);
		block->bytes = bytes;
	}
}

/* ---- the tree ------------------------------------------------------- */

static uint64_t nodes_of(uint64_t keys)
{
	return (keys + OBD_NODE - 1) / OBD_NODE;
}

/* Keys of all levels, padding included, for that many leaves. */
static uint64_t key_count(uint64_t leaves)
{
	uint64_t total = 0;

	while (leaves > 1) {
		leaves = nodes_of(leaves);
		total += leaves * OBD_NODE;
	}
	return total;
}

static uint64_t leaf_key(const struct obd_index *index, uint64_t leaf)
{
	return rec_end(index->records[leaf * OBD_LEAF + OBD_LEAF - 1]);
}

/* Writes the level above children children and returns its nodes. */
static uint64_t build_level(struct obd_index *index, uint64_t *keys,
			    uint64_t children)
{
	uint64_t nodes = nodes_of(children), i;
	const uint64_t *below = index->depth ?
		index->level[index->depth - 1] : NULL;

	for (i = 0; i + 1 < children; i++)
		keys[i] = below ? below[i * OBD_NODE + OBD_NODE - 1] :
				  leaf_key(index, i);
	for (; i < nodes * OBD_NODE; i++)
		keys[i] = INT64_MAX;
	index->level[index->depth++] = keys;
	return nodes;
}

static int build_tree(struct obd_index *index)
{
	uint64_t children = (index->count + OBD_LEAF - 1) / OBD_LEAF;
	uint64_t total = key_count(children), *keys;

	if (!total)
		return 0;
	if (obd_block_alloc(&index->key_block, total * sizeof(*keys)))
		return -ENOMEM;
	keys = index->key_block.base;
	while (children > 1) {
		children = build_level(index, keys, children);
		keys += children * OBD_NODE;
	}
	return 0;
}

int obd_index_finish(struct obd_block *block, uint64_t count,
		     struct obd_index **out)
{
	struct obd_index *index = calloc(1, sizeof(*index));
	struct obd_record *records;
	size_t bytes = obd_records_bytes(count);
	uint64_t i;

	if (!index)
		return -ENOMEM;
	records = block->base;
	for (i = count; i < bytes / sizeof(*records); i++)
		records[i] = OBD_PADDING;
	index->records = records;
	index->count = count;
	atomic_init(&index->refs, 1);
	if (build_tree(index)) {
		free(index);
		return -ENOMEM;
	}
	obd_block_trim(block, bytes);
	index->record_block = *block;
	index->records = block->base;
	*block = (struct obd_block){ 0 };
	*out = index;
	return 0;
}

/* ---- loading -------------------------------------------------------- */

static int reject(struct obd_bad *bad, uint64_t record, uint32_t reason)
{
	*bad = (struct obd_bad){ .record = record, .reason = reason };
	return -EBADMSG;
}

/* Spec lsmt 8.7, and that the record ends inside the address space. */
static uint32_t record_reason(struct obd_record r, uint64_t end_sector)
{
	uint64_t at = rec_at(r);

	if (rec_end(r) > OBD_LBA_MASK + 1)
		return OBD_BAD_ADDRESS;
	if (at < 8)
		return OBD_BAD_LOW;
	if (rec_zeroed(r))
		return at > end_sector ? OBD_BAD_HIGH : OBD_BAD_NONE;
	if (at + rec_sectors(r) <= 8)
		return OBD_BAD_LOW;
	if (at >= end_sector || rec_sectors(r) > end_sector - at)
		return OBD_BAD_HIGH;
	return OBD_BAD_NONE;
}

/* Where loading stands.  Records are checked and moved down over dropped
 * ones in the block that they were read into. */
struct loading {
	struct obd_record *records;
	uint64_t seen, kept;
	uint64_t last;     /* number of the last real record */
	uint64_t last_end; /* and where it ends */
	uint64_t end_sector;
};

static int take_records(struct loading *l, uint64_t until,
			struct obd_bad *bad)
{
	for (; l->seen < until; l->seen++) {
		struct obd_record r = l->records[l->seen];
		uint32_t reason;

		if (rec_lba(r) == OBD_INVALID_LBA)
			continue;
		if (l->last_end > rec_lba(r))
			return reject(bad, l->last, OBD_BAD_ORDER);
		reason = record_reason(r, l->end_sector);
		if (reason)
			return reject(bad, l->seen, reason);
		l->last = l->seen;
		l->last_end = rec_end(r);
		r.w1 &= OBD_AT_MASK | 1ull << 55;
		l->records[l->kept] = r;
		/* A record of no sectors maps nothing. */
		l->kept += rec_sectors(r) != 0;
	}
	return 0;
}

static int load_records(struct obd_source *src, uint64_t at, uint64_t count,
			struct loading *l, struct obd_bad *bad)
{
	const uint64_t size = sizeof(struct obd_record);
	uint64_t from, n;
	int rc;

	for (from = 0; from < count; from += n) {
		n = count - from < LOAD_CHUNK ? count - from : LOAD_CHUNK;
		rc = obd_source_read(src, l->records + from, n * size,
				     at + from * size, OBD_TRY_BLOCK);
		if (!rc)
			rc = take_records(l, from + n, bad);
		if (rc)
			return rc;
	}
	return 0;
}

int32_t obd_index_load(struct obd_source *src, uint64_t at, uint64_t count,
		       uint64_t end_sector, struct obd_bad *bad,
		       struct obd_index **out)
{
	uint64_t size = obd_source_size(src), room;
	struct loading l = { .end_sector = end_sector };
	struct obd_block block;
	int rc;

	*bad = (struct obd_bad){ 0 };
	if (count > OBD_MAX_RO_RECORDS)
		return reject(bad, OBD_MAX_RO_RECORDS, OBD_BAD_COUNT);
	room = at > size ? 0 : (size - at) / sizeof(struct obd_record);
	if (count > room)
		return reject(bad, room, OBD_BAD_SHORT);
	rc = obd_block_alloc(&block, obd_records_bytes(count));
	if (rc)
		return rc;
	l.records = block.base;
	rc = load_records(src, at, count, &l, bad);
	if (!rc)
		rc = obd_index_finish(&block, l.kept, out);
	if (rc)
		obd_block_free(&block);
	return rc;
}

/* ---- from memory ---------------------------------------------------- */

static bool records_sound(const struct obd_record *r, uint64_t count)
{
	uint64_t i, end = 0;

	for (i = 0; i < count; i++) {
		if (!rec_sectors(r[i]) || rec_lba(r[i]) < end)
			return false;
		end = rec_end(r[i]);
		/* Cutting must not carry out of the 55 bits. */
		if (rec_at(r[i]) + rec_sectors(r[i]) > OBD_AT_MASK + 1 &&
		    !rec_zeroed(r[i]))
			return false;
	}
	return end <= OBD_LBA_MASK + 1;
}

static int index_copy(const void *records, uint64_t count,
		      struct obd_index **out)
{
	struct obd_block block;
	int rc = obd_block_alloc(&block, obd_records_bytes(count));

	if (rc)
		return rc;
	if (count)
		memcpy(block.base, records,
		       count * sizeof(struct obd_record));
	rc = obd_index_finish(&block, count, out);
	if (rc)
		obd_block_free(&block);
	return rc;
}

int32_t obd_index_new(const void *records, uint64_t count,
		      struct obd_index **out)
{
	struct obd_index *index;
	int rc;

	if (count > OBD_MAX_RW_RECORDS)
		return -EINVAL;
	rc = index_copy(records, count, &index);
	if (rc)
		return rc;
	if (!records_sound(index->records, count)) {
		obd_index_unref(index);
		return -EINVAL;
	}
	*out = index;
	return 0;
}

int obd_index_adopt(struct obd_record *records, uint64_t count,
		    struct obd_index **out)
{
	int rc = index_copy(records, count, out);

	if (!rc)
		free(records);
	return rc;
}

/* ---- life and reading ----------------------------------------------- */

struct obd_index *obd_index_ref(struct obd_index *index)
{
	atomic_fetch_add_explicit(&index->refs, 1, memory_order_relaxed);
	return index;
}

void obd_index_unref(struct obd_index *index)
{
	if (!index || atomic_fetch_sub(&index->refs, 1) != 1)
		return;
	obd_block_free(&index->record_block);
	obd_block_free(&index->key_block);
	free(index);
}

uint64_t obd_index_count(struct obd_index *index)
{
	return index->count;
}

const struct obd_record *obd_index_array(struct obd_index *index)
{
	return index->records;
}

int64_t obd_index_records(struct obd_index *index, uint64_t first,
			  uint64_t max, void *records)
{
	uint64_t n;

	if (first >= index->count || !max)
		return 0;
	n = index->count - first < max ? index->count - first : max;
	memcpy(records, index->records + first,
	       n * sizeof(struct obd_record));
	return (int64_t)n;
}
