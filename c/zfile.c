/* SPDX-License-Identifier: Apache-2.0
 *
 * zfile.c - the jump table of a ZFile and the reading of its blocks
 * (spec zfile 3).  What the header said was checked by the caller; what
 * the table says is checked here, once, when it is loaded.
 */
#include <stdlib.h>

#include "internal.h"

#define HEADER 512u
#define CRC_BYTES 4u
#define CRC_START 100007u
#define BLOCK_MAX 65536u
#define BLOCKS_MAX 1000000000ull

/* Eight blocks in 24 bytes, three a block.  where: the low 48 bits are the
 * offset of the group's first block, the high 16 hold bits 16 and 17 of
 * the eight stored lengths (a 64 KiB block that grew needs them), two
 * each; low: the other bits of those lengths.  An offset is the first one
 * plus the lengths before, summed without a branch. */
#define GROUP 8u
struct group {
	uint64_t where;
	uint16_t low[GROUP];
};

#define WHERE_MASK ((1ull << 48) - 1)

/* Immutable once open. */
struct obd_zfile {
	uint64_t size;        /* of the original */
	uint64_t blocks;
	uint32_t shift;       /* log2 of the block size */
	uint32_t verify;      /* bytes of crc behind a block: 0 or 4 */
	uint32_t longest;     /* stored length that any block may have */
	const struct obd_codec *codec;
	struct group *groups;
};

/* Where one block lies, and what it must become. */
struct piece {
	uint64_t at;
	uint32_t stored;      /* crc included */
	uint32_t length;
};

/* ---- the table -------------------------------------------------------- */

static inline uint32_t entry(const struct group *g, uint32_t k)
{
	return g->low[k] | (uint32_t)(g->where >> (48 + 2 * k) & 3) << 16;
}

/* The sum of the first k of a group's lengths, k < 8. */
static inline uint64_t before(const struct group *g, uint32_t k)
{
	const uint64_t odd = 0x0000ffff0000ffffull;
	uint32_t k0 = k < 4 ? k : 4, k1 = k - k0, i;
	uint64_t a = obd_le64(g->low), b = obd_le64(g->low + 4), sum;

	/* Keep the first k0 of four, the first k1 <= 3 of the others. */
	a &= k0 == 4 ? ~0ull : (1ull << 16 * k0) - 1;
	b &= (1ull << 16 * k1) - 1;
	sum = (a & odd) + (a >> 16 & odd) + (b & odd) + (b >> 16 & odd);
	sum = (sum & 0xffffffffu) + (sum >> 32);
	if (obd_unlikely(g->where >> 48))
		for (i = 0; i < k; i++)
			sum += (g->where >> (48 + 2 * i) & 3) << 16;
	return sum;
}

static inline uint32_t block_length(const struct obd_zfile *z, uint64_t nr)
{
	uint64_t rest = z->size - (nr << z->shift);

	return rest >> z->shift ? 1u << z->shift : (uint32_t)rest;
}

static inline struct piece locate(const struct obd_zfile *z, uint64_t nr)
{
	const struct group *g = &z->groups[nr / GROUP];
	uint32_t k = nr % GROUP;

	return (struct piece){
		.at = (g->where & WHERE_MASK) + before(g, k),
		.stored = entry(g, k),
		.length = block_length(z, nr),
	};
}

/* ---- opening ---------------------------------------------------------- */

static int check_info(const struct obd_zfile_info *info, uint64_t inner)
{
	uint64_t bs = info->block_size;
	uint64_t last = (uint64_t)HEADER + info->dict_size;

	if (!bs || bs > BLOCK_MAX || (bs & (bs - 1)) || info->verify > 1 ||
	    info->blocks > BLOCKS_MAX || !obd_codec_find(info->algo))
		return -EINVAL;
	if (info->index_offset < last)
		return -EINVAL;
	if (info->index_offset > inner ||
	    info->blocks * 4 > inner - info->index_offset ||
	    inner > WHERE_MASK)
		return -ERANGE;
	if (info->original_size / bs + (info->original_size % bs != 0) !=
	    info->blocks)
		return -EUCLEAN;
	return 0;
}

/* Takes entry nr over; *at is where its block begins. */
static int take_entry(struct obd_zfile *z, uint64_t nr, uint32_t length,
		      uint64_t *at, uint64_t end)
{
	struct group *g = &z->groups[nr / GROUP];
	uint32_t k = nr % GROUP;

	if (length <= z->verify || length > z->longest ||
	    length > end - *at)
		return -EPROTO;
	if (!k)
		g->where = *at;
	g->where |= (uint64_t)(length >> 16) << (48 + 2 * k);
	g->low[k] = (uint16_t)length;
	*at += length;
	return 0;
}

/* A bad entry in a table whose crc is bad as well is a bad crc. */
static int load_table(struct obd_zfile *z, struct obd_source *inner,
		      const struct obd_zfile_info *info)
{
	uint64_t at = (uint64_t)HEADER + info->dict_size, nr = 0, n, i, room;
	uint8_t *buf = obd_thread_scratch(&room);
	uint32_t crc = 0;
	int err, bad = 0;

	if (!buf)
		return -ENOMEM;
	for (; nr < z->blocks; nr += n) {
		n = z->blocks - nr < room / 4 ? z->blocks - nr : room / 4;
		err = obd_source_read(inner, buf, n * 4,
				      info->index_offset + nr * 4,
				      OBD_TRY_BLOCK);
		if (err)
			return err;
		crc = obd_crc32c(crc, buf, n * 4);
		for (i = 0; i < n && !bad; i++)
			bad = take_entry(z, nr + i, obd_le32(buf + 4 * i),
					 &at, info->index_offset);
	}
	if (info->check_index_crc && crc != info->index_crc)
		return -EBADMSG;
	return bad;
}

int obd_zfile_open(struct obd_source *inner,
		   const struct obd_zfile_info *info, struct obd_zfile **out)
{
	int err = check_info(info, obd_source_size(inner));
	struct obd_zfile *z;

	if (err)
		return err;
	z = calloc(1, sizeof(*z));
	if (!z)
		return -ENOMEM;
	z->size = info->original_size;
	z->blocks = info->blocks;
	z->shift = (uint32_t)__builtin_ctz(info->block_size);
	z->verify = info->verify ? CRC_BYTES : 0;
	z->codec = obd_codec_find(info->algo);
	z->longest = z->codec->bound(info->block_size) + z->verify;
	z->groups = calloc(z->blocks / GROUP + 1, sizeof(*z->groups));
	err = z->groups ? load_table(z, inner, info) : -ENOMEM;
	if (err) {
		obd_zfile_free(z);
		return err;
	}
	*out = z;
	return 0;
}

void obd_zfile_free(struct obd_zfile *z)
{
	if (z)
		free(z->groups);
	free(z);
}

uint64_t obd_zfile_size(const struct obd_zfile *z)
{
	return z->size;
}

uint32_t obd_zfile_block_size(const struct obd_zfile *z)
{
	return 1u << z->shift;
}

int obd_zfile_block(const struct obd_zfile *z, uint64_t nr, uint64_t *at,
		    uint32_t *length)
{
	struct piece p;

	if (nr >= z->blocks)
		return -EINVAL;
	p = locate(z, nr);
	*at = p.at;
	*length = p.stored;
	return 0;
}

void obd_zfile_range(const struct obd_zfile *z, uint64_t at, uint64_t n,
		     uint64_t *stored_at, uint64_t *stored_n)
{
	struct piece first, last;

	*stored_at = *stored_n = 0;
	if (!n || at >= z->size)
		return;
	if (n > z->size - at)
		n = z->size - at;
	first = locate(z, at >> z->shift);
	last = locate(z, (at + n - 1) >> z->shift);
	*stored_at = first.at;
	*stored_n = last.at + last.stored - first.at;
}

/* ---- reading ---------------------------------------------------------- */

/* One thread's work on one read. */
struct reader {
	const struct obd_zfile *z;
	void *ctx;
	uint8_t *stored;     /* room for `room` bytes */
	uint8_t *plain;      /* room for one block */
	uint64_t room;
};

static bool crc_matches(const uint8_t *stored, uint32_t n)
{
	return obd_crc32c(CRC_START, stored, n) == obd_le32(stored + n);
}

/* Bytes [from, from + n) of the block stored at src go to dst. */
static int decode(const struct reader *r, const uint8_t *src,
		  struct piece p, uint8_t *dst, uint32_t from, uint32_t n)
{
	bool whole = n == p.length;
	int64_t got;

	p.stored -= r->z->verify;
	if (r->z->verify && obd_unlikely(!crc_matches(src, p.stored)))
		return -EUCLEAN;
	got = r->z->codec->decompress(r->ctx, src, p.stored,
				      whole ? dst : r->plain, p.length);
	if (obd_unlikely(got != p.length))
		return got == -ENOMEM ? -ENOMEM : -EUCLEAN;
	if (!whole)
		memcpy(dst, r->plain + from, n);
	return 0;
}

/* How many blocks from nr to last, at least one, one read can bring. */
static uint64_t run_length(const struct reader *r, uint64_t nr,
			   uint64_t last, struct piece *first,
			   uint64_t *bytes)
{
	uint64_t end = nr;
	struct piece p;

	*first = locate(r->z, nr);
	*bytes = first->stored;
	while (end++ < last) {
		p = locate(r->z, end);
		if (p.at + p.stored - first->at > r->room)
			break;
		*bytes = p.at + p.stored - first->at;
	}
	return end - nr;
}

/* The blocks [nr, nr + count), now in r->stored, as far as they cover
 * [*at, *at + *n): decodes them and moves all three on. */
static int decode_run(const struct reader *r, uint64_t nr, uint64_t count,
		      uint64_t stored_at, uint8_t **buf, uint64_t *n,
		      uint64_t *at, uint64_t *bad)
{
	uint32_t from, part;
	struct piece p;
	int err;

	for (; count; count--, nr++) {
		p = locate(r->z, nr);
		from = (uint32_t)(*at - (nr << r->z->shift));
		part = p.length - from;
		if (part > *n)
			part = (uint32_t)*n;
		err = decode(r, r->stored + (p.at - stored_at), p, *buf,
			     from, part);
		if (obd_unlikely(err)) {
			*bad = nr;
			return err;
		}
		*buf += part;
		*at += part;
		*n -= part;
	}
	return 0;
}

int obd_zfile_read(const struct obd_zfile *z, struct obd_source *inner,
		   void *buf, uint64_t n, uint64_t at, enum obd_try how,
		   uint64_t *bad_block)
{
	struct reader r = { .z = z };
	uint64_t nr, count, bytes, last;
	struct piece first;
	uint8_t *dst = buf;
	int err;

	if (obd_unlikely(!n))
		return 0;
	r.plain = obd_thread_scratch(&r.room);
	r.ctx = obd_codec_thread_context(z->codec);
	if (obd_unlikely(!r.plain || !r.ctx))
		return -ENOMEM;
	r.stored = r.plain + BLOCK_MAX;
	r.room -= BLOCK_MAX;
	last = (at + n - 1) >> z->shift;
	while (n) {
		nr = at >> z->shift;
		count = run_length(&r, nr, last, &first, &bytes);
		err = obd_source_read(inner, r.stored, bytes, first.at, how);
		if (obd_unlikely(err))
			return err;
		err = decode_run(&r, nr, count, first.at, &dst, &n, &at,
				 bad_block);
		if (obd_unlikely(err))
			return err;
	}
	return 0;
}
