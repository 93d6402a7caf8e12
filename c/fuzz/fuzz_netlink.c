/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_netlink.c - messages of the kernel, or of who passes for it: the
 * first byte picks what they are taken for.
 */
#include <stdlib.h>

#include "../tcmu.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct obd_tcmu_event event;
	uint32_t group;
	uint16_t family;

	if (!n)
		return 0;
	if (data[0] & 1) {
		(void)obd_netlink_family(data + 1, n - 1, &family, &group);
		return 0;
	}
	if (obd_netlink_parse(data + 1, n - 1, 27, &event) == 1 &&
	    (event.name[sizeof(event.name) - 1] ||
	     event.config[sizeof(event.config) - 1]))
		abort();
	return 0;
}
