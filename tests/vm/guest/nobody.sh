#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The operator's commands where no daemon has ever run.
. "$(dirname "$0")/lib.sh"
install_product
cd /mnt/disk || exit 1
writable /mnt/disk/a 64
CONFIG=/mnt/disk/a/config.v1.json

nothing_left() {
	equal "$(find /sys/kernel/config/target -name 'dev_*' -o -name 'naa.*')" ""
}

without_modules() {
	refuses "overlaybd doctor" overlaybd attach "$CONFIG"
	equal "$(overlaybd ls --json)" "[]"
	refuses "no such id, disk or configuration" overlaybd detach /dev/sdz
}
check "without the kernel's modules attach names doctor, ls shows nothing" without_modules

without_daemon() {
	modprobe -a target_core_user tcm_loop
	refuses "cannot attach $CONFIG: overlaybd-tcmu does not run" \
		overlaybd attach "$CONFIG"
	nothing_left
	refuses "cannot read image config /nowhere: no such file" \
		overlaybd attach /nowhere
}
check "without a daemon attach says so and leaves nothing" without_daemon

unserved() {
	local device=$CORE/user_999999999/dev_7
	mkdir -p "$device"
	echo -n "dev_config=overlaybd/$CONFIG,dev_size=1048576,hw_block_size=512" \
		>"$device/control"
	overlaybd ls --json
	equal "$(overlaybd ls | tail -1 | xargs)" "7 - - disabled - $CONFIG"
	echo -n 1 >"$device/enable"
	equal "$(overlaybd ls | tail -1 | xargs)" "7 - - no disk - $CONFIG"
	refuses "cannot detach 7: overlaybd-tcmu does not run" overlaybd detach 7
	rmdir "$device"
	nothing_left
}
check "detach of a device that nobody serves is refused, it would hang" unserved

# The kernel would wait for the answer of the dead one: it is not asked.
after_death() {
	service_config
	start_daemon
	kill -9 "$(daemon_pid)"
	until_ok 20 gone "$(daemon_pid)"
	refuses "cannot attach $CONFIG: overlaybd-tcmu does not run" \
		overlaybd attach "$CONFIG"
	nothing_left
}
check "after a daemon's death attach says so at once, and does not hang" \
	after_death
