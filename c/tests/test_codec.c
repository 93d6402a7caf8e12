/* SPDX-License-Identifier: Apache-2.0
 *
 * test_codec.c - the codecs make the bytes of the libraries' plain calls,
 * decode nothing else, and allocate nothing per block.
 */
#include "files.h"

#include <lz4.h>
#include <malloc.h>
#include <pthread.h>
#include <zstd.h>

static const uint32_t sizes[] = { 1, 2, 13, 511, 4095, 4096, 8192, 65536 };
#define SIZES (sizeof(sizes) / sizeof(sizes[0]))

static int64_t plain_call(uint32_t algo, const void *src, uint32_t n,
			  void *dst, uint32_t cap)
{
	if (algo == OBD_ALGO_LZ4)
		return LZ4_compress_default(src, dst, (int)n, (int)cap);
	return (int64_t)ZSTD_compress(dst, cap, src, n, 3);
}

/* n bytes of a kind, compressed by us and by the library, and back. */
static void check_bytes(const struct obd_codec *c, uint32_t n,
			enum pattern kind)
{
	void *ctx = obd_codec_thread_context(c);
	struct bytes in = make_bytes(n, kind);
	uint32_t cap = c->bound(n);
	uint8_t *a = malloc(cap), *b = malloc(cap), *back = malloc(n);
	int64_t got = c->compress(ctx, in.p, n, a, cap);
	int64_t want = plain_call(c->algo, in.p, n, b, cap);

	CHECK_EQ(got, want);
	CHECK(!memcmp(a, b, (size_t)got));
	CHECK_EQ(c->decompress(ctx, a, (uint32_t)got, back, n), n);
	CHECK(!memcmp(back, in.p, n));
	CHECK_EQ(c->decompress(ctx, a, (uint32_t)got, back, n - 1),
		 -EUCLEAN);
	CHECK_EQ(c->compress(ctx, in.p, n, a, 0), -ENOSPC);
	free(a);
	free(b);
	free(back);
	free(in.p);
}

static void bytes_are_those_of_the_plain_call(void)
{
	const struct obd_codec *c;
	unsigned int i, kind, algo;

	for (algo = OBD_ALGO_LZ4; algo <= OBD_ALGO_ZSTD; algo++) {
		c = obd_codec_find(algo);
		CHECK(c && c->algo == algo);
		for (i = 0; i < SIZES; i++)
			for (kind = 0; kind < PATTERNS; kind++)
				check_bytes(c, sizes[i],
					    (enum pattern)kind);
	}
	CHECK(!obd_codec_find(0));
	CHECK(!obd_codec_find(3));
}

/* spec zfile 4: content size, no checksum, no dictionary. */
static void a_zstd_frame_says_its_size(void)
{
	const struct obd_codec *c = obd_codec_find(OBD_ALGO_ZSTD);
	struct bytes in = make_bytes(65536, TEXT);
	uint8_t *out = malloc(c->bound(65536));
	int64_t n = c->compress(obd_codec_thread_context(c), in.p, 65536,
				out, c->bound(65536));

	CHECK(n > 6);
	CHECK_EQ(obd_le32(out), 0xfd2fb528);
	CHECK_EQ(out[4], 0x60);
	CHECK_EQ(ZSTD_getFrameContentSize(out, (size_t)n), 65536);
	free(out);
	free(in.p);
}

static void garbage_is_refused(void)
{
	struct bytes in = make_bytes(4096, RANDOM);
	uint8_t out[4096];
	unsigned int algo;
	const struct obd_codec *c;

	for (algo = OBD_ALGO_LZ4; algo <= OBD_ALGO_ZSTD; algo++) {
		c = obd_codec_find(algo);
		CHECK_EQ(c->decompress(obd_codec_thread_context(c), in.p,
				       4096, out, 4096), -EUCLEAN);
	}
	free(in.p);
}

/* The first block makes the contexts, no later one allocates: the heap
 * holds what it held. */
static void blocks_allocate_nothing(void)
{
	unsigned int i, algo;
	size_t before = 0;
	uint64_t size;

	for (i = 0; i < 50; i++) {
		for (algo = OBD_ALGO_LZ4; algo <= OBD_ALGO_ZSTD; algo++)
			check_bytes(obd_codec_find(algo), 65536, MIXED);
		CHECK(obd_thread_scratch(&size));
		CHECK(size >= 2 * (65536 + 4096));
		if (i == 1)
			before = mallinfo2().uordblks;
	}
	CHECK_EQ(mallinfo2().uordblks, before);
}

static void *use_everything(void *arg)
{
	uint64_t size;
	unsigned int algo;

	for (algo = OBD_ALGO_LZ4; algo <= OBD_ALGO_ZSTD; algo++)
		*(void **)arg = obd_codec_thread_context(
			obd_codec_find(algo));
	return obd_thread_scratch(&size);
}

/* What a thread had is gone with it (the leak check of the run proves it),
 * and was its own. */
static void each_thread_has_its_own(void)
{
	pthread_t t[8];
	void *ctx[8], *scratch;
	int i;

	for (i = 0; i < 8; i++)
		CHECK(!pthread_create(&t[i], NULL, use_everything, &ctx[i]));
	for (i = 0; i < 8; i++) {
		CHECK(!pthread_join(t[i], &scratch));
		CHECK(scratch && ctx[i]);
		CHECK(ctx[i] != obd_codec_thread_context(
					obd_codec_find(OBD_ALGO_ZSTD)));
	}
}

static int a_batch(const void *const *src, const uint32_t *n,
		   void *const *dst, uint32_t *cap, uint32_t count)
{
	(void)src, (void)n, (void)dst, (void)cap, (void)count;
	return -ENOTSUP;
}

static void the_batch_slot_is_per_codec(void)
{
	obd_codec_set_batch(OBD_ALGO_ZSTD, a_batch);
	CHECK(obd_codec_find(OBD_ALGO_ZSTD)->batch == a_batch);
	CHECK(!obd_codec_find(OBD_ALGO_LZ4)->batch);
	obd_codec_set_batch(OBD_ALGO_ZSTD, NULL);
	CHECK(!obd_codec_find(OBD_ALGO_ZSTD)->batch);
}

int main(void)
{
	RUN(bytes_are_those_of_the_plain_call);
	RUN(a_zstd_frame_says_its_size);
	RUN(garbage_is_refused);
	RUN(blocks_allocate_nothing);
	RUN(each_thread_has_its_own);
	RUN(the_batch_slot_is_per_codec);
	return check_done();
}
