#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Live snapshots under a kernel's writes, by the original's API and by ours.
. "$(dirname "$0")/lib.sh"
prepare
service_config '"serviceConfig": {"enable": true, "address": "http://127.0.0.1:9862"},
	"apiConfig": {"enable": true}, "exporterConfig": {"enable": true}'
overlaybd create base.data base.index 1
overlaybd commit base.data base.index base
tee base{1..251} <base >/dev/null
mkdir -p /mnt/fs
start_daemon || exit 1

# image DIR [-s]: a lower, or $below of them, and an upper; layers of
# snapshots are counted in DIR/n
image() {
	local dir=/mnt/disk/$1 i
	shift
	mkdir -p "$dir"
	for ((i = 1; i < ${below:-1}; i++)); do
		echo ", {\"file\": \"/mnt/disk/base$i\"}"
	done >"$dir/more"
	overlaybd create "$@" "$dir/data0" "$dir/index0" 1
	echo 0 >"$dir/n"
	config "$dir" 0 >"$dir/config.v1.json"
}

# config DIR N: of the image with upper N
config() {
	local i lowers='{"file": "/mnt/disk/base"}'
	lowers+=$(cat "$1/more")
	for ((i = 0; i < $2; i++)); do lowers+=", {\"file\": \"$1/data$i\"}"; done
	cat <<-END
	{"lowers": [$lowers],
	 "upper": {"data": "$1/data$2", "index": "$1/index$2"},
	 "resultFile": "$1/result"}
	END
}

# next NAME GB [-s]: what follows, in DIR/next
next() {
	local dir=/mnt/disk/$1 gb=$2 n
	shift 2
	n=$(($(cat "$dir/n") + 1))
	overlaybd create "$@" "$dir/data$n" "$dir/index$n" "$gb"
	config "$dir" $n >"$dir/next"
}

# snapshot NAME: prints the status
snapshot() {
	curl -s -m 120 -o /tmp/answer -w '%{http_code}' \
		"http://127.0.0.1:9862/snapshot?dev_id=id-$1&config=/mnt/disk/$1/next" ||
		:
}

# taken NAME GB [-s]: prepares a snapshot, and takes it
taken() {
	next "$@"
	equal "$(snapshot "$1")" 200
	echo $(($(cat "/mnt/disk/$1/n") + 1)) >"/mnt/disk/$1/n"
	test ! -e "/mnt/disk/$1/next"
	test ! -e "/mnt/disk/$1/config.v1.json.snap"
}

# fio_on DISK ARGS...: random writes of 8 MiB that say what they are
fio_on() {
	local disk=$1
	shift
	fio --name=x --filename="$disk" --size=8M --direct=1 --rw=randwrite \
		--bssplit=4k/60:512/20:64k/20 --ioengine=libaio --iodepth=8 \
		--verify=crc32c --verify_fatal=1 --randrepeat=1 --output=/tmp/fio \
		"$@" || { cat /tmp/fio; return 1; }
}

# under_writes NAME [-s]: sets $disk, which shows the image after all that
under_writes() {
	local name=$1 writer i
	shift
	image "$name" "$@"
	disk=$(snapshotter_attach 1 "/mnt/disk/$name/config.v1.json;id-$name")
	fio_on "$disk" --do_verify=0 --fsync=16 &
	writer=$!
	for i in 1 2 3; do
		sleep 0.3
		taken "$name" 1 "$@"
	done
	wait $writer
	fio_on "$disk" --verify_only
	snapshotter_detach 1
	# The renamed configuration is what a restart finds.
	disk=$(snapshotter_attach 2 "/mnt/disk/$name/config.v1.json;id-$name")
	fio_on "$disk" --verify_only
}
in_a_row() {
	local disk
	under_writes "$@"
	snapshotter_detach 2
}
up_to_255() {
	local disk below=252
	under_writes "$@"
	equal "$(overlaybd ctl device "id-$1" | sed -n 's/^lowers = //p')" 255
	# One more has no room, and changes nothing.
	cp "$1/config.v1.json" before
	next "$1" 1
	equal "$(snapshot "$1")" 500
	cmp before "$1/config.v1.json"
	fio_on "$disk" --verify_only
	snapshotter_detach 2
}
check "snapshots in a row under fio, log-structured, up to 255 layers: every block verifies, also after another attach" \
	up_to_255 a
check "snapshots in a row under fio, sparse: every block verifies, also after another attach" \
	in_a_row b -s

larger() {
	local disk
	image c
	disk=$(snapshotter_attach 1 "/mnt/disk/c/config.v1.json;id-c")
	equal "$(blockdev --getsize64 "$disk")" $((1 << 30))
	taken c 2
	# What tells a host that looks again.
	echo 1 >"/sys/block/${disk#/dev/}/device/rescan"
	equal "$(blockdev --getsize64 "$disk")" $((2 << 30))
	dd if=/dev/urandom of=last bs=4096 count=1 2>/dev/null
	dd if=last of="$disk" bs=4096 seek=$(((2 << 30) / 4096 - 1)) \
		oflag=direct 2>/dev/null
	dd if="$disk" bs=4096 skip=$(((2 << 30) / 4096 - 1)) iflag=direct \
		2>/dev/null | cmp - last
	snapshotter_detach 1
}
check "a larger new layer makes a larger disk, once the host looks again" larger

filesystem() {
	local disk
	image d
	disk=$(snapshotter_attach 1 "/mnt/disk/d/config.v1.json;id-d")
	mkfs.ext4 -q "$disk"
	mount "$disk" /mnt/fs
	cp -r /mnt/host"$ROOT"/etc /mnt/fs/one
	next d 1
	fsfreeze -f /mnt/fs
	overlaybd ctl snapshot id-d d/next | grep '^id-d: writes waited .* us$'
	fsfreeze -u /mnt/fs
	cp -r /mnt/host"$ROOT"/src/format /mnt/fs/two
	rm -r /mnt/fs/one
	overlaybd commit -z -t --commit_sealed d/data0 d/layer
	umount /mnt/fs
	e2fsck -fn "$disk"
	snapshotter_detach 1
	# The layers of the snapshot alone: the file system as it was frozen.
	layered /mnt/disk/e /mnt/disk/base /mnt/disk/d/layer
	disk=$(snapshotter_attach 2 /mnt/disk/e/config.v1.json)
	e2fsck -fn "$disk"
	mount -o ro,noload "$disk" /mnt/fs
	diff -r /mnt/host"$ROOT"/etc /mnt/fs/one
	test ! -e /mnt/fs/two
	umount /mnt/fs
	snapshotter_detach 2
}
check "a frozen file system is whole in the sealed layer, committed while the disk goes on" \
	filesystem

# member NAME: of the device id-g, as the API had it last in `seen`
member() { sed -n "s/^$1 = //p" seen; }
# metric NAME: of the same device
metric() {
	curl -sf http://127.0.0.1:9863/metrics | sed -n "s/^$1{device=\"id-g\"} //p"
}

driven() {
	local disk
	image g
	disk=$(overlaybd ctl attach 'g/config.v1.json;id-g')
	overlaybd ctl device id-g >seen
	equal "$(member transport)" '"tcmu"'
	equal "$(member address)" "\"$disk\""
	equal "$(member bytes)" $((1 << 30))
	fio_on "$disk"
	[ "$(metric overlaybd_ring_depth_max)" -gt 0 ]
	equal "$(metric overlaybd_ring_depth)" 0
	overlaybd ctl flush id-g
	overlaybd ctl device id-g >seen
	equal "$(member stats.errors)" 0
	mkfs.ext4 -q "$disk"
	mount "$disk" /mnt/fs
	overlaybd ctl resize id-g 2G
	echo 1 >"/sys/block/${disk#/dev/}/device/rescan"
	resize2fs "$disk"
	[ "$(stat -f -c %b /mnt/fs)" -gt $(((3 << 30) / 2 / 4096)) ]
	refuses "$disk is mounted at /mnt/fs" overlaybd ctl detach id-g
	umount /mnt/fs
	e2fsck -fn "$disk"
	overlaybd ctl detach id-g
	test ! -e "$disk"
	refuses "there is no device id-g" overlaybd ctl device id-g
}
check "attached, seen, flushed, grown and detached by the API" driven

killed() {
	local disk writer i n
	image f
	disk=$(snapshotter_attach 1 "/mnt/disk/f/config.v1.json;id-f")
	fio_on "$disk" --do_verify=0 --fsync=16 &
	writer=$!
	for ((i = 0; i < $1; i++)); do
		next f 1
		n=$(($(cat f/n) + 1))
		snapshot f >/tmp/status &
		until_ok 10 test -e f/config.v1.json.snap || :
		kill -KILL "$(daemon_pid)"
		wait $!
		start_daemon
		until_ok 60 test ! -e f/config.v1.json.snap
		# It was taken, or it was not: the configuration says which.
		if grep -q "/index$n\"" f/config.v1.json; then
			echo $n >f/n
		else
			rm "f/data$n" "f/index$n"
		fi
	done
	wait $writer
	fio_on "$disk" --verify_only
	snapshotter_detach 1
}
check "killed amid a snapshot: the next daemon goes on without one failed write" \
	killed "$(count 10)"
stop_daemon
