/* SPDX-License-Identifier: Apache-2.0
 *
 * upper_log.c - the append-only writable layer: data file and index file
 * (spec lsmt 5), with durable marks.
 *
 * Order.  Data is in its file before the record that points to it is in
 * the index; records enter the index file and the map in the same order,
 * under one lock.
 *
 * A mark is a padding record (lba 2^50-1, length 0) whose second word is
 * the data's end in sectors; every reader drops it.  It says: what stands
 * before me points to data that is on disk.  A flush reserves the mark's
 * place first, as plain padding, then syncs the data, then turns the
 * padding into a mark, then syncs the index: records that are appended
 * meanwhile, whose data this sync may have missed, come behind the place
 * and are not vouched for.
 */
#include <stdlib.h>

#include "core.h"

#define HEADER 4096u
#define RECORD sizeof(struct obd_record)
#define PIECE_SECTORS 8192u        /* 4 MiB: one record of a write */
#define BATCH 64u                  /* records appended with one pwrite */
#define LOAD_RECORDS 65536u
#define NO_SLOT UINT64_MAX
#define SEEK_HOLE_WHENCE 4

/* ---- opening ----------------------------------------------------------- */

/* The index file while it is replayed, and a run of the data file known to
 * hold data. */
struct load {
	struct obd_upper *upper;
	struct obd_upper_report *report;
	struct obd_record *buf;
	uint64_t count;              /* records in the file */
	uint64_t last_mark;          /* UINT64_MAX: none */
	uint64_t end;                /* of the data, in whole sectors */
	uint64_t whole_from, whole_to;
};

static bool is_padding(struct obd_record rec)
{
	return rec_lba(rec) == OBD_INVALID_LBA;
}

static bool is_mark(struct obd_record rec)
{
	return rec.w0 == OBD_INVALID_LBA && rec.w1;
}

static int load_reject(struct load *l, uint64_t record, uint32_t reason)
{
	l->report->bad = (struct obd_bad){ record, reason, 0 };
	return -EBADMSG;
}

/* Records [first, first + n) of the index file into buf. */
static int load_read(struct load *l, uint64_t first, uint64_t n)
{
	int64_t got = obd_io_pread(l->upper->index_fd, l->buf, n * RECORD,
				   HEADER + first * RECORD);

	if (got < 0)
		return (int)got;
	return (uint64_t)got == n * RECORD ? 0 : -EIO;
}

static int load_find_marks(struct load *l)
{
	uint64_t first, i, n, end = 0;
	int err;

	for (first = 0; first < l->count; first += n) {
		n = l->count - first;
		if (n > LOAD_RECORDS)
			n = LOAD_RECORDS;
		err = load_read(l, first, n);
		if (err)
			return err;
		for (i = 0; i < n; i++) {
			if (!is_mark(l->buf[i]))
				continue;
			l->report->marks++;
			l->last_mark = first + i;
			end = l->buf[i].w1;
		}
	}
	if (end > l->end)
		return load_reject(l, l->last_mark, OBD_BAD_HIGH);
	return 0;
}

/* Does the data file hold [from, to), in bytes, without a hole?  A file
 * system that cannot say has none. */
static bool load_whole(struct load *l, uint64_t from, uint64_t to)
{
	int64_t hole;

	if (from >= l->whole_from && to <= l->whole_to)
		return true;
	hole = obd_io_seek(l->upper->data_fd, from, SEEK_HOLE_WHENCE);
	if (hole < 0)
		return hole != -ENXIO;
	l->whole_from = from;
	l->whole_to = (uint64_t)hole;
	return to <= l->whole_to;
}

/* Spec lsmt 8.7; behind the last mark the data must be there, too. */
static uint32_t load_check(struct load *l, uint64_t nr,
			   struct obd_record rec)
{
	uint64_t at = rec_at(rec);

	if (rec_end(rec) > OBD_LBA_MASK + 1)
		return OBD_BAD_ADDRESS;
	if (at < HEADER / OBD_SECTOR)
		return OBD_BAD_LOW;
	if (rec_zeroed(rec))
		return at <= l->end ? OBD_BAD_NONE : OBD_BAD_HIGH;
	if (at >= l->end || rec_sectors(rec) > l->end - at)
		return OBD_BAD_HIGH;
	if (l->last_mark != UINT64_MAX && nr > l->last_mark &&
	    !load_whole(l, at * OBD_SECTOR,
			(at + rec_sectors(rec)) * OBD_SECTOR))
		return OBD_BAD_HOLE;
	return OBD_BAD_NONE;
}

/* The map knows no tags: readers of the file drop them, too. */
static struct obd_record untagged(struct obd_record rec)
{
	return rec_make(rec_lba(rec), rec_sectors(rec), rec_at(rec),
			rec_zeroed(rec), 0);
}

/* 1: this record and all behind it are cut. */
static int load_record(struct load *l, uint64_t nr, struct obd_record rec)
{
	uint32_t reason;
	int err;

	if (is_padding(rec) || !rec_sectors(rec))
		return 0;
	reason = load_check(l, nr, rec);
	if (reason != OBD_BAD_NONE) {
		load_reject(l, nr, reason);
		if (l->last_mark == UINT64_MAX || nr < l->last_mark)
			return -EBADMSG;
		l->report->cut_record = nr;
		return 1;
	}
	err = obd_map_insert(l->upper->map, untagged(rec));
	if (err == -E2BIG)
		return load_reject(l, nr, OBD_BAD_COUNT);
	if (!err)
		l->report->records++;
	return err;
}

static int load_replay(struct load *l)
{
	uint64_t first, i, n;
	int ret;

	for (first = 0; first < l->count; first += n) {
		n = l->count - first;
		if (n > LOAD_RECORDS)
			n = LOAD_RECORDS;
		ret = load_read(l, first, n);
		if (ret)
			return ret;
		for (i = 0; i < n; i++) {
			ret = load_record(l, first + i, l->buf[i]);
			if (ret < 0)
				return ret;
			if (ret) {
				l->count = first + i;
				return 0;
			}
		}
	}
	return 0;
}

static int load_sizes(struct load *l, uint64_t *index_size)
{
	int64_t data = obd_io_size(l->upper->data_fd);
	int64_t index = obd_io_size(l->upper->index_fd);

	if (data < 0 || index < 0)
		return (int)(data < 0 ? data : index);
	if (data < HEADER || index < HEADER)
		return load_reject(l, 0, OBD_BAD_SHORT);
	*index_size = (uint64_t)index;
	l->end = (uint64_t)data / OBD_SECTOR;
	l->count = (*index_size - HEADER) / RECORD;
	l->report->torn_bytes = (*index_size - HEADER) % RECORD;
	l->report->data_end = ((uint64_t)data + OBD_SECTOR - 1) &
			      ~(uint64_t)(OBD_SECTOR - 1);
	if (l->count > OBD_MAX_RW_RECORDS)
		return load_reject(l, l->count, OBD_BAD_COUNT);
	return 0;
}

int obd_log_load(struct obd_upper *upper, struct obd_upper_report *report)
{
	struct load l = { .upper = upper, .report = report,
			  .last_mark = UINT64_MAX };
	uint64_t index_size = 0;
	int err = load_sizes(&l, &index_size);

	if (err)
		return err;
	l.buf = malloc(LOAD_RECORDS * RECORD);
	if (!l.buf)
		return -ENOMEM;
	err = load_find_marks(&l);
	if (!err)
		err = load_replay(&l);
	free(l.buf);
	if (err)
		return err;
	upper->index_end = HEADER + l.count * RECORD;
	upper->untrimmed = upper->index_end != index_size;
	upper->data_end = report->data_end;
	upper->data_done = l.end * OBD_SECTOR;
	upper->unmarked = !l.count || l.last_mark != l.count - 1;
	upper->marked = !upper->unmarked;
	/* Who wrote the records may have died before they were on disk, even
	 * between a mark and the sync behind it: a flush has work to do. */
	upper->changes = l.count > 0;
	return 0;
}

/* ---- syncing ----------------------------------------------------------- */

static int sync_file(struct obd_upper *upper, int fd)
{
	int err = obd_io_sync(fd, 1);

	if (err)
		atomic_store(&upper->broken, err);
	return err;
}

static int put_index(struct obd_upper *upper, const void *buf, uint64_t n,
		     uint64_t at)
{
	int64_t put = obd_io_pwrite(upper->index_fd, buf, n, at);

	if (put < 0)
		return (int)put;
	return (uint64_t)put == n ? 0 : -EIO;
}

/* Takes off the index file what a failed or torn append left there. */
static int trim_index(struct obd_upper *upper)
{
	int err;

	if (!upper->untrimmed)
		return 0;
	err = obd_io_truncate(upper->index_fd, upper->index_end);
	if (!err)
		upper->untrimmed = false;
	return err;
}

/* Under append.  Before our first record: everything that is there is put
 * on disk and marked, so that what is found behind the last mark later can
 * only be ours. */
static int mark_first(struct obd_upper *upper)
{
	struct obd_record mark = { OBD_INVALID_LBA, 0 };
	int err = trim_index(upper);

	if (err || !upper->unmarked)
		return err;
	mark.w1 = atomic_load(&upper->data_done) / OBD_SECTOR;
	err = sync_file(upper, upper->data_fd);
	if (!err) {
		upper->untrimmed = true;
		err = put_index(upper, &mark, RECORD, upper->index_end);
	}
	if (!err)
		err = sync_file(upper, upper->index_fd);
	if (err)
		return err;
	upper->index_end += RECORD;
	upper->untrimmed = false;
	upper->unmarked = false;
	return 0;
}

int obd_log_prepare(struct obd_upper *upper)
{
	int err;

	pthread_mutex_lock(&upper->append);
	err = mark_first(upper);
	pthread_mutex_unlock(&upper->append);
	return err;
}

/* Reserves the mark's place, unless there is one already and nothing behind
 * it.  A full disk has no room for it: the flush goes on without, for it is
 * the syncs that make data durable. */
static int reserve_mark(struct obd_upper *upper, uint64_t *slot,
			uint64_t *end, uint64_t *covered)
{
	struct obd_record padding = { OBD_INVALID_LBA, 0 };
	int err;

	*slot = NO_SLOT;
	pthread_mutex_lock(&upper->append);
	*covered = atomic_load(&upper->changes);
	*end = atomic_load(&upper->data_done) / OBD_SECTOR;
	err = trim_index(upper);
	if (!err && !upper->marked) {
		err = put_index(upper, &padding, RECORD, upper->index_end);
		if (!err) {
			*slot = upper->index_end;
			upper->index_end += RECORD;
		}
	}
	if (err)
		upper->untrimmed = true;
	pthread_mutex_unlock(&upper->append);
	return err == -ENOSPC || err == -EDQUOT ? 0 : err;
}

/* Under syncing. */
int obd_log_sync(struct obd_upper *upper)
{
	struct obd_record mark = { OBD_INVALID_LBA, 0 };
	uint64_t slot, covered;
	int err = reserve_mark(upper, &slot, &mark.w1, &covered);

	if (!err)
		err = sync_file(upper, upper->data_fd);
	if (!err && slot != NO_SLOT)
		err = put_index(upper, &mark, RECORD, slot);
	if (!err)
		err = sync_file(upper, upper->index_fd);
	if (err)
		return err;
	pthread_mutex_lock(&upper->append);
	if (slot != NO_SLOT)
		upper->unmarked = false;
	atomic_store(&upper->synced, covered);
	pthread_mutex_unlock(&upper->append);
	return 0;
}

/* ---- appending --------------------------------------------------------- */

/* Under append.  File and map get the records, or none of those that did
 * not fit. */
static int append_records(struct obd_upper *upper,
			  const struct obd_record *rec, uint32_t n)
{
	uint32_t done = 0;
	int err = trim_index(upper);

	if (err)
		return err;
	upper->marked = false;
	err = put_index(upper, rec, n * RECORD, upper->index_end);
	while (!err && done < n) {
		err = obd_upper_map(upper, untagged(rec[done]));
		done += !err;
	}
	upper->index_end += done * RECORD;
	if (done)
		atomic_fetch_add(&upper->changes, 1);
	if (err) {
		upper->untrimmed = true;
		trim_index(upper); /* else the next append tries again */
	}
	return err;
}

/* Under append.  [lba, lba + sectors) in records of at most piece sectors,
 * mapped to at, which a zeroed record does not move. */
static int append_range(struct obd_upper *upper, uint64_t lba,
			uint64_t sectors, uint64_t piece, uint64_t at,
			bool zeroed)
{
	struct obd_record rec[BATCH];
	uint64_t part;
	uint32_t n;
	int err = 0;

	while (!err && sectors) {
		for (n = 0; n < BATCH && sectors; n++) {
			part = sectors < piece ? sectors : piece;
			rec[n] = rec_make(lba, part, at, zeroed, upper->tag);
			at += zeroed ? 0 : part;
			lba += part;
			sectors -= part;
		}
		err = append_records(upper, rec, n);
	}
	return err;
}

/* A place at the end of the data; writers fill theirs side by side. */
static int reserve_data(struct obd_upper *upper, uint64_t n, uint64_t *at)
{
	int err;

	pthread_mutex_lock(&upper->append);
	err = mark_first(upper);
	*at = upper->data_end;
	if (!err)
		upper->data_end += n;
	pthread_mutex_unlock(&upper->append);
	return err;
}

static int log_write(struct obd_upper *upper, struct obd_request *req)
{
	uint64_t at, end;
	int err = reserve_data(upper, req->length, &at);

	if (err)
		return err;
	end = at + req->length;
	err = obd_write_iov(upper->data_fd, req->iov, req->iov_count,
			    req->length, at);
	pthread_mutex_lock(&upper->append);
	if (err) {
		if (upper->data_end == end)
			upper->data_end = at;
	} else {
		if (atomic_load(&upper->data_done) < end)
			atomic_store(&upper->data_done, end);
		err = append_range(upper, req->offset / OBD_SECTOR,
				   req->length / OBD_SECTOR, PIECE_SECTORS,
				   at / OBD_SECTOR, false);
	}
	pthread_mutex_unlock(&upper->append);
	return err;
}

/* The record carries the end of the data that is surely in the file: a
 * reader checks that it is not past the file's end. */
static int log_zero(struct obd_upper *upper, struct obd_request *req)
{
	int err;

	pthread_mutex_lock(&upper->append);
	err = mark_first(upper);
	if (!err)
		err = append_range(upper, req->offset / OBD_SECTOR,
				   req->length / OBD_SECTOR, OBD_MAX_LENGTH,
				   atomic_load(&upper->data_done) /
				   OBD_SECTOR, true);
	pthread_mutex_unlock(&upper->append);
	return err;
}

int obd_log_change(struct obd_upper *upper, struct obd_request *req)
{
	return req->op == OBD_WRITE ? log_write(upper, req) :
				      log_zero(upper, req);
}
