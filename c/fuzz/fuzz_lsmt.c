/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_lsmt.c - "LSMT open": the input is a layer, whose trailer is its
 * last 4096 bytes.  The index that the trailer names is loaded, looked up
 * and merged, and its raw records drive the writable map.  What is found
 * is compared with a scan; a difference aborts.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create */
#endif
#include <stdlib.h>
#include <sys/mman.h>

#include "../index.h"
#include "../map.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define TRAILER 4096u
#define AT_INDEX_OFFSET 32u
#define AT_INDEX_SIZE 40u
/* Enough for several levels of the map; more only takes time. */
#define MAP_RECORDS 2000u
#define SMALL 20u /* records of the map that has a limit */
#define ROOM 32u

static void must(bool holds)
{
	if (!holds)
		abort();
}

static bool same(struct obd_record a, struct obd_record b)
{
	return a.w0 == b.w0 && a.w1 == b.w1;
}

static struct obd_source *source_of(const uint8_t *data, size_t size)
{
	int fd = memfd_create("layer", MFD_CLOEXEC);
	struct obd_source *src = NULL;

	must(fd >= 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
	must(obd_source_file(fd, 0, size, &src) == 0);
	return src;
}

/* ---- look-up --------------------------------------------------------- */

/* The pieces of [lba, lba + n) by a scan of sorted records. */
static uint32_t scan(const struct obd_record *r, uint64_t count, uint64_t lba,
		     uint64_t n, struct obd_record *out, uint32_t max)
{
	uint64_t to = lba + n, i;
	uint32_t found = 0;

	for (i = 0; i < count && found < max; i++) {
		uint64_t a = rec_lba(r[i]), b = rec_end(r[i]);

		a = a > lba ? a : lba;
		b = b < to ? b : to;
		if (a < b)
			out[found++] = rec_cut(r[i], a, b);
	}
	return found;
}

/* Ranges that begin or end close to the bounds of record r. */
static void look_around(struct obd_index *index, struct obd_record r,
			uint64_t salt)
{
	static const enum obd_cpu levels[] = { OBD_CPU_SCALAR, OBD_CPU_AVX2,
					       OBD_CPU_AVX512 };
	struct obd_record want[ROOM], got[ROOM];
	uint64_t lba = (salt & 1 ? rec_lba(r) : rec_end(r)) + salt / 2 % 4;
	uint64_t n = 1 + (salt >> 8) % 70;
	uint32_t max = 1 + (uint32_t)(salt >> 16) % ROOM, l, i, found;

	lba -= lba ? 1 : 0;
	if (lba > OBD_LBA_MASK)
		return;
	if (n > OBD_LBA_MASK + 1 - lba)
		n = OBD_LBA_MASK + 1 - lba;
	found = scan(index->records, index->count, lba, n, want, max);
	must(obd_index_lookup(index, lba, n, got, max) == (int32_t)found);
	for (l = 0; l < 3; l++) {
		must(obd_find_at(levels[l], index, lba, n, got, max) ==
		     found);
		for (i = 0; i < found; i++)
			must(same(got[i], want[i]));
	}
}

static void check_records(struct obd_index *index, uint64_t end)
{
	uint64_t i, last = 0;

	for (i = 0; i < index->count; i++) {
		struct obd_record r = index->records[i];
		uint64_t sectors = rec_zeroed(r) ? 0 : rec_sectors(r);

		must(rec_sectors(r) && rec_lba(r) >= last);
		must(rec_lba(r) != OBD_INVALID_LBA);
		last = rec_end(r);
		must(last <= OBD_LBA_MASK + 1);
		must(rec_tag(r) == 0 && rec_at(r) >= 8);
		must(rec_at(r) + sectors <= end);
		if (i < 64 || i + 64 > index->count)
			look_around(index, r, r.w0 * 0x9E3779B97F4A7C15);
	}
}

/* ---- merge ----------------------------------------------------------- */

/* An index on top of itself is itself; its odd records on top of it hide
 * nothing that they do not show. */
static void check_merge(struct obd_index *index)
{
	struct obd_index *stack[3] = { NULL, index, index }, *merged;
	uint64_t n = 0, i;
	struct obd_record *odd = malloc((index->count + 1) * sizeof(*odd));

	must(odd);
	for (i = 1; i < index->count; i += 2) {
		odd[n] = index->records[i];
		odd[n++].w1 ^= 1ull << 55;
	}
	must(obd_index_new(odd, n, &stack[0]) == 0);
	free(odd);
	must(obd_index_merge(stack, 3, &merged) == 0);
	must(merged->count == index->count);
	for (i = 0; i < merged->count; i++) {
		struct obd_record r = index->records[i];

		r.w1 ^= i & 1 ? 1ull << 55 : 1ull << 56;
		must(same(merged->records[i], r));
	}
	obd_index_unref(merged);
	obd_index_unref(stack[0]);
}

/* ---- map ------------------------------------------------------------- */

/* What the map takes: inside the address space, and no cut of it carries
 * out of the mapped sector. */
static bool valid(struct obd_record r)
{
	return rec_end(r) <= OBD_LBA_MASK + 1 &&
	       (rec_zeroed(r) || !rec_sectors(r) ||
		rec_at(r) + rec_sectors(r) <= OBD_AT_MASK + 1);
}

/* What the newest of the first n raw records says of a sector. */
static bool newest(const uint8_t *raw, uint32_t n, uint64_t lba,
		   struct obd_record *out)
{
	while (n--) {
		struct obd_record r = { obd_le64(raw + n * 16),
					obd_le64(raw + n * 16 + 8) };

		if (lba < rec_lba(r) || lba >= rec_end(r) || !valid(r))
			continue;
		*out = rec_cut(r, lba, lba + 1);
		/* Odd tags remove. */
		return !(rec_tag(r) & 1);
	}
	return false;
}

static void check_sector(const struct obd_map *map, const uint8_t *raw,
			 uint32_t n, uint64_t lba)
{
	struct obd_record want, got;
	bool mapped;

	if (lba > OBD_LBA_MASK)
		return;
	mapped = newest(raw, n, lba, &want);
	must(obd_map_find(map, lba, 1, &got, 1) == mapped);
	if (mapped)
		must(same(got, want));
}

static int change(struct obd_map *map, struct obd_record r)
{
	if (valid(r) && (rec_tag(r) & 1))
		return obd_map_remove(map, rec_lba(r), rec_sectors(r));
	return obd_map_insert(map, r);
}

/* The same changes on a map that may have few records: refused exactly
 * when the other has more.  NULL when that has happened. */
static struct obd_map *change_small(struct obd_map *small,
				    struct obd_record r, uint64_t count)
{
	int rc = small ? change(small, r) : 0;

	if (rc != -E2BIG) {
		must(!small || obd_map_count(small) == count);
		return small;
	}
	must(count > SMALL && obd_map_sound(small));
	obd_map_free(small);
	return NULL;
}

/* The map as an index: the way of a snapshot. */
static void freeze(const struct obd_map *map)
{
	uint64_t count = obd_map_count(map), i;
	struct obd_record *all = malloc((count + 1) * sizeof(*all)), r;
	struct obd_index *index;

	must(all != NULL);
	obd_map_dump(map, all);
	must(obd_index_adopt(all, count, &index) == 0);
	must(obd_index_count(index) == count);
	for (i = 0; i < count; i++) {
		uint64_t lba = rec_lba(obd_index_array(index)[i]);

		must(obd_index_records(index, i, 1, &r) == 1);
		must(obd_map_find(map, lba, 1, &r, 1) == 1);
		must(obd_index_lookup_many(index, &lba, 1, 1) == rec_at(r));
	}
	obd_index_unref(index);
}

static void drive_map(const uint8_t *raw, uint32_t n)
{
	const struct obd_map_limits limits = { malloc, SMALL };
	struct obd_map *small = obd_map_new_limited(&limits);
	struct obd_map *map = obd_map_new();
	uint32_t i;

	must(map && small);
	for (i = 0; i < n; i++) {
		struct obd_record r = { obd_le64(raw + i * 16),
					obd_le64(raw + i * 16 + 8) };

		must(change(map, r) == (valid(r) ? 0 : -EINVAL));
		small = change_small(small, r, obd_map_count(map));
		if (i % 64 == 0)
			must(obd_map_sound(map));
		check_sector(map, raw, i + 1, rec_lba(r));
		check_sector(map, raw, i + 1, rec_end(r));
		check_sector(map, raw, i + 1, rec_lba(r) - 1);
	}
	must(obd_map_sound(map));
	freeze(map);
	obd_map_free(map);
	obd_map_free(small);
}

/* ---- one input ------------------------------------------------------- */

static void open_layer(struct obd_source *src, uint64_t at, uint64_t count)
{
	struct obd_index *index = NULL;
	struct obd_bad bad;
	int rc = obd_index_load(src, at, count, at / OBD_SECTOR, &bad,
				&index);

	if (rc) {
		must(rc == -EBADMSG && bad.reason != OBD_BAD_NONE);
		must(!index && bad.record <= count);
		return;
	}
	must(bad.reason == OBD_BAD_NONE && index->count <= count);
	check_records(index, at / OBD_SECTOR);
	check_merge(index);
	obd_index_unref(index);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *trailer;
	struct obd_source *src;
	uint64_t at, count, room;

	if (size < TRAILER)
		return 0;
	trailer = data + size - TRAILER;
	at = obd_le64(trailer + AT_INDEX_OFFSET);
	count = obd_le64(trailer + AT_INDEX_SIZE);
	src = source_of(data, size);
	open_layer(src, at, count);
	obd_source_unref(src);
	room = at < size ? (size - at) / 16 : 0;
	room = room < count ? room : count;
	if (room)
		drive_map(data + at, (uint32_t)(room < MAP_RECORDS ?
						room : MAP_RECORDS));
	return 0;
}
