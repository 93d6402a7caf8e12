/* SPDX-License-Identifier: Apache-2.0
 *
 * Merging against a plain array that is painted from the bottom layer up.
 */
#include "../internal.h"
#include "check.h"

#define SPACE 3000u
#define LAYERS_MAX 256u

/* What a sector shows: the record, and a number for its piece. */
struct cell {
	struct obd_record r;
	uint32_t id;
};

static struct cell cells[SPACE];
static struct obd_record list[SPACE];
static struct obd_index *layers[LAYERS_MAX];

static struct obd_index *make(const struct obd_record *r, uint64_t n)
{
	struct obd_index *x = NULL;

	if (obd_index_new(r, n, &x))
		abort();
	return x;
}

static void drop(uint32_t n)
{
	while (n--)
		obd_index_unref(layers[n]);
}

/* A random layer; painted over the cells. */
static struct obd_index *layer(uint64_t base, uint32_t tag, uint64_t gap,
			       uint64_t len)
{
	static uint32_t id;
	uint64_t at = check_below(gap), i;
	uint32_t n = 0;

	for (;;) {
		uint64_t sectors = 1 + check_below(len);
		struct obd_record r = rec_make(base + at, sectors,
					       check_random() >> 12,
					       !check_below(3),
					       (uint32_t)check_below(256));

		if (at + sectors > SPACE)
			break;
		list[n++] = r;
		id++;
		r.w1 = r.w1 << 8 >> 8 | (uint64_t)tag << 56;
		for (i = at; i < at + sectors; i++)
			cells[i] = (struct cell){ r, id };
		at += sectors + (check_below(3) ? check_below(gap) : 0);
	}
	return make(list, n);
}

/* Pieces in order; what one record shows on both sides of another is two. */
static uint64_t painted(uint64_t base, struct obd_record *out)
{
	uint64_t i, j, n = 0;

	for (i = 0; i < SPACE; i = j) {
		for (j = i + 1; j < SPACE && cells[j].id == cells[i].id;)
			j++;
		if (cells[i].id)
			out[n++] = rec_cut(cells[i].r, base + i, base + j);
	}
	return n;
}

static void merged_is_painted(uint32_t n, uint64_t base)
{
	struct obd_index *merged = NULL;
	uint64_t want, i;

	CHECK_EQ(obd_index_merge(layers, n, &merged), 0);
	want = painted(base, list);
	CHECK_EQ(obd_index_count(merged), want);
	for (i = 0; i < want; i++) {
		struct obd_record r = obd_index_array(merged)[i];

		CHECK_MSG(r.w0 == list[i].w0 && r.w1 == list[i].w1,
			  "record %d of %d", (int)i, (int)want);
	}
	obd_index_unref(merged);
	drop(n);
}

static void stack(uint32_t n, uint64_t base, uint64_t gap, uint64_t len)
{
	uint32_t i;

	memset(cells, 0, sizeof(cells));
	for (i = n; i--;)
		layers[i] = layer(base, i, gap, len);
	merged_is_painted(n, base);
}

static void random_stacks_show_what_was_painted(void)
{
	uint32_t i;

	for (i = 0; i < 400; i++)
		stack(1 + (uint32_t)check_below(12),
		      check_below(2) ? 0 : check_below(1ull << 49),
		      1 + check_below(200), 1 + check_below(80));
}

static void every_number_of_layers_up_to_256_merges(void)
{
	uint32_t n;

	for (n = 1; n <= LAYERS_MAX; n += n < 70 || n > 250 ? 1 : 17)
		stack(n, n, 300, 60);
}

static void the_end_of_the_address_space_merges(void)
{
	uint32_t i;

	for (i = 0; i < 50; i++)
		stack(1 + (uint32_t)check_below(5), (1ull << 50) - SPACE, 5,
		      40);
}

static void one_layer_merged_is_itself_with_tag_0(void)
{
	const struct obd_record r[] = {
		rec_make(0, 8, 8, false, 9), rec_make(8, 8, 16, false, 9),
		rec_make(20, 16383, 24, true, 9),
	};
	struct obd_index *x = make(r, 3), *merged;

	CHECK_EQ(obd_index_merge(&x, 1, &merged), 0);
	/* What could be folded is not: bounds are kept. */
	CHECK_EQ(obd_index_count(merged), 3);
	CHECK_EQ(rec_tag(obd_index_array(merged)[2]), 0);
	CHECK_EQ(rec_sectors(obd_index_array(merged)[2]), 16383);
	obd_index_unref(x);
	obd_index_unref(merged);
}

static void a_zeroed_record_hides_data_below(void)
{
	const struct obd_record top = rec_make(2, 4, 50, true, 0);
	const struct obd_record low = rec_make(0, 8, 100, false, 0);
	struct obd_record r[4];
	struct obd_index *merged;

	layers[0] = make(&top, 1);
	layers[1] = make(&low, 1);
	CHECK_EQ(obd_index_merge(layers, 2, &merged), 0);
	CHECK_EQ(obd_index_records(merged, 0, 4, r), 3);
	CHECK(r[0].w1 == rec_make(0, 2, 100, false, 1).w1);
	CHECK(r[1].w0 == top.w0 && r[1].w1 == top.w1);
	CHECK(r[2].w0 == rec_make(6, 2, 0, false, 0).w0);
	CHECK(r[2].w1 == rec_make(6, 2, 106, false, 1).w1);
	obd_index_unref(merged);
	drop(2);
}

static void the_number_of_layers_is_bounded(void)
{
	struct obd_index *x = NULL;

	CHECK_EQ(obd_index_merge(layers, 0, &x), -EINVAL);
	CHECK_EQ(obd_index_merge(layers, 257, &x), -EINVAL);
	CHECK(!x);
}

static void empty_layers_merge_to_an_empty_one(void)
{
	struct obd_index *merged;
	uint32_t i;

	for (i = 0; i < 3; i++)
		layers[i] = make(NULL, 0);
	CHECK_EQ(obd_index_merge(layers, 3, &merged), 0);
	CHECK_EQ(obd_index_count(merged), 0);
	obd_index_unref(merged);
	drop(3);
}

/* Each sector of one record below is followed by a hole for it: 2n - 1
 * pieces of n records, the most there can be. */
static void the_most_pieces_are_made(void)
{
	enum { N = 8191 };
	static struct obd_record r[N];
	const struct obd_record low = rec_make(0, 16383, 8, false, 0);
	struct obd_index *merged;
	uint64_t i;

	for (i = 0; i < N; i++)
		r[i] = rec_make(2 * i + 1, 1, 8 + i, false, 0);
	layers[0] = make(r, N);
	layers[1] = make(&low, 1);
	CHECK_EQ(obd_index_merge(layers, 2, &merged), 0);
	CHECK_EQ(obd_index_count(merged), 2 * N + 1);
	obd_index_unref(merged);
	drop(2);
}

/* A pyramid: each layer is one record, wider than the one above. */
static void a_pyramid_of_256_layers_has_511_steps(void)
{
	struct obd_index *merged;
	struct obd_record r;
	uint32_t i;

	for (i = 0; i < LAYERS_MAX; i++) {
		r = rec_make(1000 - i, 1 + 2 * i, 8, false, 0);
		layers[i] = make(&r, 1);
	}
	CHECK_EQ(obd_index_merge(layers, LAYERS_MAX, &merged), 0);
	CHECK_EQ(obd_index_count(merged), 2 * LAYERS_MAX - 1);
	for (i = 0; i < LAYERS_MAX; i++) {
		r = obd_index_array(merged)[i];
		CHECK_EQ(rec_tag(r), LAYERS_MAX - 1 - i);
		CHECK_EQ(rec_sectors(r), 1);
	}
	obd_index_unref(merged);
	drop(LAYERS_MAX);
}

/* Large enough to be mapped and cut to size. */
static void two_large_layers_interleave(void)
{
	enum { N = 300000 };
	struct obd_record *r = malloc(N * sizeof(*r)), got;
	struct obd_index *merged;
	uint64_t i, l;

	CHECK(r);
	for (l = 0; l < 2; l++) {
		for (i = 0; i < N; i++)
			r[i] = rec_make(4 * i + 2 * l, 3, 8 + 3 * i, false,
					0);
		layers[l] = make(r, N);
	}
	free(r);
	CHECK_EQ(obd_index_merge(layers, 2, &merged), 0);
	CHECK_EQ(obd_index_count(merged), 2 * N);
	for (i = 0; i < N; i += 997) {
		CHECK_EQ(obd_index_lookup(merged, 4 * i + 3, 1, &got, 1), 1);
		CHECK_EQ(rec_tag(got), 1);
		CHECK_EQ(rec_at(got), 9 + 3 * i);
	}
	obd_index_unref(merged);
	drop(2);
}

int main(void)
{
	check_seed();
	RUN(random_stacks_show_what_was_painted);
	RUN(every_number_of_layers_up_to_256_merges);
	RUN(the_end_of_the_address_space_merges);
	RUN(one_layer_merged_is_itself_with_tag_0);
	RUN(a_zeroed_record_hides_data_below);
	RUN(the_number_of_layers_is_bounded);
	RUN(empty_layers_merge_to_an_empty_one);
	RUN(the_most_pieces_are_made);
	RUN(a_pyramid_of_256_layers_has_511_steps);
	RUN(two_large_layers_interleave);
	return check_done();
}
