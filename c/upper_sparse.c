/* SPDX-License-Identifier: Apache-2.0
 *
 * upper_sparse.c - the writable layer whose map is its file's holes (spec
 * lsmt 7): sector X of the disk is at byte 4096 + 512 X, or nowhere.
 *
 * Rule: the map always shows what a reopen would find with SEEK_DATA, and a
 * reopen shows the bytes that were read before.  What follows:
 *  - The host makes whole blocks present.  A write to a part of an absent
 *    block first makes the block present with the bytes that the disk
 *    shows there, in one write, and then writes.
 *  - A hole shows the lowers.  Zeros over what lowers hold as data are
 *    really written; where lowers read as zeros anyway, a hole is punched.
 *  - A discard promises nothing: it punches where lowers read as zeros
 *    and leaves the rest alone.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* O_TMPFILE */
#endif
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "core.h"

#define HEADER 4096u
#define HEADER_SECTORS (HEADER / OBD_SECTOR)
#define BLOCK_MAX (4u << 20)
#define STEP_SECTORS (64u << 11)   /* 64 MiB zeroed under one lock */
#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
#define SEEK_DATA_WHENCE 3
#define SEEK_HOLE_WHENCE 4

/* ---- the host's block -------------------------------------------------- */

/* An unnamed file in the directory of fd, or -errno. */
static int probe_open(int fd)
{
	char link[64], path[4096], *slash;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n <= 0)
		return -ENOENT;
	path[n] = 0;
	slash = strrchr(path, '/');
	if (path[0] != '/' || !slash)
		return -ENOENT;
	slash[slash == path] = 0;
	return obd_io_open(path, O_TMPFILE | O_RDWR, 0600);
}

/* Writes one sector far inside a hole and looks how much is there then. */
static uint64_t probe_measure(int fd)
{
	static const uint8_t sector[OBD_SECTOR];
	const uint64_t at = (8u << 20) + 5 * OBD_SECTOR;
	uint64_t block = OBD_SECTOR;
	int64_t from, to;

	if (obd_io_truncate(fd, 16u << 20) ||
	    obd_io_pwrite(fd, sector, OBD_SECTOR, at) != OBD_SECTOR)
		return 0;
	from = obd_io_seek(fd, 0, SEEK_DATA_WHENCE);
	to = from < 0 ? from : obd_io_seek(fd, (uint64_t)from,
					   SEEK_HOLE_WHENCE);
	if (from <= 0 || to < 0)
		return 0; /* no holes here: then nothing is ever absent */
	while (block < BLOCK_MAX &&
	       ((at & ~(block - 1)) > (uint64_t)from ||
		((at + block) & ~(block - 1)) < (uint64_t)to))
		block *= 2;
	return block;
}

/* Where no unnamed file can be made, the size that stat tells. */
static uint64_t host_block(int data_fd)
{
	uint64_t block = 0, told = HEADER;
	struct stat st;
	int fd = probe_open(data_fd);

	if (fd >= 0) {
		block = probe_measure(fd);
		obd_io_close(fd);
	}
	if (block)
		return block;
	if (!fstat(data_fd, &st) && st.st_blksize > 0)
		while (told < (uint64_t)st.st_blksize && told < BLOCK_MAX)
			told *= 2;
	return told;
}

/* ---- the map ----------------------------------------------------------- */

static uint64_t disk_end(const struct obd_upper *upper)
{
	return upper->virtual_size / OBD_SECTOR;
}

static uint64_t file_at(uint64_t lba)
{
	return HEADER + lba * OBD_SECTOR;
}

static bool all_mapped(struct obd_upper *upper, uint64_t lba, uint64_t end)
{
	struct obd_record rec[8];
	uint32_t i, n;

	while (lba < end) {
		n = obd_upper_find(upper, lba, end - lba, rec, 8);
		for (i = 0; i < n; i++) {
			if (rec_lba(rec[i]) != lba)
				return false;
			lba = rec_end(rec[i]);
		}
		if (!n)
			return false;
	}
	return true;
}

static bool any_mapped(struct obd_upper *upper, uint64_t lba, uint64_t end)
{
	struct obd_record rec;

	return lba < end && obd_upper_find(upper, lba, end - lba, &rec, 1);
}

static int map_range(struct obd_upper *upper, uint64_t lba, uint64_t end)
{
	uint64_t part;
	int err = 0;

	if (all_mapped(upper, lba, end))
		return 0; /* no second record for the same place */
	for (; !err && lba < end; lba += part) {
		part = end - lba;
		if (part > OBD_MAX_LENGTH)
			part = OBD_MAX_LENGTH;
		err = obd_upper_map(upper, rec_make(lba, part,
						    lba + HEADER_SECTORS,
						    false, 0));
	}
	return err;
}

static int unmap_range(struct obd_upper *upper, uint64_t lba, uint64_t end)
{
	int err;

	pthread_rwlock_wrlock(&upper->maplock);
	err = obd_map_remove(upper->map, lba, end - lba);
	pthread_rwlock_unlock(&upper->maplock);
	return err;
}

/* Maps what the file holds between two offsets, rounded to sectors. */
static int map_file(struct obd_upper *upper, uint64_t from, uint64_t limit)
{
	int64_t data, hole;
	uint64_t end;
	int err = 0;

	while (!err && from < limit) {
		data = obd_io_seek(upper->data_fd, from, SEEK_DATA_WHENCE);
		if (data == -ENXIO || data >= (int64_t)limit)
			return 0;
		if (data < 0)
			return (int)data;
		hole = obd_io_seek(upper->data_fd, (uint64_t)data,
				   SEEK_HOLE_WHENCE);
		if (hole < 0)
			return (int)hole;
		if (hole <= data)
			return -EIO;
		from = (uint64_t)hole;
		end = from < limit ? from : limit;
		err = map_range(upper,
				((uint64_t)data - HEADER) / OBD_SECTOR,
				(end - HEADER + OBD_SECTOR - 1) / OBD_SECTOR);
	}
	return err;
}

/* ---- opening ----------------------------------------------------------- */

static int prepare_writing(struct obd_upper *upper)
{
	upper->block = host_block(upper->data_fd);
	upper->scratch = malloc(upper->block);
	return upper->scratch ? 0 : -ENOMEM;
}

int obd_sparse_load(struct obd_upper *upper, struct obd_upper_report *report)
{
	uint64_t limit = file_at(disk_end(upper));
	int64_t size = obd_io_size(upper->data_fd);
	int err = 0;

	if (size < 0)
		return (int)size;
	if (upper->virtual_size % OBD_SECTOR)
		return -EINVAL;
	if (size < HEADER) {
		report->bad.reason = OBD_BAD_SHORT;
		return -EBADMSG;
	}
	if ((uint64_t)size > limit)
		report->trimmed = (uint64_t)size - limit;
	if (!upper->readonly && (uint64_t)size != limit)
		err = obd_io_truncate(upper->data_fd, limit);
	else if ((uint64_t)size < limit)
		limit = (uint64_t)size & ~(uint64_t)(OBD_SECTOR - 1);
	if (!err)
		err = map_file(upper, HEADER, limit);
	if (err == -E2BIG) {
		report->bad.reason = OBD_BAD_COUNT;
		return -EBADMSG;
	}
	if (!err && !upper->readonly)
		err = prepare_writing(upper);
	report->records = obd_map_count(upper->map);
	report->data_end = limit;
	/* What was written before may not be on disk yet. */
	upper->changes = 1;
	return err;
}

/* ---- blocks ------------------------------------------------------------ */

/* Sectors of the disk that share lba's host block; the first block holds
 * the header, too, and the last may end early. */
static uint64_t block_from(const struct obd_upper *upper, uint64_t lba)
{
	uint64_t sectors = upper->block / OBD_SECTOR;
	uint64_t from = (lba + HEADER_SECTORS) & ~(sectors - 1);

	return from > HEADER_SECTORS ? from - HEADER_SECTORS : 0;
}

static uint64_t block_to(const struct obd_upper *upper, uint64_t lba)
{
	uint64_t sectors = upper->block / OBD_SECTOR;
	uint64_t to = (lba + HEADER_SECTORS + sectors - 1) & ~(sectors - 1);

	to = to > HEADER_SECTORS ? to - HEADER_SECTORS : 0;
	return to < disk_end(upper) ? to : disk_end(upper);
}

/* A block begins at lba, or the disk ends there. */
static bool is_edge(const struct obd_upper *upper, uint64_t lba)
{
	return lba >= disk_end(upper) ||
	       !((lba + HEADER_SECTORS) % (upper->block / OBD_SECTOR));
}

void obd_upper_edges(struct obd_upper *upper, uint64_t lba, uint64_t end,
		     uint64_t head[2], uint64_t tail[2])
{
	head[0] = head[1] = tail[0] = tail[1] = 0;
	if (upper->kind != OBD_UPPER_SPARSE || upper->readonly)
		return;
	if (!is_edge(upper, lba)) {
		head[0] = block_from(upper, lba);
		head[1] = block_to(upper, lba);
	}
	if (!is_edge(upper, end)) {
		tail[0] = block_from(upper, end);
		tail[1] = block_to(upper, end);
	}
}

/* What a failed write left present has to be in the map, too. */
static int write_failed(struct obd_upper *upper, int err, uint64_t lba,
			uint64_t end)
{
	map_file(upper, file_at(block_from(upper, lba)),
		 file_at(block_to(upper, end)));
	return err;
}

static int write_at(struct obd_upper *upper, const struct iovec *iov,
		    uint32_t count, uint64_t lba, uint64_t end)
{
	int err = obd_write_iov(upper->data_fd, iov, count,
				(end - lba) * OBD_SECTOR, file_at(lba));

	if (err)
		return write_failed(upper, err, lba, end);
	return map_range(upper, lba, end);
}

/* Under order, exclusive.  Makes the block that lba splits present, with
 * what the disk shows there. */
static int complete_block(struct obd_upper *upper, struct obd_request *req,
			  const struct obd_upper_ask *ask, uint64_t lba)
{
	uint64_t from, to;
	struct iovec iov;
	int err;

	if (is_edge(upper, lba))
		return 0;
	from = block_from(upper, lba);
	to = block_to(upper, lba);
	if (all_mapped(upper, from, to))
		return 0;
	err = ask->read(req, upper->scratch, from, to - from);
	if (err)
		return err;
	iov = (struct iovec){ upper->scratch, (to - from) * OBD_SECTOR };
	return write_at(upper, &iov, 1, from, to);
}

static int complete_edges(struct obd_upper *upper, struct obd_request *req,
			  const struct obd_upper_ask *ask, uint64_t lba,
			  uint64_t end)
{
	int err = complete_block(upper, req, ask, lba);

	return err ? err : complete_block(upper, req, ask, end);
}

static bool edges_present(struct obd_upper *upper, uint64_t lba,
			  uint64_t end)
{
	return (is_edge(upper, lba) ||
		all_mapped(upper, block_from(upper, lba),
			   block_to(upper, lba))) &&
	       (is_edge(upper, end) ||
		all_mapped(upper, block_from(upper, end),
			   block_to(upper, end)));
}

/* ---- writing ----------------------------------------------------------- */

/* Writers of whole or present blocks go side by side. */
static int sparse_write(struct obd_upper *upper, struct obd_request *req,
			const struct obd_upper_ask *ask, uint64_t lba,
			uint64_t end)
{
	int err = 0;

	pthread_rwlock_rdlock(&upper->order);
	if (!edges_present(upper, lba, end)) {
		pthread_rwlock_unlock(&upper->order);
		pthread_rwlock_wrlock(&upper->order);
		err = complete_edges(upper, req, ask, lba, end);
	}
	if (!err)
		err = write_at(upper, req->iov, req->iov_count, lba, end);
	pthread_rwlock_unlock(&upper->order);
	return err;
}

static int write_zeros(struct obd_upper *upper, uint64_t lba, uint64_t end)
{
	static const uint8_t zeros[64 * 1024];
	struct iovec iov[16];
	uint64_t part, n;
	uint32_t count;
	int err = 0;

	for (; !err && lba < end; lba += part) {
		part = end - lba;
		if (part > sizeof(zeros) / OBD_SECTOR * 16)
			part = sizeof(zeros) / OBD_SECTOR * 16;
		count = 0;
		for (n = part * OBD_SECTOR; n; n -= iov[count++].iov_len) {
			iov[count].iov_base = (void *)(uintptr_t)zeros;
			iov[count].iov_len = n < sizeof(zeros) ?
					     n : sizeof(zeros);
		}
		err = write_at(upper, iov, count, lba, lba + part);
	}
	return err;
}

/* ---- zeroing ----------------------------------------------------------- */

/* Whole blocks over lowers that read as zeros there. */
static int punch(struct obd_upper *upper, uint64_t lba, uint64_t end,
		 bool must)
{
	uint64_t n = (end - lba) * OBD_SECTOR;
	int err;

	if (!any_mapped(upper, lba, end))
		return 0;
	if (end == disk_end(upper)) /* a last block that ends early */
		n += upper->block - 1;
	err = obd_io_allocate(upper->data_fd, PUNCH, file_at(lba), n);
	if (err == -EOPNOTSUPP)
		return must ? write_zeros(upper, lba, end) : 0;
	return err ? err : unmap_range(upper, lba, end);
}

/* Zeros for whole blocks; must: also where lowers hold data. */
static int zero_blocks(struct obd_upper *upper, struct obd_request *req,
		       const struct obd_upper_ask *ask, uint64_t lba,
		       uint64_t end, bool must)
{
	uint64_t from, to;
	int err = 0;

	while (!err && lba < end) {
		from = to = end;
		if (ask->lower(req, upper, lba, end, &from, &to)) {
			from = block_from(upper, from);
			to = block_to(upper, to);
		}
		if (from < lba)
			from = lba;
		if (to > end)
			to = end;
		if (lba < from)
			err = punch(upper, lba, from, must);
		if (!err && must && from < to)
			err = write_zeros(upper, from, to);
		lba = to;
	}
	return err;
}

/* Zeros for parts of blocks. */
static int zero_part(struct obd_upper *upper, struct obd_request *req,
		     const struct obd_upper_ask *ask, uint64_t lba,
		     uint64_t end)
{
	uint64_t from, to;
	int err;

	if (lba >= end || (!any_mapped(upper, lba, end) &&
			   !ask->lower(req, upper, lba, end, &from, &to)))
		return 0;
	err = complete_edges(upper, req, ask, lba, end);
	return err ? err : write_zeros(upper, lba, end);
}

/* Under order, exclusive. */
static int zero_range(struct obd_upper *upper, struct obd_request *req,
		      const struct obd_upper_ask *ask, uint64_t lba,
		      uint64_t end, bool must)
{
	uint64_t from = is_edge(upper, lba) ? lba : block_to(upper, lba);
	uint64_t to = is_edge(upper, end) ? end : block_from(upper, end);
	int err = 0;

	if (from >= to)
		return must ? zero_part(upper, req, ask, lba, end) : 0;
	if (must)
		err = zero_part(upper, req, ask, lba, from);
	if (!err)
		err = zero_blocks(upper, req, ask, from, to, must);
	if (!err && must)
		err = zero_part(upper, req, ask, to, end);
	return err;
}

static int sparse_zero(struct obd_upper *upper, struct obd_request *req,
		       const struct obd_upper_ask *ask, uint64_t lba,
		       uint64_t end)
{
	uint64_t next;
	int err = 0;

	for (; !err && lba < end; lba = next) {
		/* whole blocks but for the ends: steps end on block edges */
		next = block_from(upper, lba + STEP_SECTORS);
		if (next > end || next <= lba)
			next = end;
		pthread_rwlock_wrlock(&upper->order);
		err = zero_range(upper, req, ask, lba, next,
				 req->op == OBD_ZERO);
		pthread_rwlock_unlock(&upper->order);
	}
	return err;
}

/* ---- growing ----------------------------------------------------------- */

/* A file that grows shows the rest of its last host block as data: zeros,
 * where the disk may show something else. */
static int sparse_extend(struct obd_upper *upper, struct obd_request *req,
			 const struct obd_upper_ask *ask, uint64_t lba)
{
	int err = 0;

	pthread_rwlock_wrlock(&upper->order);
	if (any_mapped(upper, block_from(upper, lba), block_to(upper, lba)))
		err = complete_block(upper, req, ask, lba);
	pthread_rwlock_unlock(&upper->order);
	return err;
}

int obd_sparse_set_end(struct obd_upper *upper, uint64_t size)
{
	uint64_t end, was;
	int err = 0;

	pthread_rwlock_wrlock(&upper->order);
	was = disk_end(upper);
	end = size / OBD_SECTOR;
	/* A block that was completed may go past the end. */
	if (end < was)
		err = unmap_range(upper, end, was);
	if (!err && end < was)
		err = obd_io_truncate(upper->data_fd, file_at(end));
	if (!err)
		upper->virtual_size = size;
	pthread_rwlock_unlock(&upper->order);
	return err;
}

int obd_sparse_change(struct obd_upper *upper, struct obd_request *req,
		      const struct obd_upper_ask *ask)
{
	uint64_t lba = req->offset / OBD_SECTOR;
	uint64_t end = lba + req->length / OBD_SECTOR;
	int err;

	if (end > disk_end(upper))
		return -ENOSPC;
	if (req->op == OBD_EXTEND)
		err = sparse_extend(upper, req, ask, lba);
	else if (req->op == OBD_WRITE)
		err = sparse_write(upper, req, ask, lba, end);
	else
		err = sparse_zero(upper, req, ask, lba, end);
	/* A failed one may have changed something, too. */
	atomic_fetch_add(&upper->changes, 1);
	return err;
}
