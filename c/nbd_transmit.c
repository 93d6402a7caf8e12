/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_transmit.c - the transmission phase: requests in, replies out.
 */
#include <sys/socket.h>

#include "nbd.h"

#define REQUEST_MAGIC 0x25609513u
#define REQUEST_BYTES 28u
#define SIMPLE_MAGIC 0x67446698u
#define CHUNK_MAGIC 0x668e33efu

enum { CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE,
       CMD_WRITE_ZEROES, CMD_BLOCK_STATUS };
#define FLAG_FUA 1u
#define FLAG_NO_HOLE 2u
#define FLAG_DF 4u
#define FLAG_REQ_ONE 8u

#define CHUNK_DONE 1u
#define CHUNK_OFFSET_DATA 1u
#define CHUNK_BLOCK_STATUS 5u
#define CHUNK_ERROR 0x8001u

#define STATE_HOLE 1u
#define STATE_ZERO 2u
#define ALLOCATION_ID 1u
#define MAX_EXTENTS 512u

struct request {
	uint16_t flags, type;
	uint64_t handle, offset;
	uint32_t length;
};

/* errno as the protocol's own numbers. */
static uint32_t nbd_error(int err)
{
	switch (err) {
	case 0:
		return 0;
	case -EPERM:
	case -EROFS:
		return 1;
	case -ENOMEM:
		return 12;
	case -EINVAL:
		return 22;
	case -ENOSPC:
	case -EDQUOT:
	case -EFBIG:
		return 28;
	case -EOVERFLOW:
		return 75;
	case -EOPNOTSUPP:
		return 95;
	case -ESHUTDOWN:
		return 108;
	default:
		return 5;
	}
}

static void chunk_head(struct nbd_slot *slot, uint16_t type, uint32_t length)
{
	put32(slot->head, CHUNK_MAGIC);
	put16(slot->head + 4, CHUNK_DONE);
	put16(slot->head + 6, type);
	put64(slot->head + 8, slot->handle);
	put32(slot->head + 16, length);
}

/* Fills the reply's header for a request that ended with err and queues
 * it. */
static void answer(struct nbd_slot *slot, int err)
{
	bool chunked = slot->conn->structured &&
		       (slot->type == CMD_READ ||
			slot->type == CMD_BLOCK_STATUS);

	if (err || slot->type == CMD_WRITE)
		slot->data_bytes = 0;
	if (!chunked) {
		put32(slot->head, SIMPLE_MAGIC);
		put32(slot->head + 4, nbd_error(err));
		put64(slot->head + 8, slot->handle);
		slot->head_bytes = 16;
	} else if (err) {
		chunk_head(slot, CHUNK_ERROR, 6);
		put32(slot->head + 20, nbd_error(err));
		put16(slot->head + 24, 0);
		slot->head_bytes = 26;
	} else if (slot->type == CMD_READ) {
		chunk_head(slot, CHUNK_OFFSET_DATA, 8 + slot->data_bytes);
		put64(slot->head + 20, slot->req.offset);
		slot->head_bytes = 28;
	} else {
		chunk_head(slot, CHUNK_BLOCK_STATUS, 4 + slot->data_bytes);
		put32(slot->head + 20, ALLOCATION_ID);
		slot->head_bytes = 24;
	}
	nbd_queue(slot);
}

/* A request that did not end at once has: on any thread. */
static void request_done(struct obd_request *req)
{
	struct nbd_slot *slot = req->owner;
	struct nbd_conn *conn = slot->conn;

	pthread_mutex_lock(&conn->lock);
	conn->running--;
	answer(slot, req->err);
	nbd_settle_later(conn);
}

static void submit(struct nbd_slot *slot, const struct request *r, int op)
{
	struct nbd_conn *conn = slot->conn;

	slot->iov = (struct iovec){ slot->data, r->length };
	slot->req = (struct obd_request){
		.dev = conn->export->dev,
		.done = request_done,
		.owner = slot,
		.offset = r->offset,
		.length = op == OBD_FLUSH ? 0 : r->length,
		.op = op,
		.flags = r->flags & FLAG_FUA ? OBD_REQ_FUA : 0,
		.iov = &slot->iov,
		.iov_count = op == OBD_READ || op == OBD_WRITE,
	};
	if (op == OBD_READ)
		slot->data_bytes = r->length;
	conn->running++;
	if (obd_request_submit(&slot->req)) {
		conn->running--;
		answer(slot, slot->req.err);
	}
}

static struct nbd_slot *new_slot(struct nbd_conn *conn,
				 const struct request *r, uint32_t bytes)
{
	struct nbd_slot *slot = nbd_slot_new(conn, bytes);

	if (slot) {
		slot->handle = r->handle;
		slot->type = r->type;
		slot->req.offset = r->offset;
	}
	return slot;
}

static int refuse(struct nbd_conn *conn, const struct request *r, int err)
{
	struct nbd_slot *slot = new_slot(conn, r, 0);

	if (!slot)
		return -ENOMEM;
	answer(slot, err);
	return 1;
}

static uint32_t nbd_state(uint32_t state)
{
	return state == OBD_EXTENT_DATA ? 0 :
	       state == OBD_EXTENT_ZERO ? STATE_ZERO : STATE_ZERO | STATE_HOLE;
}

static int block_status(struct nbd_conn *conn, const struct request *r)
{
	struct obd_extent runs[MAX_EXTENTS];
	struct nbd_slot *slot;
	int32_t got, i;

	if (!conn->meta || r->length == 0)
		return refuse(conn, r, -EINVAL);
	got = obd_device_extents(conn->export->dev, r->offset, r->length,
				 runs, r->flags & FLAG_REQ_ONE ?
				 1 : MAX_EXTENTS);
	if (got <= 0)
		return refuse(conn, r, got ? got : -EINVAL);
	slot = new_slot(conn, r, 8 * (uint32_t)got);
	if (!slot)
		return -ENOMEM;
	for (i = 0; i < got; i++) {
		put32(slot->data + 8 * i, (uint32_t)runs[i].length);
		put32(slot->data + 8 * i + 4, nbd_state(runs[i].state));
	}
	slot->data_bytes = 8 * (uint32_t)got;
	answer(slot, 0);
	return 1;
}

/* What is wrong with a request before it is tried; 0: nothing. */
static int check_request(struct nbd_conn *conn, const struct request *r)
{
	static const uint16_t allowed[] = {
		[CMD_READ] = FLAG_FUA | FLAG_DF,
		[CMD_WRITE] = FLAG_FUA,
		[CMD_FLUSH] = FLAG_FUA,
		[CMD_TRIM] = FLAG_FUA,
		[CMD_WRITE_ZEROES] = FLAG_FUA | FLAG_NO_HOLE,
		[CMD_BLOCK_STATUS] = FLAG_FUA | FLAG_REQ_ONE,
	};
	uint64_t size = obd_device_size(conn->export->dev);
	bool writes = r->type == CMD_WRITE || r->type == CMD_TRIM ||
		      r->type == CMD_WRITE_ZEROES;

	if (r->type > CMD_BLOCK_STATUS || r->type == CMD_CACHE)
		return -EINVAL;
	if (r->flags & ~allowed[r->type])
		return -EINVAL;
	if (r->type == CMD_FLUSH)
		return 0;
	if (writes && obd_device_flags(conn->export->dev) &
	    OBD_DEVICE_READONLY)
		return -EPERM;
	if (r->offset > size || r->length > size - r->offset)
		return writes ? -ENOSPC : -EINVAL;
	if ((r->offset | r->length) % OBD_SECTOR)
		return -EINVAL;
	if (r->type <= CMD_WRITE && r->length > NBD_MAX_REQUEST)
		return r->type == CMD_READ ? -EOVERFLOW : -EINVAL;
	return 0;
}

/* WRITE: its data follows the header, here or later. */
static int start_write(struct nbd_conn *conn, const struct request *r)
{
	struct nbd_slot *slot = new_slot(conn, r, r->length);
	uint32_t here = conn->in_to - conn->in_from;

	if (!slot)
		return -ENOMEM;
	slot->req.length = r->length;
	slot->req.flags = r->flags;
	if (here > r->length)
		here = r->length;
	if (here)
		memcpy(slot->data, conn->in + conn->in_from, here);
	conn->in_from += here;
	if (here == r->length) {
		submit(slot, r, OBD_WRITE);
		return 1;
	}
	conn->payload = slot;
	conn->payload_got = here;
	return 1;
}

/* The rest of a WRITE's data, straight into its data area. */
static int receive_payload(struct nbd_conn *conn)
{
	struct nbd_slot *slot = conn->payload;
	uint32_t left = slot->req.length - conn->payload_got;
	struct request r;
	ssize_t got;

	got = recv(conn->watch.fd, slot->data + conn->payload_got, left,
		   MSG_DONTWAIT);
	if (got == 0)
		return -ECONNRESET;
	if (got < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	conn->payload_got += (uint32_t)got;
	if ((uint32_t)got < left)
		return 1;
	conn->payload = NULL;
	r = (struct request){ slot->req.flags, CMD_WRITE, slot->handle,
			      slot->req.offset, slot->req.length };
	submit(slot, &r, OBD_WRITE);
	return 1;
}

static int start(struct nbd_conn *conn, const struct request *r)
{
	struct nbd_slot *slot;
	int err = check_request(conn, r);

	if (r->type == CMD_DISC)
		return -ECONNRESET;
	if (err) {
		if (r->type == CMD_WRITE)
			conn->skip = r->length;
		return refuse(conn, r, err);
	}
	switch (r->type) {
	case CMD_WRITE:
		return start_write(conn, r);
	case CMD_BLOCK_STATUS:
		return block_status(conn, r);
	}
	slot = new_slot(conn, r, r->type == CMD_READ ? r->length : 0);
	if (!slot)
		return -ENOMEM;
	submit(slot, r, r->type == CMD_READ ? OBD_READ :
			r->type == CMD_TRIM ? OBD_DISCARD :
			r->type == CMD_FLUSH ? OBD_FLUSH : OBD_ZERO);
	return 1;
}

int nbd_transmit(struct nbd_conn *conn)
{
	const uint8_t *in = conn->in + conn->in_from;
	struct request r;

	if (conn->payload)
		return receive_payload(conn);
	if (conn->in_to - conn->in_from < REQUEST_BYTES)
		return 0;
	conn->stalled = nbd_full(conn);
	if (conn->stalled)
		return 0;
	if (be32(in) != REQUEST_MAGIC)
		return -EPROTO;
	r = (struct request){ be16(in + 4), be16(in + 6), be64(in + 8),
			      be64(in + 16), be32(in + 24) };
	conn->in_from += REQUEST_BYTES;
	return start(conn, &r);
}
