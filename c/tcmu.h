/* SPDX-License-Identifier: Apache-2.0
 *
 * tcmu.h - what netlink.c, scsi.c and the ring show to each other and to
 * their tests (spec tcmu).
 */
#ifndef OBD_TCMU_H
#define OBD_TCMU_H

#include "internal.h"

/* One generic netlink message, header included, of n bytes.  1: an event,
 * in *out; 0: something else; -EBADMSG: an event without MINOR, DEVICE or
 * (genl version above 1) DEVICE_ID, or with lengths that do not fit. */
OBD_HIDDEN int obd_netlink_parse(const uint8_t *msg, size_t n,
				 uint16_t family,
				 struct obd_tcmu_event *out);
/* What "get family" answers: the family's number and that of its group
 * "config"; -ENOENT when either is missing. */
OBD_HIDDEN int obd_netlink_family(const uint8_t *msg, size_t n,
				  uint16_t *family, uint32_t *group);

/* ---- scsi.c: CDBs and sense ------------------------------------------- */

#define SCSI_SENSE_BYTES 18u
#define SAM_GOOD 0x00u
#define SAM_CHECK_CONDITION 0x02u
#define SAM_BUSY 0x08u
#define SAM_TASK_SET_FULL 0x28u

/* Sense key << 16 | additional code << 8 | its qualifier (spec tcmu 5). */
#define SENSE_READ_ERROR 0x031100u
#define SENSE_WRITE_ERROR 0x030c00u
#define SENSE_INTERNAL 0x044400u
#define SENSE_LIST_LENGTH 0x051a00u
#define SENSE_OPCODE 0x052000u
#define SENSE_RANGE 0x052100u
#define SENSE_CDB_FIELD 0x052400u
#define SENSE_LIST_FIELD 0x052600u
#define SENSE_READ_ONLY 0x053005u
#define SENSE_ATTENTION 0x060000u
#define SENSE_NO_SPACE 0x072707u

enum scsi_kind {
	SCSI_ASK,         /* answered in TypeScript */
	SCSI_READ, SCSI_WRITE, SCSI_SYNC, SCSI_WRITE_SAME, SCSI_UNMAP,
	SCSI_REFUSE,      /* a group that nobody uses */
};

struct scsi_cdb {
	enum scsi_kind kind;
	uint32_t length;      /* 6, 10, 12 or 16; 0: not known */
	uint64_t lba;         /* sectors */
	uint64_t count;       /* sectors; UNMAP: bytes of its list */
	bool fua, unmap, anchor;
	bool no_data;         /* WRITE SAME without a block: zeros */
	bool compares;        /* VERIFY, COMPARE AND WRITE: with the disk */
};

/* Reads a CDB of at least 16 readable bytes. */
OBD_HIDDEN void scsi_parse(const uint8_t *cdb, struct scsi_cdb *out);
/* Fixed-format sense, SCSI_SENSE_BYTES. */
OBD_HIDDEN void scsi_sense(uint32_t code, uint8_t *out);
/* How a command of this kind ends for 0 or -errno: its status, and *sense
 * when that is CHECK CONDITION. */
OBD_HIDDEN uint32_t scsi_status(enum scsi_kind kind, int err,
				uint32_t *sense);
/* Ranges of an UNMAP parameter list of n bytes: how many, and the first of
 * the 16-byte descriptors at list + 8; or a sense code, negated. */
OBD_HIDDEN int scsi_unmap_ranges(const uint8_t *list, uint64_t n);

static inline uint64_t scsi_be(const uint8_t *p, int bytes)
{
	uint64_t v = 0;

	while (bytes--)
		v = v << 8 | *p++;
	return v;
}

#endif
