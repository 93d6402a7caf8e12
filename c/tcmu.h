/* SPDX-License-Identifier: Apache-2.0
 *
 * tcmu.h - what netlink.c, ring.c and scsi.c show to each other and to
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

#endif
