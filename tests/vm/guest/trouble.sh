#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Where something is missing: the modules, a daemon, a source that answers,
# free memory.
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

modprobe -a target_core_user tcm_loop sd_mod sg

without_daemon() {
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

# ---- a source that never answers ---------------------------------------------
service_config '"readDeadlineSeconds": 604800'
writable /mnt/disk/fs 1024
start_daemon || exit 1
mkdir -p mnt

# A layer of 8 MiB that nothing compresses.
head -c 8M /dev/urandom >random
disk=$(snapshotter_attach 1 "$CONFIG") || exit 1
dd if=random of="$disk" bs=1M conv=fsync status=none
# The daemon has seen it before the next disk is given its address.
sleep 3
snapshotter_detach 1
overlaybd commit a/data a/index layer
registry

# took DISK: ms that it takes to write 16 MiB to it, and to read them
took() {
	local start=$EPOCHREALTIME
	dd if=<(cat random random) of="$1" bs=64k iflag=fullblock oflag=direct \
		conv=fsync status=none
	cmp <(cat random random) \
		<(dd if="$1" bs=64k count=256 iflag=direct status=none)
	awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%d", 1000 * (b - a) }'
}

silent_source() {
	local slow fast reader attacher before during start
	remote slow "$(sha256sum <layer | cut -d' ' -f1)"
	slow=$(snapshotter_attach 1 /mnt/disk/slow/config.v1.json)
	fast=$(snapshotter_attach 2 /mnt/disk/fs/config.v1.json)
	cmp -n 65536 random <(dd if="$slow" bs=64k count=1 iflag=direct status=none)
	before=$(took "$fast")
	kill -STOP $REGISTRY
	# As many requests as there can be: they wait, however long that is.
	fio --name=x --filename="$slow" --rw=read --bs=64k --iodepth=64 --size=8M \
		--direct=1 --readonly --ioengine=libaio --output=fio.out 2>/dev/null &
	reader=$!
	until_ok 60 waits "$slow"
	during=$(took "$fast")
	waits "$slow"
	# An image that cannot even open holds up nobody.
	remote never "$(printf '0%.0s' {1..64})"
	snapshotter_attach 3 /mnt/disk/never/config.v1.json >never/disk &
	attacher=$!
	snapshotter_detach 2
	fast=$(snapshotter_attach 2 /mnt/disk/fs/config.v1.json)
	cmp -n 8388608 random "$fast"
	snapshotter_detach 2
	waits "$slow"
	start=$SECONDS
	snapshotter_detach 1
	say "16 MiB took $before ms, $during ms beside a silent source," \
		"which was detached within $((SECONDS - start + 1)) s"
	fails wait $reader
	kill -0 $attacher
	kill -CONT $REGISTRY
	wait $attacher
	cmp -n 8388608 random "$(cat never/disk)"
	snapshotter_detach 3
	nothing_left
}
# waits DISK: it has many requests in flight
waits() { [ "$(awk '{ print $9 }' "/sys/block/${1#/dev/}/stat")" -gt 16 ]; }
check "a source that never answers: another disk works on, its own can be detached" \
	silent_source

# ---- an image that is not there -----------------------------------------------
# The kernel flushes a disk that goes, and its commands are held back: it would
# try for ever.
waits_for_image() {
	local kind start
	for kind in layered writable_over; do
		rm -rf one
		if [ $kind = layered ]; then
			layered /mnt/disk/one /mnt/disk/layer
		else
			writable_over /mnt/disk/layer /mnt/disk/one
		fi
		snapshotter_attach 1 /mnt/disk/one/config.v1.json
		stop_daemon
		mv layer gone
		: >/tmp/overlaybd.log
		start_daemon
		until_ok 20 grep -q 'it will be tried again' /tmp/overlaybd.log
		equal "$(cat $CORE/user_999999999/dev_1/action/block_dev)" blocked
		start=$SECONDS
		snapshotter_detach 1
		say "$kind: taken away within $((SECONDS - start + 1)) s"
		mv gone layer
	done
	nothing_left
}
check "a disk that waits for its image is taken away all the same" \
	waits_for_image

# ---- no free memory ----------------------------------------------------------
# reclaimed: pages looked at, so far, for one that can be had
reclaimed() { awk '/^pgscan_(kswapd|direct) / { n += $2 } END { print n }' /proc/vmstat; }

pressure() {
	local disk i=0 end pid before file free
	pid=$(daemon_pid)
	echo -999 >"/proc/$pid/oom_score_adj"
	disk=$(snapshotter_attach 1 /mnt/disk/fs/config.v1.json)
	mkfs.ext4 -q "$disk"
	mount "$disk" mnt
	# What lies in a tmpfs is not given back: there is no swap.
	mkdir -p full
	mount -t tmpfs -o size=100% full full
	echo 3 >/proc/sys/vm/drop_caches
	free=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
	fallocate -l $((free - 64))M full/all
	# Nobody writes before nothing else is left.
	echo 80 >/proc/sys/vm/dirty_background_ratio
	echo 90 >/proc/sys/vm/dirty_ratio
	before=$(reclaimed)
	end=$((SECONDS + $1))
	while [ $SECONDS -lt $end ]; do
		# Dirty pages, written when the kernel wants memory.
		cp random mnt/$((i++ % 40))
	done
	say "$i files of 8 MiB, $(($(reclaimed) - before)) pages scanned"
	[ $(($(reclaimed) - before)) -gt $((i * 1024)) ]
	umount full
	sync -f mnt
	echo 3 >/proc/sys/vm/drop_caches
	for file in mnt/[0-9]*; do cmp random "$file"; done
	umount mnt
	snapshotter_detach 1
	kill -0 "$pid"
	fails kernel_said "blocked for more than|Out of memory.*overlaybd"
}
check "dirty pages under memory pressure: written, and nothing stands still" \
	pressure "$(count 60)"

# PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE
flusher() {
	local stat fields threads=0
	for stat in "/proc/$(daemon_pid)/task"/*/stat; do
		# One that has ended meanwhile is none.
		stat=$(cat "$stat") || continue
		read -ra fields <<<"${stat##*) }"
		equal $((fields[6] & 0x180000)) $((0x180000))
		threads=$((threads + 1))
	done
	[ $threads -gt 3 ]
}
check "no thread of the daemon waits for its own disks to get memory" flusher
