/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_output.c - replies of one connection: the slots and data areas that
 * they lie in, their order, sending.
 *
 * All of it is called with conn->lock held, but nbd_free_cache(), which is
 * for a connection that nobody knows any more.
 */
#include <stdlib.h>
#include <sys/socket.h>

#include "nbd.h"

#define CLASS_SHIFT 12                       /* 4 KiB */
#define CACHE_BYTES (1u << 20)               /* free data areas kept */
#define SEND_IOVS 128

/* ---- data areas and slots ------------------------------------------- */

/* The class of areas that hold `bytes`; NBD_CLASSES: too large to keep. */
static uint32_t class_of(uint32_t bytes)
{
	uint32_t class = 0;

	while (class < NBD_CLASSES && (1u << CLASS_SHIFT << class) < bytes)
		class++;
	return class;
}

static uint8_t *area_get(struct nbd_conn *conn, uint32_t bytes,
			 uint32_t *capacity)
{
	uint32_t class = class_of(bytes);
	void *area;

	*capacity = class < NBD_CLASSES ? 1u << CLASS_SHIFT << class : bytes;
	if (class == NBD_CLASSES || !conn->cache[class])
		return malloc(*capacity);
	area = conn->cache[class];
	memcpy(&conn->cache[class], area, sizeof(void *));
	conn->cached -= *capacity;
	return area;
}

static void area_put(struct nbd_conn *conn, uint8_t *area, uint32_t capacity)
{
	uint32_t class = class_of(capacity);

	if (class == NBD_CLASSES || conn->cached + capacity > CACHE_BYTES) {
		free(area);
		return;
	}
	memcpy(area, &conn->cache[class], sizeof(void *));
	conn->cache[class] = area;
	conn->cached += capacity;
}

struct nbd_slot *nbd_slot_new(struct nbd_conn *conn, uint32_t bytes)
{
	struct nbd_slot *slot = conn->free_slots;

	if (slot)
		conn->free_slots = slot->next;
	else if (!(slot = malloc(sizeof(*slot))))
		return NULL;
	slot->next = NULL;
	slot->conn = conn;
	slot->head_bytes = slot->data_bytes = slot->capacity = 0;
	slot->data = NULL;
	if (bytes) {
		slot->data = area_get(conn, bytes, &slot->capacity);
		if (!slot->data) {
			slot->next = conn->free_slots;
			conn->free_slots = slot;
			return NULL;
		}
	}
	conn->slots++;
	conn->bytes += slot->capacity;
	return slot;
}

void nbd_slot_free(struct nbd_slot *slot)
{
	struct nbd_conn *conn = slot->conn;

	conn->slots--;
	conn->bytes -= slot->capacity;
	if (slot->data)
		area_put(conn, slot->data, slot->capacity);
	slot->next = conn->free_slots;
	conn->free_slots = slot;
}

void nbd_free_cache(struct nbd_conn *conn)
{
	struct nbd_slot *slot;

	while ((slot = conn->free_slots)) {
		conn->free_slots = slot->next;
		free(slot);
	}
	for (int i = 0; i < NBD_CLASSES; i++) {
		while (conn->cache[i]) {
			void *area = conn->cache[i];

			memcpy(&conn->cache[i], area, sizeof(void *));
			free(area);
		}
	}
}

/* ---- sending -------------------------------------------------------- */

void nbd_queue(struct nbd_slot *slot)
{
	struct nbd_conn *conn = slot->conn;

	slot->next = NULL;
	*conn->out_tail = slot;
	conn->out_tail = &slot->next;
	conn->unsent += slot->head_bytes + slot->data_bytes;
}

void nbd_drop_output(struct nbd_conn *conn)
{
	struct nbd_slot *slot;

	while ((slot = conn->out)) {
		conn->out = slot->next;
		nbd_slot_free(slot);
	}
	conn->out_tail = &conn->out;
	conn->out_sent = 0;
}

/* Heads and data of the queued slots, from the first byte not yet sent. */
static int fill_iovs(struct nbd_conn *conn, struct iovec *iov)
{
	struct nbd_slot *slot;
	uint64_t skip = conn->out_sent;
	int n = 0;

	for (slot = conn->out; slot && n + 2 <= SEND_IOVS; slot = slot->next) {
		struct iovec part[2] = {
			{ slot->head, slot->head_bytes },
			{ slot->data, slot->data_bytes },
		};
		for (int i = 0; i < 2; i++) {
			size_t cut = skip < part[i].iov_len ? skip :
				     part[i].iov_len;

			skip -= cut;
			if (part[i].iov_len == cut)
				continue;
			iov[n].iov_base = (char *)part[i].iov_base + cut;
			iov[n++].iov_len = part[i].iov_len - cut;
		}
	}
	return n;
}

static void output_sent(struct nbd_conn *conn, uint64_t bytes)
{
	bytes += conn->out_sent;
	while (conn->out) {
		struct nbd_slot *slot = conn->out;
		uint64_t all = (uint64_t)slot->head_bytes + slot->data_bytes;

		if (bytes < all)
			break;
		bytes -= all;
		conn->out = slot->next;
		nbd_slot_free(slot);
	}
	if (!conn->out)
		conn->out_tail = &conn->out;
	conn->out_sent = bytes;
}

void nbd_send(struct nbd_conn *conn)
{
	struct iovec iov[SEND_IOVS];
	struct msghdr msg = { .msg_iov = iov };
	ssize_t sent;

	conn->unsent = 0;
	while (conn->out) {
		msg.msg_iovlen = fill_iovs(conn, iov);
		sent = sendmsg(conn->watch.fd, &msg,
			       MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && errno == EAGAIN)
			return;
		if (sent < 0) {
			nbd_drop_output(conn);
			shutdown(conn->watch.fd, SHUT_RDWR);
			return;
		}
		output_sent(conn, (uint64_t)sent);
	}
}
