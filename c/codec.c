/* SPDX-License-Identifier: Apache-2.0
 *
 * codec.c - the block compressors behind one table, and what each thread
 * keeps for them.
 *
 * Blocks are independent and have no frame of our own (spec zfile 4): raw
 * LZ4 blocks, or one zstd frame each.
 */
#include <lz4.h>
#include <pthread.h>
#include <stdlib.h>
#include <zstd.h>

#include "internal.h"

#define ZSTD_LEVEL 3

/* ---- lz4 -------------------------------------------------------------- */

/* No state outlives a call: the address only says "not NULL". */
static char lz4_state;

static void *lz4_context(void)
{
	return &lz4_state;
}

static void lz4_context_free(void *ctx)
{
	(void)ctx;
}

static int64_t lz4_compress(void *ctx, const void *src, uint32_t n,
			    void *dst, uint32_t cap)
{
	int out = LZ4_compress_default(src, dst, (int)n, (int)cap);

	(void)ctx;
	return out > 0 ? out : -ENOSPC;
}

static int64_t lz4_decompress(void *ctx, const void *src, uint32_t n,
			      void *dst, uint32_t cap)
{
	int out = LZ4_decompress_safe(src, dst, (int)n, (int)cap);

	(void)ctx;
	return out >= 0 ? out : -EUCLEAN;
}

static uint32_t lz4_bound(uint32_t n)
{
	return (uint32_t)LZ4_compressBound((int)n);
}

/* ---- zstd ------------------------------------------------------------- */

struct zstd_state {
	ZSTD_CCtx *c;
	ZSTD_DCtx *d;
};

/* Each half is made when it is first needed: a reader never pays for the
 * compressor's tables. */
static void *zstd_context(void)
{
	return calloc(1, sizeof(struct zstd_state));
}

static void zstd_context_free(void *ctx)
{
	struct zstd_state *z = ctx;

	ZSTD_freeCCtx(z->c);
	ZSTD_freeDCtx(z->d);
	free(z);
}

static int64_t zstd_compress(void *ctx, const void *src, uint32_t n,
			     void *dst, uint32_t cap)
{
	struct zstd_state *z = ctx;
	size_t out;

	if (obd_unlikely(!z->c) && !(z->c = ZSTD_createCCtx()))
		return -ENOMEM;
	out = ZSTD_compressCCtx(z->c, dst, cap, src, n, ZSTD_LEVEL);
	return ZSTD_isError(out) ? -ENOSPC : (int64_t)out;
}

static int64_t zstd_decompress(void *ctx, const void *src, uint32_t n,
			       void *dst, uint32_t cap)
{
	struct zstd_state *z = ctx;
	size_t out;

	if (obd_unlikely(!z->d) && !(z->d = ZSTD_createDCtx()))
		return -ENOMEM;
	out = ZSTD_decompressDCtx(z->d, dst, cap, src, n);
	return ZSTD_isError(out) ? -EUCLEAN : (int64_t)out;
}

static uint32_t zstd_bound(uint32_t n)
{
	return (uint32_t)ZSTD_compressBound(n);
}

/* ---- the table -------------------------------------------------------- */

/* batch alone changes, and only before and after work: see
 * obd_codec_set_batch(). */
static struct obd_codec codecs[] = {
	{
		.name = "lz4",
		.algo = OBD_ALGO_LZ4,
		.context = lz4_context,
		.context_free = lz4_context_free,
		.compress = lz4_compress,
		.decompress = lz4_decompress,
		.bound = lz4_bound,
	},
	{
		.name = "zstd",
		.algo = OBD_ALGO_ZSTD,
		.context = zstd_context,
		.context_free = zstd_context_free,
		.compress = zstd_compress,
		.decompress = zstd_decompress,
		.bound = zstd_bound,
	},
};

#define CODECS (sizeof(codecs) / sizeof(codecs[0]))

const struct obd_codec *obd_codec_find(uint32_t algo)
{
	size_t i;

	for (i = 0; i < CODECS; i++)
		if (codecs[i].algo == algo)
			return &codecs[i];
	return NULL;
}

void obd_codec_set_batch(uint32_t algo,
			 int (*batch)(const void *const *src,
				      const uint32_t *n, void *const *dst,
				      uint32_t *cap, uint32_t count))
{
	size_t i;

	for (i = 0; i < CODECS; i++)
		if (codecs[i].algo == algo)
			__atomic_store_n(&codecs[i].batch, batch,
					 __ATOMIC_RELEASE);
}

/* ---- per thread ------------------------------------------------------- */

/* Pages of it that a thread never touches cost nothing. */
#define SCRATCH_BYTES (320u << 10)

struct thread_state {
	void *context[CODECS];
	uint8_t *scratch;
};

static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool key_made;
static __thread struct thread_state *mine;

static void thread_end(void *state)
{
	struct thread_state *t = state;
	size_t i;

	for (i = 0; i < CODECS; i++)
		if (t->context[i])
			codecs[i].context_free(t->context[i]);
	free(t->scratch);
	free(t);
	mine = NULL;
}

static void make_key(void)
{
	key_made = !pthread_key_create(&key, thread_end);
}

static struct thread_state *thread_state_new(void)
{
	struct thread_state *t;

	pthread_once(&key_once, make_key);
	if (!key_made)
		return NULL;
	t = calloc(1, sizeof(*t));
	if (t && pthread_setspecific(key, t)) {
		free(t);
		return NULL;
	}
	return mine = t;
}

static inline struct thread_state *thread_state(void)
{
	struct thread_state *t = mine;

	return obd_likely(t != NULL) ? t : thread_state_new();
}

void *obd_codec_thread_context(const struct obd_codec *codec)
{
	struct thread_state *t = thread_state();
	void **slot;

	if (obd_unlikely(!t))
		return NULL;
	slot = &t->context[codec - codecs];
	if (obd_unlikely(!*slot))
		*slot = codec->context();
	return *slot;
}

uint8_t *obd_thread_scratch(uint64_t *size)
{
	struct thread_state *t = thread_state();

	if (obd_unlikely(!t))
		return NULL;
	if (obd_unlikely(!t->scratch) &&
	    posix_memalign((void **)&t->scratch, 64, SCRATCH_BYTES))
		return t->scratch = NULL;
	*size = SCRATCH_BYTES;
	return t->scratch;
}
