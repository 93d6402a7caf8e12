#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The daemon ends, by force or not, and comes again: disks go on.
. "$(dirname "$0")/lib.sh"
prepare
writable /mnt/disk/a 1024
cp -r a log
cp -r a fs
sed -i 's#/mnt/disk/a/#/mnt/disk/log/#g' log/config.v1.json
sed -i 's#/mnt/disk/a/#/mnt/disk/fs/#g' fs/config.v1.json
writable /mnt/disk/sparse 1024 -s
start_daemon || exit 1
LOG=$(snapshotter_attach 1 /mnt/disk/log/config.v1.json) || exit 1
SPARSE=$(snapshotter_attach 2 /mnt/disk/sparse/config.v1.json) || exit 1
FS=$(snapshotter_attach 3 /mnt/disk/fs/config.v1.json) || exit 1
mkdir -p mnt
mkfs.ext4 -q "$FS" && mount "$FS" mnt || exit 1

# hammer NAME DISK: writes and verifies until there is /run/enough
hammer() {
	local round
	for ((round = 0; ; round++)); do
		fio --name="$1" --filename="$2" --rw=randwrite --ioengine=libaio \
			--direct=1 --iodepth=32 --bsrange=512-1M --blockalign=512 \
			--offset=$(((round % 8) * 64))M --size=64M --io_size=24M \
			--randrepeat=0 --verify=crc32c --verify_fatal=1 \
			--output="fio.$1" || { cat "fio.$1"; return 1; }
		[ ! -e /run/enough ] || break
	done
	echo "$1: $((round + 1)) rounds"
}

# Files whose names are their sums, each synced.
write_files() {
	local i
	for ((i = 0; ; i++)); do
		head -c 100000 /dev/urandom >part
		cp part "mnt/$(sha256sum <part | cut -d' ' -f1)"
		sync -f mnt
		[ ! -e /run/enough ] || break
		sleep 0.2
	done
	echo "$i files"
}
files_right() {
	local file
	for file in mnt/*; do
		[ "$file" != mnt/lost+found ] || continue
		equal "$(sha256sum <"$file")" "${file#mnt/}  -"
	done
}

# requests: how many each of the two disks has completed
requests() {
	local disk _ reads writes
	for disk in "$LOG" "$SPARSE"; do
		read -r reads _ _ _ writes _ <"/sys/block/${disk#/dev/}/stat"
		printf "%d " $((reads + writes))
	done
}
# both_since BEFORE: each has completed some more
both_since() {
	local log sparse log0 sparse0
	read -r log0 sparse0 <<<"$1"
	read -r log sparse <<<"$(requests)"
	[ "$log" -gt "$log0" ] && [ "$sparse" -gt "$sparse0" ]
}

# under_load FUNCTION: while both disks and a file system are written
under_load() {
	local jobs=() job
	rm -f /run/enough
	hammer log "$LOG" &
	jobs+=($!)
	hammer sparse "$SPARSE" &
	jobs+=($!)
	write_files &
	jobs+=($!)
	until_ok 60 both_since "50 50"
	"$@"
	touch /run/enough
	for job in "${jobs[@]}"; do wait "$job"; done
	mountpoint mnt
	touch mnt/still-writable && rm mnt/still-writable
	sync -f mnt
	echo 3 >/proc/sys/vm/drop_caches
	files_right
	fails kernel_said "I/O error|remounted read-only|rejecting I/O"
}

killed() {
	local i before pid
	for ((i = 1; i <= $1; i++)); do
		before=$(requests)
		sleep "$((RANDOM % 3)).$((RANDOM % 1000))"
		until_ok 120 both_since "$before"
		pid=$(daemon_pid)
		kill -9 "$pid"
		until_ok 60 gone "$pid"
		start_daemon
		say "kill $i: $before requests before, $(requests)now"
	done
	before=$(requests)
	until_ok 120 both_since "$before"
}
check "kill -9 under fio --verify and a mounted ext4: no error, no mismatch" \
	under_load killed "$(count 60)"

# Where whole counts are asked for it is another version.
other_product() {
	if [ -z "$SOAK" ]; then
		mkdir -p /opt/other
		mount --bind /opt/overlaybd /opt/other
		return
	fi
	mount_product vm-other /opt/other
	fails equal "$(/opt/other/bin/overlaybd version)" "$(overlaybd version)"
}

# go_on_with DIR: the daemon that was ended is followed by that one
go_on_with() {
	local before
	PATH=$1/bin:$PATH start_daemon
	before=$(requests)
	until_ok 120 both_since "$before"
	equal "$(readlink "/proc/$(daemon_pid)/exe" | cut -d/ -f-3)" "$1"
	say "$(grep 'current version' /tmp/overlaybd.log | tail -1)"
}
upgraded() {
	local dir
	stop_daemon 60
	go_on_with /opt/other
	[ -n "$SOAK" ] || return 0
	stop_daemon 60
	go_on_with /opt/overlaybd
	for dir in /opt/other /opt/overlaybd /opt/other; do
		sleep "$((RANDOM % 3)).$((RANDOM % 1000))"
		kill -9 "$(daemon_pid)"
		until_ok 60 gone "$(daemon_pid)"
		go_on_with $dir
	done
}
other_product || exit 1
check "an upgrade under the same load: ended by SIGTERM, the new one goes on" \
	under_load upgraded

# settled: as many descriptors as a second ago
settled() {
	local before
	before=$(weigh | cut -d' ' -f1)
	sleep 1
	[ "$(weigh | cut -d' ' -f1)" = "$before" ]
}
up_and_down() {
	local i fds threads mib fds2 threads2 mib2
	for ((i = 0; i <= $1; i++)); do
		stop_daemon 60
		start_daemon
		dd if="$LOG" of=/dev/null bs=4k count=1 iflag=direct status=none
		dd if="$SPARSE" of=/dev/null bs=4k count=1 iflag=direct status=none
		dd if="$FS" of=/dev/null bs=4k count=1 iflag=direct status=none
		if [ $i -eq 0 ]; then
			until_ok 30 settled
			read -r fds threads mib <<<"$(weigh)"
		fi
		until_ok 30 has_descriptors "$fds"
		read -r fds2 threads2 mib2 <<<"$(weigh)"
		say "$i: $fds2 descriptors, $threads2 threads, $mib2 MiB"
		[ $((threads2 - threads)) -le 2 ]
		[ $((mib2 - mib)) -lt 20 ]
	done
	files_right
}
check "up and down with devices present: as many descriptors, threads, memory" \
	up_and_down "$(count 100)"

adopted() {
	local n=$1 i jobs=() start
	for ((i = 1; i <= n; i++)); do
		mkdir -p "n$i"
		cp a/data a/index "n$i/"
		sed "s#/mnt/disk/a/#/mnt/disk/n$i/#g" a/config.v1.json \
			>"n$i/config.v1.json"
		snapshotter_attach "10$i" "/mnt/disk/n$i/config.v1.json" >"disk$i" &
		jobs+=($!)
	done
	for i in "${jobs[@]}"; do wait "$i"; done
	for ((i = 1; i <= n; i++)); do
		echo "this is $i" | dd of="$(cat "disk$i")" bs=512 conv=sync,fsync \
			status=none
	done
	kill -9 "$(daemon_pid)"
	until_ok 60 gone "$(daemon_pid)"
	start=$EPOCHREALTIME
	start_daemon
	say "$n devices: netlink open after $(awk -v a="$start" \
		-v b="$EPOCHREALTIME" 'BEGIN { print b - a }') s"
	for ((i = 1; i <= n; i++)); do
		equal "$(dd if="$(cat "disk$i")" bs=512 count=1 iflag=direct \
			status=none | head -1)" "this is $i"
		snapshotter_detach "10$i"
	done
	files_right
}
check "many devices adopted at once after kill -9: each has its own bytes" \
	adopted "$(count 50)"

again() {
	local i disk
	umount mnt
	for i in 1 2 3; do snapshotter_detach $i; done
	equal "$(ls /sys/class/uio)" ""
	disk=$(snapshotter_attach 3 /mnt/disk/fs/config.v1.json)
	mount -o ro "$disk" mnt
	files_right
	umount mnt
	snapshotter_detach 3
	daemon_alive
}
check "unmounted, detached and attached again: every file's sha256" again
