/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_negotiate.c - fixed newstyle negotiation: from the client's flags to
 * the choice of an export.
 */
#include <stdlib.h>

#include "nbd.h"

#define OPT_MAGIC 0x49484156454f5054ull    /* "IHAVEOPT" */
#define OPT_REPLY_MAGIC 0x0003e889045565a9ull
#define OPT_HEADER 16u
#define OPT_REPLY_HEADER 20u
#define OPT_MAX_BYTES (NBD_IN_BYTES - OPT_HEADER)
#define OPT_MAX_COUNT 1000u                /* of one connection */
#define CLIENT_FIXED_NEWSTYLE 1u
#define CLIENT_NO_ZEROES 2u

enum { OPT_EXPORT_NAME = 1, OPT_ABORT, OPT_LIST, OPT_INFO = 6, OPT_GO,
       OPT_STRUCTURED_REPLY, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT };
enum { INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE };
#define REP_ACK 1u
#define REP_SERVER 2u
#define REP_INFO 3u
#define REP_META_CONTEXT 4u
#define REP_ERR_UNSUP 0x80000001u
#define REP_ERR_INVALID 0x80000003u
#define REP_ERR_UNKNOWN 0x80000006u
#define REP_ERR_TOO_BIG 0x80000009u

#define MIN_BLOCK 512u
#define PREFERRED_BLOCK 4096u

static const char allocation[] = "base:allocation";
#define ALLOCATION_ID 1u

/* One option as it came in; data is conn->in's. */
struct option {
	uint32_t number, length;
	const uint8_t *data;
};

/* Queues a reply of up to two parts. */
static int reply(struct nbd_conn *conn, uint32_t option, uint32_t type,
		 const void *a, uint32_t a_bytes, const void *b,
		 uint32_t b_bytes)
{
	struct nbd_slot *slot = nbd_slot_new(conn, a_bytes + b_bytes);

	if (!slot)
		return -ENOMEM;
	put64(slot->head, OPT_REPLY_MAGIC);
	put32(slot->head + 8, option);
	put32(slot->head + 12, type);
	put32(slot->head + 16, a_bytes + b_bytes);
	slot->head_bytes = OPT_REPLY_HEADER;
	if (a_bytes)
		memcpy(slot->data, a, a_bytes);
	if (b_bytes)
		memcpy(slot->data + a_bytes, b, b_bytes);
	slot->data_bytes = a_bytes + b_bytes;
	nbd_queue(slot);
	return 1;
}

static int reply_empty(struct nbd_conn *conn, uint32_t option, uint32_t type)
{
	return reply(conn, option, type, NULL, 0, NULL, 0);
}

uint16_t nbd_export_flags(const struct nbd_export *export, bool structured)
{
	enum { HAS_FLAGS = 1, READ_ONLY = 2, SEND_FLUSH = 4, SEND_FUA = 8,
	       SEND_TRIM = 32, SEND_WRITE_ZEROES = 64, SEND_DF = 128,
	       CAN_MULTI_CONN = 256 };
	uint16_t flags = HAS_FLAGS | SEND_FLUSH;

	if (obd_device_flags(export->dev) & OBD_DEVICE_READONLY)
		flags |= READ_ONLY | CAN_MULTI_CONN;
	else
		flags |= SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES;
	return structured ? flags | SEND_DF : flags;
}

/* EXPORT_NAME has no way to say no but hanging up. */
static int choose_by_name(struct nbd_conn *conn, const struct option *opt)
{
	struct nbd_export *export = nbd_find(conn->nbd, opt->data,
					     opt->length);
	struct nbd_slot *slot;

	int rc;

	if (!export)
		return -ENOENT;
	rc = nbd_attach(conn, export);
	slot = rc < 0 ? NULL : nbd_slot_new(conn, conn->no_zeroes ? 0 : 124);
	if (!slot) {
		nbd_export_put(export);
		return rc < 0 ? rc : -ENOMEM;
	}
	put64(slot->head, obd_device_size(export->dev));
	put16(slot->head + 8, nbd_export_flags(export, conn->structured));
	slot->head_bytes = 10;
	if (!conn->no_zeroes) {
		memset(slot->data, 0, 124);
		slot->data_bytes = 124;
	}
	nbd_queue(slot);
	nbd_export_put(export);
	return 1;
}

static int list_one(struct nbd_conn *conn, uint32_t option,
		    const struct nbd_export *e)
{
	uint32_t name = strlen(e->name), text = strlen(e->description);
	uint8_t buf[4 + NBD_MAX_NAME];

	put32(buf, name);
	memcpy(buf + 4, e->name, name);
	return reply(conn, option, REP_SERVER, buf, 4 + name, e->description,
		     text);
}

static int list_exports(struct nbd_conn *conn, const struct option *opt)
{
	struct obd_nbd *nbd = conn->nbd;
	struct nbd_export *e;
	int rc = 1;

	if (opt->length)
		return reply_empty(conn, opt->number, REP_ERR_INVALID);
	pthread_mutex_lock(&nbd->lock);
	for (e = nbd->exports; rc > 0 && e; e = e->next)
		rc = list_one(conn, opt->number, e);
	pthread_mutex_unlock(&nbd->lock);
	return rc < 0 ? rc : reply_empty(conn, opt->number, REP_ACK);
}

static int send_info(struct nbd_conn *conn, uint32_t option, uint16_t type,
		     const void *data, uint32_t bytes)
{
	uint8_t number[2];

	put16(number, type);
	return reply(conn, option, REP_INFO, number, 2, data, bytes);
}

static int send_export_info(struct nbd_conn *conn, uint32_t option,
			    const struct nbd_export *export)
{
	uint8_t size[10], blocks[12];
	int rc;

	put64(size, obd_device_size(export->dev));
	put16(size + 8, nbd_export_flags(export, conn->structured));
	rc = send_info(conn, option, INFO_EXPORT, size, sizeof(size));
	if (rc < 0)
		return rc;
	put32(blocks, MIN_BLOCK);
	put32(blocks + 4, PREFERRED_BLOCK);
	put32(blocks + 8, NBD_MAX_REQUEST);
	return send_info(conn, option, INFO_BLOCK_SIZE, blocks,
			 sizeof(blocks));
}

/* The u16 requests of INFO and GO that can be met. */
static int send_wanted(struct nbd_conn *conn, uint32_t option,
		       const struct nbd_export *export, const uint8_t *wants,
		       uint32_t count)
{
	int rc = send_export_info(conn, option, export);

	for (uint32_t i = 0; rc > 0 && i < count; i++) {
		uint16_t want = be16(wants + 2 * i);
		const char *text = want == INFO_NAME ? export->name :
				   export->description;

		if (want == INFO_NAME ||
		    (want == INFO_DESCRIPTION && text[0]))
			rc = send_info(conn, option, want, text,
				       strlen(text));
	}
	return rc > 0 ? reply_empty(conn, option, REP_ACK) : rc;
}

/* INFO and GO: u32 length of the name, the name, u16 count, u16 requests. */
static int info_or_go(struct nbd_conn *conn, const struct option *opt)
{
	struct nbd_export *export;
	uint32_t name, count;
	int rc;

	if (opt->length < 6)
		return reply_empty(conn, opt->number, REP_ERR_INVALID);
	name = be32(opt->data);
	if (name > NBD_MAX_NAME || name > opt->length - 6)
		return reply_empty(conn, opt->number, REP_ERR_INVALID);
	count = be16(opt->data + 4 + name);
	if (opt->length != 6 + name + 2 * count)
		return reply_empty(conn, opt->number, REP_ERR_INVALID);
	export = nbd_find(conn->nbd, opt->data + 4, name);
	if (!export)
		return reply_empty(conn, opt->number, REP_ERR_UNKNOWN);
	rc = send_wanted(conn, opt->number, export, opt->data + 6 + name,
			 count);
	if (rc > 0 && opt->number == OPT_GO)
		rc = nbd_attach(conn, export);
	nbd_export_put(export);
	return rc;
}

static bool query_is(const uint8_t *query, uint32_t length, const char *text)
{
	return length == strlen(text) && !memcmp(query, text, length);
}

/* Walks the queries; *match: base:allocation is among them (or, listing,
 * all of "base:").  -EINVAL when the lengths do not add up. */
static int read_queries(const struct option *opt, uint32_t at, bool *match)
{
	bool listing = opt->number == OPT_LIST_META_CONTEXT;
	uint32_t count = be32(opt->data + at), i;

	at += 4;
	*match = listing && count == 0;
	for (i = 0; i < count; i++) {
		uint32_t length;

		if (opt->length - at < 4)
			return -EINVAL;
		length = be32(opt->data + at);
		at += 4;
		if (length > opt->length - at)
			return -EINVAL;
		if (query_is(opt->data + at, length, allocation) ||
		    (listing && query_is(opt->data + at, length, "base:")))
			*match = true;
		at += length;
	}
	return at == opt->length ? 0 : -EINVAL;
}

static int meta_context(struct nbd_conn *conn, const struct option *opt)
{
	struct nbd_export *export;
	uint32_t name;
	uint8_t id[4];
	bool match;
	int rc;

	if (!conn->structured || opt->length < 8)
		return reply_empty(conn, opt->number, REP_ERR_INVALID);
	name = be32(opt->data);
	if (name > NBD_MAX_NAME || name > opt->length - 8 ||
	    read_queries(opt, 4 + name, &match))
		return reply_empty(conn, opt->number, REP_ERR_INVALID);
	export = nbd_find(conn->nbd, opt->data + 4, name);
	if (!export)
		return reply_empty(conn, opt->number, REP_ERR_UNKNOWN);
	if (opt->number == OPT_SET_META_CONTEXT) {
		conn->meta = match;
		nbd_export_put(conn->meta_export);
		conn->meta_export = export;
	} else {
		nbd_export_put(export);
	}
	if (match) {
		put32(id, opt->number == OPT_SET_META_CONTEXT ?
			  ALLOCATION_ID : 0);
		rc = reply(conn, opt->number, REP_META_CONTEXT, id, 4,
			   allocation, strlen(allocation));
		if (rc < 0)
			return rc;
	}
	return reply_empty(conn, opt->number, REP_ACK);
}

static int handle_option(struct nbd_conn *conn, const struct option *opt)
{
	switch (opt->number) {
	case OPT_EXPORT_NAME:
		return choose_by_name(conn, opt);
	case OPT_ABORT:
		reply_empty(conn, opt->number, REP_ACK);
		nbd_send(conn);
		return -ECONNRESET;
	case OPT_LIST:
		return list_exports(conn, opt);
	case OPT_INFO:
	case OPT_GO:
		return info_or_go(conn, opt);
	case OPT_STRUCTURED_REPLY:
		if (opt->length)
			return reply_empty(conn, opt->number, REP_ERR_INVALID);
		conn->structured = true;
		return reply_empty(conn, opt->number, REP_ACK);
	case OPT_LIST_META_CONTEXT:
	case OPT_SET_META_CONTEXT:
		return meta_context(conn, opt);
	default:
		return reply_empty(conn, opt->number, REP_ERR_UNSUP);
	}
}

static int read_flags(struct nbd_conn *conn)
{
	uint32_t flags;

	if (conn->in_to - conn->in_from < 4)
		return 0;
	flags = be32(conn->in + conn->in_from);
	conn->in_from += 4;
	if (flags & ~(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES))
		return -EPROTO;
	conn->no_zeroes = flags & CLIENT_NO_ZEROES;
	conn->phase = NBD_OPTIONS;
	return 1;
}

int nbd_negotiate(struct nbd_conn *conn)
{
	struct option opt;
	const uint8_t *in;
	int rc;

	if (conn->phase == NBD_FLAGS)
		return read_flags(conn);
	if (conn->in_to - conn->in_from < OPT_HEADER)
		return 0;
	conn->stalled = nbd_full(conn);
	if (conn->stalled)
		return 0;
	in = conn->in + conn->in_from;
	opt = (struct option){ be32(in + 8), be32(in + 12), in + OPT_HEADER };
	if (be64(in) != OPT_MAGIC || conn->options > OPT_MAX_COUNT)
		return -EPROTO;
	if (opt.length > OPT_MAX_BYTES) {
		conn->options++;
		conn->in_from += OPT_HEADER;
		conn->skip = opt.length;
		return reply_empty(conn, opt.number, REP_ERR_TOO_BIG);
	}
	if (conn->in_to - conn->in_from < OPT_HEADER + opt.length)
		return 0;
	conn->options++;
	rc = handle_option(conn, &opt);
	conn->in_from += OPT_HEADER + opt.length;
	return rc;
}
