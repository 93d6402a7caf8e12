/* SPDX-License-Identifier: Apache-2.0
 *
 * ring_take.c - takes commands off a ring and starts each: reads, writes and
 * flushes as requests of the device.
 *
 * On the watch's worker with ring->lock held, and also on whichever thread
 * ends a command that the ring waited for.  Requests end on any thread.
 */
#include <sys/epoll.h>

#include "ring.h"

#define UFLAG_UNKNOWN 1u
#define IOVS_AT 48u

/* ---- reads, writes, flushes ------------------------------------------- */

static void request_done(struct obd_request *req)
{
	struct command *cmd = req->owner;
	struct obd_ring *ring = cmd->ring;

	pthread_mutex_lock(&ring->lock);
	ring_finish_with(ring, cmd, req->err);
	ring_settle(ring);
}

static void submit(struct obd_ring *ring, struct command *cmd, int op,
		   uint64_t bytes)
{
	bool fua = cmd->cdb.fua && ring->flags & OBD_RING_WRITE_CACHE;

	cmd->req = (struct obd_request){
		.dev = ring->dev,
		.done = request_done,
		.owner = cmd,
		.offset = op == OBD_FLUSH ? 0 : cmd->cdb.lba * OBD_SECTOR,
		.length = (uint32_t)bytes,
		.op = (uint16_t)op,
		.flags = op == OBD_WRITE && fua ? OBD_REQ_FUA : 0,
		.iov = cmd->iov,
		.iov_count = op == OBD_FLUSH ? 0 : cmd->iov_count,
	};
	if (obd_request_submit(&cmd->req))
		ring_finish_with(ring, cmd, cmd->req.err);
}

/* Leaves the first n bytes of the data area. */
static void cut_iovs(struct command *cmd, uint64_t n)
{
	uint32_t i;

	for (i = 0; i < cmd->iov_count && n; i++) {
		if (cmd->iov[i].iov_len > n)
			cmd->iov[i].iov_len = n;
		n -= cmd->iov[i].iov_len;
	}
	cmd->iov_count = i;
}

/* What both the CDB and the iovecs have room for is moved. */
static void transfer(struct obd_ring *ring, struct command *cmd)
{
	uint64_t n = cmd->cdb.count * OBD_SECTOR;

	if (n > cmd->length)
		n = cmd->length;
	if (n % OBD_SECTOR || n > UINT32_MAX) {
		ring_refuse(ring, cmd, SENSE_CDB_FIELD);
		return;
	}
	if (cmd->cdb.kind == SCSI_READ) {
		cmd->moved = n;
		cmd->moved_less = n < cmd->length;
	}
	cut_iovs(cmd, n);
	if (n)
		submit(ring, cmd, cmd->cdb.kind == SCSI_READ ? OBD_READ :
							       OBD_WRITE, n);
	else
		ring_finish_with(ring, cmd, 0);
}

/* ---- commands in ------------------------------------------------------ */

/* True: the command has told the initiator what has changed. */
static bool tell_attention(struct obd_ring *ring, struct command *cmd)
{
	uint8_t opcode = cmd->raw[0];

	if (!ring->attention || opcode == 0x12 || opcode == 0x03 ||
	    opcode == 0xa0)
		return false;
	ring_refuse(ring, cmd, SENSE_ATTENTION | ring->attention);
	ring->attention = 0;
	return true;
}

static bool in_range(struct obd_ring *ring, const struct scsi_cdb *cdb)
{
	uint64_t size = obd_device_size(ring->dev) / OBD_SECTOR;

	return cdb->lba <= size && cdb->count <= size - cdb->lba;
}

static void start(struct obd_ring *ring, struct command *cmd)
{
	bool readonly = obd_device_flags(ring->dev) & OBD_DEVICE_READONLY;
	enum scsi_kind kind = cmd->cdb.kind;

	if (tell_attention(ring, cmd))
		return;
	if (kind == SCSI_REFUSE) {
		ring->stats.refused++;
		ring_refuse(ring, cmd, SENSE_OPCODE);
	} else if (kind == SCSI_ASK && cmd->cdb.compares &&
		   in_range(ring, &cmd->cdb)) {
		ring_ask_to_compare(ring, cmd);
	} else if (kind == SCSI_ASK) {
		ring_ask(ring, cmd);
	} else if (readonly && kind == SCSI_SYNC) {
		ring_finish_with(ring, cmd, 0);
	} else if (readonly && kind != SCSI_READ) {
		ring_refuse(ring, cmd, SENSE_READ_ONLY);
	} else if (kind == SCSI_SYNC) {
		submit(ring, cmd, OBD_FLUSH, 0);
	} else if (kind != SCSI_UNMAP && !in_range(ring, &cmd->cdb)) {
		ring_refuse(ring, cmd, SENSE_RANGE);
	} else if (kind == SCSI_READ || kind == SCSI_WRITE) {
		transfer(ring, cmd);
	} else {
		ring_change_range(ring, cmd);
	}
}

/* Copies iovecs and CDB out of the entry. 0, -ENOMEM, -ERANGE: something
 * lies outside the entry or the data area. */
static int copy_out(struct obd_ring *ring, struct command *cmd,
		    const uint8_t *entry, uint32_t length)
{
	uint32_t count = load32(entry + 8), i;
	uint64_t cdb_off, base, n;

	memcpy(&cdb_off, entry + 24, sizeof(cdb_off));
	/* The CDB may be shorter than 16 bytes at the end of the area. */
	cdb_off -= (uint64_t)(entry - ring->map);
	if (cdb_off >= length || count > (length - IOVS_AT) / 16)
		return -ERANGE;
	n = length - cdb_off;
	memset(cmd->raw, 0, sizeof(cmd->raw));
	memcpy(cmd->raw, entry + cdb_off, n < 16 ? n : 16);
	scsi_parse(cmd->raw, &cmd->cdb);
	if (cmd->cdb.length < 16)
		memset(cmd->raw + cmd->cdb.length, 0, 16 - cmd->cdb.length);
	if (cmd->cdb.length > n)
		return -ERANGE;
	if (ring_room_for(cmd, count))
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		memcpy(&base, entry + IOVS_AT + 16 * i, 8);
		memcpy(&n, entry + IOVS_AT + 16 * i + 8, 8);
		if (base < ring->data_at || base > ring->map_size ||
		    n > ring->map_size - base)
			return -ERANGE;
		cmd->iov[i] = (struct iovec){ ring->map + base, n };
		cmd->length += n;
	}
	cmd->iov_count = count;
	return 0;
}

static int take_command(struct obd_ring *ring, uint32_t length)
{
	const uint8_t *entry = ring->area + ring->tail;
	struct command *cmd;
	int err;

	if (!ring->free && ring_grow(ring)) {
		ring->starved = true;
		return -ENOMEM;
	}
	cmd = ring->free;
	ring->free = cmd->next;
	cmd->state = RUNNING;
	cmd->entry = ring->tail;
	memcpy(&cmd->id, entry + 4, sizeof(cmd->id));
	cmd->length = cmd->moved = 0;
	cmd->moved_less = false;
	cmd->own_sense = NULL;
	cmd->sense = 0;
	cmd->iov_count = 0;
	cmd->cdb.kind = SCSI_ASK;
	ring->running++;
	ring->stats.commands++;
	if (++ring->stats.depth > ring->stats.depth_max)
		ring->stats.depth_max = ring->stats.depth;
	err = copy_out(ring, cmd, entry, length);
	ring->tail = after(ring, ring->tail, length);
	if (err == -ERANGE)
		ring_refuse(ring, cmd, SENSE_INTERNAL);
	else if (err)
		ring_finish_with(ring, cmd, err);
	else
		start(ring, cmd);
	return 0;
}

/* One entry before head.  False: stop, it makes no sense or there is no
 * memory. */
static bool take_entry(struct obd_ring *ring, uint32_t head)
{
	uint32_t length = length_within(ring, ring->tail, head);
	uint32_t op = entry_op(ring, ring->tail);

	if (!length || (op == OP_CMD && length < ENTRY_MIN)) {
		ring_break(ring, OBD_RING_BAD_ENTRY, ring->tail,
			   load32(ring->area + ring->tail));
		return false;
	}
	if (op == OP_CMD)
		return !take_command(ring, length);
	if (op != OP_PAD && op != OP_TMR) {
		ring->stats.refused++;
		ring->area[ring->tail + 7] |= UFLAG_UNKNOWN;
	}
	ring->tail = after(ring, ring->tail, length);
	ring_pass_over(ring);
	return true;
}

void ring_take_all(struct obd_ring *ring)
{
	uint32_t head;

	while (!ring->broken && !ring->closed) {
		head = load_head(ring);
		if (head == ring->tail || !ring_is_ours(ring))
			return;
		if (head >= ring->area_size || head % 8)
			ring_break(ring, OBD_RING_BAD_HEAD, ring->tail, head);
		else if (!take_entry(ring, head))
			return;
	}
}

void ring_readable(struct obd_watch *watch, uint32_t events)
{
	struct obd_ring *ring = (struct obd_ring *)watch;
	bool gone = events & (EPOLLERR | EPOLLHUP);
	uint32_t count;

	if (read(watch->fd, &count, sizeof(count)) < 0 && errno != EAGAIN &&
	    errno != EINTR)
		gone = true;
	pthread_mutex_lock(&ring->lock);
	ring_take_all(ring);
	if (gone) /* a removed device would be readable for ever */
		ring->watched = obd_plane_remove(watch) != 0;
	ring_settle(ring);
}
