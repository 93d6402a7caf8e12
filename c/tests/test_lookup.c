/* SPDX-License-Identifier: Apache-2.0
 *
 * Look-up at every dispatch level, against a scan of the records from the
 * first to the last.
 */
#include <spawn.h>
#include <sys/wait.h>

#include "../index.h"
#include "check.h"

extern char **environ;

static const enum obd_cpu levels[] = { OBD_CPU_SCALAR, OBD_CPU_AVX2,
				       OBD_CPU_AVX512, OBD_CPU_ISAL };

#define LEVELS (sizeof(levels) / sizeof(*levels))
#define ROOM 64u

static struct obd_record *sample;
static uint64_t sample_count;
static struct obd_index *sample_index;

/* n records from lba base on; gap and len bound what is drawn. */
static void sample_make(uint64_t n, uint64_t base, uint64_t gap, uint64_t len)
{
	uint64_t i, lba = base;

	obd_index_unref(sample_index);
	sample_index = NULL;
	free(sample);
	sample = malloc((n + 1) * sizeof(*sample));
	if (!sample)
		abort();
	for (i = 0; i < n; i++) {
		uint64_t sectors = 1 + check_below(len);

		lba += check_below(4) ? 0 : check_below(gap + 1);
		sample[i] = rec_make(lba, sectors, check_random() >> 10,
				     !check_below(4),
				     (uint32_t)check_below(256));
		lba += sectors;
	}
	sample_count = n;
	CHECK_EQ(obd_index_new(sample, n, &sample_index), 0);
}

/* The same by scanning.  A first guess by halving keeps that short in
 * large samples; it is checked. */
static uint32_t scan(uint64_t from, uint64_t to, struct obd_record *out,
		     uint32_t max)
{
	uint64_t i = 0, step;
	uint32_t n = 0;

	for (step = 1ull << 40; step; step /= 2)
		if (i + step < sample_count &&
		    rec_end(sample[i + step]) <= from)
			i += step;
	if (i && (rec_end(sample[i - 1]) > from ||
		  rec_end(sample[i]) > from))
		abort();
	for (; i < sample_count && n < max; i++) {
		uint64_t a = rec_lba(sample[i]), b = rec_end(sample[i]);
		struct obd_record r = sample[i];

		if (b <= from)
			continue;
		if (a >= to)
			break;
		out[n++] = rec_cut(r, a > from ? a : from, b < to ? b : to);
	}
	return n;
}

static void same(uint64_t from, uint64_t to, uint32_t max)
{
	struct obd_record want[ROOM], got[ROOM + 1];
	uint32_t n = scan(from, to, want, max), found, l, i;

	for (l = 0; l < LEVELS; l++) {
		memset(got, 0xcc, sizeof(got));
		found = obd_find_at(levels[l], sample_index, from, to - from,
				    got, max);
		CHECK_EQ(found, n);
		for (i = 0; i < n; i++)
			CHECK_MSG(got[i].w0 == want[i].w0 &&
				  got[i].w1 == want[i].w1,
				  "level %u, piece %u of %u", l, i, n);
		for (i = max; i <= ROOM; i++)
			CHECK_MSG(got[i].w0 == 0xccccccccccccccccull,
				  "level %u wrote behind the room", l);
	}
}

/* Every range that begins or ends at, or one beside, a bound of the records
 * first .. first + n. */
static void all_bounds(uint64_t first, uint64_t n)
{
	uint64_t i, j;
	uint32_t max;

	for (i = 0; i < 6 * n; i++) {
		struct obd_record r = sample[first + i / 6];
		uint64_t from = i / 3 % 2 ? rec_end(r) : rec_lba(r);

		from += i % 3;
		if (!from--)
			continue;
		for (j = 1; j < 40; j++) {
			max = 1 + (uint32_t)check_below(ROOM);
			if (from + j <= OBD_LBA_MASK + 1)
				same(from, from + j, max);
		}
		if (from <= OBD_LBA_MASK)
			same(from, OBD_LBA_MASK + 1, ROOM);
	}
}

static void random_ranges(uint32_t rounds)
{
	uint64_t begin = sample_count ? rec_lba(sample[0]) : 0;
	uint64_t end = sample_count ? rec_end(sample[sample_count - 1]) : 1;
	uint64_t from, n;

	while (rounds--) {
		from = begin + check_below(end - begin + 2);
		n = 1 + check_below(check_below(4) ? 16 : 4096);
		if (from > OBD_LBA_MASK)
			continue;
		if (n > OBD_LBA_MASK + 1 - from)
			n = OBD_LBA_MASK + 1 - from;
		same(from, from + n, 1 + (uint32_t)check_below(ROOM));
	}
	same(0, 1, 1);
	same(OBD_LBA_MASK, OBD_LBA_MASK + 1, 8);
	same(0, OBD_LBA_MASK + 1, ROOM);
}

static void every_size_around_a_node_is_searched_right(void)
{
	static const uint64_t sizes[] = {
		0, 1, 2, 7, 8, 9, 15, 16, 17, 127, 128, 129, 136, 137, 255,
		2047, 2048, 2049, 2056, 32767, 32768, 32769, 40000,
	};
	uint32_t i;

	for (i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		uint64_t n = sizes[i];

		sample_make(n, check_below(100), 20, 12);
		all_bounds(0, n < 20 ? n : 20);
		all_bounds(n < 20 ? 0 : n - 20, n < 20 ? n : 20);
		random_ranges(1000);
	}
}

/* The original's tree keeps 32-bit sectors: wrong past 2^41 bytes. */
static void addresses_past_2_tib_are_right(void)
{
	static const uint64_t bases[] = {
		(1ull << 32) - 500, (1ull << 33) + 7, (1ull << 41) - 9,
		(1ull << 42) + 1, (1ull << 49) - 3,
	};
	uint32_t i;

	for (i = 0; i < sizeof(bases) / sizeof(*bases); i++) {
		sample_make(3000, bases[i], 50, 12);
		all_bounds(0, 30);
		random_ranges(2000);
		/* Spread over the whole space: keys differ in high bits. */
		sample_make(3000, bases[i] % 1000, 1ull << 38, 16383);
		all_bounds(1485, 30);
		random_ranges(2000);
	}
}

static void the_last_sector_is_found(void)
{
	uint64_t n;

	for (n = 1; n < 300; n += 1 + n / 3) {
		uint64_t i, lba = OBD_LBA_MASK + 1 - 3 * n;

		sample_make(n, 0, 0, 1);
		for (i = 0; i < n; i++)
			sample[i] = rec_make(lba + 3 * i, 3, 8 + i, i & 1, 0);
		obd_index_unref(sample_index);
		CHECK_EQ(obd_index_new(sample, n, &sample_index), 0);
		all_bounds(0, n < 20 ? n : 20);
		all_bounds(n < 20 ? 0 : n - 20, n < 20 ? n : 20);
		random_ranges(200);
		/* The same without the last sector. */
		sample[n - 1] = rec_make(lba + 3 * n - 3, 2, 9, false, 0);
		obd_index_unref(sample_index);
		CHECK_EQ(obd_index_new(sample, n, &sample_index), 0);
		all_bounds(n - 1, 1);
	}
}

static void a_million_records_are_searched_right(void)
{
	sample_make(1000000, 8, 60, 32);
	random_ranges(30000);
}

/* ---- the public forms ------------------------------------------------ */

static void ranges_outside_the_space_are_cut(void)
{
	const uint64_t last = OBD_LBA_MASK;
	struct obd_record r[8];

	sample_make(1, 0, 0, 1);
	sample[0] = rec_make(last - 1, 2, 100, false, 0);
	obd_index_unref(sample_index);
	CHECK_EQ(obd_index_new(sample, 1, &sample_index), 0);
	CHECK_EQ(obd_index_lookup(sample_index, last, UINT64_MAX, r, 8), 1);
	CHECK_EQ(rec_lba(r[0]), last);
	CHECK_EQ(rec_sectors(r[0]), 1);
	CHECK_EQ(rec_at(r[0]), 101);
	CHECK_EQ(obd_index_lookup(sample_index, last + 1, 1, r, 8), 0);
	CHECK_EQ(obd_index_lookup(sample_index, UINT64_MAX, 9, r, 8), 0);
	CHECK_EQ(obd_index_lookup(sample_index, last, 0, r, 8), 0);
	CHECK_EQ(obd_index_lookup(sample_index, last, 1, r, 0), 0);
	CHECK_EQ(obd_index_lookup(sample_index, 0, UINT64_MAX, r, UINT32_MAX),
		 1);
}

static void many_lookups_sum_what_single_ones_find(void)
{
	struct obd_record r[4096];
	uint64_t lbas[200], sum = 0, i;
	int32_t n, j;

	sample_make(5000, 8, 8, 3);
	for (i = 0; i < 200; i++) {
		lbas[i] = check_below(9000);
		n = obd_index_lookup(sample_index, lbas[i], 100, r, 4096);
		for (j = 0; j < n; j++)
			sum += rec_at(r[j]);
	}
	CHECK(obd_index_lookup_many(sample_index, lbas, 200, 100) == sum);
	CHECK(obd_index_lookup_many(sample_index, lbas, 0, 100) == 0);
}

/* 40 bytes a segment is the promise; this takes less than half of it. */
static void a_record_takes_less_than_18_bytes(void)
{
	sample_make(600000, 8, 8, 8);
	CHECK((sample_index->record_block.bytes +
	       sample_index->key_block.bytes) / 600000 < 18);
}

/* ---- dispatch -------------------------------------------------------- */

static void each_level_has_its_own_code(void)
{
	obd_find_fn *scalar = obd_find_select(OBD_CPU_SCALAR);

	CHECK(obd_find_select(OBD_CPU_SSE42) == scalar);
#if defined(__x86_64__)
	CHECK((obd_find_select(OBD_CPU_AVX2) != scalar) ==
	      !!__builtin_cpu_supports("avx2"));
	if (__builtin_cpu_supports("avx512f"))
		CHECK(obd_find_select(OBD_CPU_AVX512) !=
		      obd_find_select(OBD_CPU_AVX2));
#endif
	CHECK(obd_find_select(OBD_CPU_ISAL) ==
	      obd_find_select(OBD_CPU_AVX512));
}

static char *self;

/* The choice is made once a process: each level in one of its own. */
static void the_variable_forces_every_level(void)
{
	static const char *const names[] = { "scalar", "sse42", "avx2",
					     "avx512", "isal" };
	char *argv[] = { self, (char *)"child", NULL };
	uint32_t i;
	int status;
	pid_t pid;

	for (i = 0; i < 5; i++) {
		setenv("OVERLAYBD_CPU", names[i], 1);
		CHECK_EQ(posix_spawn(&pid, self, NULL, NULL, argv, environ),
			 0);
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK_MSG(status == 0, "at level %s", names[i]);
	}
}

static int child(void)
{
	check_state = 1;
	check_run("ranges_outside_the_space_are_cut",
		  ranges_outside_the_space_are_cut);
	check_run("many_lookups_sum_what_single_ones_find",
		  many_lookups_sum_what_single_ones_find);
	return check_done();
}

static void sample_drop(void)
{
	obd_index_unref(sample_index);
	free(sample);
}

int main(int argc, char **argv)
{
	int rc;

	self = argv[0];
	if (argc > 1) {
		rc = child();
		sample_drop();
		return rc;
	}
	check_seed();
	RUN(every_size_around_a_node_is_searched_right);
	RUN(addresses_past_2_tib_are_right);
	RUN(the_last_sector_is_found);
	RUN(a_million_records_are_searched_right);
	RUN(ranges_outside_the_space_are_cut);
	RUN(many_lookups_sum_what_single_ones_find);
	RUN(a_record_takes_less_than_18_bytes);
	RUN(each_level_has_its_own_code);
	RUN(the_variable_forces_every_level);
	sample_drop();
	return check_done();
}
