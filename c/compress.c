/* SPDX-License-Identifier: Apache-2.0
 *
 * compress.c - writing a ZFile (spec zfile 1, 2, 4-6).
 */
#include <stdlib.h>
#include <sys/stat.h>

#include "pipe.h"

#define HEADER 512u
#define CRC_START 100007u
#define BLOCKS_MAX 1000000000ull
/* What the original's reader has room for, crc included. */
#define STORED_MAX 65536u

#define FLAG_HEADER 1u
#define FLAG_DATA 2u
#define FLAG_SEALED 4u
#define FLAG_REWRITTEN 8u
#define FLAG_DIGEST 16u

/* The state of one ZFile being written.  The table grows in place(), under
 * the pipe's lock, and belongs to the caller before and after. */
struct writer {
	struct obd_feed *feed;
	struct obd_sink *sink;
	const struct obd_codec *codec;
	uint32_t block_size, verify;
	uint32_t room;        /* for one stored block */
	uint64_t input;       /* bytes taken */
	uint64_t at;          /* where the next block goes */
	uint32_t *table;
	uint64_t blocks, table_room;
};

/* ---- header and trailer ----------------------------------------------- */

static void put32(uint8_t *p, uint32_t v)
{
	memcpy(p, &v, sizeof(v));
}

static void put64(uint8_t *p, uint64_t v)
{
	memcpy(p, &v, sizeof(v));
}

static void make_block(uint8_t *p, const struct obd_zfile_params *params,
		       uint64_t flags, const struct obd_zfile_result *r)
{
	static const uint8_t magic[24] = {
		'Z', 'F', 'i', 'l', 'e', 0, 1, 0,
		0x74, 0x75, 0x6a, 0x69, 0x2e, 0x79, 0x79, 0x66,
		0x40, 0x41, 0x6c, 0x69, 0x62, 0x61, 0x62, 0x61,
	};

	memset(p, 0, HEADER);
	memcpy(p, magic, sizeof(magic));
	put32(p + 24, 96);
	put64(p + 32, flags | FLAG_DATA | FLAG_DIGEST);
	put64(p + 40, r->index_offset);
	put64(p + 48, r->blocks);
	put64(p + 56, r->input);
	put32(p + 64, r->index_crc);
	put32(p + 72, params->block_size);
	p[76] = (uint8_t)params->algo;
	p[88] = params->verify != 0;
	put32(p + 28, obd_crc32c(0, p, HEADER));
}

static int put_header(struct obd_sink *sink,
		      const struct obd_zfile_params *params, uint64_t flags,
		      const struct obd_zfile_result *r)
{
	uint8_t header[HEADER];

	make_block(header, params, flags | FLAG_HEADER, r);
	return obd_sink_put(sink, header, HEADER, 0);
}

static int put_index(struct writer *w, const struct obd_zfile_params *params,
		     struct obd_zfile_result *r)
{
	uint8_t trailer[HEADER];
	int err;

	r->index_crc = obd_crc32c(0, w->table, w->blocks * 4);
	make_block(trailer, params, FLAG_SEALED, r);
	err = obd_sink_put(w->sink, w->table, w->blocks * 4, w->at);
	if (err)
		return err;
	return obd_sink_put(w->sink, trailer, HEADER, w->at + w->blocks * 4);
}

/* ---- blocks ----------------------------------------------------------- */

static uint32_t block_bytes(const struct writer *w,
			    const struct obd_slot *slot, uint32_t i)
{
	uint64_t rest = slot->n - (uint64_t)i * w->block_size;

	return rest < w->block_size ? (uint32_t)rest : w->block_size;
}

/* The block of n bytes at the end of the slot's output is complete: adds
 * its crc and counts it. */
static int finish_block(const struct writer *w, struct obd_slot *slot,
			uint32_t n)
{
	uint8_t *p = slot->out + slot->out_n;

	if (w->verify) {
		put32(p + n, obd_crc32c(CRC_START, p, n));
		n += 4;
	}
	if (n > STORED_MAX)
		return -E2BIG;
	slot->lengths[slot->count++] = n;
	slot->out_n += n;
	return 0;
}

static int compress_cpu(const struct writer *w, struct obd_slot *slot,
			uint32_t blocks)
{
	void *ctx = obd_codec_thread_context(w->codec);
	int64_t got;
	uint32_t i;
	int err = 0;

	if (!ctx)
		return -ENOMEM;
	for (i = 0; i < blocks && !err; i++) {
		got = w->codec->compress(ctx, slot->in +
					 (uint64_t)i * w->block_size,
					 block_bytes(w, slot, i),
					 slot->out + slot->out_n,
					 w->room - 4);
		err = got < 0 ? (int)got :
				finish_block(w, slot, (uint32_t)got);
	}
	return err;
}

/* All blocks at once in hardware, each to where it would lie if none had
 * shrunk.  -ENOTSUP, whatever went wrong there: the CPU does it. */
static int compress_hardware(const struct writer *w, struct obd_slot *slot,
			     uint32_t blocks)
{
	uint32_t n[PIPE_BLOCKS], out_n[PIPE_BLOCKS], i;
	const void *src[PIPE_BLOCKS];
	void *dst[PIPE_BLOCKS];
	int (*batch)(const void *const *, const uint32_t *, void *const *,
		     uint32_t *, uint32_t) =
		__atomic_load_n(&w->codec->batch, __ATOMIC_ACQUIRE);
	int err = 0;

	if (!batch || !blocks)
		return -ENOTSUP;
	for (i = 0; i < blocks; i++) {
		src[i] = slot->in + (uint64_t)i * w->block_size;
		dst[i] = slot->out + (uint64_t)i * w->room;
		n[i] = block_bytes(w, slot, i);
		out_n[i] = w->room - 4;
	}
	if (batch(src, n, dst, out_n, blocks))
		return -ENOTSUP;
	for (i = 0; i < blocks; i++)
		if (!out_n[i] || out_n[i] > w->room - 4)
			return -ENOTSUP;
	for (i = 0; i < blocks && !err; i++) {
		memmove(slot->out + slot->out_n, dst[i], out_n[i]);
		err = finish_block(w, slot, out_n[i]);
	}
	return err;
}

/* ---- steps ------------------------------------------------------------ */

static int take(struct obd_pipe *pipe, struct obd_slot *slot)
{
	struct writer *w = pipe->owner;
	uint64_t rest = w->feed->size - w->input;
	int64_t got;

	slot->at = w->input;
	slot->n = rest < PIPE_BATCH ? rest : PIPE_BATCH;
	if (w->feed->next) {
		got = w->feed->next(w->feed->owner, slot->in, PIPE_BATCH);
		if (got < 0)
			return (int)got;
		slot->n = (uint64_t)got;
	}
	w->input += slot->n;
	return slot->n != 0;
}

static int read_in(struct obd_pipe *pipe, struct obd_slot *slot)
{
	struct writer *w = pipe->owner;

	return w->feed->read(w->feed->owner, slot->in, slot->n, slot->at);
}

static int work(struct obd_pipe *pipe, struct obd_slot *slot)
{
	struct writer *w = pipe->owner;
	uint32_t blocks = (uint32_t)((slot->n + w->block_size - 1) /
				     w->block_size);
	int err = compress_hardware(w, slot, blocks);

	if (err == -ENOTSUP) {
		slot->count = 0;
		slot->out_n = 0;
		err = compress_cpu(w, slot, blocks);
	}
	return err;
}

static int grow_table(struct writer *w)
{
	uint64_t room = w->table_room * 2 + PIPE_BLOCKS;
	uint32_t *table = realloc(w->table, room * sizeof(*table));

	if (!table)
		return -ENOMEM;
	w->table = table;
	w->table_room = room;
	return 0;
}

static int place(struct obd_pipe *pipe, struct obd_slot *slot)
{
	struct writer *w = pipe->owner;
	int err;

	if (w->blocks + slot->count > BLOCKS_MAX)
		return -EFBIG;
	if (w->blocks + slot->count > w->table_room) {
		err = grow_table(w);
		if (err)
			return err;
	}
	memcpy(w->table + w->blocks, slot->lengths,
	       slot->count * sizeof(*w->table));
	w->blocks += slot->count;
	slot->out_at = w->at;
	w->at += slot->out_n;
	return 0;
}

static int write_out(struct obd_pipe *pipe, struct obd_slot *slot)
{
	struct writer *w = pipe->owner;

	return obd_sink_put(w->sink, slot->out, slot->out_n, slot->out_at);
}

/* ---- the whole --------------------------------------------------------- */

static int check_params(const struct obd_zfile_params *p, bool stream)
{
	uint32_t bs = p->block_size;

	if (bs < 4096 || bs > 65536 || (bs & (bs - 1)) ||
	    !obd_codec_find(p->algo) || (stream && p->rewrite_header))
		return -EINVAL;
	return 0;
}

static int write_blocks(struct writer *w, uint32_t threads)
{
	struct obd_pipe pipe = {
		.owner = w,
		.job = w->sink->job,
		.threads = threads,
		.stream = w->sink->stream,
		.in_room = PIPE_BATCH,
		.out_room = (uint64_t)PIPE_BATCH / w->block_size * w->room,
		.take = take,
		.read = w->feed->next ? NULL : read_in,
		.work = work,
		.place = place,
		.write = write_out,
	};

	return obd_pipe_run(&pipe);
}

/* A header that will be rewritten is written once, at the end. */
static int write_all(struct writer *w, const struct obd_zfile_params *params,
		     uint32_t threads, struct obd_zfile_result *r)
{
	int err = 0;

	if (!params->rewrite_header)
		err = put_header(w->sink, params, 0, r);
	if (!err)
		err = write_blocks(w, threads);
	if (err)
		return err;
	r->input = w->input;
	r->index_offset = w->at;
	r->blocks = w->blocks;
	r->size = w->at + w->blocks * 4 + HEADER;
	err = put_index(w, params, r);
	if (!err && params->rewrite_header)
		err = put_header(w->sink, params, FLAG_REWRITTEN, r);
	return err;
}

int obd_compress_run(struct obd_feed *feed,
		     const struct obd_zfile_params *params, uint32_t threads,
		     struct obd_sink *sink, struct obd_zfile_result *result)
{
	struct obd_zfile_result r = { 0 };
	struct writer w = { .feed = feed, .sink = sink, .at = HEADER };
	int err = check_params(params, sink->stream);

	if (err)
		return err;
	w.codec = obd_codec_find(params->algo);
	w.block_size = params->block_size;
	w.verify = params->verify != 0;
	w.room = w.codec->bound(w.block_size) + 4;
	err = write_all(&w, params, threads, &r);
	free(w.table);
	if (!err && result)
		*result = r;
	return err;
}

/* ---- from a descriptor ------------------------------------------------- */

static int64_t next_bytes(void *owner, void *buf, uint64_t n)
{
	return obd_io_read(*(const int *)owner, buf, n);
}

/* What is left of a regular file; 0 when only its end will tell. */
static uint64_t input_size(int fd)
{
	struct stat st;
	int64_t at;

	if (fstat(fd, &st) || !S_ISREG(st.st_mode))
		return 0;
	at = obd_io_seek(fd, 0, SEEK_CUR);
	return at < 0 || at > st.st_size ? 0 : (uint64_t)(st.st_size - at);
}

int32_t obd_zfile_compress(int32_t in_fd,
			   const struct obd_zfile_params *params,
			   int32_t out_fd, uint64_t out_at, int32_t stream,
			   struct obd_job *job,
			   struct obd_zfile_result *result)
{
	struct obd_sink sink = { out_fd, out_at, stream != 0, job };
	struct obd_feed feed = {
		.owner = &in_fd,
		.size = UINT64_MAX,
		.next = next_bytes,
	};

	obd_job_total(job, input_size(in_fd));
	return obd_compress_run(&feed, params, params->threads, &sink,
				result);
}
