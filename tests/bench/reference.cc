/* SPDX-License-Identifier: Apache-2.0
 *
 * reference.cc - what the bench compares with: the same work done in the
 * plainest way with the named library, one thread, in the same process.
 * Built as build/libbench.so and called by tests/bench/bench.ts.
 */
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include <isa-l/crc.h>
#include <lz4.h>
#include <zstd.h>

namespace {

struct record {
	uint64_t w0, w1;
};

constexpr uint64_t lba_mask = (1ull << 50) - 1;

inline uint64_t lba(const record &r) { return r.w0 & lba_mask; }
inline uint64_t end(const record &r) { return lba(r) + (r.w0 >> 50); }

constexpr uint32_t block_crc_start = 100007;

uint32_t crc(const void *p, int n)
{
	return crc32_iscsi(const_cast<unsigned char *>(
				   static_cast<const unsigned char *>(p)),
			   n, block_crc_start);
}

int64_t decode(ZSTD_DCtx *ctx, int algo, const char *src, int n, char *dst,
	       int cap)
{
	if (algo == 1)
		return LZ4_decompress_safe(src, dst, n, cap);
	return ZSTD_decompressDCtx(ctx, dst, cap, src, n);
}

} // namespace

extern "C" {

/* n look-ups by std::lower_bound, each cut and collected; the sum of the
 * first mapped sectors of all pieces, as obd_index_lookup_many(). */
uint64_t bench_lower_bound(const record *all, uint64_t count,
			   const uint64_t *lbas, uint64_t n, uint32_t sectors)
{
	uint64_t sum = 0;
	record out[16];

	for (uint64_t i = 0; i < n; i++) {
		uint64_t from = lbas[i], to = from + sectors;
		auto it = std::lower_bound(
			all, all + count, from,
			[](const record &r, uint64_t at) {
				return end(r) <= at;
			});
		int got = 0;
		for (; it != all + count && lba(*it) < to && got < 16; ++it) {
			uint64_t a = std::max(lba(*it), from);
			uint64_t b = std::min(end(*it), to);
			uint64_t w1 = it->w1;
			if (!(w1 >> 55 & 1))
				w1 += a - lba(*it);
			out[got++] = { a | (b - a) << 50, w1 };
		}
		for (int k = 0; k < got; k++)
			sum += out[k].w1 & ((1ull << 55) - 1);
	}
	return sum;
}

/* Sorts a copy of the records by LBA. */
uint64_t bench_stable_sort(const record *all, uint64_t count)
{
	std::vector<record> copy(all, all + count);
	std::stable_sort(copy.begin(), copy.end(),
			 [](const record &a, const record &b) {
				 return lba(a) < lba(b);
			 });
	return copy.empty() ? 0 : copy[count / 2].w0;
}

int64_t bench_pread(int fd, const uint64_t *at, uint64_t n, uint32_t size)
{
	std::vector<char> buf(size);

	for (uint64_t i = 0; i < n; i++)
		if (pread(fd, buf.data(), size, at[i]) != (ssize_t)size)
			return -1;
	return 0;
}

/* Reads, checks and decodes blocks[i] of a ZFile whose block b is stored
 * at at[b], at[b + 1] - at[b] bytes long, crc included. */
int64_t bench_decode(int fd, const uint64_t *at, const uint64_t *blocks,
		     uint64_t n, uint32_t block_size, int algo)
{
	std::vector<char> in(2 * block_size + 4096), out(block_size);
	ZSTD_DCtx *ctx = ZSTD_createDCtx();
	int64_t rc = 0;

	for (uint64_t i = 0; i < n && rc == 0; i++) {
		uint64_t b = blocks[i];
		int len = at[b + 1] - at[b];
		uint32_t want;

		if (pread(fd, in.data(), len, at[b]) != len) {
			rc = -1;
			break;
		}
		memcpy(&want, in.data() + len - 4, 4);
		if (crc(in.data(), len - 4) != want ||
		    decode(ctx, algo, in.data(), len - 4, out.data(),
			   block_size) <= 0)
			rc = -2;
	}
	ZSTD_freeDCtx(ctx);
	return rc;
}

/* Compresses a buffer block by block with liblz4; bytes of output. */
int64_t bench_compress(const char *in, uint64_t n, uint32_t block_size)
{
	std::vector<char> out(LZ4_compressBound(block_size));
	int64_t total = 0;

	for (uint64_t i = 0; i < n; i += block_size) {
		int len = std::min<uint64_t>(block_size, n - i);
		total += LZ4_compress_default(in + i, out.data(), len,
					      out.size());
	}
	return total;
}

/* Decodes every block of a ZFile held in memory, `rounds` times over. */
int64_t bench_decompress(const char *zfile, const uint64_t *at,
			 uint64_t blocks, uint32_t block_size, char *out,
			 uint32_t crc_bytes)
{
	int64_t total = 0;

	for (uint64_t b = 0; b < blocks; b++) {
		int got = LZ4_decompress_safe(
			zfile + at[b], out + b * block_size,
			at[b + 1] - at[b] - crc_bytes, block_size);
		if (got < 0)
			return -1;
		total += got;
	}
	return total;
}

uint32_t bench_crc(const void *p, uint64_t n)
{
	return crc(p, (int)n);
}

/* One stream of crc32 instructions: what the fallback is measured by. */
__attribute__((target("sse4.2")))
uint32_t bench_crc_one_stream(const unsigned char *p, uint64_t n)
{
	uint64_t c = block_crc_start;

	for (; n >= 8; n -= 8, p += 8) {
		uint64_t v;
		memcpy(&v, p, 8);
		c = __builtin_ia32_crc32di(c, v);
	}
	for (; n > 0; n--, p++)
		c = __builtin_ia32_crc32qi((uint32_t)c, *p);
	return (uint32_t)c;
}

void bench_memcpy(char *to, const char *from, uint64_t n)
{
	memcpy(to, from, n);
}

} // extern "C"
