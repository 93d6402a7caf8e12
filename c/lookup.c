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
	uint64_t h = (uint64_t)(rec_end(r[3]) <= key) * 4;

	r += h;
	return h + (rec_end(r[0]) <= key) + (rec_end(r[1]) <= key) +
	       (rec_end(r[2]) <= key);
}

static uint32_t find_scalar(const struct obd_index *index, uint64_t from,
			    uint64_t to, struct obd_record *out,
			    uint32_t max)
{
	uint64_t k = 0;
	uint32_t d, n;

	for (d = index->depth; d--;)
		k = k * OBD_NODE + rank_node(index->level[d] + k * OBD_NODE,
					     from);
	k *= OBD_LEAF;
	k += rank_leaf(index->records + k, from);
	if (obd_unlikely(max < 2))
		return collect(index, k, from, to, 0, out, max);
	/* Padding behind the records makes both reads safe. */
	n = cut_to(index->records[k], from, to, out);
	if (obd_likely(rec_end(index->records[k]) >= to))
		return n;
	return collect(index, k + 1, from, to, n, out, max);
}

/* ---- x86-64 --------------------------------------------------------- */

#if defined(__x86_64__)

#define AVX2 __attribute__((target("avx2,popcnt")))
#define AVX512 __attribute__((target("avx512f,avx2,popcnt")))

AVX2 static inline uint32_t le4(const uint64_t *keys, __m256i key)
{
	__m256i k = _mm256_load_si256((const __m256i *)keys);

	/* Signed compare: no key reaches 2^63. */
	return (uint32_t)_mm256_movemask_pd(
		_mm256_castsi256_pd(_mm256_cmpgt_epi64(k, key)));
}

AVX2 static uint32_t find_avx2(const struct obd_index *index, uint64_t from,
			       uint64_t to, struct obd_record *out,
			       uint32_t max)
{
	const __m256i key = _mm256_set1_epi64x((int64_t)from);
	uint64_t k = 0;
	uint32_t d, n, gt;

	for (d = index->depth; d--;) {
		const uint64_t *p = index->level[d] + k * OBD_NODE;

		gt = le4(p, key) | le4(p + 4, key) << 4 |
		     le4(p + 8, key) << 8 | le4(p + 12, key) << 12;
		k = k * OBD_NODE + (uint32_t)__builtin_ctz(gt);
	}
	k *= OBD_LEAF;
	k += rank_leaf(index->records + k, from);
	if (obd_unlikely(max < 2))
		return collect(index, k, from, to, 0, out, max);
	n = cut_to(index->records[k], from, to, out);
	if (obd_likely(rec_end(index->records[k]) >= to))
		return n;
	return collect(index, k + 1, from, to, n, out, max);
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
 * left; out has room for eight.  Returns the mask of hits. */
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
	return hit;
}

AVX512 static uint32_t find_avx512(const struct obd_index *index,
				   uint64_t from, uint64_t to,
				   struct obd_record *out, uint32_t max)
{
	uint64_t k = leaf_avx512(index, from) * OBD_LEAF;
	uint32_t hit, n;

	if (obd_unlikely(max < OBD_LEAF)) {
		k += rank_leaf(index->records + k, from);
		return collect(index, k, from, to, 0, out, max);
	}
	hit = cut_leaf_avx512(index->records + k, from, to, out);
	n = (uint32_t)__builtin_popcount(hit);
	/* The leaf's last record is in: there may be more behind it. */
	if (obd_unlikely(hit >> (OBD_LEAF - 1)))
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

static inline uint32_t find_with(obd_find_fn *fn,
				 const struct obd_index *index, uint64_t lba,
				 uint64_t sectors, struct obd_record *out,
				 uint32_t max)
{
	const uint64_t limit = OBD_LBA_MASK + 1;

	if (obd_unlikely(lba >= limit || !sectors || !max))
		return 0;
	if (obd_unlikely(sectors > limit - lba))
		sectors = limit - lba;
	return fn(index, lba, lba + sectors, out, max);
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

uint64_t obd_index_lookup_many(struct obd_index *index,
			       const uint64_t *lbas, uint64_t n,
			       uint32_t sectors)
{
	obd_find_fn *fn = find_chosen();
	struct obd_record out[16];
	uint64_t i, sum = 0, lba, end;
	uint32_t found, j;

	for (i = 0; i < n; i++) {
		lba = lbas[i];
		end = lba + sectors;
		do {
			found = find_with(fn, index, lba, end - lba, out, 16);
			for (j = 0; j < found; j++)
				sum += rec_at(out[j]);
			if (obd_likely(found < 16))
				break;
			lba = rec_end(out[15]);
		} while (lba < end);
	}
	return sum;
}
