/* SPDX-License-Identifier: Apache-2.0
 *
 * map.h - what only map.c and its tests need to know.
 */
#ifndef OBD_MAP_H
#define OBD_MAP_H

#include "internal.h"

/* Where nodes come from, and how many records are allowed. */
struct obd_map_limits {
	void *(*alloc)(size_t bytes); /* freed with free() */
	uint64_t max;
};
OBD_HIDDEN struct obd_map *
obd_map_new_limited(const struct obd_map_limits *limits);
/* Bytes held in nodes, spares included. */
OBD_HIDDEN uint64_t obd_map_bytes(const struct obd_map *map);
/* Whether all that map.c says of its nodes holds. */
OBD_HIDDEN bool obd_map_sound(const struct obd_map *map);

#endif
