/* SPDX-License-Identifier: Apache-2.0
 *
 * scsi.c - command descriptor blocks and sense data (spec tcmu 5): what the
 * data plane needs of SCSI, without any I/O.
 */
#include "tcmu.h"

/* Bytes of a CDB by the group of its opcode; 0: variable or vendor's. */
static const uint8_t group_length[8] = { 6, 10, 10, 0, 16, 12, 0, 0 };

static enum scsi_kind kind_of(uint8_t opcode)
{
	switch (opcode) {
	case 0x08: case 0x28: case 0x88: case 0xa8:
		return SCSI_READ;
	case 0x0a: case 0x2a: case 0x8a: case 0xaa:
		return SCSI_WRITE;
	case 0x35: case 0x91:
		return SCSI_SYNC;
	case 0x41: case 0x93:
		return SCSI_WRITE_SAME;
	case 0x42:
		return SCSI_UNMAP;
	default:
		return SCSI_ASK;
	}
}

/* VERIFY: with the bytes sent, BYTCHK 1, or with one block of them, 3. */
static bool compares(const uint8_t *cdb)
{
	switch (cdb[0]) {
	case 0x2f: case 0x8f: case 0xaf:
		return cdb[1] & 0x02;
	default:
		return cdb[0] == 0x89;
	}
}

void scsi_parse(const uint8_t *cdb, struct scsi_cdb *out)
{
	memset(out, 0, sizeof(*out));
	out->length = group_length[cdb[0] >> 5];
	out->kind = out->length ? kind_of(cdb[0]) : SCSI_REFUSE;
	switch (out->length) {
	case 6:
		out->lba = scsi_be(cdb + 1, 3) & 0x1fffff;
		out->count = cdb[4] ? cdb[4] : 256;
		return;
	case 10:
		out->lba = scsi_be(cdb + 2, 4);
		out->count = scsi_be(cdb + 7, 2);
		break;
	case 12:
		out->lba = scsi_be(cdb + 2, 4);
		out->count = scsi_be(cdb + 6, 4);
		break;
	case 16:
		out->lba = scsi_be(cdb + 2, 8);
		out->count = scsi_be(cdb + 10, 4);
		break;
	}
	out->fua = cdb[1] & 0x08;
	out->compares = compares(cdb);
	if (cdb[0] == 0x89)
		out->count = cdb[13];
	if (out->kind == SCSI_WRITE_SAME) {
		out->unmap = cdb[1] & 0x08;
		out->anchor = cdb[1] & 0x10;
		out->no_data = cdb[0] == 0x93 && cdb[1] & 0x01;
	}
}

void scsi_sense(uint32_t code, uint8_t *out)
{
	memset(out, 0, SCSI_SENSE_BYTES);
	out[0] = 0x70;
	out[2] = (uint8_t)(code >> 16);
	out[7] = SCSI_SENSE_BYTES - 8;
	out[12] = (uint8_t)(code >> 8);
	out[13] = (uint8_t)code;
}

uint32_t scsi_status(enum scsi_kind kind, int err, uint32_t *sense)
{
	switch (err) {
	case 0:
		return SAM_GOOD;
	case -ENOMEM:
		return SAM_TASK_SET_FULL;
	case -ESHUTDOWN:
		return SAM_BUSY; /* the next daemon will answer */
	case -EROFS:
		*sense = SENSE_READ_ONLY;
		break;
	case -ENOSPC:
	case -EDQUOT:
	case -EFBIG:
		*sense = SENSE_NO_SPACE;
		break;
	default:
		*sense = kind == SCSI_READ || kind == SCSI_ASK ?
			 SENSE_READ_ERROR : SENSE_WRITE_ERROR;
	}
	return SAM_CHECK_CONDITION;
}

int scsi_unmap_ranges(const uint8_t *list, uint64_t n)
{
	uint64_t bytes;

	if (!n)
		return 0;
	if (n < 8)
		return -(int)SENSE_LIST_LENGTH;
	bytes = scsi_be(list + 2, 2);
	if (bytes % 16 || scsi_be(list, 2) < bytes + 6)
		return -(int)SENSE_LIST_FIELD;
	if (bytes > n - 8)
		return -(int)SENSE_LIST_LENGTH;
	return (int)(bytes / 16);
}
