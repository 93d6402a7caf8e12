// SPDX-License-Identifier: Apache-2.0
/**
 * The symbol table of the C library: `c/overlaybd.h` line by line and nothing
 * else (tests/unit/ffi_symbols_test.ts compares the two).  A name ending in
 * `_async` is the same function run on Deno's blocking-call threads: for work
 * that takes longer than a few milliseconds.
 *
 * Handles are "pointer", memory is "buffer"; C strings are buffers that end
 * with a NUL.
 */
export const symbols = {
  obd_engine_init: {
    parameters: [
      "i32", // int32_t abi
      "buffer", // const char *isal_path
    ],
    result: "i32",
  },
  obd_engine_stop: {
    parameters: [],
    result: "i32",
  },
  obd_engine_describe: {
    parameters: [],
    result: "pointer",
  },
  obd_uring_check: {
    parameters: [],
    result: "i32",
  },
  obd_io_open: {
    parameters: [
      "buffer", // const char *path
      "i32", // int32_t flags
      "u32", // uint32_t mode
    ],
    result: "i32",
  },
  obd_io_open_async: {
    name: "obd_io_open",
    parameters: [
      "buffer", // const char *path
      "i32", // int32_t flags
      "u32", // uint32_t mode
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_io_close: {
    parameters: [
      "i32", // int32_t fd
    ],
    result: "i32",
  },
  obd_io_close_async: {
    name: "obd_io_close",
    parameters: [
      "i32", // int32_t fd
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_io_pread: {
    parameters: [
      "i32", // int32_t fd
      "buffer", // void *buf
      "u64", // uint64_t n
      "u64", // uint64_t at
    ],
    result: "i64",
  },
  obd_io_pread_async: {
    name: "obd_io_pread",
    parameters: [
      "i32", // int32_t fd
      "buffer", // void *buf
      "u64", // uint64_t n
      "u64", // uint64_t at
    ],
    result: "i64",
    nonblocking: true,
  },
  obd_io_pwrite: {
    parameters: [
      "i32", // int32_t fd
      "buffer", // const void *buf
      "u64", // uint64_t n
      "u64", // uint64_t at
    ],
    result: "i64",
  },
  obd_io_pwrite_async: {
    name: "obd_io_pwrite",
    parameters: [
      "i32", // int32_t fd
      "buffer", // const void *buf
      "u64", // uint64_t n
      "u64", // uint64_t at
    ],
    result: "i64",
    nonblocking: true,
  },
  obd_io_write: {
    parameters: [
      "i32", // int32_t fd
      "buffer", // const void *buf
      "u64", // uint64_t n
    ],
    result: "i64",
  },
  obd_io_write_async: {
    name: "obd_io_write",
    parameters: [
      "i32", // int32_t fd
      "buffer", // const void *buf
      "u64", // uint64_t n
    ],
    result: "i64",
    nonblocking: true,
  },
  obd_io_sync: {
    parameters: [
      "i32", // int32_t fd
      "i32", // int32_t data_only
    ],
    result: "i32",
  },
  obd_io_sync_async: {
    name: "obd_io_sync",
    parameters: [
      "i32", // int32_t fd
      "i32", // int32_t data_only
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_io_truncate: {
    parameters: [
      "i32", // int32_t fd
      "u64", // uint64_t size
    ],
    result: "i32",
  },
  obd_io_truncate_async: {
    name: "obd_io_truncate",
    parameters: [
      "i32", // int32_t fd
      "u64", // uint64_t size
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_io_allocate: {
    parameters: [
      "i32", // int32_t fd
      "i32", // int32_t mode
      "u64", // uint64_t at
      "u64", // uint64_t n
    ],
    result: "i32",
  },
  obd_io_allocate_async: {
    name: "obd_io_allocate",
    parameters: [
      "i32", // int32_t fd
      "i32", // int32_t mode
      "u64", // uint64_t at
      "u64", // uint64_t n
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_io_seek: {
    parameters: [
      "i32", // int32_t fd
      "u64", // uint64_t at
      "i32", // int32_t whence
    ],
    result: "i64",
  },
  obd_io_seek_async: {
    name: "obd_io_seek",
    parameters: [
      "i32", // int32_t fd
      "u64", // uint64_t at
      "i32", // int32_t whence
    ],
    result: "i64",
    nonblocking: true,
  },
  obd_io_size: {
    parameters: [
      "i32", // int32_t fd
    ],
    result: "i64",
  },
  obd_io_size_async: {
    name: "obd_io_size",
    parameters: [
      "i32", // int32_t fd
    ],
    result: "i64",
    nonblocking: true,
  },
  obd_io_flock: {
    parameters: [
      "i32", // int32_t fd
      "i32", // int32_t operation
    ],
    result: "i32",
  },
  obd_io_flock_async: {
    name: "obd_io_flock",
    parameters: [
      "i32", // int32_t fd
      "i32", // int32_t operation
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_io_link: {
    parameters: [
      "i32", // int32_t fd
      "buffer", // const char *path
    ],
    result: "i32",
  },
  obd_io_rename: {
    parameters: [
      "buffer", // const char *from
      "buffer", // const char *to
    ],
    result: "i32",
  },
  obd_io_rename_async: {
    name: "obd_io_rename",
    parameters: [
      "buffer", // const char *from
      "buffer", // const char *to
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_io_unlink: {
    parameters: [
      "buffer", // const char *path
    ],
    result: "i32",
  },
  obd_io_listen: {
    parameters: [
      "buffer", // const char *address
      "i32", // int32_t backlog
    ],
    result: "i32",
  },
  obd_io_notify: {
    parameters: [
      "buffer", // const char *path
      "buffer", // const char *text
    ],
    result: "i32",
  },
  obd_io_nofile: {
    parameters: [
      "u64", // uint64_t hard
    ],
    result: "i64",
  },
  obd_io_port: {
    parameters: [
      "i32", // int32_t fd
    ],
    result: "i32",
  },
  obd_io_trace: {
    parameters: [
      "buffer", // const char *path
    ],
    result: "i32",
  },
  obd_io_fault: {
    parameters: [
      "i32", // int32_t op
      "u32", // uint32_t nth
      "i32", // int32_t error
      "u32", // uint32_t count
    ],
    result: "i32",
  },
  obd_io_delay: {
    parameters: [
      "u32", // uint32_t ms
    ],
    result: "i32",
  },
  obd_crc32c: {
    parameters: [
      "u32", // uint32_t start
      "buffer", // const void *buf
      "u64", // uint64_t n
    ],
    result: "u32",
  },
  obd_source_file: {
    parameters: [
      "i32", // int32_t fd
      "u64", // uint64_t base
      "u64", // uint64_t size
      "buffer", // struct obd_source **out
    ],
    result: "i32",
  },
  obd_source_direct: {
    parameters: [
      "pointer", // struct obd_source *file
      "i32", // int32_t fd
    ],
    result: "i32",
  },
  obd_source_uring: {
    parameters: [
      "pointer", // struct obd_source *file
    ],
    result: "i32",
  },
  obd_source_cache: {
    parameters: [
      "i32", // int32_t fd
      "u64", // uint64_t size
      "u32", // uint32_t unit
      "u64", // uint64_t id
      "buffer", // struct obd_source **out
    ],
    result: "i32",
  },
  obd_source_window: {
    parameters: [
      "pointer", // struct obd_source *cache
      "u64", // uint64_t base
      "u64", // uint64_t size
    ],
    result: "i32",
  },
  obd_source_zfile: {
    parameters: [
      "pointer", // struct obd_source *inner
      "buffer", // const struct obd_zfile_info *info
      "buffer", // struct obd_source **out
    ],
    result: "i32",
  },
  obd_source_zfile_async: {
    name: "obd_source_zfile",
    parameters: [
      "pointer", // struct obd_source *inner
      "buffer", // const struct obd_zfile_info *info
      "buffer", // struct obd_source **out
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_source_unref: {
    parameters: [
      "pointer", // struct obd_source *src
    ],
    result: "void",
  },
  obd_source_unref_async: {
    name: "obd_source_unref",
    parameters: [
      "pointer", // struct obd_source *src
    ],
    result: "void",
    nonblocking: true,
  },
  obd_source_size: {
    parameters: [
      "pointer", // struct obd_source *src
    ],
    result: "u64",
  },
  obd_source_pread: {
    parameters: [
      "pointer", // struct obd_source *src
      "buffer", // void *buf
      "u64", // uint64_t n
      "u64", // uint64_t at
    ],
    result: "i64",
  },
  obd_source_block: {
    parameters: [
      "pointer", // struct obd_source *zfile
      "u64", // uint64_t nr
      "buffer", // uint64_t *at
      "buffer", // uint32_t *length
    ],
    result: "i32",
  },
  obd_source_fill: {
    parameters: [
      "pointer", // struct obd_source *cache
      "u64", // uint64_t first
      "u64", // uint64_t count
      "i32", // int32_t error
    ],
    result: "i32",
  },
  obd_source_wanted: {
    parameters: [
      "pointer", // struct obd_source *cache
      "u64", // uint64_t first
      "u64", // uint64_t count
    ],
    result: "i32",
  },
  obd_source_spill: {
    parameters: [
      "pointer", // struct obd_source *cache
      "i32", // int32_t fd
    ],
    result: "i32",
  },
  obd_source_fill_spilled: {
    parameters: [
      "pointer", // struct obd_source *cache
      "u64", // uint64_t first
      "u64", // uint64_t count
    ],
    result: "i32",
  },
  obd_source_evict: {
    parameters: [
      "pointer", // struct obd_source *cache
      "u64", // uint64_t first
      "u64", // uint64_t count
    ],
    result: "i32",
  },
  obd_source_bitmap_get: {
    parameters: [
      "pointer", // struct obd_source *cache
      "buffer", // void *bits
      "u64", // uint64_t bytes
    ],
    result: "i32",
  },
  obd_source_bitmap_set: {
    parameters: [
      "pointer", // struct obd_source *cache
      "buffer", // const void *bits
      "u64", // uint64_t bytes
    ],
    result: "i32",
  },
  obd_source_used: {
    parameters: [
      "pointer", // struct obd_source *cache
      "buffer", // void *bits
      "u64", // uint64_t bytes
    ],
    result: "i32",
  },
  obd_index_load: {
    parameters: [
      "pointer", // struct obd_source *src
      "u64", // uint64_t at
      "u64", // uint64_t count
      "u64", // uint64_t end_sector
      "buffer", // struct obd_bad *bad
      "buffer", // struct obd_index **out
    ],
    result: "i32",
  },
  obd_index_load_async: {
    name: "obd_index_load",
    parameters: [
      "pointer", // struct obd_source *src
      "u64", // uint64_t at
      "u64", // uint64_t count
      "u64", // uint64_t end_sector
      "buffer", // struct obd_bad *bad
      "buffer", // struct obd_index **out
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_index_new: {
    parameters: [
      "buffer", // const void *records
      "u64", // uint64_t count
      "buffer", // struct obd_index **out
    ],
    result: "i32",
  },
  obd_index_merge: {
    parameters: [
      "buffer", // struct obd_index *const *layers
      "u32", // uint32_t n
      "buffer", // struct obd_index **out
    ],
    result: "i32",
  },
  obd_index_merge_async: {
    name: "obd_index_merge",
    parameters: [
      "buffer", // struct obd_index *const *layers
      "u32", // uint32_t n
      "buffer", // struct obd_index **out
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_index_unref: {
    parameters: [
      "pointer", // struct obd_index *index
    ],
    result: "void",
  },
  obd_index_count: {
    parameters: [
      "pointer", // struct obd_index *index
    ],
    result: "u64",
  },
  obd_index_records: {
    parameters: [
      "pointer", // struct obd_index *index
      "u64", // uint64_t first
      "u64", // uint64_t max
      "buffer", // void *records
    ],
    result: "i64",
  },
  obd_index_lookup: {
    parameters: [
      "pointer", // struct obd_index *index
      "u64", // uint64_t lba
      "u64", // uint64_t sectors
      "buffer", // void *records
      "u32", // uint32_t max
    ],
    result: "i32",
  },
  obd_index_lookup_many: {
    parameters: [
      "pointer", // struct obd_index *index
      "buffer", // const uint64_t *lbas
      "u64", // uint64_t n
      "u32", // uint32_t sectors
    ],
    result: "u64",
  },
  obd_view_new: {
    parameters: [
      "pointer", // struct obd_index *index
      "buffer", // struct obd_source *const *sources
      "u32", // uint32_t n
      "u64", // uint64_t virtual_size
      "buffer", // struct obd_view **out
    ],
    result: "i32",
  },
  obd_view_unref: {
    parameters: [
      "pointer", // struct obd_view *view
    ],
    result: "void",
  },
  obd_view_busy: {
    parameters: [
      "pointer", // struct obd_view *view
    ],
    result: "i32",
  },
  obd_upper_open: {
    parameters: [
      "i32", // int32_t kind
      "i32", // int32_t data_fd
      "i32", // int32_t index_fd
      "u64", // uint64_t virtual_size
      "buffer", // struct obd_upper_report *report
      "buffer", // struct obd_upper **out
    ],
    result: "i32",
  },
  obd_upper_open_async: {
    name: "obd_upper_open",
    parameters: [
      "i32", // int32_t kind
      "i32", // int32_t data_fd
      "i32", // int32_t index_fd
      "u64", // uint64_t virtual_size
      "buffer", // struct obd_upper_report *report
      "buffer", // struct obd_upper **out
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_upper_unref: {
    parameters: [
      "pointer", // struct obd_upper *upper
    ],
    result: "void",
  },
  obd_upper_busy: {
    parameters: [
      "pointer", // struct obd_upper *upper
    ],
    result: "i32",
  },
  obd_upper_sync: {
    parameters: [
      "pointer", // struct obd_upper *upper
    ],
    result: "i32",
  },
  obd_upper_sync_async: {
    name: "obd_upper_sync",
    parameters: [
      "pointer", // struct obd_upper *upper
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_upper_snapshot: {
    parameters: [
      "pointer", // struct obd_upper *upper
      "buffer", // struct obd_index **out
    ],
    result: "i32",
  },
  obd_upper_snapshot_async: {
    name: "obd_upper_snapshot",
    parameters: [
      "pointer", // struct obd_upper *upper
      "buffer", // struct obd_index **out
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_upper_source: {
    parameters: [
      "pointer", // struct obd_upper *upper
      "buffer", // struct obd_source **out
    ],
    result: "i32",
  },
  obd_device_new: {
    parameters: [
      "pointer", // struct obd_view *view
      "pointer", // struct obd_upper *upper
      "u64", // uint64_t virtual_size
      "u32", // uint32_t flags
      "u64", // uint64_t deadline_ms
      "buffer", // struct obd_device **out
    ],
    result: "i32",
  },
  obd_device_swap: {
    parameters: [
      "pointer", // struct obd_device *dev
      "pointer", // struct obd_view *view
    ],
    result: "i32",
  },
  obd_device_extend: {
    parameters: [
      "pointer", // struct obd_device *dev
      "u64", // uint64_t virtual_size
    ],
    result: "i32",
  },
  obd_device_extend_async: {
    name: "obd_device_extend",
    parameters: [
      "pointer", // struct obd_device *dev
      "u64", // uint64_t virtual_size
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_device_resize: {
    parameters: [
      "pointer", // struct obd_device *dev
      "u64", // uint64_t virtual_size
    ],
    result: "i32",
  },
  obd_device_push: {
    parameters: [
      "pointer", // struct obd_device *dev
      "pointer", // struct obd_upper *upper
      "u64", // uint64_t max_records
      "u32", // uint32_t limit_ms
      "buffer", // uint64_t *pause_ns
    ],
    result: "i32",
  },
  obd_device_push_async: {
    name: "obd_device_push",
    parameters: [
      "pointer", // struct obd_device *dev
      "pointer", // struct obd_upper *upper
      "u64", // uint64_t max_records
      "u32", // uint32_t limit_ms
      "buffer", // uint64_t *pause_ns
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_device_pop: {
    parameters: [
      "pointer", // struct obd_device *dev
      "u32", // uint32_t limit_ms
    ],
    result: "i32",
  },
  obd_device_pop_async: {
    name: "obd_device_pop",
    parameters: [
      "pointer", // struct obd_device *dev
      "u32", // uint32_t limit_ms
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_device_settle: {
    parameters: [
      "pointer", // struct obd_device *dev
      "u32", // uint32_t how
      "pointer", // struct obd_view *view
    ],
    result: "i32",
  },
  obd_device_close: {
    parameters: [
      "pointer", // struct obd_device *dev
      "i32", // int32_t error
    ],
    result: "i32",
  },
  obd_device_abandon: {
    parameters: [
      "pointer", // struct obd_device *dev
      "i32", // int32_t error
    ],
    result: "i32",
  },
  obd_device_unref: {
    parameters: [
      "pointer", // struct obd_device *dev
    ],
    result: "void",
  },
  obd_device_read: {
    parameters: [
      "pointer", // struct obd_device *dev
      "buffer", // void *buf
      "u64", // uint64_t n
      "u64", // uint64_t at
    ],
    result: "i32",
  },
  obd_device_read_async: {
    name: "obd_device_read",
    parameters: [
      "pointer", // struct obd_device *dev
      "buffer", // void *buf
      "u64", // uint64_t n
      "u64", // uint64_t at
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_device_write: {
    parameters: [
      "pointer", // struct obd_device *dev
      "buffer", // const void *buf
      "u64", // uint64_t n
      "u64", // uint64_t at
    ],
    result: "i32",
  },
  obd_device_write_async: {
    name: "obd_device_write",
    parameters: [
      "pointer", // struct obd_device *dev
      "buffer", // const void *buf
      "u64", // uint64_t n
      "u64", // uint64_t at
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_device_discard: {
    parameters: [
      "pointer", // struct obd_device *dev
      "u64", // uint64_t at
      "u64", // uint64_t n
    ],
    result: "i32",
  },
  obd_device_zero: {
    parameters: [
      "pointer", // struct obd_device *dev
      "u64", // uint64_t at
      "u64", // uint64_t n
    ],
    result: "i32",
  },
  obd_device_flush: {
    parameters: [
      "pointer", // struct obd_device *dev
    ],
    result: "i32",
  },
  obd_device_flush_async: {
    name: "obd_device_flush",
    parameters: [
      "pointer", // struct obd_device *dev
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_device_extents: {
    parameters: [
      "pointer", // struct obd_device *dev
      "u64", // uint64_t at
      "u64", // uint64_t n
      "buffer", // struct obd_extent *out
      "u32", // uint32_t max
    ],
    result: "i32",
  },
  obd_device_stat: {
    parameters: [
      "pointer", // struct obd_device *dev
      "buffer", // struct obd_device_stats *out
    ],
    result: "i32",
  },
  obd_device_times: {
    parameters: [
      "pointer", // struct obd_device *dev
      "buffer", // struct obd_read_times *out
    ],
    result: "i32",
  },
  obd_device_trace: {
    parameters: [
      "pointer", // struct obd_device *dev
      "u64", // uint64_t max
    ],
    result: "i32",
  },
  obd_device_trace_take: {
    parameters: [
      "pointer", // struct obd_device *dev
      "buffer", // struct obd_trace_read *out
      "u32", // uint32_t max
      "buffer", // uint64_t *lost
    ],
    result: "i32",
  },
  obd_device_read_many: {
    parameters: [
      "pointer", // struct obd_device *dev
      "buffer", // const uint64_t *offsets
      "u64", // uint64_t n
      "u32", // uint32_t size
    ],
    result: "i32",
  },
  obd_device_read_many_async: {
    name: "obd_device_read_many",
    parameters: [
      "pointer", // struct obd_device *dev
      "buffer", // const uint64_t *offsets
      "u64", // uint64_t n
      "u32", // uint32_t size
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_wake_connect: {
    parameters: [
      "buffer", // const char *path
    ],
    result: "i32",
  },
  obd_miss_drain: {
    parameters: [
      "buffer", // struct obd_miss *out
      "u32", // uint32_t max
    ],
    result: "i32",
  },
  obd_buffer_new: {
    parameters: [
      "u64", // uint64_t size
      "u64", // uint64_t tag
      "buffer", // struct obd_buffer **out
    ],
    result: "i32",
  },
  obd_buffer_bytes: {
    parameters: [
      "pointer", // struct obd_buffer *buffer
    ],
    result: "pointer",
  },
  obd_buffer_unref: {
    parameters: [
      "pointer", // struct obd_buffer *buffer
    ],
    result: "void",
  },
  obd_buffer_write: {
    parameters: [
      "pointer", // struct obd_buffer *buffer
      "pointer", // struct obd_source *cache
      "u64", // uint64_t at
      "u64", // uint64_t n
    ],
    result: "i32",
  },
  obd_buffer_take_back: {
    parameters: [
      "pointer", // struct obd_buffer *buffer
    ],
    result: "i32",
  },
  obd_written_drain: {
    parameters: [
      "buffer", // struct obd_written *out
      "u32", // uint32_t max
    ],
    result: "i32",
  },
  obd_slow_watch: {
    parameters: [
      "u64", // uint64_t cache_ns
      "u64", // uint64_t local_ns
    ],
    result: "i32",
  },
  obd_source_name: {
    parameters: [
      "pointer", // struct obd_source *src
      "u64", // uint64_t name
    ],
    result: "i32",
  },
  obd_slow_drain: {
    parameters: [
      "buffer", // struct obd_slow_read *out
      "u32", // uint32_t max
      "buffer", // uint64_t *dropped
    ],
    result: "i32",
  },
  obd_nbd_new: {
    parameters: [
      "i32", // int32_t listen_fd
      "buffer", // struct obd_nbd **out
    ],
    result: "i32",
  },
  obd_nbd_add: {
    parameters: [
      "pointer", // struct obd_nbd *nbd
      "buffer", // const char *name
      "buffer", // const char *description
      "pointer", // struct obd_device *dev
    ],
    result: "i32",
  },
  obd_nbd_remove: {
    parameters: [
      "pointer", // struct obd_nbd *nbd
      "buffer", // const char *name
      "u32", // uint32_t grace_ms
    ],
    result: "i32",
  },
  obd_nbd_remove_async: {
    name: "obd_nbd_remove",
    parameters: [
      "pointer", // struct obd_nbd *nbd
      "buffer", // const char *name
      "u32", // uint32_t grace_ms
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_nbd_start: {
    parameters: [
      "pointer", // struct obd_nbd *nbd
    ],
    result: "i32",
  },
  obd_nbd_connections: {
    parameters: [
      "pointer", // struct obd_nbd *nbd
    ],
    result: "i32",
  },
  obd_nbd_users: {
    parameters: [
      "pointer", // struct obd_nbd *nbd
      "buffer", // const char *name
    ],
    result: "i32",
  },
  obd_nbd_close: {
    parameters: [
      "pointer", // struct obd_nbd *nbd
      "u32", // uint32_t grace_ms
    ],
    result: "i32",
  },
  obd_nbd_close_async: {
    name: "obd_nbd_close",
    parameters: [
      "pointer", // struct obd_nbd *nbd
      "u32", // uint32_t grace_ms
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_netlink_open: { parameters: [], result: "i32" },
  obd_netlink_close: { parameters: [], result: "i32" },
  obd_netlink_group: {
    parameters: [
      "buffer", // uint32_t *out
    ],
    result: "i32",
  },
  obd_netlink_drain: {
    parameters: [
      "buffer", // struct obd_tcmu_event *out
      "u32", // uint32_t max
    ],
    result: "i32",
  },
  obd_netlink_reply: {
    parameters: [
      "u32", // uint32_t command
      "u32", // uint32_t device_id
      "i32", // int32_t status
    ],
    result: "i32",
  },
  obd_netlink_stat: {
    parameters: [
      "buffer", // struct obd_netlink_stats *out
    ],
    result: "i32",
  },
  obd_ring_new: {
    parameters: [
      "i32", // int32_t uio_fd
      "u64", // uint64_t map_size
      "pointer", // struct obd_device *dev
      "u32", // uint32_t flags
      "u64", // uint64_t id
      "buffer", // struct obd_ring **out
    ],
    result: "i32",
  },
  obd_ring_set: {
    parameters: [
      "pointer", // struct obd_ring *ring
      "u32", // uint32_t flags
    ],
    result: "i32",
  },
  obd_ring_attention: {
    parameters: [
      "pointer", // struct obd_ring *ring
      "u32", // uint32_t asc_ascq
    ],
    result: "i32",
  },
  obd_ring_close: {
    parameters: [
      "pointer", // struct obd_ring *ring
      "u32", // uint32_t grace_ms
    ],
    result: "i32",
  },
  obd_ring_close_async: {
    name: "obd_ring_close",
    parameters: [
      "pointer", // struct obd_ring *ring
      "u32", // uint32_t grace_ms
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_ring_stat: {
    parameters: [
      "pointer", // struct obd_ring *ring
      "buffer", // struct obd_ring_stats *out
    ],
    result: "i32",
  },
  obd_scsi_drain: {
    parameters: [
      "buffer", // struct obd_scsi_command *out
      "u32", // uint32_t max
    ],
    result: "i32",
  },
  obd_ring_data: {
    parameters: [
      "pointer", // struct obd_ring *ring
      "u32", // uint32_t tag
      "buffer", // void *buf
      "u64", // uint64_t n
      "u64", // uint64_t at
    ],
    result: "i64",
  },
  obd_ring_complete: {
    parameters: [
      "pointer", // struct obd_ring *ring
      "u32", // uint32_t tag
      "u32", // uint32_t status
      "buffer", // const void *sense
      "buffer", // const void *data
      "u64", // uint64_t n
    ],
    result: "i32",
  },
  obd_plan_new: {
    parameters: [
      "pointer", // struct obd_index *index
      "buffer", // struct obd_source *const *sources
      "u32", // uint32_t n
      "u32", // uint32_t flags
      "buffer", // struct obd_plan_info *info
      "buffer", // struct obd_plan **out
    ],
    result: "i32",
  },
  obd_plan_unref: {
    parameters: [
      "pointer", // struct obd_plan *plan
    ],
    result: "void",
  },
  obd_plan_write: {
    parameters: [
      "pointer", // struct obd_plan *plan
      "buffer", // const void *header
      "buffer", // const void *trailer
      "buffer", // const struct obd_zfile_params *params
      "u32", // uint32_t threads
      "i32", // int32_t out_fd
      "u64", // uint64_t out_at
      "i32", // int32_t stream
      "buffer", // struct obd_job *job
      "buffer", // struct obd_zfile_result *result
    ],
    result: "i32",
  },
  obd_plan_write_async: {
    name: "obd_plan_write",
    parameters: [
      "pointer", // struct obd_plan *plan
      "buffer", // const void *header
      "buffer", // const void *trailer
      "buffer", // const struct obd_zfile_params *params
      "u32", // uint32_t threads
      "i32", // int32_t out_fd
      "u64", // uint64_t out_at
      "i32", // int32_t stream
      "buffer", // struct obd_job *job
      "buffer", // struct obd_zfile_result *result
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_zfile_compress: {
    parameters: [
      "i32", // int32_t in_fd
      "buffer", // const struct obd_zfile_params *params
      "i32", // int32_t out_fd
      "u64", // uint64_t out_at
      "i32", // int32_t stream
      "buffer", // struct obd_job *job
      "buffer", // struct obd_zfile_result *result
    ],
    result: "i32",
  },
  obd_zfile_compress_async: {
    name: "obd_zfile_compress",
    parameters: [
      "i32", // int32_t in_fd
      "buffer", // const struct obd_zfile_params *params
      "i32", // int32_t out_fd
      "u64", // uint64_t out_at
      "i32", // int32_t stream
      "buffer", // struct obd_job *job
      "buffer", // struct obd_zfile_result *result
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_zfile_extract: {
    parameters: [
      "pointer", // struct obd_source *zfile
      "i32", // int32_t out_fd
      "u32", // uint32_t threads
      "i32", // int32_t stream
      "buffer", // struct obd_job *job
    ],
    result: "i32",
  },
  obd_zfile_extract_async: {
    name: "obd_zfile_extract",
    parameters: [
      "pointer", // struct obd_source *zfile
      "i32", // int32_t out_fd
      "u32", // uint32_t threads
      "i32", // int32_t stream
      "buffer", // struct obd_job *job
    ],
    result: "i32",
    nonblocking: true,
  },
  obd_zfile_verify: {
    parameters: [
      "pointer", // struct obd_source *zfile
      "u32", // uint32_t threads
      "buffer", // struct obd_job *job
      "buffer", // uint64_t *bad
      "u64", // uint64_t max
    ],
    result: "i64",
  },
  obd_zfile_verify_async: {
    name: "obd_zfile_verify",
    parameters: [
      "pointer", // struct obd_source *zfile
      "u32", // uint32_t threads
      "buffer", // struct obd_job *job
      "buffer", // uint64_t *bad
      "u64", // uint64_t max
    ],
    result: "i64",
    nonblocking: true,
  },
  obd_index_write: {
    parameters: [
      "pointer", // struct obd_index *index
      "i32", // int32_t fd
      "u64", // uint64_t at
    ],
    result: "i64",
  },
  obd_index_write_async: {
    name: "obd_index_write",
    parameters: [
      "pointer", // struct obd_index *index
      "i32", // int32_t fd
      "u64", // uint64_t at
    ],
    result: "i64",
    nonblocking: true,
  },
} as const satisfies Deno.ForeignLibraryInterface;
