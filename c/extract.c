/* SPDX-License-Identifier: Apache-2.0
 *
 * extract.c - decoding all of a ZFile: to a file, or only to see that it
 * can be done.
 */
#include "core.h"
#include "pipe.h"

/* Blocks may be as small as one byte (spec zfile 3): a step of verify has
 * room to name this many bad ones. */
#define STEP_BLOCKS 1024u

/* taken is take()'s, the list of bad blocks place()'s. */
struct decoder {
	struct obd_source *src;
	struct obd_sink *sink;
	uint64_t size, taken;
	uint32_t block_size, step;
	uint64_t *bad;
	uint64_t bad_max, bad_count;
};

static int decoder_init(struct decoder *d, struct obd_source *zfile,
			struct obd_job *job)
{
	if (zfile->kind != SRC_ZFILE)
		return -EINVAL;
	d->src = zfile;
	d->size = obd_zfile_size(zfile->zfile);
	d->block_size = obd_zfile_block_size(zfile->zfile);
	d->step = PIPE_BATCH;
	if (d->block_size < PIPE_BATCH / STEP_BLOCKS)
		d->step = d->block_size * STEP_BLOCKS;
	obd_job_total(job, d->size);
	return 0;
}

static int decode(struct decoder *d, void *buf, uint64_t n, uint64_t at,
		  uint64_t *bad)
{
	int err = obd_zfile_read(d->src->zfile, d->src->inner, buf, n, at,
				 OBD_TRY_BLOCK, bad);

	return err == -ENODATA ? -EAGAIN : err;
}

static int take(struct obd_pipe *pipe, struct obd_slot *slot)
{
	struct decoder *d = pipe->owner;
	uint64_t rest = d->size - d->taken;

	slot->at = d->taken;
	slot->n = rest < d->step ? rest : d->step;
	d->taken += slot->n;
	return slot->n != 0;
}

/* ---- extract ----------------------------------------------------------- */

static int extract_work(struct obd_pipe *pipe, struct obd_slot *slot)
{
	struct decoder *d = pipe->owner;
	uint64_t bad = 0;
	int err = decode(d, slot->out, slot->n, slot->at, &bad);

	slot->out_n = slot->n;
	slot->out_at = err == -EUCLEAN ? bad * d->block_size : slot->at;
	return err;
}

static int extract_place(struct obd_pipe *pipe, struct obd_slot *slot)
{
	(void)pipe;
	(void)slot;
	return 0;
}

static int extract_write(struct obd_pipe *pipe, struct obd_slot *slot)
{
	struct decoder *d = pipe->owner;

	return obd_sink_put(d->sink, slot->out, slot->out_n, slot->out_at);
}

int32_t obd_zfile_extract(struct obd_source *zfile, int32_t out_fd,
			  uint32_t threads, int32_t stream,
			  struct obd_job *job)
{
	struct obd_sink sink = { out_fd, 0, stream != 0, job };
	struct decoder d = { .sink = &sink };
	struct obd_pipe pipe = {
		.owner = &d,
		.job = job,
		.threads = threads,
		.stream = stream != 0,
		.out_room = PIPE_BATCH,
		.take = take,
		.work = extract_work,
		.place = extract_place,
		.write = extract_write,
	};
	int err = decoder_init(&d, zfile, job);

	if (!err)
		err = obd_pipe_run(&pipe);
	if (err == -EUCLEAN && job)
		__atomic_store_n(&job->done, pipe.failed_at,
				 __ATOMIC_RELAXED);
	return err;
}

/* ---- verify ------------------------------------------------------------ */

/* The step's input buffer holds the numbers of its bad blocks. */
static int verify_work(struct obd_pipe *pipe, struct obd_slot *slot)
{
	struct decoder *d = pipe->owner;
	uint64_t at = slot->at, end = slot->at + slot->n, nr;
	int err = 0;

	while (at < end) {
		err = decode(d, slot->out, end - at, at, &nr);
		if (err != -EUCLEAN)
			return err;
		memcpy(slot->in + 8 * (uint64_t)slot->count++, &nr, 8);
		at = (nr + 1) * d->block_size;
	}
	return 0;
}

static int verify_place(struct obd_pipe *pipe, struct obd_slot *slot)
{
	struct decoder *d = pipe->owner;
	uint32_t i;

	for (i = 0; i < slot->count; i++, d->bad_count++)
		if (d->bad_count < d->bad_max)
			memcpy(&d->bad[d->bad_count], slot->in + 8 * i, 8);
	return 0;
}

int64_t obd_zfile_verify(struct obd_source *zfile, uint32_t threads,
			 struct obd_job *job, uint64_t *bad, uint64_t max)
{
	struct decoder d = { .bad = bad, .bad_max = bad ? max : 0 };
	struct obd_pipe pipe = {
		.owner = &d,
		.job = job,
		.threads = threads,
		.in_room = STEP_BLOCKS * sizeof(*bad),
		.out_room = PIPE_BATCH,
		.take = take,
		.work = verify_work,
		.place = verify_place,
	};
	int err = decoder_init(&d, zfile, job);

	if (!err)
		err = obd_pipe_run(&pipe);
	return err ? err : (int64_t)d.bad_count;
}
