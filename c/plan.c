/* SPDX-License-Identifier: Apache-2.0
 *
 * plan.c - compaction of a layer or a stack into one committed layer, to
 * the original's bytes (spec lsmt 4).
 *
 * All of it is known before the first byte is written: where each sector
 * of the data comes from, and the whole index.  So any thread can produce
 * any part of the output.
 */
#include <stdlib.h>

#include "pipe.h"

#define BLOCK 4096u
#define CHUNK 64u             /* sectors copied at once by the original */
#define FIRST_SECTOR 8u       /* data begins behind the header */
#define PAD_RECORDS 256u

static const struct obd_record padding = { OBD_INVALID_LBA, 0 };

/* Output sectors from `out` on, up to the next piece's, come from sector
 * `from` (low 55 bits) of source number `from >> 56`. */
struct piece {
	uint64_t out, from;
};

/* Immutable once made. */
struct obd_plan {
	struct piece *pieces;        /* one more than piece_count: the end */
	uint64_t piece_count, piece_room;
	struct obd_record *records;  /* padded */
	uint64_t count, room, padded;
	uint64_t end_sector;         /* of the data */
	bool fold_levels;
	uint32_t n;
	struct obd_source *sources[];
};

/* Makes room for one more element of `size` bytes. */
static int reserve(void *array, uint64_t count, uint64_t *room, size_t size)
{
	uint64_t want = *room ? *room * 2 : PAD_RECORDS;
	void *p;

	if (count < *room)
		return 0;
	p = realloc(*(void **)array, want * size);
	if (!p)
		return -ENOMEM;
	*(void **)array = p;
	*room = want;
	return 0;
}

static uint64_t mapped_end(struct obd_record r)
{
	return rec_at(r) + (rec_zeroed(r) ? 0 : rec_sectors(r));
}

static bool foldable(struct obd_record a, struct obd_record b)
{
	return rec_end(a) == rec_lba(b) && mapped_end(a) == rec_at(b) &&
	       rec_zeroed(a) == rec_zeroed(b) && rec_tag(a) == rec_tag(b) &&
	       rec_sectors(a) + rec_sectors(b) < OBD_MAX_LENGTH;
}

static int add_record(struct obd_plan *plan, struct obd_record r)
{
	uint64_t last = plan->count - 1;
	int err;

	if (plan->count && foldable(plan->records[last], r)) {
		plan->records[last].w0 += rec_sectors(r) << 50;
		return 0;
	}
	err = reserve(&plan->records, plan->count, &plan->room, sizeof(r));
	if (!err)
		plan->records[plan->count++] = r;
	return err;
}

/* Where the sectors of data record r come from; what goes on where the
 * last piece ended becomes part of it. */
static int add_piece(struct obd_plan *plan, struct obd_record r)
{
	struct piece p = {
		.out = plan->end_sector,
		.from = rec_at(r) | (uint64_t)rec_tag(r) << 56,
	};
	uint64_t last = plan->piece_count - 1;
	int err;

	if (plan->piece_count &&
	    plan->pieces[last].from + (p.out - plan->pieces[last].out) ==
		    p.from)
		return 0;
	err = reserve(&plan->pieces, plan->piece_count, &plan->piece_room,
		      sizeof(p));
	if (!err)
		plan->pieces[plan->piece_count++] = p;
	return err;
}

static int add_data(struct obd_plan *plan, struct obd_record r, uint32_t tag)
{
	uint64_t done, n, sectors = rec_sectors(r);
	int err;

	if (rec_tag(r) >= plan->n)
		return -EINVAL;
	err = add_piece(plan, r);
	for (done = 0; done < sectors && !err; done += n) {
		n = sectors - done < CHUNK ? sectors - done : CHUNK;
		err = add_record(plan, rec_make(rec_lba(r) + done, n,
						plan->end_sector, false,
						tag));
		plan->end_sector += n;
	}
	return err;
}

static int add_all(struct obd_plan *plan, const struct obd_record *r,
		   uint64_t count)
{
	uint32_t tag;
	int err = 0;

	for (; count && !err; count--, r++) {
		tag = plan->fold_levels ? 0 : rec_tag(*r);
		if (rec_zeroed(*r))
			err = add_record(plan, rec_make(rec_lba(*r),
							rec_sectors(*r),
							plan->end_sector,
							true, tag));
		else
			err = add_data(plan, *r, tag);
	}
	return err;
}

/* Pads the index and ends the list of pieces. */
static int finish(struct obd_plan *plan)
{
	int err = reserve(&plan->pieces, plan->piece_count,
			  &plan->piece_room, sizeof(*plan->pieces));

	if (err)
		return err;
	plan->pieces[plan->piece_count] =
		(struct piece){ .out = plan->end_sector };
	plan->padded = plan->count;
	while (plan->padded % PAD_RECORDS && !err) {
		err = reserve(&plan->records, plan->padded, &plan->room,
			      sizeof(padding));
		if (!err)
			plan->records[plan->padded++] = padding;
	}
	return err;
}

static uint64_t index_offset(const struct obd_plan *plan)
{
	return plan->end_sector * OBD_SECTOR;
}

static uint64_t trailer_offset(const struct obd_plan *plan)
{
	return index_offset(plan) + plan->padded * sizeof(padding);
}

int32_t obd_plan_new(struct obd_index *index,
		     struct obd_source *const *sources, uint32_t n,
		     uint32_t flags, struct obd_plan_info *info,
		     struct obd_plan **out)
{
	struct obd_plan *plan;
	int err;

	if (n > OBD_MAX_LOWERS + 1)
		return -EINVAL;
	plan = calloc(1, sizeof(*plan) + n * sizeof(*sources));
	if (!plan)
		return -ENOMEM;
	plan->fold_levels = flags & OBD_PLAN_FOLD_LEVELS;
	plan->end_sector = FIRST_SECTOR;
	for (; plan->n < n; plan->n++)
		plan->sources[plan->n] = obd_source_ref(sources[plan->n]);
	err = add_all(plan, obd_index_array(index), obd_index_count(index));
	if (!err)
		err = finish(plan);
	if (err) {
		obd_plan_unref(plan);
		return err;
	}
	info->records = plan->count;
	info->padded_records = plan->padded;
	info->index_offset = index_offset(plan);
	info->size = trailer_offset(plan) + BLOCK;
	*out = plan;
	return 0;
}

void obd_plan_unref(struct obd_plan *plan)
{
	uint32_t i;

	if (!plan)
		return;
	for (i = 0; i < plan->n; i++)
		obd_source_unref(plan->sources[i]);
	free(plan->pieces);
	free(plan->records);
	free(plan);
}

/* ---- reading the layer that is not there yet -------------------------- */

struct layer {
	const struct obd_plan *plan;
	const uint8_t *header, *trailer;
	uint64_t taken, size;
	struct obd_sink *sink;
};

/* The piece that holds an output sector of the data. */
static const struct piece *find_piece(const struct obd_plan *plan,
				      uint64_t sector)
{
	uint64_t low = 0, high = plan->piece_count, mid;

	while (high - low > 1) {
		mid = low + (high - low) / 2;
		if (plan->pieces[mid].out <= sector)
			low = mid;
		else
			high = mid;
	}
	return &plan->pieces[low];
}

static int read_data(const struct obd_plan *plan, uint8_t *buf, uint64_t n,
		     uint64_t at)
{
	const struct piece *p = find_piece(plan, at / OBD_SECTOR);
	uint64_t skip, part;
	int err;

	for (; n; n -= part, at += part, buf += part, p++) {
		skip = at - p->out * OBD_SECTOR;
		part = (p[1].out - p->out) * OBD_SECTOR - skip;
		if (part > n)
			part = n;
		err = obd_source_read(plan->sources[p->from >> 56], buf,
				      part,
				      (p->from & OBD_AT_MASK) * OBD_SECTOR +
				      skip, OBD_TRY_BLOCK);
		if (err)
			return err == -ENODATA ? -EAGAIN : err;
	}
	return 0;
}

/* How much of [at, at + n) lies before end. */
static uint64_t part_before(uint64_t end, uint64_t at, uint64_t n)
{
	if (at >= end)
		return 0;
	return end - at < n ? end - at : n;
}

static int read_layer(void *owner, void *buf, uint64_t n, uint64_t at)
{
	const struct layer *l = owner;
	const struct obd_plan *plan = l->plan;
	uint64_t index = index_offset(plan), trailer = trailer_offset(plan);
	uint8_t *p = buf;
	uint64_t part = part_before(BLOCK, at, n);
	int err;

	memcpy(p, l->header + (part ? at : 0), part);
	p += part, at += part, n -= part;
	part = part_before(index, at, n);
	err = part ? read_data(plan, p, part, at) : 0;
	if (err)
		return err;
	p += part, at += part, n -= part;
	part = part_before(trailer, at, n);
	if (part)
		memcpy(p, (const uint8_t *)plan->records + (at - index),
		       part);
	p += part, at += part, n -= part;
	if (n)
		memcpy(p, l->trailer + (at - trailer), n);
	return 0;
}

/* ---- writing ---------------------------------------------------------- */

static int take(struct obd_pipe *pipe, struct obd_slot *slot)
{
	struct layer *l = pipe->owner;
	uint64_t rest = l->size - l->taken;

	slot->at = l->taken;
	slot->n = rest < PIPE_BATCH ? rest : PIPE_BATCH;
	l->taken += slot->n;
	return slot->n != 0;
}

static int work(struct obd_pipe *pipe, struct obd_slot *slot)
{
	return read_layer(pipe->owner, slot->out, slot->n, slot->at);
}

static int place(struct obd_pipe *pipe, struct obd_slot *slot)
{
	(void)pipe;
	(void)slot;
	return 0;
}

static int write_out(struct obd_pipe *pipe, struct obd_slot *slot)
{
	struct layer *l = pipe->owner;

	return obd_sink_put(l->sink, slot->out, slot->n, slot->at);
}

static int write_plain(struct layer *l, uint32_t threads,
		       struct obd_zfile_result *result)
{
	struct obd_pipe pipe = {
		.owner = l,
		.job = l->sink->job,
		.threads = threads,
		.stream = l->sink->stream,
		.out_room = PIPE_BATCH,
		.take = take,
		.work = work,
		.place = place,
		.write = write_out,
	};
	int err = obd_pipe_run(&pipe);

	if (!err && result)
		*result = (struct obd_zfile_result){
			.input = l->size,
			.size = l->size,
		};
	return err;
}

int32_t obd_plan_write(struct obd_plan *plan, const void *header,
		       const void *trailer,
		       const struct obd_zfile_params *params,
		       uint32_t threads, int32_t out_fd, uint64_t out_at,
		       int32_t stream, struct obd_job *job,
		       struct obd_zfile_result *result)
{
	struct obd_sink sink = { out_fd, out_at, stream != 0, job };
	struct layer l = {
		.plan = plan,
		.header = header,
		.trailer = trailer,
		.size = trailer_offset(plan) + BLOCK,
		.sink = &sink,
	};
	struct obd_feed feed = {
		.owner = &l,
		.size = l.size,
		.read = read_layer,
	};

	obd_job_total(job, l.size);
	if (!params)
		return write_plain(&l, threads, result);
	return obd_compress_run(&feed, params, threads, &sink, result);
}

/* ---- an index as it is ------------------------------------------------ */

int64_t obd_index_write(struct obd_index *index, int32_t fd, uint64_t at)
{
	static const uint8_t zeros[OBD_SECTOR];
	uint64_t n = obd_index_count(index) * sizeof(struct obd_record);
	uint64_t pad = (OBD_SECTOR - n % OBD_SECTOR) % OBD_SECTOR;
	int64_t put = obd_io_pwrite(fd, obd_index_array(index), n, at);

	if (put >= 0 && pad)
		put = obd_io_pwrite(fd, zeros, pad, at + n);
	return put < 0 ? put : (int64_t)(n + pad);
}
