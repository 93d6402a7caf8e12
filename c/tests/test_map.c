/* SPDX-License-Identifier: Apache-2.0
 *
 * The writable map against a plain array that keeps, for every sector,
 * which record covers it.
 */
#include "../map.h"
#include "check.h"

#define SPACE 4096u /* sectors of the model */

/* What sector i reads: the record's number, and its mapped sector. */
struct cell {
	uint32_t record; /* 0: nothing */
	struct obd_record from;
};

struct model {
	struct cell cell[SPACE];
	uint64_t base; /* the lba of cell[0] */
	uint32_t records;
};

static struct model model;
static struct obd_record got[SPACE + 1];

static void model_reset(uint64_t base)
{
	memset(&model, 0, sizeof(model));
	model.base = base;
}

static void model_set(struct obd_record r, uint64_t lba, uint64_t sectors,
		      bool present)
{
	uint64_t i;

	model.records++;
	for (i = lba; i < lba + sectors; i++) {
		struct cell *c = &model.cell[i - model.base];

		c->record = present ? model.records : 0;
		c->from = r;
	}
}

/* The records that [from, to) of the model must be made of. */
static uint32_t model_list(uint64_t from, uint64_t to, struct obd_record *out)
{
	uint32_t n = 0;
	uint64_t i, j;

	for (i = from; i < to; i = j) {
		const struct cell *c = &model.cell[i - model.base];

		for (j = i + 1; j < to; j++)
			if (model.cell[j - model.base].record != c->record)
				break;
		if (c->record)
			out[n++] = rec_cut(c->from, i, j);
	}
	return n;
}

static void same(const struct obd_record *want, uint32_t n, uint32_t found)
{
	uint32_t i;

	CHECK_EQ(found, n);
	for (i = 0; i < n; i++)
		CHECK_MSG(got[i].w0 == want[i].w0 && got[i].w1 == want[i].w1,
			  "piece %u is not the model's", i);
}

static void same_everywhere(const struct obd_map *map)
{
	static struct obd_record want[SPACE];
	uint32_t n = model_list(model.base, model.base + SPACE, want);

	CHECK(obd_map_sound(map));
	CHECK_EQ(obd_map_count(map), n);
	obd_map_dump(map, got);
	same(want, n, n);
}

static void same_in_a_range(const struct obd_map *map)
{
	static struct obd_record want[SPACE];
	uint64_t from = check_below(SPACE);
	uint64_t n = 1 + check_below(check_below(8) ? 64 : SPACE);
	uint32_t max = 1 + (uint32_t)check_below(64), pieces;

	if (n > SPACE - from)
		n = SPACE - from;
	from += model.base;
	pieces = model_list(from, from + n, want);
	same(want, pieces < max ? pieces : max,
	     obd_map_find(map, from, n, got, max));
}

/* One step of a random program; len bounds what it touches. */
static void step(struct obd_map *map, uint64_t len)
{
	uint64_t at = check_below(SPACE), n = 1 + check_below(len);
	uint64_t mapped = check_random() & (OBD_AT_MASK >> 1);
	struct obd_record r;

	if (n > SPACE - at)
		n = SPACE - at;
	at += model.base;
	r = rec_make(at, n, mapped, check_below(4) == 0,
		     (uint32_t)check_below(256));
	if (check_below(5)) {
		CHECK_EQ(obd_map_insert(map, r), 0);
		model_set(r, at, n, true);
	} else {
		CHECK_EQ(obd_map_remove(map, at, n), 0);
		model_set(r, at, n, false);
	}
}

static void run_program(uint64_t base, uint32_t steps, uint64_t len)
{
	struct obd_map *map = obd_map_new();
	uint32_t i;

	CHECK(map);
	model_reset(base);
	for (i = 0; i < steps; i++) {
		step(map, check_below(16) ? len : SPACE / 2);
		if (i % 8 == 0)
			same_everywhere(map);
		same_in_a_range(map);
	}
	same_everywhere(map);
	obd_map_free(map);
}

static void random_programs_leave_what_the_model_has(void)
{
	uint32_t i;

	for (i = 0; i < 300; i++)
		run_program(check_below(2) ? 0 : check_below(1ull << 49),
			    1 + (uint32_t)check_below(40), 64);
	for (i = 0; i < 6; i++)
		run_program(0, 1500, 4);
}

static void the_last_sectors_of_the_address_space_work(void)
{
	uint32_t i;

	for (i = 0; i < 40; i++)
		run_program((1ull << 50) - SPACE, 60, 64);
}

/* Random single sectors keep many leaves; then ranges tear them down. */
static void deep_trees_grow_and_shrink(void)
{
	struct obd_map *map = obd_map_new();
	struct obd_record r;
	const uint64_t n = 60000;
	uint64_t i, left;

	for (i = 0; i < n; i++) {
		r = rec_make(i * 7919 % n * 2, 1, i + 8, false, 0);
		CHECK_EQ(obd_map_insert(map, r), 0);
	}
	CHECK_EQ(obd_map_count(map), n);
	CHECK(obd_map_sound(map));
	for (i = 0; i < n; i++) {
		CHECK_EQ(obd_map_find(map, i * 7919 % n * 2, 2, got, 2), 1);
		CHECK_EQ(rec_at(got[0]), i + 8);
	}
	for (i = 0, left = n; left; i++) {
		uint64_t lba = check_below(2 * n), len = check_below(4000);

		CHECK_EQ(obd_map_remove(map, lba, len), 0);
		CHECK(obd_map_sound(map));
		if (i == 500)
			CHECK_EQ(obd_map_remove(map, 0, UINT64_MAX), 0);
		left = obd_map_count(map);
	}
	CHECK(obd_map_bytes(map) < 8192);
	CHECK_EQ(obd_map_find(map, 0, UINT64_MAX, got, 1), 0);
	obd_map_free(map);
}

/* Enough for inner nodes under the root to grow at their right end. */
static void appending_keeps_the_tree_sound_at_every_step(void)
{
	struct obd_map *map = obd_map_new();
	uint64_t i;

	for (i = 0; i < 4500; i++) {
		obd_map_insert(map, rec_make(i * 3, 2, 8 + i, false, 0));
		if (i > 3900 || i % 64 == 0)
			CHECK(obd_map_sound(map));
	}
	obd_map_free(map);
}

static void one_record_may_cover_the_whole_of_a_deep_tree(void)
{
	struct obd_map *map = obd_map_new();
	struct obd_record r;
	uint64_t i;

	for (i = 0; i < 16000; i++)
		obd_map_insert(map, rec_make(i, 1, i + 8, false, 0));
	CHECK_EQ(obd_map_count(map), 16000);
	r = rec_make(0, OBD_MAX_LENGTH, 1u << 20, true, 7);
	CHECK_EQ(obd_map_insert(map, r), 0);
	CHECK(obd_map_sound(map));
	CHECK_EQ(obd_map_count(map), 1);
	obd_map_dump(map, got);
	CHECK(got[0].w0 == r.w0 && got[0].w1 == r.w1);
	obd_map_free(map);
}

/* ---- edges ----------------------------------------------------------- */

static void what_maps_nothing_changes_nothing(void)
{
	struct obd_map *map = obd_map_new();

	CHECK_EQ(obd_map_insert(map, rec_make(5, 0, 8, false, 0)), 0);
	CHECK_EQ(obd_map_remove(map, 5, 0), 0);
	CHECK_EQ(obd_map_remove(map, UINT64_MAX, 9), 0);
	CHECK_EQ(obd_map_count(map), 0);
	CHECK_EQ(obd_map_insert(map, rec_make(OBD_LBA_MASK, 2, 8, 0, 0)),
		 -EINVAL);
	/* A cut of it would carry into the zeroed bit. */
	CHECK_EQ(obd_map_insert(map, rec_make(0, 2, OBD_AT_MASK, 0, 0)),
		 -EINVAL);
	CHECK_EQ(obd_map_insert(map, rec_make(0, 2, OBD_AT_MASK, 1, 0)), 0);
	CHECK_EQ(obd_map_remove(map, 0, 2), 0);
	CHECK_EQ(obd_map_count(map), 0);
	CHECK_EQ(obd_map_find(map, 0, UINT64_MAX, got, 1), 0);
	obd_map_free(map);
	obd_map_free(NULL);
}

static void neighbours_are_never_joined(void)
{
	struct obd_map *map = obd_map_new();
	uint32_t i;

	for (i = 0; i < 100; i++)
		obd_map_insert(map, rec_make(i * 8, 8, 8 + i * 8, false, 0));
	CHECK_EQ(obd_map_count(map), 100);
	/* Nor two halves of what was one record. */
	obd_map_insert(map, rec_make(10, 1, 11 + 7, false, 0));
	CHECK_EQ(obd_map_count(map), 102);
	obd_map_free(map);
}

/* ---- memory ---------------------------------------------------------- */

static uint64_t bytes_per_record(uint64_t n, uint64_t (*lba)(uint64_t))
{
	struct obd_map *map = obd_map_new();
	uint64_t i, bytes;

	for (i = 0; i < n; i++)
		obd_map_insert(map, rec_make(lba(i), 1, i + 8, false, 0));
	CHECK_EQ(obd_map_count(map), n);
	bytes = obd_map_bytes(map) * 10 / n;
	obd_map_free(map);
	return bytes;
}

static uint64_t appended(uint64_t i)
{
	return i * 2;
}

static uint64_t scattered(uint64_t i)
{
	return i * 0x9E3779B97F4A7C15 >> 16;
}

/* 64 streams that grow in turn, as files of one disk do. */
static uint64_t streams(uint64_t i)
{
	return (i % 64 << 32) + i;
}

static uint64_t backwards(uint64_t i)
{
	return (1u << 30) - i;
}

static void a_record_takes_at_most_24_bytes(void)
{
	CHECK(bytes_per_record(200000, appended) <= 170);
	CHECK(bytes_per_record(200000, scattered) <= 240);
	CHECK(bytes_per_record(200000, streams) <= 240);
	CHECK(bytes_per_record(200000, backwards) <= 240);
}

static void few_records_that_remain_do_not_hold_many_nodes(void)
{
	struct obd_map *map = obd_map_new();
	const uint64_t n = 64000;
	uint64_t i;

	for (i = 0; i < n; i++)
		obd_map_insert(map, rec_make(scattered(i), 1, 8, false, 0));
	for (i = 0; i < n; i++)
		if (i % 16)
			obd_map_remove(map, scattered(i), 1);
	CHECK_EQ(obd_map_count(map), n / 16);
	CHECK(obd_map_sound(map));
	CHECK(obd_map_bytes(map) / (n / 16) < 48);
	obd_map_free(map);
}

/* ---- failures --------------------------------------------------------- */

static int64_t allocations_left;

static void *failing_alloc(size_t bytes)
{
	if (allocations_left-- <= 0)
		return NULL;
	return malloc(bytes);
}

static void no_memory_leaves_the_map_as_it_was(void)
{
	const struct obd_map_limits limits = { failing_alloc, UINT64_MAX };
	static struct obd_record before[40000], after[40000];
	struct obd_map *map;
	uint32_t failures = 0, i;
	uint64_t n;
	int rc;

	for (i = 0; i < 2; i++) {
		allocations_left = i;
		CHECK(!obd_map_new_limited(&limits));
	}
	allocations_left = 2;
	map = obd_map_new_limited(&limits);
	CHECK(map);
	for (i = 0; i < 30000; i++) {
		uint64_t lba = check_below(1u << 18);
		struct obd_record r = rec_make(lba, 1 + check_below(4), 8,
					       false, 1);

		n = obd_map_count(map);
		CHECK(n + 2 <= 40000);
		obd_map_dump(map, before);
		allocations_left = check_below(8) ? 9 : 0;
		rc = check_below(4) ? obd_map_insert(map, r) :
			obd_map_remove(map, lba, 2);
		if (!rc)
			continue;
		failures++;
		CHECK_EQ(rc, -ENOMEM);
		CHECK(obd_map_sound(map));
		CHECK_EQ(obd_map_count(map), n);
		obd_map_dump(map, after);
		CHECK(!memcmp(before, after, n * sizeof(*before)));
	}
	CHECK(failures > 5);
	obd_map_free(map);
}

/* Every way to be over the limit by one, and to be just within it. */
static void the_limit_is_exact(void)
{
	const struct obd_map_limits limits = { malloc, 3 };
	struct obd_map *map = obd_map_new_limited(&limits);

	CHECK_EQ(obd_map_insert(map, rec_make(0, 8, 8, false, 0)), 0);
	CHECK_EQ(obd_map_insert(map, rec_make(10, 8, 8, false, 0)), 0);
	/* A middle would make 4. */
	CHECK_EQ(obd_map_insert(map, rec_make(2, 2, 8, false, 0)), -E2BIG);
	CHECK_EQ(obd_map_count(map), 2);
	CHECK_EQ(obd_map_remove(map, 2, 2), 0);
	CHECK_EQ(obd_map_count(map), 3);
	CHECK_EQ(obd_map_remove(map, 12, 2), -E2BIG);
	CHECK_EQ(obd_map_insert(map, rec_make(30, 8, 8, false, 0)), -E2BIG);
	CHECK_EQ(obd_map_insert(map, rec_make(4, 6, 8, false, 0)), 0);
	CHECK_EQ(obd_map_count(map), 3);
	/* One cut at each side, one new: from 3 to 4. */
	CHECK_EQ(obd_map_insert(map, rec_make(1, 4, 8, false, 0)), -E2BIG);
	CHECK_EQ(obd_map_insert(map, rec_make(0, 2, 8, false, 0)), 0);
	CHECK_EQ(obd_map_count(map), 3);
	CHECK(obd_map_sound(map));
	CHECK_EQ(obd_map_insert(map, rec_make(0, 100, 8, false, 0)), 0);
	CHECK_EQ(obd_map_count(map), 1);
	obd_map_free(map);
}

int main(void)
{
	check_seed();
	RUN(random_programs_leave_what_the_model_has);
	RUN(the_last_sectors_of_the_address_space_work);
	RUN(deep_trees_grow_and_shrink);
	RUN(appending_keeps_the_tree_sound_at_every_step);
	RUN(one_record_may_cover_the_whole_of_a_deep_tree);
	RUN(what_maps_nothing_changes_nothing);
	RUN(neighbours_are_never_joined);
	RUN(a_record_takes_at_most_24_bytes);
	RUN(few_records_that_remain_do_not_hold_many_nodes);
	RUN(no_memory_leaves_the_map_as_it_was);
	RUN(the_limit_is_exact);
	return check_done();
}
