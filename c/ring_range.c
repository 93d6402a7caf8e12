/* SPDX-License-Identifier: Apache-2.0
 *
 * ring_range.c - WRITE SAME and UNMAP: on a helper thread, which holds
 * ring->lock only to end the command.
 */
#include <stdlib.h>

#include "ring.h"

#define PATTERN_BYTES (64u << 10)

static bool all_zero(const uint8_t *p, size_t n)
{
	return !*p && !memcmp(p, p + 1, n - 1);
}

static int write_pattern(struct obd_device *dev, const uint8_t *block,
			 uint64_t at, uint64_t bytes)
{
	uint8_t *buf = malloc(PATTERN_BYTES);
	uint64_t n;
	int err = 0;

	if (!buf)
		return -ENOMEM;
	for (n = 0; n < PATTERN_BYTES; n += OBD_SECTOR)
		memcpy(buf + n, block, OBD_SECTOR);
	for (; !err && bytes; bytes -= n, at += n) {
		n = bytes < PATTERN_BYTES ? bytes : PATTERN_BYTES;
		err = obd_device_write(dev, buf, n, at);
	}
	free(buf);
	return err;
}

static int write_same(struct command *cmd)
{
	uint64_t at = cmd->cdb.lba * OBD_SECTOR;
	uint64_t bytes = cmd->cdb.count * OBD_SECTOR;
	struct obd_device *dev = cmd->ring->dev;
	uint8_t block[OBD_SECTOR] = { 0 };

	if (cmd->cdb.unmap)
		return obd_device_discard(dev, at, bytes);
	if (!cmd->cdb.no_data)
		ring_copy(cmd, block, sizeof(block), 0, false);
	if (all_zero(block, sizeof(block)))
		return obd_device_zero(dev, at, bytes);
	return write_pattern(dev, block, at, bytes);
}

/* Every range is checked before the first is dropped. -ERANGE: one is not
 * inside the disk. */
static int unmap(struct command *cmd, uint32_t *sense)
{
	struct obd_device *dev = cmd->ring->dev;
	uint64_t size = obd_device_size(dev) / OBD_SECTOR, lba, count;
	uint64_t n = cmd->cdb.count < cmd->length ? cmd->cdb.count :
						    cmd->length;
	uint8_t *list = malloc(n + 1), *p;
	int ranges, i, pass, err = 0;

	if (!list)
		return -ENOMEM;
	ring_copy(cmd, list, n, 0, false);
	ranges = scsi_unmap_ranges(list, n);
	if (ranges < 0)
		*sense = (uint32_t)-ranges;
	for (pass = 0; pass < 2 && !*sense && !err; pass++)
		for (i = 0; i < ranges && !err && !*sense; i++) {
			p = list + 8 + 16 * i;
			lba = scsi_be(p, 8);
			count = scsi_be(p + 8, 4);
			if (lba > size || count > size - lba)
				*sense = SENSE_RANGE;
			else if (pass)
				err = obd_device_discard(dev,
					lba * OBD_SECTOR, count * OBD_SECTOR);
		}
	free(list);
	return err;
}

static void run_task(struct obd_task *task)
{
	struct command *cmd = (struct command *)((char *)task -
		offsetof(struct command, task));
	struct obd_ring *ring = cmd->ring;
	uint32_t sense = 0;
	int err;

	err = cmd->cdb.kind == SCSI_UNMAP ? unmap(cmd, &sense) :
					    write_same(cmd);
	pthread_mutex_lock(&ring->lock);
	if (sense)
		ring_refuse(ring, cmd, sense);
	else
		ring_finish_with(ring, cmd, err);
	ring_settle(ring);
}

void ring_offload(struct obd_ring *ring, struct command *cmd)
{
	if (cmd->cdb.anchor ||
	    (cmd->cdb.kind == SCSI_WRITE_SAME && !cmd->cdb.unmap &&
	     !cmd->cdb.no_data && cmd->length < OBD_SECTOR) ||
	    (cmd->cdb.kind == SCSI_WRITE_SAME && !cmd->cdb.count)) {
		ring_refuse(ring, cmd, SENSE_CDB_FIELD);
		return;
	}
	cmd->task.fn = run_task;
	if (obd_plane_offload(&cmd->task)) /* no thread for it: later */
		ring_finish_with(ring, cmd, -ENOMEM);
}
