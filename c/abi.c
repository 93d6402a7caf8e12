/* SPDX-License-Identifier: Apache-2.0
 *
 * abi.c - the layouts that ffi/ relies on, proven by the compiler.
 */
#include "internal.h"

#define SIZE(type, bytes) \
	_Static_assert(sizeof(struct type) == (bytes), #type " size")
#define AT(type, member, offset) \
	_Static_assert(offsetof(struct type, member) == (offset), \
		       #type "." #member)

SIZE(obd_zfile_info, 48);
AT(obd_zfile_info, blocks, 8);
AT(obd_zfile_info, original_size, 16);
AT(obd_zfile_info, block_size, 24);
AT(obd_zfile_info, algo, 28);
AT(obd_zfile_info, verify, 32);
AT(obd_zfile_info, index_crc, 36);
AT(obd_zfile_info, check_index_crc, 40);
AT(obd_zfile_info, dict_size, 44);

SIZE(obd_bad, 16);
AT(obd_bad, reason, 8);

SIZE(obd_upper_report, 64);
AT(obd_upper_report, marks, 8);
AT(obd_upper_report, cut_record, 16);
AT(obd_upper_report, torn_bytes, 24);
AT(obd_upper_report, data_end, 32);
AT(obd_upper_report, trimmed, 40);
AT(obd_upper_report, bad, 48);

SIZE(obd_extent, 16);
AT(obd_extent, state, 8);

SIZE(obd_device_stats, 104);
AT(obd_device_stats, discards, 32);
AT(obd_device_stats, misses, 64);
AT(obd_device_stats, allocations, 88);
SIZE(obd_read_times, 240);
AT(obd_read_times, fetched, 120);

SIZE(obd_trace_read, 24);
AT(obd_trace_read, length, 8);
AT(obd_trace_read, layer, 16);

SIZE(obd_miss, 32);
AT(obd_miss, first, 8);
AT(obd_miss, count, 16);
AT(obd_miss, kind, 24);

SIZE(obd_written, 24);
AT(obd_written, ns, 8);
AT(obd_written, error, 16);

SIZE(obd_slow_read, 40);
AT(obd_slow_read, at, 8);
AT(obd_slow_read, length, 16);
AT(obd_slow_read, ns, 24);
AT(obd_slow_read, kind, 32);

SIZE(obd_tcmu_event, 800);
AT(obd_tcmu_event, device_id, 8);
AT(obd_tcmu_event, attribute, 16);
AT(obd_tcmu_event, size, 24);
AT(obd_tcmu_event, name, 32);
AT(obd_tcmu_event, config, 544);

SIZE(obd_netlink_stats, 24);
SIZE(obd_ring_stats, 72);

SIZE(obd_scsi_command, 48);
AT(obd_scsi_command, length, 8);
AT(obd_scsi_command, tag, 16);
AT(obd_scsi_command, cdb, 24);

SIZE(obd_job, 32);
AT(obd_job, done, 8);
AT(obd_job, written, 16);
AT(obd_job, cancel, 24);

SIZE(obd_plan_info, 32);
AT(obd_plan_info, padded_records, 8);
AT(obd_plan_info, index_offset, 16);
AT(obd_plan_info, size, 24);

SIZE(obd_zfile_params, 24);
AT(obd_zfile_params, block_size, 4);
AT(obd_zfile_params, verify, 8);
AT(obd_zfile_params, rewrite_header, 12);
AT(obd_zfile_params, threads, 16);

SIZE(obd_zfile_result, 40);
AT(obd_zfile_result, index_offset, 8);
AT(obd_zfile_result, blocks, 16);
AT(obd_zfile_result, size, 24);
AT(obd_zfile_result, index_crc, 32);

SIZE(obd_record, 16);
