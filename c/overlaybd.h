/* SPDX-License-Identifier: Apache-2.0
 *
 * overlaybd.h - everything the C library shows; ffi/symbols.ts mirrors this
 * file and nothing else, and a test compares the two.
 *
 * TypeScript decides, C moves bytes.  The library opens nothing on its own,
 * reads no configuration, logs nothing and retries nothing: it is handed
 * file descriptors and buffers.  It keeps no global state but the engine
 * (worker threads, the miss queue, the chosen CPU code paths).
 *
 * Conventions
 *  - int32_t results: 0 or a positive count on success, -errno on failure.
 *    int64_t results the same, for sizes.
 *  - Sizes and offsets are bytes unless a name says sectors (512 bytes).
 *  - "struct obd_x **out" receives a new reference; obd_x_unref() drops it.
 *    NULL is accepted by every unref.
 *  - A function that takes an fd takes it over once it succeeded (it is
 *    closed with the object); after a failure it is still the caller's.
 *  - Every function may be called from any thread.  "Blocks" in a comment
 *    means it does disk I/O and is not for the JavaScript thread when the
 *    work is long.
 *  - Structs below have fixed layouts without implicit padding, little
 *    endian, checked by static assertions in c/abi.c.
 */
#ifndef OVERLAYBD_H
#define OVERLAYBD_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define OBD_API __attribute__((visibility("default")))

#define OBD_ABI 1          /* bumped with every incompatible change */
#define OBD_SECTOR 512u
#define OBD_MAX_LOWERS 255u
#define OBD_MAX_RO_RECORDS 1000000u   /* padding included (spec lsmt 8) */
#define OBD_MAX_RW_RECORDS 128000000u
#define OBD_MAX_LENGTH 16383u         /* sectors in one record: 14 bits */
#define OBD_INVALID_LBA ((1ull << 50) - 1)

struct obd_source;   /* where a layer's bytes are read from */
struct obd_index;    /* immutable sorted records, with a look-up tree */
struct obd_view;     /* immutable stack: merged index + its sources */
struct obd_upper;    /* the writable layer: map + data file (+ index file) */
struct obd_device;   /* a view and an optional upper, as one disk */
struct obd_plan;     /* a layer about to be written by compaction */
struct obd_nbd;      /* an NBD server on one listening socket */
struct obd_ring;     /* a TCMU device's command ring, being served */
struct obd_buffer;   /* bytes on their way into a cache's file */

/* ---- engine -------------------------------------------------------- */

/* Prepares the library.  -EPROTO: its OBD_ABI is not abi.  The first crc
 * loads ISA-L from isal_path when that is not NULL and the file loads (its
 * absence is no error: the SSE4.2 code serves).  The environment variable
 * OVERLAYBD_CPU (scalar, sse42, avx2, avx512, isal) caps the choice of CPU
 * code paths, for tests.
 * Idempotent: a second call changes nothing.  Threads start on first use. */
OBD_API int32_t obd_engine_init(int32_t abi, const char *isal_path);

/* Stops the plane's threads after every device and server is closed.
 * -EBUSY while one is open. */
OBD_API int32_t obd_engine_stop(void);

/* The code paths in use, "crc=isal lookup=avx512"; a static string. */
OBD_API const char *obd_engine_describe(void);

/* Whether this process may use io_uring as workers would: 0, or why not
 * (-ENOSYS: no kernel support, -EPERM: forbidden). */
OBD_API int32_t obd_uring_check(void);

/* ---- system calls that Deno does not offer ------------------------- */
/* All of them, and all of the library's own file I/O, go through the one
 * table in c/io.c, where tests record the order of writes and syncs and
 * inject failures. */

#define OBD_IO_OPEN 0
#define OBD_IO_PREAD 1
#define OBD_IO_PWRITE 2
#define OBD_IO_SYNC 3        /* fsync and fdatasync */
#define OBD_IO_TRUNCATE 4
#define OBD_IO_ALLOCATE 5    /* fallocate in every mode */
#define OBD_IO_LINK 6
#define OBD_IO_RENAME 7
#define OBD_IO_UNLINK 8

/* open(2) with O_CLOEXEC; flags as the kernel's. Returns the descriptor. */
OBD_API int32_t obd_io_open(const char *path, int32_t flags, uint32_t mode);
OBD_API int32_t obd_io_close(int32_t fd);
/* Full transfers: short only at end of file.  Return bytes moved. */
OBD_API int64_t obd_io_pread(int32_t fd, void *buf, uint64_t n, uint64_t at);
OBD_API int64_t obd_io_pwrite(int32_t fd, const void *buf, uint64_t n,
			      uint64_t at);
/* write(2) until all is written: for pipes and devices. */
OBD_API int64_t obd_io_write(int32_t fd, const void *buf, uint64_t n);
/* data_only: fdatasync, else fsync. Blocks. */
OBD_API int32_t obd_io_sync(int32_t fd, int32_t data_only);
OBD_API int32_t obd_io_truncate(int32_t fd, uint64_t size);
/* fallocate(2), mode as the kernel's FALLOC_FL_*. */
OBD_API int32_t obd_io_allocate(int32_t fd, int32_t mode, uint64_t at,
				uint64_t n);
/* lseek(2): whence 3 is SEEK_DATA, 4 SEEK_HOLE. -ENXIO past the last. */
OBD_API int64_t obd_io_seek(int32_t fd, uint64_t at, int32_t whence);
/* Size in bytes of a regular file or a block device. */
OBD_API int64_t obd_io_size(int32_t fd);
/* flock(2): operation as the kernel's LOCK_*; -EWOULDBLOCK when held. */
OBD_API int32_t obd_io_flock(int32_t fd, int32_t operation);
/* Gives an O_TMPFILE descriptor a name; never replaces (-EEXIST). */
OBD_API int32_t obd_io_link(int32_t fd, const char *path);
OBD_API int32_t obd_io_rename(const char *from, const char *to);
OBD_API int32_t obd_io_unlink(const char *path);
/* Opens a listening stream socket: "unix:/path" or "tcp:host:port" (host
 * an IPv4 or bracketed IPv6 literal, port 0 picks one). */
OBD_API int32_t obd_io_listen(const char *address, int32_t backlog);
/* Sends text as one datagram to the unix socket at path ("@name": the
 * abstract one): sd_notify(3). */
OBD_API int32_t obd_io_notify(const char *path, const char *text);
/* RLIMIT_NOFILE: the soft limit becomes the hard one, which is raised to at
 * least `hard` where that is allowed.  The limit from now on. */
OBD_API int64_t obd_io_nofile(uint64_t hard);
/* The port a "tcp:" socket is bound to, 0 for others. */
OBD_API int32_t obd_io_port(int32_t fd);

/* Test seams; also reachable through OVERLAYBD_IO_TRACE (a path) and
 * OVERLAYBD_IO_FAULT ("op:nth:errno[:count]", op by the names above in
 * lower case), read once by obd_engine_init().
 * Trace: one text line per completed operation, "seq op inode off len
 * result\n", and for pwrite also the bytes in a second file PATH.data. */
OBD_API int32_t obd_io_trace(const char *path);
/* The nth next call of op (1 = the next) and count-1 after it fail with
 * error; with OBD_IO_HANG those of other threads wait until this is called
 * for op again, and then go on.  count 0 clears. */
#define OBD_IO_HANG 100000
OBD_API int32_t obd_io_fault(int32_t op, uint32_t nth, int32_t error,
			     uint32_t count);
/* A slow disk: every read that may wait takes ms longer, and none is served
 * without waiting.  Also reachable through OVERLAYBD_IO_DELAY.  0: off. */
OBD_API int32_t obd_io_delay(uint32_t ms);

/* ---- checksums and codecs ------------------------------------------ */

/* CRC-32C register without the usual inversions (spec zfile 5). */
OBD_API uint32_t obd_crc32c(uint32_t start, const void *buf, uint64_t n);

#define OBD_ALGO_LZ4 1
#define OBD_ALGO_ZSTD 2

/* ---- source -------------------------------------------------------- */

/* Bytes [base, base + size) of an open file, seen as [0, size). */
OBD_API int32_t obd_source_file(int32_t fd, uint64_t base, uint64_t size,
				struct obd_source **out);

/* Reads of a file source go to fd from now on, which is the same file opened
 * with O_DIRECT (taken over), in whole blocks of what its file system asks
 * for.  -EOPNOTSUPP: it refuses such reads.  Once, before the source is
 * used. */
OBD_API int32_t obd_source_direct(struct obd_source *file, int32_t fd);

/* Reads of a file source for which a worker would have to wait are done by
 * the worker's own io_uring from now on: all that one request wants at once,
 * and no thread waits.  What that does not bring is read as without it, by
 * a helper thread.  Before the source is used. */
OBD_API int32_t obd_source_uring(struct obd_source *file);

/* A remote blob of size bytes, kept in fd, a sparse file.  Nothing of it
 * is present until obd_source_fill() says so; unit is the fetch granule, a
 * power of two >= 4096.  id is reported in every miss. */
OBD_API int32_t obd_source_cache(int32_t fd, uint64_t size, uint32_t unit,
				 uint64_t id, struct obd_source **out);

/* Shows bytes [base, base + size) of a cache source alone, as [0, size): a
 * blob out of its tar wrapper.  Units stay those of the whole blob.  Call
 * it before the source is used by a view or a ZFile; again only with the
 * same values. */
OBD_API int32_t obd_source_window(struct obd_source *cache, uint64_t base,
				  uint64_t size);

/* What ZFile's header or trailer says, checked by the caller (TypeScript)
 * except for what the fields below are bound to. 48 bytes. */
struct obd_zfile_info {
	uint64_t index_offset;   /* 0: of the jump table, in inner's bytes */
	uint64_t blocks;         /* 8: entries in the jump table */
	uint64_t original_size;  /* 16 */
	uint32_t block_size;     /* 24: power of two, 1..65536 */
	uint32_t algo;           /* 28: OBD_ALGO_* */
	uint32_t verify;         /* 32: 1 = a crc behind every block */
	uint32_t index_crc;      /* 36: checked when check_index_crc */
	uint32_t check_index_crc;/* 40 */
	uint32_t dict_size;      /* 44: bytes skipped behind the header */
};

/* Decompressing view of inner (a reference is taken).  Reads, checks and
 * keeps the jump table; the range of the table must be present.  Blocks.
 * -EINVAL: a field out of bounds; -ERANGE: table outside the file;
 * -EBADMSG: index crc; -EPROTO: an entry too small or larger than a block
 * can grow, or blocks that reach past index_offset; -EUCLEAN: blocks
 * disagree with original_size. */
OBD_API int32_t obd_source_zfile(struct obd_source *inner,
				 const struct obd_zfile_info *info,
				 struct obd_source **out);

OBD_API void obd_source_unref(struct obd_source *src);
OBD_API uint64_t obd_source_size(struct obd_source *src);

/* Reads exactly n bytes (fewer only at the end).  Blocks; -EAGAIN when a
 * unit is not present (nothing is queued), -EUCLEAN for a block that fails
 * its crc or does not decode to its length, -EIO for any short read. */
OBD_API int64_t obd_source_pread(struct obd_source *src, void *buf,
				 uint64_t n, uint64_t at);

/* Stored position of block nr of a ZFile: its offset in the inner source
 * and stored length, crc included. */
OBD_API int32_t obd_source_block(struct obd_source *zfile, uint64_t nr,
				 uint64_t *at, uint32_t *length);

/* Marks units [first, first + count) of a cache source present (error 0:
 * their bytes are in its file already) or failed (-errno), and wakes what
 * waits for them.  A failure is not remembered. */
OBD_API int32_t obd_source_fill(struct obd_source *cache, uint64_t first,
				uint64_t count, int32_t error);
/* 1: a request waits for one of the units. 0: none does any more, whoever
 * asked for them; the next that wants one asks again. */
OBD_API int32_t obd_source_wanted(struct obd_source *cache, uint64_t first,
				  uint64_t count);
/* A second file for units that the first one cannot hold, at the same
 * offsets.  Once for a source (-EBUSY); takes fd over. */
OBD_API int32_t obd_source_spill(struct obd_source *cache, int32_t fd);
/* obd_source_fill() for units whose bytes are in the second file. -EBADF:
 * there is none. */
OBD_API int32_t obd_source_fill_spilled(struct obd_source *cache,
					uint64_t first, uint64_t count);
/* Forgets units, so that the next read asks again.  Reads that run get
 * their old bytes or ask again, whatever is done to the files then. */
OBD_API int32_t obd_source_evict(struct obd_source *cache, uint64_t first,
				 uint64_t count);
/* Copies the presence bitmap (bit i of byte i/8) out or in. */
OBD_API int32_t obd_source_bitmap_get(struct obd_source *cache, void *bits,
				      uint64_t bytes);
OBD_API int32_t obd_source_bitmap_set(struct obd_source *cache,
				      const void *bits, uint64_t bytes);
/* Copies out which units were read since the last call. */
OBD_API int32_t obd_source_used(struct obd_source *cache, void *bits,
				uint64_t bytes);

/* ---- index --------------------------------------------------------- */
/* A record is the 16 on-disk bytes (spec lsmt 3): word 0 = lba | sectors
 * << 50, word 1 = at | zeroed << 55 | tag << 56.  In a merged index tag is
 * the position in the view's source table, 0 = topmost. */

/* Why an index was rejected; with it goes the number of the record. */
#define OBD_BAD_NONE 0
#define OBD_BAD_ORDER 1      /* ends after the next one begins */
#define OBD_BAD_LOW 2        /* mapped before sector 8 */
#define OBD_BAD_HIGH 3       /* mapped at or past the end of the data */
#define OBD_BAD_COUNT 4      /* too many records */
#define OBD_BAD_SHORT 5      /* the file ends inside the index */
#define OBD_BAD_HOLE 6       /* points into a hole of the data file */
#define OBD_BAD_ADDRESS 7    /* lba + sectors passes 2^50 */

struct obd_bad {             /* 16 bytes */
	uint64_t record;     /* 0: its number in the file */
	uint32_t reason;     /* 8: OBD_BAD_* */
	uint32_t zero;       /* 12 */
};

/* Loads the index of a committed or sealed layer: count records at byte
 * `at` of src, data ending at sector end_sector (spec lsmt 8.5-8.7).
 * Padding records are dropped, tags set to 0.  -EBADMSG with *bad set
 * when a rule does not hold.  The range must be present.  Blocks. */
OBD_API int32_t obd_index_load(struct obd_source *src, uint64_t at,
			       uint64_t count, uint64_t end_sector,
			       struct obd_bad *bad, struct obd_index **out);

/* From records in memory, sorted and disjoint (else -EINVAL). */
OBD_API int32_t obd_index_new(const void *records, uint64_t count,
			      struct obd_index **out);

/* Merges n indexes, topmost first, 1..256: a higher record wins, zeroed
 * ones included; the result's tag is the position in layers.  -E2BIG over
 * OBD_MAX_RW_RECORDS. */
OBD_API int32_t obd_index_merge(struct obd_index *const *layers, uint32_t n,
				struct obd_index **out);

OBD_API void obd_index_unref(struct obd_index *index);
OBD_API uint64_t obd_index_count(struct obd_index *index);
/* Copies up to max records from number first on; returns how many. */
OBD_API int64_t obd_index_records(struct obd_index *index, uint64_t first,
				  uint64_t max, void *records);
/* The pieces of [lba, lba + sectors) that are mapped, cut to that range,
 * in order.  Returns how many were written, at most max. */
OBD_API int32_t obd_index_lookup(struct obd_index *index, uint64_t lba,
				 uint64_t sectors, void *records,
				 uint32_t max);
/* For the bench: n look-ups of `sectors` at lbas[]; returns the sum of all
 * pieces' first mapped sectors, so that nothing is optimised away. */
OBD_API uint64_t obd_index_lookup_many(struct obd_index *index,
				       const uint64_t *lbas, uint64_t n,
				       uint32_t sectors);

/* ---- view ---------------------------------------------------------- */

/* A stack: sources[tag] serves the index's records of that tag.  Takes
 * references.  n may be 0 (a disk of zeros) with an empty index. */
OBD_API int32_t obd_view_new(struct obd_index *index,
			     struct obd_source *const *sources, uint32_t n,
			     uint64_t virtual_size, struct obd_view **out);
OBD_API void obd_view_unref(struct obd_view *view);
/* 0 when the caller's reference is the only one left: no device shows the
 * view, and no request reads through it any more. Else 1. */
OBD_API int32_t obd_view_busy(struct obd_view *view);

/* ---- upper --------------------------------------------------------- */

#define OBD_UPPER_LOG 0
#define OBD_UPPER_SPARSE 1
#define OBD_UPPER_READONLY 0x100  /* or-ed in: nothing is written, ever */

struct obd_upper_report {        /* 64 bytes; what opening found and did */
	uint64_t records;        /* 0: records read, padding excluded */
	uint64_t marks;          /* 8: durable marks (design: durability) */
	uint64_t cut_record;     /* 16: first record cut, UINT64_MAX: none */
	uint64_t torn_bytes;     /* 24: 1..15 at the index's end, dropped */
	uint64_t data_end;       /* 32: bytes, rounded up to a sector */
	uint64_t trimmed;        /* 40: bytes cut off a torn sparse seal */
	struct obd_bad bad;      /* 48: set when opening fails or cuts */
};

/* Opens a writable layer whose headers TypeScript has checked.
 * LOG: replays index_fd from byte 4096; SPARSE: index_fd is -1 and the map
 * is rebuilt with SEEK_DATA.  Takes both descriptors over.  Blocks.
 * -EBADMSG with report->bad when the layer must be rejected. */
OBD_API int32_t obd_upper_open(int32_t kind, int32_t data_fd,
			       int32_t index_fd, uint64_t virtual_size,
			       struct obd_upper_report *report,
			       struct obd_upper **out);
OBD_API void obd_upper_unref(struct obd_upper *upper);
/* 0 when the caller's reference is the only one left: no device and no
 * request uses the layer any more. Else 1. */
OBD_API int32_t obd_upper_busy(struct obd_upper *upper);
/* Data, then a mark, then the index, on disk.  Blocks. */
OBD_API int32_t obd_upper_sync(struct obd_upper *upper);
/* The live map as an index with tag 0, mapped sectors in the data file. */
OBD_API int32_t obd_upper_snapshot(struct obd_upper *upper,
				   struct obd_index **out);
/* The data file as a source, for commit and merge. */
OBD_API int32_t obd_upper_source(struct obd_upper *upper,
				 struct obd_source **out);

/* ---- device -------------------------------------------------------- */

#define OBD_DEVICE_READONLY 1u

/* A disk of virtual_size bytes (a multiple of 512).  upper may be NULL.
 * deadline_ms: how long one request may wait for misses. */
OBD_API int32_t obd_device_new(struct obd_view *view, struct obd_upper *upper,
			       uint64_t virtual_size, uint32_t flags,
			       uint64_t deadline_ms, struct obd_device **out);
/* Later requests use view; running ones keep theirs. */
OBD_API int32_t obd_device_swap(struct obd_device *dev,
				struct obd_view *view);
/* What must be before a sparse upper's file may say that the disk has
 * virtual_size bytes, which is not less than the disk has: changes may go so
 * far, and the host block that the end of the disk splits holds what the disk
 * shows behind it, on disk.  Also takes that back, for a size in between.  A
 * log upper needs nothing.  Blocks. */
OBD_API int32_t obd_device_extend(struct obd_device *dev,
				  uint64_t virtual_size);
/* The disk has virtual_size bytes for later requests: a multiple of 512, not
 * less than now, and not more than a sparse upper was opened with or extended
 * to (else -EINVAL). */
OBD_API int32_t obd_device_resize(struct obd_device *dev,
				  uint64_t virtual_size);

/* A live snapshot, step by step; one thread at a time. */

/* Changes go to upper from now on, which is empty, over the upper of before,
 * which nothing changes any more.  Running changes end first, for at most
 * limit_ms, and new ones wait meanwhile; *pause_ns says how long.  Then every
 * FLUSH and every write with FUA waits for obd_device_settle().  -ETIMEDOUT:
 * changes still run; -E2BIG: the upper of before has more than max_records;
 * -EBUSY: pushed already.  After a failure the device is as it was.
 * Blocks. */
OBD_API int32_t obd_device_push(struct obd_device *dev,
				struct obd_upper *upper,
				uint64_t max_records, uint32_t limit_ms,
				uint64_t *pause_ns);
/* Copies what the new upper holds back into the one of before.  From then
 * on changes wait, until obd_device_settle().  After a failure (-ETIMEDOUT:
 * as above) they go on in the new upper. Blocks. */
OBD_API int32_t obd_device_pop(struct obd_device *dev, uint32_t limit_ms);

#define OBD_SETTLE_SEALED 0u /* view has the upper of before as a lower */
#define OBD_SETTLE_POPPED 1u /* the upper of before is the upper again */
#define OBD_SETTLE_KEPT 2u   /* stays as it is, for good */
/* Ends a push; view is NULL but for SEALED.  What waits goes on.  -EINVAL:
 * nothing to end, or not this way; nothing else fails. */
OBD_API int32_t obd_device_settle(struct obd_device *dev, uint32_t how,
				  struct obd_view *view);

/* Ends every waiting request with error (-errno) and refuses new ones, but
 * not a flush of what was written before. */
OBD_API int32_t obd_device_close(struct obd_device *dev, int32_t error);
/* Ends every waiting request with error (-errno); later ones may wait. */
OBD_API int32_t obd_device_abandon(struct obd_device *dev, int32_t error);
/* Drops the handle; the device goes when its last request has ended. */
OBD_API void obd_device_unref(struct obd_device *dev);

/* In-process requests, blocking, the same path as a transport's: offsets
 * and lengths in multiples of 512 (-EINVAL), inside the disk (-EINVAL;
 * writes -ENOSPC).  0 on success. */
OBD_API int32_t obd_device_read(struct obd_device *dev, void *buf,
				uint64_t n, uint64_t at);
OBD_API int32_t obd_device_write(struct obd_device *dev, const void *buf,
				 uint64_t n, uint64_t at);
OBD_API int32_t obd_device_discard(struct obd_device *dev, uint64_t at,
				   uint64_t n);
OBD_API int32_t obd_device_zero(struct obd_device *dev, uint64_t at,
				uint64_t n);
OBD_API int32_t obd_device_flush(struct obd_device *dev);

/* Runs of the disk, for block status: up to max, merged, in order from
 * `at`; each {length, state}.  Returns how many. */
#define OBD_EXTENT_DATA 0u
#define OBD_EXTENT_ZERO 1u   /* zeroed by a record */
#define OBD_EXTENT_HOLE 3u   /* mapped by no layer */
struct obd_extent {          /* 16 bytes */
	uint64_t length;     /* 0 */
	uint32_t state;      /* 8: OBD_EXTENT_* */
	uint32_t zero;       /* 12 */
};
OBD_API int32_t obd_device_extents(struct obd_device *dev, uint64_t at,
				   uint64_t n, struct obd_extent *out,
				   uint32_t max);

struct obd_device_stats {    /* 104 bytes, running totals */
	uint64_t reads, read_bytes, writes, written_bytes;      /* 0..31 */
	uint64_t discards, discarded_bytes, flushes, errors;    /* 32..63 */
	uint64_t misses, parked, corrupt, allocations;          /* 64..95 */
	uint64_t healed;     /* 96: of corrupt, fetched again and right then */
};
OBD_API int32_t obd_device_stat(struct obd_device *dev,
				struct obd_device_stats *out);

/* How long reads took.  Bucket i counts those of at most 4^i us, the last one
 * all that took longer.  Reads that waited for a fetch are all counted; of
 * the others one in 16, as 16. */
#define OBD_TIMES_BUCKETS 14u
struct obd_read_times {      /* 240 bytes, running totals */
	uint64_t local[14];      /* 0 */
	uint64_t local_ns;       /* 112: of all of them together */
	uint64_t fetched[14];    /* 120 */
	uint64_t fetched_ns;     /* 232 */
};
OBD_API int32_t obd_device_times(struct obd_device *dev,
				 struct obd_read_times *out);

/* ---- trace: what a device read of its lowers ----------------------- */

struct obd_trace_read {      /* 24 bytes */
	uint64_t at;         /* 0: bytes, in what the layer's source shows */
	uint64_t length;     /* 8: bytes */
	uint32_t layer;      /* 16: 0 = bottom of the view */
	uint32_t zero;       /* 20 */
};
/* From now on every read that succeeds is noted, piece by piece, in the
 * order in which reads end; pieces that continue each other are one.  At
 * most max are kept until they are taken.  0: stop, and drop them. */
OBD_API int32_t obd_device_trace(struct obd_device *dev, uint64_t max);
/* Takes up to max, oldest first; *lost: how many had no room since the
 * start.  Returns how many. */
OBD_API int32_t obd_device_trace_take(struct obd_device *dev,
				      struct obd_trace_read *out,
				      uint32_t max, uint64_t *lost);

/* For the bench: n reads of `size` bytes at offsets[], into one buffer,
 * one thread, the calling one.  Blocks. 0 or the first error. */
OBD_API int32_t obd_device_read_many(struct obd_device *dev,
				     const uint64_t *offsets, uint64_t n,
				     uint32_t size);

/* ---- waking TypeScript --------------------------------------------- */

/* Connects to the unix stream socket at path (absolute, or "@name" for the
 * abstract one) and writes one byte there, at once and then whenever one of
 * the queues below goes from empty to not empty.  One listener at a time;
 * NULL disconnects. */
OBD_API int32_t obd_wake_connect(const char *path);

/* ---- miss queue ---------------------------------------------------- */

#define OBD_MISS_ABSENT 0u   /* units that nobody has fetched yet */
#define OBD_MISS_CORRUPT 1u  /* present, but a block in them is bad */
struct obd_miss {            /* 32 bytes */
	uint64_t source;     /* 0: id given to obd_source_cache() */
	uint64_t first;      /* 8: unit */
	uint64_t count;      /* 16: units */
	uint32_t kind;       /* 24: OBD_MISS_* */
	uint32_t zero;       /* 28 */
};

/* Takes up to max misses off the queue; each unit is handed out once until
 * obd_source_fill() answers it.  Returns how many. */
OBD_API int32_t obd_miss_drain(struct obd_miss *out, uint32_t max);

/* ---- slow reads: for the audit file -------------------------------- */

#define OBD_SLOW_CACHE 0u    /* of a cache source's file */
#define OBD_SLOW_LOCAL 1u    /* of a source that has a name */
struct obd_slow_read {       /* 40 bytes */
	uint64_t name;       /* 0: given to obd_source_name(); LOCAL alone */
	uint64_t at;         /* 8: bytes, in the blob or in what LOCAL shows */
	int64_t length;      /* 16: bytes that came, -1: none; LOCAL: asked */
	uint64_t ns;         /* 24: how long it took */
	uint32_t kind;       /* 32: OBD_SLOW_* */
	uint32_t zero;       /* 36 */
};

/* From now on reads that take at least so long are noted, of those that may
 * wait for a disk; 0: none of that kind. */
OBD_API int32_t obd_slow_watch(uint64_t cache_ns, uint64_t local_ns);
/* Reads of src are noted by this name, which is not 0.  Before it is used. */
OBD_API int32_t obd_source_name(struct obd_source *src, uint64_t name);
/* Takes up to max, oldest first; *dropped: how many had no room since the
 * last call.  Returns how many. */
OBD_API int32_t obd_slow_drain(struct obd_slow_read *out, uint32_t max,
			       uint64_t *dropped);

/* ---- writing cache files ------------------------------------------- */
/* Writes of cache files may wait for a disk, and JavaScript must not.  A
 * buffer is TypeScript's until obd_buffer_write(), then the library's until
 * obd_written_drain() or obd_buffer_take_back() gives it back. */

/* size bytes; tag says which one it is when it comes back, and is no other's.
 */
OBD_API int32_t obd_buffer_new(uint64_t size, uint64_t tag,
			       struct obd_buffer **out);
/* Its memory: size bytes that stay where they are. */
OBD_API void *obd_buffer_bytes(struct obd_buffer *buffer);
OBD_API void obd_buffer_unref(struct obd_buffer *buffer);
/* Writes its first n bytes to cache's file at `at`, whole units or up to the
 * blob's end, and when they are there does what obd_source_fill() does.  -EINVAL:
 * it does not fit, or is being written.  -errno: no thread can be had. */
OBD_API int32_t obd_buffer_write(struct obd_buffer *buffer,
				 struct obd_source *cache, uint64_t at,
				 uint64_t n);
/* Its bytes go elsewhere: a write that has not ended marks nothing present.
 * 1: none had begun, it is TypeScript's again.  0: one runs, and will come
 * back with -ECANCELED, whatever became of it.  -EALREADY: it has ended, and
 * comes back as it would have. */
OBD_API int32_t obd_buffer_take_back(struct obd_buffer *buffer);

struct obd_written {         /* 24 bytes */
	uint64_t tag;        /* 0 */
	uint64_t ns;         /* 8: how long the write took */
	int32_t error;       /* 16: 0 or -errno */
	uint32_t zero;       /* 20 */
};
/* Takes up to max ended writes, oldest first.  Returns how many. */
OBD_API int32_t obd_written_drain(struct obd_written *out, uint32_t max);

/* ---- NBD ----------------------------------------------------------- */

/* Serves exports on listen_fd (taken over): fixed newstyle, no TLS. */
OBD_API int32_t obd_nbd_new(int32_t listen_fd, struct obd_nbd **out);
/* Before the start or after it.  The oldest export is the default one (name
 * "").  -EEXIST: taken.  Takes a reference on dev. Names are UTF-8, 1..4096
 * bytes. */
OBD_API int32_t obd_nbd_add(struct obd_nbd *nbd, const char *name,
			    const char *description, struct obd_device *dev);
/* Takes an export back: its running requests get grace_ms, then its device
 * is closed with -ESHUTDOWN; its connections end, what was written is
 * flushed.  -ENOENT: no such export.  Blocks. */
OBD_API int32_t obd_nbd_remove(struct obd_nbd *nbd, const char *name,
			       uint32_t grace_ms);
/* Starts accepting, once; there need not be an export yet. */
OBD_API int32_t obd_nbd_start(struct obd_nbd *nbd);
/* Connections now open, 0..; -errno. */
OBD_API int32_t obd_nbd_connections(struct obd_nbd *nbd);
/* Those that use the export; -ENOENT: no such export. */
OBD_API int32_t obd_nbd_users(struct obd_nbd *nbd, const char *name);
/* Stops accepting, lets running requests end for at most grace_ms, closes
 * every connection, frees.  No other call may run or follow.  Blocks. */
OBD_API int32_t obd_nbd_close(struct obd_nbd *nbd, uint32_t grace_ms);

/* ---- TCMU ---------------------------------------------------------- */
/* The kernel's side of spec tcmu: one generic netlink socket for the whole
 * process, one ring for each device. */

/* Opens family TCM-USER: joins group "config", only then asks for replies
 * (SET_FEATURES; EOPNOTSUPP is fine), with a receive buffer of 4 MiB and
 * NETLINK_NO_ENOBUFS.  The plane reads the events from then on.  -ENOENT:
 * target_core_user is not loaded; -EPERM; -EBUSY: open already. */
OBD_API int32_t obd_netlink_open(void);
/* Stops listening; events not drained are dropped. */
OBD_API int32_t obd_netlink_close(void);
/* The number of the multicast group that a handler of devices is in, without
 * joining it. -ENOENT: as above. */
OBD_API int32_t obd_netlink_group(uint32_t *out);

#define OBD_TCMU_ADDED 1u        /* commands, as in the messages */
#define OBD_TCMU_REMOVED 2u
#define OBD_TCMU_RECONFIG 3u
#define OBD_TCMU_DEV_CFG 4u      /* what RECONFIG changes: the attribute */
#define OBD_TCMU_DEV_SIZE 5u
#define OBD_TCMU_WRITECACHE 6u

struct obd_tcmu_event {          /* 800 bytes */
	uint32_t command;        /* 0: OBD_TCMU_* */
	uint32_t minor;          /* 4: N of /dev/uioN */
	uint32_t device_id;      /* 8: echoed in the reply */
	uint32_t reply;          /* 12: 0 = genl version 1, wants none */
	uint32_t attribute;      /* 16: RECONFIG: OBD_TCMU_*, 0 = none known */
	uint32_t write_cache;    /* 20 */
	uint64_t size;           /* 24 */
	char name[512];          /* 32: tcm-user/<hba>/<dev>/<config>, NUL */
	char config[256];        /* 544: DEV_CFG, NUL-terminated */
};
/* Takes up to max events, oldest first.  Returns how many. */
OBD_API int32_t obd_netlink_drain(struct obd_tcmu_event *out, uint32_t max);
/* Answers an event: command is the event's, status 0 or -errno. */
OBD_API int32_t obd_netlink_reply(uint32_t command, uint32_t device_id,
				  int32_t status);
struct obd_netlink_stats {       /* 24 bytes, running totals */
	uint64_t events;         /* 0: queued */
	uint64_t malformed;      /* 8: dropped: an attribute missing */
	uint64_t lost;           /* 16: dropped: nobody drained them, or the
				  * socket's buffer was full */
};
OBD_API int32_t obd_netlink_stat(struct obd_netlink_stats *out);

#define OBD_RING_WRITE_CACHE 1u  /* FLUSH and FUA mean it */

/* Serves dev (a reference is taken) on the ring mapped from uio_fd, which
 * is /dev/uioN opened read-write and non-blocking and taken over; map_size
 * is its maps/map0/size.  id is reported with every command.  -EPROTO: not
 * mailbox version 2; -ERANGE: its offsets leave the map. */
OBD_API int32_t obd_ring_new(int32_t uio_fd, uint64_t map_size,
			     struct obd_device *dev, uint32_t flags,
			     uint64_t id, struct obd_ring **out);
/* Replaces the flags, from the next command on. */
OBD_API int32_t obd_ring_set(struct obd_ring *ring, uint32_t flags);
/* The next command that may report it gets unit attention (sense key 6)
 * with asc << 8 | ascq: 0x2a09 is "capacity data has changed". */
OBD_API int32_t obd_ring_attention(struct obd_ring *ring, uint32_t asc_ascq);
/* Goes on until the ring is empty, for at most grace_ms; then closes the
 * device, so that what is left ends with BUSY (the initiator tries again),
 * unmaps and frees.  NULL does nothing.  Blocks. */
OBD_API int32_t obd_ring_close(struct obd_ring *ring, uint32_t grace_ms);

/* What made no sense; nothing is taken or answered from then on, and what
 * runs ends unheard. */
#define OBD_RING_BAD_HEAD 1u     /* the kernel's head, bad_value */
#define OBD_RING_BAD_ENTRY 2u    /* the entry at bad_at: its first word,
				  * bad_value, has a length that cannot be */
#define OBD_RING_BAD_TAIL 3u     /* our own tail was at bad_at, and somebody
				  * has put it at bad_value: a ring that is
				  * reset has old commands ahead */

struct obd_ring_stats {          /* 72 bytes */
	uint64_t commands;       /* 0: taken off the ring */
	uint64_t asked;          /* 8: handed to TypeScript */
	uint64_t kicks;          /* 16: writes to the uio descriptor */
	uint64_t refused;        /* 24: unknown entries and CDB groups */
	uint64_t depth;          /* 32: running now */
	uint64_t depth_max;      /* 40 */
	uint64_t bad;            /* 48: OBD_RING_BAD_*, 0: all is well */
	uint64_t bad_at;         /* 56: byte in the command area */
	uint64_t bad_value;      /* 64 */
};
/* Also takes up a command that there was no memory for: to be called now and
 * then, for all others of the ring may wait for ever. */
OBD_API int32_t obd_ring_stat(struct obd_ring *ring,
			      struct obd_ring_stats *out);

/* C answers READ, WRITE, WRITE SAME, UNMAP, SYNCHRONIZE CACHE and what it
 * can only refuse (groups 3, 6, 7; a range past the end).  Every other
 * command is handed over, and stays on the ring until obd_ring_complete().
 * 48 bytes. */
struct obd_scsi_command {
	uint64_t ring;           /* 0: id given to obd_ring_new() */
	uint64_t length;         /* 8: bytes of its iovecs together */
	uint32_t tag;            /* 16: names it until it is complete */
	uint32_t cdb_length;     /* 20: 6, 10, 12 or 16 */
	uint8_t cdb[16];         /* 24: zeros behind cdb_length */
	uint64_t zero;           /* 40 */
};
/* Takes up to max commands of all rings, oldest first.  Returns how many. */
OBD_API int32_t obd_scsi_drain(struct obd_scsi_command *out, uint32_t max);
/* Copies what the initiator sent, up to n bytes from byte `at`.  Returns
 * how many. */
OBD_API int64_t obd_ring_data(struct obd_ring *ring, uint32_t tag, void *buf,
			      uint64_t n, uint64_t at);
/* Ends a command: data (n bytes, cut at its iovecs) to the initiator, SAM
 * status, and 18 bytes of fixed-format sense unless NULL.  -ENOENT: no such
 * tag. */
OBD_API int32_t obd_ring_complete(struct obd_ring *ring, uint32_t tag,
				  uint32_t status, const void *sense,
				  const void *data, uint64_t n);

/* ---- pipelines: commit, merge, zfile ------------------------------- */

/* Shared with the caller while a pipeline runs; the buffer must outlive
 * it.  32 bytes. */
struct obd_job {
	uint64_t total;      /* 0: bytes of input, set first */
	uint64_t done;       /* 8: bytes of input finished */
	uint64_t written;    /* 16: bytes of output so far */
	uint32_t cancel;     /* 24: caller sets 1: ends with -ECANCELED */
	uint32_t zero;       /* 28 */
};

#define OBD_PLAN_FOLD_LEVELS 1u  /* fold across tags; every tag becomes 0 */

struct obd_plan_info {       /* 32 bytes */
	uint64_t records;        /* 0: without padding */
	uint64_t padded_records; /* 8: what the trailer's index_size says */
	uint64_t index_offset;   /* 16 */
	uint64_t size;           /* 24: of the whole layer, trailer included */
};

/* Works out the compaction of spec lsmt 4 (cut at 64 sectors, fold below
 * 16383): sources[tag] holds the data of the index's records. */
OBD_API int32_t obd_plan_new(struct obd_index *index,
			     struct obd_source *const *sources, uint32_t n,
			     uint32_t flags, struct obd_plan_info *info,
			     struct obd_plan **out);
OBD_API void obd_plan_unref(struct obd_plan *plan);

struct obd_zfile_params {    /* 24 bytes */
	uint32_t algo;           /* 0: OBD_ALGO_* */
	uint32_t block_size;     /* 4: 4, 8, 16, 32 or 64 KiB */
	uint32_t verify;         /* 8 */
	uint32_t rewrite_header; /* 12: 1 = header carries final values */
	uint32_t threads;        /* 16: 1.. */
	uint32_t zero;           /* 20 */
};
struct obd_zfile_result {    /* 40 bytes */
	uint64_t input;          /* 0: bytes compressed */
	uint64_t index_offset;   /* 8 */
	uint64_t blocks;         /* 16 */
	uint64_t size;           /* 24: of the ZFile, trailer included */
	uint32_t index_crc;      /* 32 */
	uint32_t zero;           /* 36 */
};

/* Writes the planned layer to out_fd from byte out_at: as it is (params
 * NULL) or as ZFile.  header and trailer are the 4096-byte LSMT blocks.
 * Identical bytes for every thread count.  stream != 0: out_fd cannot
 * seek; written in order (rewrite_header must be 0).  Blocks.
 * -E2BIG: a 64 KiB block grew past what the original can read; start again
 * with 32 KiB. -ECANCELED. -EIO: a source was short. */
OBD_API int32_t obd_plan_write(struct obd_plan *plan, const void *header,
			       const void *trailer,
			       const struct obd_zfile_params *params,
			       uint32_t threads, int32_t out_fd,
			       uint64_t out_at, int32_t stream,
			       struct obd_job *job,
			       struct obd_zfile_result *result);

/* Compresses in_fd (to its end; read in order, so a pipe will do) to
 * out_fd from out_at.  Errors as above. Blocks. */
OBD_API int32_t obd_zfile_compress(int32_t in_fd,
				   const struct obd_zfile_params *params,
				   int32_t out_fd, uint64_t out_at,
				   int32_t stream, struct obd_job *job,
				   struct obd_zfile_result *result);

/* Decodes all of zfile to out_fd from byte 0. Blocks. On -EUCLEAN
 * job->done is the offset of the first bad block in the original. */
OBD_API int32_t obd_zfile_extract(struct obd_source *zfile, int32_t out_fd,
				  uint32_t threads, int32_t stream,
				  struct obd_job *job);

/* Decodes all of zfile and drops it.  Calls nothing bad twice: up to max
 * numbers of bad blocks go to bad[]; returns how many are bad. Blocks. */
OBD_API int64_t obd_zfile_verify(struct obd_source *zfile, uint32_t threads,
				 struct obd_job *job, uint64_t *bad,
				 uint64_t max);

/* Writes an index's records at byte `at` of fd, as they are, zeros up to
 * the next multiple of 512. Returns bytes written, padding included. */
OBD_API int64_t obd_index_write(struct obd_index *index, int32_t fd,
				uint64_t at);

#ifdef __cplusplus
}
#endif
#endif
