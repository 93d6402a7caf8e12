/* SPDX-License-Identifier: Apache-2.0
 *
 * test_zfile.c - reading ZFiles: the original's, ours of every block size,
 * and everything that must be refused (spec zfile 3, 10, 11).
 */
#include "files.h"

/* A ZFile made here from the spec alone, so that block sizes and damage
 * that no writer makes can be tried. */
static struct bytes make_zfile(struct bytes in, uint32_t bs, uint32_t algo,
			       bool verify, struct obd_zfile_info *info)
{
	const struct obd_codec *c = obd_codec_find(algo);
	void *ctx = obd_codec_thread_context(c);
	uint64_t blocks = (in.n + bs - 1) / bs, i, n;
	struct bytes z = { NULL, 512 };
	uint32_t *table = malloc(4 * blocks + 4), crc, len;

	z.p = calloc(1, 1024 + blocks * (c->bound(bs) + 8ull));
	for (i = 0; i < blocks; i++) {
		n = in.n - i * bs < bs ? in.n - i * bs : bs;
		len = (uint32_t)c->compress(ctx, in.p + i * bs, (uint32_t)n,
					    z.p + z.n, c->bound(bs));
		crc = obd_crc32c(100007, z.p + z.n, len);
		memcpy(z.p + z.n + len, &crc, 4);
		table[i] = len + (verify ? 4 : 0);
		z.n += table[i];
	}
	*info = (struct obd_zfile_info){
		.index_offset = z.n,
		.blocks = blocks,
		.original_size = in.n,
		.block_size = bs,
		.algo = algo,
		.verify = verify,
		.index_crc = obd_crc32c(0, table, blocks * 4),
		.check_index_crc = 1,
	};
	memcpy(z.p + z.n, table, blocks * 4);
	z.n += blocks * 4 + 512;
	free(table);
	return z;
}

static void check_read(struct obd_source *src, struct bytes in, uint64_t n,
		       uint64_t at)
{
	uint8_t *buf = malloc(n + 1);
	uint64_t want = at >= in.n ? 0 : in.n - at < n ? in.n - at : n;

	buf[want] = 0xa5;
	CHECK_EQ(obd_source_pread(src, buf, n, at), want);
	CHECK_MSG(!want || !memcmp(buf, in.p + at, want),
		  "%d bytes at %d", (int)n, (int)at);
	CHECK_EQ(buf[want], 0xa5);
	free(buf);
}

/* The whole, then pieces: aligned or not, across blocks, at the end. */
static void check_reads(struct obd_source *src, struct bytes in)
{
	uint64_t n, at;
	int i;

	CHECK_EQ(obd_source_size(src), in.n);
	check_read(src, in, in.n + 10, 0);
	check_read(src, in, 10, in.n);
	check_read(src, in, 10, in.n + 100000);
	for (i = 0; in.n && i < 100; i++) {
		at = check_below(in.n);
		n = check_below(i & 1 ? 5000 : in.n) + 1;
		check_read(src, in, n, at);
	}
}

static void every_block_size_reads_right(void)
{
	static const uint64_t sizes[] = { 0, 1, 2, 4096, 4097, 70000 };
	struct obd_zfile_info info;
	struct obd_source *src;
	struct bytes in, z;
	unsigned int i;
	uint32_t bs;

	for (bs = 1; bs <= 65536; bs *= 2)
		for (i = 0; i < 6 * 4; i++) {
			if (bs < 64 && sizes[i / 4] > 5000)
				continue;
			in = make_bytes(sizes[i / 4], MIXED);
			z = make_zfile(in, bs, i & 1 ? OBD_ALGO_ZSTD :
						       OBD_ALGO_LZ4,
				       i & 2, &info);
			CHECK_EQ(open_zfile(z.p, z.n, &info, &src), 0);
			check_reads(src, in);
			obd_source_unref(src);
			free(in.p);
			free(z.p);
		}
}

/* 64 KiB blocks that grew past what a u16 holds, among others that did
 * not, and more blocks than one group of the table. */
static void blocks_that_grew_past_64_kib_read_right(void)
{
	struct bytes in = make_bytes(27 * 65536 + 5, RANDOM), z;
	struct obd_zfile_info info;
	struct obd_source *src;
	uint64_t at, sum = 512, i;
	uint32_t length;

	for (i = 0; i < 27; i += 1 + i % 3)
		memset(in.p + i * 65536, 'x', 65536);
	z = make_zfile(in, 65536, OBD_ALGO_LZ4, true, &info);
	CHECK_EQ(open_zfile(z.p, z.n, &info, &src), 0);
	for (i = 0; i < info.blocks; i++, sum += length) {
		CHECK_EQ(obd_source_block(src, i, &at, &length), 0);
		CHECK_EQ(at, sum);
		CHECK_EQ(length, obd_le32(z.p + info.index_offset + 4 * i));
	}
	CHECK_EQ(obd_source_block(src, i, &at, &length), -EINVAL);
	check_reads(src, in);
	obd_source_unref(src);
	free(in.p);
	free(z.p);
}

static void the_originals_files_read_right(void)
{
	static const char *const names[] = {
		"lz4-4k.crc", "lz4-8k.crc", "lz4-16k.crc", "lz4-32k.crc",
		"lz4-64k.crc", "lz4-4k.nocrc", "lz4-8k.nocrc",
		"lz4-16k.nocrc", "lz4-32k.nocrc", "lz4-64k.nocrc",
		"zstd-4k.crc", "zstd-8k.crc", "zstd-16k.crc",
		"zstd-32k.crc", "zstd-64k.crc", "zstd-4k.nocrc",
		"zstd-8k.nocrc", "zstd-16k.nocrc", "zstd-32k.nocrc",
		"zstd-64k.nocrc", "lz4-4k.hdr", "lz4-4k.hdr-mt2",
		"zstd-16k.hdr",
	};
	struct obd_zfile_info info;
	struct obd_source *src;
	struct bytes in, z;
	char name[64];
	unsigned int i;

	if (no_fixtures())
		return;
	in = fixture_bytes("06-zfile/plain.bin");
	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		snprintf(name, sizeof(name), "06-zfile/%s.zf", names[i]);
		z = fixture_bytes(name);
		info = trailer_info(z.p, z.n);
		CHECK_EQ(open_zfile(z.p, z.n, &info, &src), 0);
		check_reads(src, in);
		obd_source_unref(src);
		free(z.p);
	}
	free(in.p);
}

/* Defect 3: written by the original, unreadable there. */
static void what_the_original_cannot_read_back_reads_right(void)
{
	struct obd_zfile_info info;
	struct obd_source *src;
	struct bytes in, z;

	if (no_fixtures())
		return;
	in = fixture_bytes("06-zfile/incompressible.bin");
	z = fixture_bytes("06-zfile/incompressible.lz4-64k."
			  "UNREADABLE-BY-UPSTREAM.zf");
	info = trailer_info(z.p, z.n);
	CHECK_EQ(open_zfile(z.p, z.n, &info, &src), 0);
	check_reads(src, in);
	obd_source_unref(src);
	free(in.p);
	free(z.p);
}

/* ---- refusals --------------------------------------------------------- */

struct sample {
	struct bytes in, z;
	struct obd_zfile_info info;
};

static struct sample sample(void)
{
	struct sample s = { .in = make_bytes(100000, TEXT) };

	s.z = make_zfile(s.in, 4096, OBD_ALGO_LZ4, true, &s.info);
	return s;
}

static void sample_free(struct sample *s)
{
	free(s->in.p);
	free(s->z.p);
}

static void check_refused(const struct sample *s, struct obd_zfile_info info,
			  int want)
{
	struct obd_source *src;

	CHECK_EQ(open_zfile(s->z.p, s->z.n, &info, &src), want);
}

#define REFUSED(member, value, error)                     \
	do {                                              \
		struct obd_zfile_info info_ = s.info;     \
		info_.member = (value);                   \
		check_refused(&s, info_, error);          \
	} while (0)

static void fields_out_of_bounds_are_refused(void)
{
	struct sample s = sample();

	REFUSED(block_size, 0, -EINVAL);
	REFUSED(block_size, 3000, -EINVAL);
	REFUSED(block_size, 131072, -EINVAL);
	REFUSED(block_size, 8192, -EUCLEAN);
	REFUSED(algo, 0, -EINVAL);
	REFUSED(algo, 3, -EINVAL);
	REFUSED(verify, 2, -EINVAL);
	REFUSED(blocks, 1000000001, -EINVAL);
	REFUSED(blocks, UINT64_MAX, -EINVAL);
	REFUSED(blocks, s.info.blocks - 1, -EUCLEAN);
	REFUSED(blocks, 0, -EUCLEAN);
	REFUSED(blocks, 1000000, -ERANGE);
	REFUSED(index_offset, 0, -EINVAL);
	REFUSED(index_offset, 511, -EINVAL);
	REFUSED(index_offset, s.z.n, -ERANGE);
	REFUSED(index_offset, s.z.n + 1, -ERANGE);
	REFUSED(index_offset, UINT64_MAX, -ERANGE);
	REFUSED(index_offset, s.info.index_offset - 1, -EBADMSG);
	REFUSED(original_size, 0, -EUCLEAN);
	REFUSED(original_size, UINT64_MAX, -EUCLEAN);
	REFUSED(original_size, 102401, -EUCLEAN);
	REFUSED(original_size, 98304, -EUCLEAN);
	REFUSED(dict_size, 1, -EPROTO);
	REFUSED(dict_size, UINT32_MAX, -EINVAL);
	REFUSED(index_crc, s.info.index_crc ^ 1, -EBADMSG);
	sample_free(&s);
}

/* The size is wrong, but the number of blocks agrees: the last block is
 * not what it should be. */
static void a_wrong_original_size_shows_in_the_last_block(void)
{
	struct sample s = sample();
	struct obd_source *src;
	uint8_t buf[4096];

	s.info.original_size = 102400;
	CHECK_EQ(open_zfile(s.z.p, s.z.n, &s.info, &src), 0);
	CHECK_EQ(obd_source_pread(src, buf, 4096, 0), 4096);
	CHECK_EQ(obd_source_pread(src, buf, 1, 100000), -EUCLEAN);
	obd_source_unref(src);
	s.info.original_size = 99999;
	CHECK_EQ(open_zfile(s.z.p, s.z.n, &s.info, &src), 0);
	CHECK_EQ(obd_source_pread(src, buf, 1, 99998), -EUCLEAN);
	obd_source_unref(src);
	sample_free(&s);
}

static void set_entry(struct sample *s, uint64_t nr, uint32_t value)
{
	memcpy(s->z.p + s->info.index_offset + 4 * nr, &value, 4);
	s->info.index_crc = obd_crc32c(0, s->z.p + s->info.index_offset,
				       s->info.blocks * 4);
}

static void wrong_entries_are_refused(void)
{
	struct sample s = sample();
	uint32_t good = obd_le32(s.z.p + s.info.index_offset + 4 * 7);

	set_entry(&s, 7, 4);
	check_refused(&s, s.info, -EPROTO);
	set_entry(&s, 7, 0);
	check_refused(&s, s.info, -EPROTO);
	set_entry(&s, 7, UINT32_MAX);
	check_refused(&s, s.info, -EPROTO);
	set_entry(&s, 7, good + 1);
	check_refused(&s, s.info, -EPROTO);
	set_entry(&s, 7, good);
	set_entry(&s, s.info.blocks - 1, 5000);
	check_refused(&s, s.info, -EPROTO);
	REFUSED(index_crc, 0, -EBADMSG);
	s.info.check_index_crc = 0;
	REFUSED(index_crc, 0, -EPROTO);
	sample_free(&s);
}

/* Without a crc the smallest entry is 1, not 5. */
static void the_smallest_entry_depends_on_the_crc(void)
{
	struct bytes in = { (uint8_t *)"a", 1 }, z;
	struct obd_zfile_info info;
	struct obd_source *src;
	uint32_t one = 1, zero = 0;

	z = make_zfile(in, 4096, OBD_ALGO_LZ4, false, &info);
	info.check_index_crc = 0;
	CHECK_EQ(obd_le32(z.p + info.index_offset), 2);
	memcpy(z.p + info.index_offset, &one, 4);
	CHECK_EQ(open_zfile(z.p, z.n, &info, &src), 0);
	obd_source_unref(src);
	memcpy(z.p + info.index_offset, &zero, 4);
	CHECK_EQ(open_zfile(z.p, z.n, &info, &src), -EPROTO);
	free(z.p);
}

/* ---- damage ----------------------------------------------------------- */

/* Every single bit of a block and of its crc matters; the blocks around
 * it still read. */
static void a_flipped_bit_is_never_served(void)
{
	struct sample s = sample();
	struct obd_source *src;
	uint64_t at, nr, bit;
	uint8_t buf[4096];
	uint32_t length;

	CHECK_EQ(open_zfile(s.z.p, s.z.n, &s.info, &src), 0);
	for (nr = 0; nr < s.info.blocks; nr += 12) {
		CHECK_EQ(obd_source_block(src, nr, &at, &length), 0);
		bit = check_below(length * 8);
		s.z.p[at + bit / 8] ^= 1 << bit % 8;
	}
	obd_source_unref(src);
	CHECK_EQ(open_zfile(s.z.p, s.z.n, &s.info, &src), 0);
	for (nr = 0; nr < s.info.blocks; nr++) {
		at = nr * 4096;
		if (nr % 12)
			check_read(src, s.in, 4096, at);
		else
			CHECK_EQ(obd_source_pread(src, buf, 1, at),
				 -EUCLEAN);
	}
	CHECK_EQ(obd_source_pread(src, buf, 4096, 11 * 4096 + 1), -EUCLEAN);
	obd_source_unref(src);
	sample_free(&s);
}

/* A block that decodes, but not to its length: only the length tells. */
static void a_block_of_another_length_is_refused(void)
{
	struct bytes in = make_bytes(8192, ZEROS), z, small;
	struct obd_zfile_info info, other;
	struct obd_source *src;
	uint8_t buf[4096];

	z = make_zfile(in, 4096, OBD_ALGO_LZ4, true, &info);
	in.n = 4000;
	small = make_zfile(in, 4096, OBD_ALGO_LZ4, true, &other);
	CHECK_EQ(other.index_offset - 512, (info.index_offset - 512) / 2);
	memcpy(z.p + 512, small.p + 512, other.index_offset - 512);
	CHECK_EQ(open_zfile(z.p, z.n, &info, &src), 0);
	CHECK_EQ(obd_source_pread(src, buf, 4096, 0), -EUCLEAN);
	CHECK_EQ(obd_source_pread(src, buf, 4096, 4096), 4096);
	obd_source_unref(src);
	free(in.p);
	free(z.p);
	free(small.p);
}

static void a_truncated_file_is_an_io_error(void)
{
	struct sample s = sample();
	struct obd_source *inner, *src;
	uint8_t buf[4096];
	int fd = file_with(s.z.p, s.z.n);

	CHECK(!obd_source_file(fd, 0, s.z.n, &inner));
	CHECK_EQ(obd_source_zfile(inner, &s.info, &src), 0);
	CHECK(!obd_io_truncate(fd, 5000));
	CHECK_EQ(obd_source_pread(src, buf, 4096, 0), 4096);
	CHECK_EQ(obd_source_pread(src, buf, 4096, 96000), -EIO);
	obd_source_unref(src);
	CHECK_EQ(obd_source_zfile(inner, &s.info, &src), -EIO);
	obd_source_unref(inner);
	sample_free(&s);
}

static void read_errors_come_through(void)
{
	struct sample s = sample();
	struct obd_source *src;
	uint8_t buf[4096];

	CHECK_EQ(open_zfile(s.z.p, s.z.n, &s.info, &src), 0);
	CHECK(!obd_io_fault(OBD_IO_PREAD, 1, EIO, 1));
	CHECK_EQ(obd_source_pread(src, buf, 4096, 0), -EIO);
	CHECK_EQ(obd_source_pread(src, buf, 4096, 0), 4096);
	obd_source_unref(src);
	sample_free(&s);
}

/* A long read takes few system calls: count them with a fault that would
 * hit the next one. */
static void neighbouring_blocks_are_read_together(void)
{
	struct bytes in = make_bytes(1 << 20, TEXT), z;
	struct obd_zfile_info info;
	struct obd_source *src;
	uint8_t *buf = malloc(in.n);

	z = make_zfile(in, 4096, OBD_ALGO_LZ4, true, &info);
	CHECK_EQ(open_zfile(z.p, z.n, &info, &src), 0);
	CHECK(!obd_io_fault(OBD_IO_PREAD, 8, EIO, 1));
	CHECK_EQ(obd_source_pread(src, buf, in.n, 0), in.n);
	CHECK(!memcmp(buf, in.p, in.n));
	CHECK(!obd_io_fault(OBD_IO_PREAD, 2, EIO, 1));
	CHECK_EQ(obd_source_pread(src, buf, 65536, 4096), 65536);
	CHECK(!obd_io_fault(OBD_IO_PREAD, 0, 0, 0));
	obd_source_unref(src);
	free(buf);
	free(in.p);
	free(z.p);
}

/* ---- cache ------------------------------------------------------------ */

static void an_absent_unit_is_asked_for(void)
{
	struct sample s = sample();
	struct obd_source *inner, *src;
	uint8_t buf[4096];
	int fd = file_with(s.z.p, s.z.n);
	uint64_t units = (s.z.n + 4095) / 4096;

	CHECK(!obd_source_cache(fd, s.z.n, 4096, 7, &inner));
	CHECK_EQ(obd_source_zfile(inner, &s.info, &src), -EAGAIN);
	CHECK(!obd_source_fill(inner, units - 1, 1, 0));
	if (s.info.index_offset / 4096 != units - 1)
		CHECK(!obd_source_fill(inner, units - 2, 1, 0));
	CHECK_EQ(obd_source_zfile(inner, &s.info, &src), 0);
	CHECK_EQ(obd_source_pread(src, buf, 4096, 0), -EAGAIN);
	CHECK(!obd_source_fill(inner, 0, 2, 0));
	CHECK_EQ(obd_source_pread(src, buf, 4096, 0), 4096);
	CHECK(!memcmp(buf, s.in.p, 4096));
	obd_source_unref(src);
	obd_source_unref(inner);
	sample_free(&s);
}

/* ---- memory ----------------------------------------------------------- */

static uint64_t status_kib(const char *key)
{
	char line[256];
	uint64_t v = 0;
	FILE *f = fopen("/proc/self/status", "r");

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, key, strlen(key)))
			v = strtoull(line + strlen(key), NULL, 10);
	if (f)
		fclose(f);
	return v;
}

/* 16 Mi blocks: their table takes three bytes a block and no more. */
static void the_table_takes_three_bytes_a_block(void)
{
	const uint64_t blocks = 16 << 20;
	struct obd_zfile_info info = {
		.index_offset = 512 + blocks * 5,
		.blocks = blocks,
		.original_size = blocks * 4096,
		.block_size = 4096,
		.algo = OBD_ALGO_LZ4,
		.verify = 1,
	};
	uint64_t n = info.index_offset + blocks * 4, before, i;
	uint32_t *table = malloc(blocks * 4);
	struct obd_source *inner, *src;
	int fd = new_file();

	for (i = 0; i < blocks; i++)
		table[i] = 5;
	CHECK_EQ(obd_io_pwrite(fd, table, blocks * 4, info.index_offset),
		 blocks * 4);
	free(table);
	CHECK(!obd_source_file(fd, 0, n, &inner));
	before = status_kib("RssAnon:");
	CHECK_EQ(obd_source_zfile(inner, &info, &src), 0);
	CHECK_MSG(status_kib("RssAnon:") < before + blocks * 3 / 1024 * 21 / 20,
		  "%d KiB for %d Mi blocks",
		  (int)(status_kib("RssAnon:") - before), 16);
	obd_source_unref(src);
	obd_source_unref(inner);
}

int main(void)
{
	check_seed();
	RUN(every_block_size_reads_right);
	RUN(blocks_that_grew_past_64_kib_read_right);
	RUN(the_originals_files_read_right);
	RUN(what_the_original_cannot_read_back_reads_right);
	RUN(fields_out_of_bounds_are_refused);
	RUN(a_wrong_original_size_shows_in_the_last_block);
	RUN(wrong_entries_are_refused);
	RUN(the_smallest_entry_depends_on_the_crc);
	RUN(a_flipped_bit_is_never_served);
	RUN(a_block_of_another_length_is_refused);
	RUN(a_truncated_file_is_an_io_error);
	RUN(read_errors_come_through);
	RUN(neighbouring_blocks_are_read_together);
	RUN(an_absent_unit_is_asked_for);
	RUN(the_table_takes_three_bytes_a_block);
	return check_done();
}
