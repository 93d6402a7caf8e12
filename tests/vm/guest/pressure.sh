#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# A source that never answers, and a machine whose memory is full of dirty
# pages.
. "$(dirname "$0")/lib.sh"
prepare
service_config '"readDeadlineSeconds": 604800'
writable /mnt/disk/a 64
writable /mnt/disk/fs 1024
start_daemon || exit 1
mkdir -p mnt

# A layer of 8 MiB that nothing compresses, in a registry.
disk=$(snapshotter_attach 1 /mnt/disk/a/config.v1.json) || exit 1
head -c 8M /dev/urandom >random
dd if=random of="$disk" bs=1M conv=fsync status=none
snapshotter_detach 1
overlaybd commit a/data a/index layer
"/mnt/host$ROOT/build/tools/deno" run -A --no-check --no-config --no-lock \
	"/mnt/host$ROOT/tests/vm/guest/blobs.ts" 5000 layer /run/hang \
	>/tmp/blobs.out 2>&1 3>&- &
until_ok 60 grep -q Listening /tmp/blobs.out || exit 1

remote() {
	local dir=$1 sum
	sum=$(sha256sum <layer | cut -d' ' -f1)
	mkdir -p "$dir"
	cat >"$dir/config.v1.json" <<-END
	{"repoBlobUrl": "http://127.0.0.1:5000/v2/x/blobs",
	 "lowers": [{"digest": "sha256:$sum", "size": $(stat -c %s layer),
	  "dir": "$dir"}], "resultFile": "$dir/result"}
	END
}

silent_source() {
	local slow fast jobs started
	remote /mnt/disk/slow
	slow=$(snapshotter_attach 1 /mnt/disk/slow/config.v1.json)
	fast=$(snapshotter_attach 2 /mnt/disk/fs/config.v1.json)
	cmp -n 65536 random <(dd if="$slow" bs=64k count=1 iflag=direct status=none)
	touch /run/hang
	# It waits, however long that is.
	dd if="$slow" of=/dev/null bs=64k skip=100 count=1 iflag=direct 2>/dev/null &
	jobs=$!
	sleep 1
	kill -0 $jobs
	dd if=random of="$fast" bs=64k oflag=direct conv=fsync status=none
	cmp -n 8388608 random "$fast"
	kill -0 $jobs
	started=$SECONDS
	snapshotter_detach 1
	say "detached after $((SECONDS - started)) s"
	fails wait $jobs
	# An image that cannot even open holds up nobody.
	remote /mnt/disk/never
	sed -i 's/sha256:..../sha256:0000/' never/config.v1.json
	snapshotter_attach 3 /mnt/disk/never/config.v1.json >/dev/null 2>&1 &
	jobs=$!
	sleep 1
	snapshotter_detach 2
	fast=$(snapshotter_attach 2 /mnt/disk/fs/config.v1.json)
	cmp -n 8388608 random "$fast"
	snapshotter_detach 2
	rm /run/hang
	wait $jobs || :
}
check "a source that never answers: other disks work on, its own can be detached" \
	silent_source

# eat SECONDS: more memory than there is, again and again
eat() {
	local end=$((SECONDS + $1)) free
	while [ $SECONDS -lt $end ]; do
		free=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
		# tail keeps all that it reads.
		(echo 1000 >/proc/self/oom_score_adj
			head -c $((free - 60))M /dev/zero | tail -c $((free))M >/dev/null) || :
	done
}

pressure() {
	local disk i=0 end=$((SECONDS + $1)) pid
	pid=$(daemon_pid)
	echo -999 >"/proc/$pid/oom_score_adj"
	disk=$(snapshotter_attach 1 /mnt/disk/fs/config.v1.json)
	mkfs.ext4 -q "$disk"
	mount "$disk" mnt
	eat "$1" &
	while [ $SECONDS -lt $end ]; do
		# Dirty pages, flushed when the kernel wants memory.
		cp random mnt/$((i++ % 40))
	done
	wait $!
	sync -f mnt
	echo 3 >/proc/sys/vm/drop_caches
	for disk in mnt/[0-9]*; do cmp random "$disk"; done
	umount mnt
	snapshotter_detach 1
	kill -0 "$pid"
	say "$i files of 8 MiB"
	fails kernel_said "blocked for more than|Out of memory.*overlaybd"
}
check "dirty pages under memory pressure: written, and nothing stands still" \
	pressure "$(count 60)"
