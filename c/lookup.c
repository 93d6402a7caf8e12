/* SPDX-License-Identifier: Apache-2.0
 *
 * lookup.c - which records cover a range: a search in a static B+tree with
 * 64-bit keys, cut and collected.  The search is free of branches that
 * depend on the data, so that several look-ups overlap in one core.
 */
#include "index.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* r's part inside [from, to) goes to *out; 1 when there is one.  Written
 * to compile without branches; an empty part leaves rubbish. */
static inline uint32_t cut_to(struct obd_record r, uint64_t from,
			      uint64_t to, struct obd_record *out)
{
	uint64_t lba = rec_lba(r), end = rec_end(r);
	uint64_t a = lba > from ? lba : from;
	uint64_t b = end < to ? end : to;
	uint64_t moves = (uint64_t)rec_zeroed(r) - 1;

	out->w0 = a | (b - a) << 50;
	out->w1 = r.w1 + ((a - lba) & moves);
	return a < b;
}

/* Collects from record i on, the first that may end behind from. */
static inline uint32_t collect(const struct obd_index *index, uint64_t i,
			       uint64_t from, uint64_t to, uint32_t n,
			       struct obd_record *out, uint32_t max)
{
	const struct obd_record *r = index->records;

	for (; n < max && i < index->count && rec_lba(r[i]) < to; i++)
		n += cut_to(r[i], from, to, out + n);
	return n;
}

/* ---- scalar --------------------------------------------------------- */

/* How many of a node's ascending keys are <= key: two steps of three
 * compares, which the processor does at once.  The last key is known to be
 * greater: otherwise the search would not have come here. */
static inline uint64_t rank_node(const uint64_t *keys, uint64_t key)
{
	uint64_t q;

	q = (keys[3] <= key) + (keys[7] <= key) + (keys[11] <= key);
	keys += q * 4;
	return q * 4 + (keys[0] <= key) + (keys[1] <= key) +
	       (keys[2] <= key);
}

/* The first record of the leaf that ends behind key, or its last. */
static inline uint64_t rank_leaf(const struct obd_record *r, uint64_t key)
{
	uint64_t h;

	/* Else its second line is asked for when the first is there. */
	__builtin_prefetch(r + 4);
	h = (uint64_t)(rec_end(r[3]) <= key) * 4;
	r += h;
	return h + (rec_end(r[0]) <= key) + (rec_end(r[1]) <= key) +
	       (rec_end(r[2]) <= key);
}

/* The end of a look-up: record i is the first that ends behind from, if
 * any does.  Most requests end with it. */
static inline uint32_t find_from(const struct obd_index *index, uint64_t i,
				 uint64_t from, uint64_t to,
				 struct obd_record *out, uint32_t max)
{
	uint32_t n = cut_to(index->records[i], from, to, out);

	if (obd_likely(rec_end(index->records[i]) >= to))
		return n;
	return collect(index, i + 1, from, to, n, out, max);
}

static uint32_t find_scalar(const struct obd_index *index, uint64_t from,
			    uint64_t to, struct obd_record *out,
			    uint32_t max)
{
	uint64_t k = 0;
	uint32_t d;

	for (d = index->depth; d--;)
		k = k * OBD_NODE + rank_node(index->level[d] + k * OBD_NODE,
					     from);
	k *= OBD_LEAF;
	k += rank_leaf(index->records + k, from);
	return find_from(index, k, from, to, out, max);
}

/* ---- x86-64 --------------------------------------------------------- */

#if defined(__x86_64__)

#define AVX2 __attribute__((target("avx2,popcnt")))
#define AVX512 __attribute__((target("avx512f,avx2,popcnt")))

AVX2 static inline __m256i gt4(const uint64_t *keys, __m256i key)
{
	/* Signed compare: no key reaches 2^63. */
	return _mm256_cmpgt_epi64(
		_mm256_load_si256((const __m256i *)keys), key);
}

AVX2 static inline uint64_t rank_node_avx2(const uint64_t *keys, __m256i key)
{
	__m256i low = _mm256_packs_epi32(gt4(keys, key), gt4(keys + 4, key));
	__m256i high = _mm256_packs_epi32(gt4(keys + 8, key),
					  gt4(keys + 12, key));
	/* Two bits a key, in an order that does not matter. */
	uint32_t gt = (uint32_t)_mm256_movemask_epi8(
		_mm256_packs_epi16(low, high));

	return OBD_NODE - (uint32_t)__builtin_popcount(gt) / 2;
}

AVX2 static uint32_t find_avx2(const struct obd_index *index, uint64_t from,
			       uint64_t to, struct obd_record *out,
			       uint32_t max)
{
	const __m256i key = _mm256_set1_epi64x((int64_t)from);
	uint64_t k = 0;
	uint32_t d;

	for (d = index->depth; d--;)
		k = k * OBD_NODE +
		    rank_node_avx2(index->level[d] + k * OBD_NODE, key);
	k *= OBD_LEAF;
	k += rank_leaf(index->records + k, from);
	return find_from(index, k, from, to, out, max);
}

AVX512 static inline uint64_t leaf_avx512(const struct obd_index *index,
					  uint64_t from)
{
	const __m512i key = _mm512_set1_epi64((int64_t)from);
	uint64_t k = 0;
	uint32_t d;

	for (d = index->depth; d--;) {
		const uint64_t *p = index->level[d] + k * OBD_NODE;
		__mmask8 lo = _mm512_cmple_epi64_mask(_mm512_load_si512(p),
						      key);
		__mmask8 hi = _mm512_cmple_epi64_mask(
			_mm512_load_si512(p + 8), key);

		k = k * OBD_NODE + (uint32_t)__builtin_popcount(lo) +
		    (uint32_t)__builtin_popcount(hi);
	}
	return k;
}

/* Cuts all eight records of the leaf at once and stores those that are
 * left; out has room for eight.  Returns how many there are. */
AVX512 static inline uint32_t cut_leaf_avx512(const struct obd_record *leaf,
					      uint64_t from, uint64_t to,
					      struct obd_record *out)
{
	const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
	const __m512i odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
	const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
	const __m512i high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
	__m512i p = _mm512_load_si512(leaf);
	__m512i q = _mm512_load_si512(leaf + 4);
	__m512i w0 = _mm512_permutex2var_epi64(p, even, q);
	__m512i w1 = _mm512_permutex2var_epi64(p, odd, q);
	__m512i lba = _mm512_and_si512(
		w0, _mm512_set1_epi64((int64_t)OBD_LBA_MASK));
	__m512i end = _mm512_add_epi64(lba, _mm512_srli_epi64(w0, 50));
	__m512i a = _mm512_max_epi64(lba, _mm512_set1_epi64((int64_t)from));
	__m512i b = _mm512_min_epi64(end, _mm512_set1_epi64((int64_t)to));
	__mmask8 hit = _mm512_cmplt_epi64_mask(a, b);
	__mmask8 data = _mm512_testn_epi64_mask(
		w1, _mm512_set1_epi64(1ll << 55));

	w1 = _mm512_mask_add_epi64(w1, data, w1, _mm512_sub_epi64(a, lba));
	w0 = _mm512_or_si512(a, _mm512_slli_epi64(_mm512_sub_epi64(b, a),
						  50));
	w0 = _mm512_maskz_compress_epi64(hit, w0);
	w1 = _mm512_maskz_compress_epi64(hit, w1);
	_mm512_storeu_si512(out, _mm512_permutex2var_epi64(w0, low, w1));
	_mm512_storeu_si512(out + 4, _mm512_permutex2var_epi64(w0, high, w1));
	return (uint32_t)__builtin_popcount(hit);
}

AVX512 static uint32_t find_avx512(const struct obd_index *index,
				   uint64_t from, uint64_t to,
				   struct obd_record *out, uint32_t max)
{
	uint64_t k = leaf_avx512(index, from) * OBD_LEAF;
	const struct obd_record *leaf = index->records + k;
	uint32_t n;

	if (obd_unlikely(max < OBD_LEAF)) {
		k += rank_leaf(leaf, from);
		return find_from(index, k, from, to, out, max);
	}
	n = cut_leaf_avx512(leaf, from, to, out);
	if (obd_unlikely(rec_end(leaf[OBD_LEAF - 1]) < to))
		return collect(index, k + OBD_LEAF, from, to, n, out, max);
	return n;
}

#endif

/* ---- dispatch ------------------------------------------------------- */

obd_find_fn *obd_find_select(enum obd_cpu level)
{
#if defined(__x86_64__)
	/* OBD_CPU_ISAL says nothing of AVX: ask the machine as well. */
	if (level >= OBD_CPU_AVX512 && __builtin_cpu_supports("avx512f"))
		return find_avx512;
	if (level >= OBD_CPU_AVX2 && __builtin_cpu_supports("avx2"))
		return find_avx2;
#else
	(void)level;
#endif
	return find_scalar;
}

/* Chosen once; every thread that gets here first finds the same. */
static obd_find_fn *find_chosen(void)
{
	static _Atomic(obd_find_fn *) chosen;
	obd_find_fn *fn = atomic_load_explicit(&chosen,
					       memory_order_relaxed);

	if (obd_unlikely(!fn)) {
		fn = obd_find_select(obd_cpu_level());
		atomic_store_explicit(&chosen, fn, memory_order_relaxed);
	}
	return fn;
}

/* Halves the records themselves, for ranges that reach the last sector of
 * the address space: there padding is no longer behind everything. */
static uint32_t find_at_the_end(const struct obd_index *index, uint64_t from,
				uint64_t to, struct obd_record *out,
				uint32_t max)
{
	uint64_t i = 0, n = index->count;

	while (n) {
		uint64_t half = (n + 1) / 2;

		i += rec_end(index->records[i + half - 1]) <= from ? half : 0;
		n -= half;
	}
	return collect(index, i, from, to, 0, out, max);
}

static inline uint32_t find_with(obd_find_fn *fn,
				 const struct obd_index *index, uint64_t lba,
				 uint64_t sectors, struct obd_record *out,
				 uint32_t max)
{
	const uint64_t last = OBD_LBA_MASK;

	if (obd_unlikely(lba > last || !sectors || !max))
		return 0;
	if (obd_unlikely(sectors > last - lba))
		return find_at_the_end(index, lba, last + 1, out, max);
	return fn(index, lba, lba + sectors, out, max);
}

uint32_t obd_find_at(enum obd_cpu level, const struct obd_index *index,
		     uint64_t lba, uint64_t sectors, struct obd_record *out,
		     uint32_t max)
{
	return find_with(obd_find_select(level), index, lba, sectors, out,
			 max);
}

uint32_t obd_index_find(const struct obd_index *index, uint64_t lba,
			uint64_t sectors, struct obd_record *out,
			uint32_t max)
{
	return find_with(find_chosen(), index, lba, sectors, out, max);
}

int32_t obd_index_lookup(struct obd_index *index, uint64_t lba,
			 uint64_t sectors, void *records, uint32_t max)
{
	if (max > INT32_MAX)
		max = INT32_MAX;
	return (int32_t)obd_index_find(index, lba, sectors, records, max);
}

#define MANY_PIECES 16u

/* The sum over found pieces.  How many a look-up finds is what no branch
 * predictor can know, so the first two are added without asking. */
static inline uint64_t sum_pieces(const struct obd_record *out,
				  uint32_t found)
{
	uint64_t sum = (rec_at(out[0]) & -(uint64_t)(found > 0)) +
		       (rec_at(out[1]) & -(uint64_t)(found > 1));
	uint32_t i;

	for (i = 2; obd_unlikely(i < found); i++)
		sum += rec_at(out[i]);
	return sum;
}

uint64_t obd_index_lookup_many(struct obd_index *index,
			       const uint64_t *lbas, uint64_t n,
			       uint32_t sectors)
{
	obd_find_fn *fn = find_chosen();
	struct obd_record out[MANY_PIECES] = { { 0, 0 } };
	uint64_t i, sum = 0, lba, end;
	uint32_t found;

	for (i = 0; i < n; i++) {
		lba = lbas[i];
		end = lba + sectors;
		for (;;) {
			found = find_with(fn, index, lba, end - lba, out,
					  MANY_PIECES);
			sum += sum_pieces(out, found);
			if (obd_likely(found < MANY_PIECES))
				break;
			lba = rec_end(out[MANY_PIECES - 1]);
		}
	}
	return sum;
}
