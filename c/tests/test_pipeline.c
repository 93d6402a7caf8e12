/* SPDX-License-Identifier: Apache-2.0
 *
 * test_pipeline.c - commit, merge and zfile write the original's bytes,
 * the same for every number of threads, and end cleanly when they cannot.
 */
#include "files.h" /* first: it asks for the GNU extensions */

#include <pthread.h>
#include <signal.h>

static const uint32_t thread_counts[] = { 1, 2, 3, 8 };
#define THREAD_COUNTS 4

/* ---- plans ------------------------------------------------------------ */

/* The map that a log index leaves behind (spec lsmt 5). */
static struct obd_index *replay(struct bytes index)
{
	struct obd_map *map = obd_map_new();
	struct obd_record r, *all;
	struct obd_index *out;
	uint64_t i;

	for (i = 4096; i + 16 <= index.n; i += 16) {
		r.w0 = obd_le64(index.p + i);
		r.w1 = obd_le64(index.p + i + 8) & ~(255ull << 56);
		if (rec_lba(r) != OBD_INVALID_LBA)
			CHECK(!obd_map_insert(map, r));
	}
	all = malloc((obd_map_count(map) + 1) * sizeof(*all));
	obd_map_dump(map, all);
	CHECK(!obd_index_new(all, obd_map_count(map), &out));
	free(all);
	obd_map_free(map);
	return out;
}

static struct obd_source *plain_source(struct bytes data)
{
	struct obd_source *src;

	CHECK(!obd_source_file(file_with(data.p, data.n), 0, data.n, &src));
	return src;
}

static const struct obd_zfile_params lz4_4k = {
	.algo = OBD_ALGO_LZ4, .block_size = 4096, .verify = 1, .threads = 1,
};

static struct bytes write_plan(struct obd_plan *plan, struct bytes like,
			       const struct obd_zfile_params *params,
			       uint32_t threads)
{
	int fd = new_file();
	struct bytes out;

	CHECK_EQ(obd_plan_write(plan, like.p, like.p + like.n - 4096, params,
				threads, fd, 0, 0, NULL, NULL), 0);
	out = bytes_of_fd(fd);
	close(fd);
	return out;
}

/* The plan, written with the header and trailer of the expected layer, is
 * that layer, for all thread counts. */
static void check_plan(struct obd_plan *plan, struct bytes want,
		       struct bytes layer,
		       const struct obd_zfile_params *params)
{
	struct bytes got;
	int i;

	for (i = 0; i < THREAD_COUNTS; i++) {
		got = write_plan(plan, layer, params, thread_counts[i]);
		CHECK_MSG(bytes_equal(got, want), "differs, %u threads",
			  thread_counts[i]);
		free(got.p);
	}
}

static struct obd_plan *plan_of(const char *data, const char *index,
				struct bytes want)
{
	struct bytes d = fixture_bytes(data), x = fixture_bytes(index);
	struct obd_index *records = replay(x);
	struct obd_source *src = plain_source(d);
	struct obd_plan_info info;
	struct obd_plan *plan;
	uint8_t *t = want.p + want.n - 4096;

	CHECK(!obd_plan_new(records, &src, 1, 0, &info, &plan));
	CHECK_EQ(info.size, want.n);
	CHECK_EQ(info.index_offset, obd_le64(t + 32));
	CHECK_EQ(info.padded_records, obd_le64(t + 40));
	obd_source_unref(src);
	obd_index_unref(records);
	free(d.p);
	free(x.p);
	return plan;
}

static void commit_of_a_log_layer_is_the_originals(void)
{
	static const struct {
		const char *name;
		uint32_t algo, block;
	} zfiles[] = {
		{ "07-commit-zfile/lz4-4k.zf", OBD_ALGO_LZ4, 4096 },
		{ "07-commit-zfile/lz4-8k.zf", OBD_ALGO_LZ4, 8192 },
		{ "07-commit-zfile/lz4-16k.zf", OBD_ALGO_LZ4, 16384 },
		{ "07-commit-zfile/lz4-32k.zf", OBD_ALGO_LZ4, 32768 },
	};
	struct obd_zfile_params params = lz4_4k;
	struct bytes want, zfile;
	struct obd_plan *plan;
	unsigned int i;

	if (no_fixtures())
		return;
	want = fixture_bytes("04-commit/plain.lsmt");
	plan = plan_of("03-rw-data/rw.data", "03-rw-data/rw.index", want);
	check_plan(plan, want, want, NULL);
	params.rewrite_header = 1;
	for (i = 0; i < sizeof(zfiles) / sizeof(zfiles[0]); i++) {
		params.algo = zfiles[i].algo;
		params.block_size = zfiles[i].block;
		zfile = fixture_bytes(zfiles[i].name);
		check_plan(plan, zfile, want, &params);
		free(zfile.p);
	}
	obd_plan_unref(plan);
	free(want.p);
}

static void commit_keeps_sectors_beyond_2_tib(void)
{
	struct bytes want;
	struct obd_plan *plan;

	if (no_fixtures())
		return;
	want = fixture_bytes("11-extents/huge.lsmt");
	plan = plan_of("11-extents/huge.data", "11-extents/huge.index",
		       want);
	check_plan(plan, want, want, NULL);
	obd_plan_unref(plan);
	free(want.p);
}

/* A committed layer as an index and a source. */
static void open_layer(const char *name, bool zfile, struct obd_index **index,
		       struct obd_source **src)
{
	struct bytes b = fixture_bytes(name), t = { malloc(4096), 4096 };
	struct obd_zfile_info info = trailer_info(b.p, b.n);
	struct obd_bad bad;

	if (zfile)
		CHECK_EQ(open_zfile(b.p, b.n, &info, src), 0);
	else
		*src = plain_source(b);
	CHECK_EQ(obd_source_pread(*src, t.p, 4096,
				  obd_source_size(*src) - 4096), 4096);
	CHECK_EQ(obd_index_load(*src, obd_le64(t.p + 32), obd_le64(t.p + 40),
				obd_le64(t.p + 32) / 512, &bad, index), 0);
	free(b.p);
	free(t.p);
}

static void merge_of_a_stack_is_the_originals(void)
{
	struct obd_index *layers[3], *merged;
	struct obd_source *sources[3];
	struct obd_plan_info info;
	struct obd_plan *plan;
	struct bytes want, zfile;
	int i;

	if (no_fixtures())
		return;
	open_layer("09-stack/u2.lsmt", false, &layers[0], &sources[0]);
	open_layer("09-stack/u1.lsmt", false, &layers[1], &sources[1]);
	open_layer("09-stack/base.zf", true, &layers[2], &sources[2]);
	CHECK(!obd_index_merge(layers, 3, &merged));
	CHECK(!obd_plan_new(merged, sources, 3, 0, &info, &plan));
	want = fixture_bytes("10-merge/merged.lsmt");
	zfile = fixture_bytes("10-merge/merged.zf");
	CHECK_EQ(info.size, want.n);
	check_plan(plan, want, want, NULL);
	check_plan(plan, zfile, want, &lz4_4k);
	obd_plan_unref(plan);
	obd_index_unref(merged);
	for (i = 0; i < 3; i++) {
		obd_index_unref(layers[i]);
		obd_source_unref(sources[i]);
	}
	free(want.p);
	free(zfile.p);
}

/* spec lsmt 14 */
static void the_worked_example_of_a_commit(void)
{
	static const uint64_t index[] = {
		16 | 8ull << 50, 8,
		100 | 4ull << 50, 16 | 1ull << 55,
	};
	struct bytes data = { calloc(1, 8192), 8192 };
	struct bytes like = { calloc(1, 8192), 8192 }, got;
	struct obd_source *src;
	struct obd_index *records;
	struct obd_plan_info info;
	struct obd_plan *plan;

	memset(data.p + 4096, 0x41, 4096);
	memset(like.p, 'h', 4096);
	memset(like.p + 4096, 't', 4096);
	src = plain_source(data);
	CHECK(!obd_index_new(index, 2, &records));
	CHECK(!obd_plan_new(records, &src, 1, 0, &info, &plan));
	CHECK_EQ(info.records, 2);
	CHECK_EQ(info.padded_records, 256);
	CHECK_EQ(info.index_offset, 0x2000);
	CHECK_EQ(info.size, 16384);
	got = write_plan(plan, like, NULL, 2);
	CHECK_EQ(got.n, 16384);
	CHECK(!memcmp(got.p, like.p, 4096));
	CHECK(!memcmp(got.p + 4096, data.p + 4096, 4096));
	CHECK(!memcmp(got.p + 8192, index, 32));
	CHECK_EQ(obd_le64(got.p + 8192 + 32), OBD_INVALID_LBA);
	CHECK_EQ(obd_le64(got.p + 12288 - 8), 0);
	CHECK(!memcmp(got.p + 12288, like.p + 4096, 4096));
	obd_plan_unref(plan);
	obd_index_unref(records);
	obd_source_unref(src);
	free(got.p);
	free(like.p);
	free(data.p);
}

/* Plans records over n sources of nothing, and returns the records of the
 * output's index. */
static struct bytes planned(const struct obd_record *in, uint64_t count,
			    uint32_t n, uint32_t flags,
			    struct obd_plan_info *info)
{
	struct bytes like = { calloc(1, 8192), 8192 }, out;
	struct obd_source *src[4];
	struct obd_index *index;
	struct obd_plan *plan;
	uint32_t i;
	int fd;

	for (i = 0; i < n; i++) {
		fd = new_file();
		CHECK(!obd_io_truncate(fd, 64 << 20));
		CHECK(!obd_source_file(fd, 0, 64 << 20, &src[i]));
	}
	CHECK(!obd_index_new(in, count, &index));
	CHECK_EQ(obd_plan_new(index, src, n, flags, info, &plan), 0);
	out = write_plan(plan, like, NULL, 2);
	CHECK_EQ(out.n, info->size);
	memmove(out.p, out.p + info->index_offset,
		info->padded_records * 16);
	out.n = info->padded_records * 16;
	for (i = 0; i < n; i++)
		obd_source_unref(src[i]);
	obd_plan_unref(plan);
	obd_index_unref(index);
	free(like.p);
	return out;
}

static struct obd_record record_at(struct bytes b, uint64_t i)
{
	return (struct obd_record){ obd_le64(b.p + 16 * i),
				    obd_le64(b.p + 16 * i + 8) };
}

static void check_record(struct bytes b, uint64_t i, struct obd_record want)
{
	struct obd_record got = record_at(b, i);

	CHECK_MSG(got.w0 == want.w0 && got.w1 == want.w1,
		  "record %d: lba %d, %d sectors, at %d", (int)i,
		  (int)rec_lba(got), (int)rec_sectors(got),
		  (int)rec_at(got));
}

/* spec lsmt 4: 20000 sectors -> 16320 + 3680, 16383 + 2049 -> 16320 +
 * 2112, a discard of 16383 stays whole. */
static void runs_fold_at_64_sectors_below_16383(void)
{
	const struct obd_record in[] = {
		rec_make(0, 16383, 8, false, 0),
		rec_make(16383, 2049, 8 + 16383, false, 0),
		rec_make(100000, 16000, 100, false, 0),
		rec_make(116000, 4000, 16100, false, 0),
		rec_make(200000, 16383, 7, true, 0),
		rec_make(216383, 1, 7, true, 0),
	};
	struct obd_plan_info info;
	struct bytes b = planned(in, 6, 1, 0, &info);
	uint64_t at = 8;

	CHECK_EQ(info.records, 6);
	check_record(b, 0, rec_make(0, 16320, at, false, 0));
	at += 16320;
	check_record(b, 1, rec_make(16320, 2112, at, false, 0));
	at += 2112;
	check_record(b, 2, rec_make(100000, 16320, at, false, 0));
	at += 16320;
	check_record(b, 3, rec_make(116320, 3680, at, false, 0));
	at += 3680;
	check_record(b, 4, rec_make(200000, 16383, at, true, 0));
	check_record(b, 5, rec_make(216383, 1, at, true, 0));
	CHECK_EQ(info.index_offset, at * 512);
	free(b.p);
}

static void levels_fold_only_when_asked(void)
{
	const struct obd_record in[] = {
		rec_make(0, 8, 80, false, 1),
		rec_make(8, 8, 16, false, 0),
		rec_make(16, 8, 0, true, 2),
		rec_make(24, 8, 9, true, 0),
	};
	struct obd_plan_info info;
	struct bytes b = planned(in, 4, 3, 0, &info);

	CHECK_EQ(info.records, 4);
	check_record(b, 0, rec_make(0, 8, 8, false, 1));
	check_record(b, 1, rec_make(8, 8, 16, false, 0));
	check_record(b, 2, rec_make(16, 8, 24, true, 2));
	free(b.p);
	b = planned(in, 4, 3, OBD_PLAN_FOLD_LEVELS, &info);
	CHECK_EQ(info.records, 2);
	check_record(b, 0, rec_make(0, 16, 8, false, 0));
	check_record(b, 1, rec_make(16, 16, 24, true, 0));
	free(b.p);
}

static void an_index_is_padded_to_256_records(void)
{
	static const uint64_t counts[] = { 0, 1, 255, 256, 257, 512 };
	struct obd_record in[512];
	struct obd_plan_info info;
	struct bytes b;
	uint64_t i, n;

	for (i = 0; i < 512; i++)
		in[i] = rec_make(2 * i, 1, 8 + i, false, 0);
	for (n = 0; n < 6; n++) {
		b = planned(in, counts[n], 1, 0, &info);
		CHECK_EQ(info.records, counts[n]);
		CHECK_EQ(info.padded_records, (counts[n] + 255) / 256 * 256);
		CHECK_EQ(info.size, 8192 + counts[n] * 512 +
				    info.padded_records * 16);
		for (i = counts[n]; i < info.padded_records; i++)
			check_record(b, i, (struct obd_record){
						   OBD_INVALID_LBA, 0 });
		free(b.p);
	}
}

static void a_tag_without_a_source_is_refused(void)
{
	const struct obd_record in = rec_make(0, 1, 8, false, 1);
	struct obd_plan_info info;
	struct obd_index *index;
	struct obd_plan *plan;
	struct obd_source *src = plain_source((struct bytes){ NULL, 0 });

	CHECK(!obd_index_new(&in, 1, &index));
	CHECK_EQ(obd_plan_new(index, &src, 1, 0, &info, &plan), -EINVAL);
	obd_source_unref(src);
	obd_index_unref(index);
}

static void a_short_source_is_an_error(void)
{
	const struct obd_record in = rec_make(0, 2048, 8, false, 0);
	struct bytes data = make_bytes(512 << 10, TEXT);
	struct obd_source *src = plain_source(data);
	struct obd_plan_info info;
	struct obd_index *index;
	struct obd_plan *plan;
	int i, fd = new_file();

	CHECK(!obd_index_new(&in, 1, &index));
	CHECK(!obd_plan_new(index, &src, 1, 0, &info, &plan));
	for (i = 0; i < THREAD_COUNTS; i++) {
		CHECK_EQ(obd_plan_write(plan, data.p, data.p, NULL,
					thread_counts[i], fd, 0, 0, NULL,
					NULL), -EIO);
		CHECK_EQ(obd_plan_write(plan, data.p, data.p, &lz4_4k,
					thread_counts[i], fd, 0, 0, NULL,
					NULL), -EIO);
	}
	close(fd);
	obd_plan_unref(plan);
	obd_index_unref(index);
	obd_source_unref(src);
	free(data.p);
}

static void a_sealed_index_is_padded_to_a_sector(void)
{
	struct obd_record in[33];
	struct obd_index *index;
	struct bytes b;
	int i, fd = new_file();

	for (i = 0; i < 33; i++)
		in[i] = rec_make(2 * i, 1, 8 + i, i & 1, 3);
	CHECK(!obd_index_new(in, 33, &index));
	CHECK_EQ(obd_index_write(index, fd, 1000), 1024);
	b = bytes_of_fd(fd);
	CHECK_EQ(b.n, 2024);
	CHECK(!memcmp(b.p + 1000, in, sizeof(in)));
	for (i = 1000 + 33 * 16; i < 2024; i++)
		CHECK_EQ(b.p[i], 0);
	free(b.p);
	obd_index_unref(index);
	close(fd);
}

/* ---- zfile ------------------------------------------------------------ */

static int compress_fd(int in, struct obd_zfile_params params,
		       struct obd_job *job, struct obd_zfile_result *result,
		       struct bytes *out)
{
	int fd = new_file();
	int err = obd_zfile_compress(in, &params, fd, 0, 0, job, result);

	*out = bytes_of_fd(fd);
	close(fd);
	return err;
}

static struct bytes compress(struct bytes in, struct obd_zfile_params params)
{
	struct obd_zfile_result r;
	struct bytes out;
	int fd = file_with(in.p, in.n);

	CHECK_EQ(compress_fd(fd, params, NULL, &r, &out), 0);
	CHECK_EQ(r.input, in.n);
	CHECK_EQ(r.size, out.n);
	close(fd);
	return out;
}

static void zfile_is_the_originals(void)
{
	static const struct {
		const char *in, *out;
		uint32_t block, verify, rewrite;
	} f[] = {
		{ "plain.bin", "lz4-4k.crc.zf", 4096, 1, 0 },
		{ "plain.bin", "lz4-8k.crc.zf", 8192, 1, 0 },
		{ "plain.bin", "lz4-16k.crc.zf", 16384, 1, 0 },
		{ "plain.bin", "lz4-32k.crc.zf", 32768, 1, 0 },
		{ "plain.bin", "lz4-4k.nocrc.zf", 4096, 0, 0 },
		{ "plain.bin", "lz4-8k.nocrc.zf", 8192, 0, 0 },
		{ "plain.bin", "lz4-16k.nocrc.zf", 16384, 0, 0 },
		{ "plain.bin", "lz4-32k.nocrc.zf", 32768, 0, 0 },
		{ "plain.bin", "lz4-4k.hdr.zf", 4096, 1, 1 },
		{ "empty.bin", "empty.lz4.zf", 4096, 1, 0 },
		{ "one.bin", "one.lz4.zf", 4096, 1, 0 },
		{ "twoblk.bin", "twoblk.lz4.zf", 4096, 1, 0 },
		{ "incompressible.bin", "incompressible.lz4-32k.zf", 32768,
		  1, 0 },
	};
	struct obd_zfile_params params = lz4_4k;
	struct bytes in, want, got;
	char name[128];
	unsigned int i, t;

	if (no_fixtures())
		return;
	for (i = 0; i < sizeof(f) / sizeof(f[0]); i++) {
		snprintf(name, sizeof(name), "06-zfile/%s", f[i].in);
		in = fixture_bytes(name);
		if (!in.p) { /* made from plain.bin in its README */
			in = fixture_bytes("06-zfile/plain.bin");
			in.n = 8192;
		}
		snprintf(name, sizeof(name), "06-zfile/%s", f[i].out);
		want = fixture_bytes(name);
		params.block_size = f[i].block;
		params.verify = f[i].verify;
		params.rewrite_header = f[i].rewrite;
		for (t = 0; t < THREAD_COUNTS; t++) {
			params.threads = thread_counts[t];
			got = compress(in, params);
			CHECK_MSG(bytes_equal(got, want), "%s, %u threads",
				  name, params.threads);
			free(got.p);
		}
		free(in.p);
		free(want.p);
	}
}

/* spec zfile 9 */
static void the_worked_example_of_a_zfile(void)
{
	static const uint8_t block0[] = {
		0x1f, 0x00, 0x01, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xf6,
		0x50, 0x00, 0x00, 0x00, 0x00, 0x00, 0x24, 0x17, 0x91, 0xb4,
	};
	struct bytes in = { malloc(81948), 81948 }, z;
	uint64_t i;

	for (i = 0; i < in.n; i++)
		in.p[i] = i < 81920 ? (uint8_t)(i / 4096) : "tail"[i % 4];
	z = compress(in, lz4_4k);
	CHECK_EQ(z.n, 1726);
	CHECK_EQ(obd_le32(z.p + 24), 96);
	CHECK_EQ(obd_le32(z.p + 28), 0xc7a212fc);
	CHECK_EQ(obd_le64(z.p + 32), 0x13);
	CHECK(!memcmp(z.p + 512, block0, sizeof(block0)));
	CHECK_EQ(obd_le32(z.p + 0x46a), 30);
	CHECK_EQ(obd_le32(z.p + 0x46a + 80), 18);
	CHECK_EQ(obd_le64(z.p + 0x4be + 32), 0x16);
	CHECK_EQ(obd_le64(z.p + 0x4be + 40), 0x46a);
	CHECK_EQ(obd_le64(z.p + 0x4be + 48), 0x15);
	CHECK_EQ(obd_le64(z.p + 0x4be + 56), 0x1401c);
	CHECK_EQ(obd_le32(z.p + 0x4be + 64), 0x946fa6a8);
	CHECK_EQ(obd_le32(z.p + 0x4be + 28), 0xc2d2b430);
	free(z.p);
	free(in.p);
}

/* Compresses with every thread count, extracts with every thread count. */
static void check_round_trip(struct bytes in, struct obd_zfile_params params)
{
	struct obd_zfile_info info;
	struct obd_source *z;
	struct bytes first, other, back;
	unsigned int t;
	int fd;

	params.threads = 1;
	first = compress(in, params);
	info = trailer_info(first.p, first.n);
	CHECK_EQ(open_zfile(first.p, first.n, &info, &z), 0);
	for (t = 0; t < THREAD_COUNTS; t++) {
		params.threads = thread_counts[t];
		other = compress(in, params);
		CHECK_MSG(bytes_equal(first, other), "%u threads, %d bytes",
			  params.threads, (int)in.n);
		free(other.p);
		fd = new_file();
		CHECK_EQ(obd_zfile_extract(z, fd, params.threads, 0, NULL),
			 0);
		back = bytes_of_fd(fd);
		CHECK(bytes_equal(back, in));
		CHECK_EQ(obd_zfile_verify(z, params.threads, NULL, NULL, 0),
			 0);
		free(back.p);
		close(fd);
	}
	obd_source_unref(z);
	free(first.p);
}

static void the_same_bytes_for_every_size_and_thread_count(void)
{
	static const uint64_t sizes[] = {
		0, 1, 4095, 4096, 4097, 14 << 10, 65536, 65537, 262143,
		262144, 262145, 1000001,
	};
	struct obd_zfile_params params = lz4_4k;
	struct bytes in;
	unsigned int i;

	for (i = 0; i < 2 * sizeof(sizes) / sizeof(sizes[0]); i++) {
		in = make_bytes(sizes[i / 2], i & 1 ? MIXED : TEXT);
		params.algo = i & 2 ? OBD_ALGO_ZSTD : OBD_ALGO_LZ4;
		params.verify = i % 3 != 0;
		for (params.block_size = 4096; params.block_size <= 32768;
		     params.block_size *= 2)
			check_round_trip(in, params);
		free(in.p);
	}
}

static void a_64_kib_block_that_grows_is_refused(void)
{
	struct obd_zfile_params params = lz4_4k;
	struct bytes in = make_bytes(131072, RANDOM), out;
	struct obd_zfile_result r;
	int fd = file_with(in.p, in.n), t;

	params.block_size = 65536;
	for (t = 0; t < THREAD_COUNTS; t++) {
		params.threads = thread_counts[t];
		CHECK_EQ(obd_io_seek(fd, 0, SEEK_SET), 0);
		CHECK_EQ(compress_fd(fd, params, NULL, &r, &out), -E2BIG);
		free(out.p);
	}
	close(fd);
	free(in.p);
	in = make_bytes(200000, TEXT);
	check_round_trip(in, params);
	free(in.p);
}

static void wrong_parameters_are_refused(void)
{
	static const struct obd_zfile_params wrong[] = {
		{ OBD_ALGO_LZ4, 0, 1, 0, 1, 0 },
		{ OBD_ALGO_LZ4, 2048, 1, 0, 1, 0 },
		{ OBD_ALGO_LZ4, 131072, 1, 0, 1, 0 },
		{ OBD_ALGO_LZ4, 5000, 1, 0, 1, 0 },
		{ 0, 4096, 1, 0, 1, 0 },
		{ 3, 4096, 1, 0, 1, 0 },
		{ OBD_ALGO_LZ4, 4096, 1, 0, 0, 0 },
	};
	struct obd_zfile_params rewrite = lz4_4k;
	struct obd_zfile_result r;
	struct bytes out;
	unsigned int i;
	int fd = new_file();

	for (i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		CHECK_EQ(compress_fd(fd, wrong[i], NULL, &r, &out), -EINVAL);
		free(out.p);
	}
	rewrite.rewrite_header = 1;
	CHECK_EQ(obd_zfile_compress(fd, &rewrite, fd, 0, 1, NULL, &r),
		 -EINVAL);
	close(fd);
}

/* ---- pipes ------------------------------------------------------------ */

struct feeder {
	struct bytes in;
	int fd;
	uint64_t step;
};

static void *feed(void *arg)
{
	struct feeder *f = arg;
	uint64_t at, n;

	for (at = 0; at < f->in.n; at += n) {
		n = f->in.n - at < f->step ? f->in.n - at : f->step;
		if (write(f->fd, f->in.p + at, n) != (ssize_t)n)
			break;
	}
	close(f->fd);
	return NULL;
}

static void short_reads_of_a_pipe_make_whole_blocks(void)
{
	struct obd_zfile_params params = lz4_4k;
	struct feeder f = { make_bytes(300001, MIXED), -1, 997 };
	struct bytes want = compress(f.in, params), got;
	struct obd_zfile_result r;
	pthread_t thread;
	int fds[2], t;

	for (t = 0; t < THREAD_COUNTS; t++) {
		params.threads = thread_counts[t];
		CHECK(!pipe(fds));
		f.fd = fds[1];
		CHECK(!pthread_create(&thread, NULL, feed, &f));
		CHECK_EQ(compress_fd(fds[0], params, NULL, &r, &got), 0);
		pthread_join(thread, NULL);
		CHECK(bytes_equal(got, want));
		free(got.p);
		close(fds[0]);
	}
	free(want.p);
	free(f.in.p);
}

struct drain {
	int fd;
	struct bytes out;
};

static void *drain(void *arg)
{
	struct drain *d = arg;
	uint64_t room = 1 << 20;
	ssize_t n;

	d->out.p = malloc(room);
	d->out.n = 0;
	while ((n = read(d->fd, d->out.p + d->out.n, room - d->out.n)) > 0)
		d->out.n += (uint64_t)n;
	return NULL;
}

/* Runs one pipeline into a pipe. */
static struct bytes into_pipe(int in, struct obd_source *z, uint32_t threads)
{
	struct obd_zfile_params params = lz4_4k;
	struct drain d;
	pthread_t thread;
	int fds[2];

	params.threads = threads;
	CHECK(!pipe(fds));
	d.fd = fds[0];
	CHECK(!pthread_create(&thread, NULL, drain, &d));
	if (z)
		CHECK_EQ(obd_zfile_extract(z, fds[1], threads, 1, NULL), 0);
	else
		CHECK_EQ(obd_zfile_compress(in, &params, fds[1], 0, 1, NULL,
					    NULL), 0);
	close(fds[1]);
	pthread_join(thread, NULL);
	close(fds[0]);
	return d.out;
}

static void a_stream_gets_the_same_bytes(void)
{
	struct bytes in = make_bytes(700001, MIXED), got;
	struct bytes want = compress(in, lz4_4k);
	struct obd_zfile_info info = trailer_info(want.p, want.n);
	struct obd_source *z;
	int t, fd = file_with(in.p, in.n);

	CHECK(!open_zfile(want.p, want.n, &info, &z));
	for (t = 0; t < THREAD_COUNTS; t++) {
		CHECK_EQ(obd_io_seek(fd, 0, SEEK_SET), 0);
		got = into_pipe(fd, NULL, thread_counts[t]);
		CHECK(bytes_equal(got, want));
		free(got.p);
		got = into_pipe(-1, z, thread_counts[t]);
		CHECK(bytes_equal(got, in));
		free(got.p);
	}
	obd_source_unref(z);
	close(fd);
	free(in.p);
	free(want.p);
}

/* ---- damage ----------------------------------------------------------- */

/* Bad blocks first, in the middle and last are all found, in order, and
 * the first of them is what extract reports. */
static void bad_blocks_are_named(void)
{
	struct bytes in = make_bytes(1500000, TEXT);
	struct bytes z = compress(in, lz4_4k);
	struct obd_zfile_info info = trailer_info(z.p, z.n);
	const uint64_t nr[3] = { 0, info.blocks / 2, info.blocks - 1 };
	struct obd_source *src;
	struct obd_job job;
	uint64_t bad[3], at;
	uint32_t length;
	int i, t, fd;

	for (i = 2; i >= 0; i--) {
		CHECK(!open_zfile(z.p, z.n, &info, &src));
		CHECK(!obd_source_block(src, nr[i], &at, &length));
		obd_source_unref(src);
		z.p[at + length / 2] ^= 0x40;
		CHECK(!open_zfile(z.p, z.n, &info, &src));
		for (t = 0; t < THREAD_COUNTS; t++) {
			job = (struct obd_job){ 0 };
			CHECK_EQ(obd_zfile_verify(src, thread_counts[t],
						  &job, bad, 3), 3 - i);
			CHECK(!memcmp(bad, nr + i, 8 * (3 - i)));
			CHECK_EQ(job.done, in.n);
			fd = new_file();
			CHECK_EQ(obd_zfile_extract(src, fd, thread_counts[t],
						   0, &job), -EUCLEAN);
			CHECK_EQ(job.done, nr[i] * 4096);
			close(fd);
		}
		CHECK_EQ(obd_zfile_verify(src, 2, NULL, bad, 1), 3 - i);
		CHECK_EQ(bad[0], nr[i]);
		obd_source_unref(src);
	}
	free(z.p);
	free(in.p);
}

/* Each fault ends each pipeline with its error. */
static void faults_end_a_pipeline(void)
{
	static const struct { int op, error; } faults[] = {
		{ OBD_IO_PWRITE, ENOSPC },
		{ OBD_IO_PWRITE, EIO },
		{ OBD_IO_PREAD, EIO },
	};
	struct bytes in = make_bytes(3000000, MIXED), out;
	struct bytes z = compress(in, lz4_4k);
	struct obd_zfile_info info = trailer_info(z.p, z.n);
	struct obd_zfile_params params = lz4_4k;
	struct obd_zfile_result r;
	struct obd_source *src;
	int fd, i, t, nth, rc;

	CHECK(!open_zfile(z.p, z.n, &info, &src));
	for (i = 0; i < 3 * THREAD_COUNTS * 6; i++) {
		t = i / 3 % THREAD_COUNTS;
		nth = 1 + i / 12 * 2;
		params.threads = thread_counts[t];
		fd = file_with(in.p, in.n);
		CHECK(!obd_io_fault(faults[i % 3].op, (uint32_t)nth,
				    faults[i % 3].error, 1));
		rc = compress_fd(fd, params, NULL, &r, &out);
		CHECK_EQ(rc, -faults[i % 3].error);
		close(fd);
		free(out.p);
		fd = new_file();
		CHECK(!obd_io_fault(faults[i % 3].op, (uint32_t)nth,
				    faults[i % 3].error, 1));
		CHECK_EQ(obd_zfile_extract(src, fd, thread_counts[t], 0,
					   NULL), -faults[i % 3].error);
		CHECK(!obd_io_fault(faults[i % 3].op, 0, 0, 0));
		close(fd);
	}
	obd_source_unref(src);
	free(z.p);
	free(in.p);
}

static void *cancel_later(void *arg)
{
	struct obd_job *job = arg;

	while (!__atomic_load_n(&job->done, __ATOMIC_RELAXED))
		usleep(100);
	__atomic_store_n(&job->cancel, 1, __ATOMIC_RELAXED);
	return NULL;
}

/* The input is a pipe that never ends: only the cancel does. */
static void *feed_forever(void *arg)
{
	static const uint8_t zeros[65536];
	int fd = *(int *)arg;

	while (write(fd, zeros, sizeof(zeros)) > 0)
		;
	close(fd);
	return NULL;
}

static void a_cancel_ends_a_pipeline(void)
{
	struct obd_zfile_params params = lz4_4k;
	struct obd_job job;
	struct obd_zfile_result r;
	struct bytes out;
	pthread_t one, two;
	int fds[2], t;

	for (t = 0; t < THREAD_COUNTS; t++) {
		job = (struct obd_job){ 0 };
		params.threads = thread_counts[t];
		CHECK(!pipe(fds));
		CHECK(!pthread_create(&one, NULL, feed_forever, &fds[1]));
		CHECK(!pthread_create(&two, NULL, cancel_later, &job));
		CHECK_EQ(compress_fd(fds[0], params, &job, &r, &out),
			 -ECANCELED);
		close(fds[0]);
		pthread_join(one, NULL);
		pthread_join(two, NULL);
		free(out.p);
	}
}

static void progress_ends_at_the_total(void)
{
	struct bytes in = make_bytes(1000001, TEXT), out;
	struct obd_zfile_params params = lz4_4k;
	struct obd_zfile_result r;
	struct obd_job job = { 0 };
	int fd = file_with(in.p, in.n);

	params.threads = 2;
	CHECK(!compress_fd(fd, params, &job, &r, &out));
	CHECK_EQ(job.total, in.n);
	CHECK_EQ(job.done, in.n);
	CHECK_EQ(job.written, out.n);
	close(fd);
	free(in.p);
	free(out.p);
}

/* ---- hardware --------------------------------------------------------- */

static _Atomic int batches;
static int batch_mode; /* 0 works, 1 refuses, 2 breaks half-way, 3 lies */

static int fake_qat(const void *const *src, const uint32_t *n,
		    void *const *dst, uint32_t *cap, uint32_t count)
{
	const struct obd_codec *lz4 = obd_codec_find(OBD_ALGO_LZ4);
	uint32_t i;

	atomic_fetch_add(&batches, 1);
	if (batch_mode == 1)
		return -ENOTSUP;
	for (i = 0; i < count; i++) {
		if (batch_mode == 2 && i == count / 2)
			return -EIO;
		cap[i] = batch_mode == 3 ? cap[i] + 1 :
			 (uint32_t)lz4->compress(NULL, src[i], n[i], dst[i],
						 cap[i]);
	}
	return 0;
}

static void a_batch_compressor_changes_no_byte(void)
{
	struct obd_zfile_params params = lz4_4k;
	struct bytes in = make_bytes(1000001, MIXED), got;
	struct bytes want = compress(in, params);

	for (batch_mode = 0; batch_mode < 4; batch_mode++) {
		batches = 0;
		params.threads = 1 + (batch_mode & 1);
		obd_codec_set_batch(OBD_ALGO_LZ4, fake_qat);
		got = compress(in, params);
		obd_codec_set_batch(OBD_ALGO_LZ4, NULL);
		CHECK_EQ(batches, 4);
		CHECK_MSG(bytes_equal(got, want), "mode %d", batch_mode);
		free(got.p);
	}
	free(want.p);
	free(in.p);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	RUN(the_worked_example_of_a_commit);
	RUN(the_worked_example_of_a_zfile);
	RUN(commit_of_a_log_layer_is_the_originals);
	RUN(commit_keeps_sectors_beyond_2_tib);
	RUN(merge_of_a_stack_is_the_originals);
	RUN(zfile_is_the_originals);
	RUN(runs_fold_at_64_sectors_below_16383);
	RUN(levels_fold_only_when_asked);
	RUN(an_index_is_padded_to_256_records);
	RUN(a_tag_without_a_source_is_refused);
	RUN(a_short_source_is_an_error);
	RUN(a_sealed_index_is_padded_to_a_sector);
	RUN(the_same_bytes_for_every_size_and_thread_count);
	RUN(a_64_kib_block_that_grows_is_refused);
	RUN(wrong_parameters_are_refused);
	RUN(short_reads_of_a_pipe_make_whole_blocks);
	RUN(a_stream_gets_the_same_bytes);
	RUN(bad_blocks_are_named);
	RUN(faults_end_a_pipeline);
	RUN(a_cancel_ends_a_pipeline);
	RUN(progress_ends_at_the_total);
	RUN(a_batch_compressor_changes_no_byte);
	return check_done();
}
