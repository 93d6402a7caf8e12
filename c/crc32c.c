/* SPDX-License-Identifier: Apache-2.0
 *
 * crc32c.c - CRC-32C as a raw register: no inversion at either end (spec
 * zfile 5).  The code path is chosen once, at run time.
 */
#include <pthread.h>

#include "internal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#define HWCAP_CRC (1ul << 7)
#endif

#define POLY 0x82f63b78u  /* Castagnoli, reflected */

typedef uint32_t crc_fn(uint32_t crc, const uint8_t *p, uint64_t n);

/* ---- table: eight bytes a step -------------------------------------- */

static uint32_t table[8][256];

static void make_table(void)
{
	uint32_t i, k, c;

	for (i = 0; i < 256; i++) {
		for (c = i, k = 0; k < 8; k++)
			c = c >> 1 ^ (c & 1 ? POLY : 0);
		table[0][i] = c;
	}
	for (i = 0; i < 256; i++)
		for (k = 1; k < 8; k++)
			table[k][i] = table[k - 1][i] >> 8 ^
				      table[0][table[k - 1][i] & 255];
}

static uint32_t crc_table(uint32_t crc, const uint8_t *p, uint64_t n)
{
	uint64_t w;

	for (; n >= 8; n -= 8, p += 8) {
		w = obd_le64(p) ^ crc;
		crc = table[7][w & 255] ^ table[6][w >> 8 & 255] ^
		      table[5][w >> 16 & 255] ^ table[4][w >> 24 & 255] ^
		      table[3][w >> 32 & 255] ^ table[2][w >> 40 & 255] ^
		      table[1][w >> 48 & 255] ^ table[0][w >> 56];
	}
	while (n--)
		crc = table[0][(crc ^ *p++) & 255] ^ crc >> 8;
	return crc;
}

/* ---- SSE4.2 ---------------------------------------------------------- */

#if defined(__x86_64__)
#define SSE42 __attribute__((target("sse4.2")))
#define PCLMUL __attribute__((target("sse4.2,pclmul")))

SSE42 static uint32_t crc_sse42(uint32_t crc, const uint8_t *p, uint64_t n)
{
	uint64_t c = crc;

	for (; n >= 8; n -= 8, p += 8)
		c = _mm_crc32_u64(c, obd_le64(p));
	if (n & 4) {
		c = _mm_crc32_u32((uint32_t)c, obd_le32(p));
		p += 4;
	}
	for (n &= 3; n; n--)
		c = _mm_crc32_u8((uint32_t)c, *p++);
	return (uint32_t)c;
}

/* The instruction takes three cycles and one can start in each, so three
 * streams of the same length run side by side.  The register of a stream
 * is then carried over the words behind it:
 *
 *	crc over a, then w words of zeros = a * x^(64 w) mod P
 *
 * shift[w] = x^(64 w - 33) mod P.  The carry-less product of two reflected
 * values holds one factor x too many, and the crc instruction, fed with
 * that product as its last data word, multiplies by x^32 and reduces. */
#define WORDS_MAX 512u        /* a stream; 12 KiB a round */
#define WORDS_MIN 8u          /* below, one stream is as fast */
static uint32_t shift[2 * WORDS_MAX + 1];

SSE42 static void make_shift(void)
{
	uint32_t w;

	shift[1] = 1; /* x^31, reflected */
	for (w = 2; w <= 2 * WORDS_MAX; w++)
		shift[w] = (uint32_t)_mm_crc32_u64(shift[w - 1], 0);
}

PCLMUL static uint64_t carry(uint64_t crc, uint32_t by)
{
	__m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)
							       crc),
					       _mm_cvtsi32_si128((int)by), 0);

	return (uint64_t)_mm_cvtsi128_si64(product);
}

/* 3 * w words at p. */
PCLMUL static uint64_t crc_round(uint64_t crc, const uint8_t *p, uint64_t w)
{
	const uint8_t *q = p + 8 * w, *r = q + 8 * w, *end = q - 8;
	uint64_t a = crc, b = 0, c = 0, over;

	for (; p < end; p += 8, q += 8, r += 8) {
		a = _mm_crc32_u64(a, obd_le64(p));
		b = _mm_crc32_u64(b, obd_le64(q));
		c = _mm_crc32_u64(c, obd_le64(r));
	}
	a = _mm_crc32_u64(a, obd_le64(p));
	b = _mm_crc32_u64(b, obd_le64(q));
	over = carry(a, shift[2 * w]) ^ carry(b, shift[w]);
	return _mm_crc32_u64(c, obd_le64(r) ^ over);
}

PCLMUL static uint32_t crc_pclmul(uint32_t crc, const uint8_t *p, uint64_t n)
{
	uint64_t c = crc, w;

	while (n >= 24 * WORDS_MIN) {
		w = n / 24 < WORDS_MAX ? n / 24 : WORDS_MAX;
		c = crc_round(c, p, w);
		p += 24 * w;
		n -= 24 * w;
	}
	return crc_sse42((uint32_t)c, p, n);
}

/* Nehalem has the one and not the other. */
static bool has_pclmul(void)
{
	return __builtin_cpu_supports("pclmul");
}
#endif

/* ---- ARMv8 ----------------------------------------------------------- */

#if defined(__aarch64__)
__attribute__((target("+crc")))
static uint32_t crc_arm(uint32_t crc, const uint8_t *p, uint64_t n)
{
	for (; n >= 8; n -= 8, p += 8)
		crc = __crc32cd(crc, obd_le64(p));
	while (n--)
		crc = __crc32cb(crc, *p++);
	return crc;
}
#endif

/* ---- ISA-L ------------------------------------------------------------ */

static obd_isal_crc *isal_crc;

/* Its length is an int, and negative is not refused. */
static uint32_t crc_isal(uint32_t crc, const uint8_t *p, uint64_t n)
{
	const uint64_t most = 1u << 30;

	for (; obd_unlikely(n > most); n -= most, p += most)
		crc = isal_crc((unsigned char *)(uintptr_t)p, (int)most, crc);
	return isal_crc((unsigned char *)(uintptr_t)p, (int)n, crc);
}

/* ---- choice ----------------------------------------------------------- */

static uint32_t crc_first(uint32_t crc, const uint8_t *p, uint64_t n);

/* What runs: the chosen path, or crc_hardware() in front of it. */
static _Atomic(crc_fn *) running = crc_first;
static crc_fn *chosen = crc_table;
static const char *chosen_name = "table";
static _Atomic(int (*)(uint32_t, const void *, uint64_t, uint32_t *)) engine;
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;
static pthread_once_t first_once = PTHREAD_ONCE_INIT;

static void make_tables(void)
{
	make_table();
#if defined(__x86_64__)
	if (obd_cpu_level() >= OBD_CPU_SSE42)
		make_shift();
#endif
}

static uint32_t crc_hardware(uint32_t crc, const uint8_t *p, uint64_t n)
{
	int (*fn)(uint32_t, const void *, uint64_t, uint32_t *) =
		atomic_load_explicit(&engine, memory_order_acquire);
	uint32_t out;

	if (fn && !fn(crc, p, n, &out))
		return out;
	return chosen(crc, p, n);
}

static void choose(crc_fn *fn, const char *name)
{
	chosen = fn;
	chosen_name = name;
}

void obd_crc_choose(enum obd_cpu level, obd_isal_crc *isal)
{
	pthread_once(&tables_once, make_tables);
	choose(crc_table, "table");
#if defined(__x86_64__)
	if (level > obd_cpu_level())
		level = obd_cpu_level();
	if (level >= OBD_CPU_SSE42 && has_pclmul())
		choose(crc_pclmul, "pclmul");
	else if (level >= OBD_CPU_SSE42)
		choose(crc_sse42, "sse42");
#elif defined(__aarch64__)
	(void)level;
	if (getauxval(AT_HWCAP) & HWCAP_CRC)
		choose(crc_arm, "arm");
#else
	(void)level;
#endif
	if (isal) {
		isal_crc = isal;
		choose(crc_isal, "isal");
	}
	atomic_store_explicit(&running, atomic_load(&engine) ? crc_hardware
							     : chosen,
			      memory_order_release);
}

static void choose_first(void)
{
	if (atomic_load(&running) == crc_first)
		obd_crc_choose(obd_cpu_level(), obd_isal_load());
}

/* Whoever needs no crc does not wait for ISA-L and the tables. */
static uint32_t crc_first(uint32_t crc, const uint8_t *p, uint64_t n)
{
	pthread_once(&first_once, choose_first);
	return atomic_load(&running)(crc, p, n);
}

const char *obd_crc_name(void)
{
	pthread_once(&first_once, choose_first);
	return chosen_name;
}

void obd_crc_set_engine(int (*crc)(uint32_t start, const void *buf,
				   uint64_t n, uint32_t *out))
{
	pthread_once(&first_once, choose_first);
	atomic_store(&engine, crc);
	atomic_store(&running, crc ? crc_hardware : chosen);
}

uint32_t obd_crc32c(uint32_t start, const void *buf, uint64_t n)
{
	crc_fn *fn = atomic_load_explicit(&running, memory_order_acquire);

	return fn(start, buf, n);
}
