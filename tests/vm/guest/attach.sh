#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Devices come and go as the snapshotter and people make them.
. "$(dirname "$0")/lib.sh"
prepare
writable /mnt/disk/a 64
A=/mnt/disk/a/config.v1.json
start_daemon || exit 1

nothing_left() {
	equal "$(find /sys/kernel/config/target -name 'dev_*' -o -name 'naa.*')" ""
	equal "$(ls /sys/class/uio)" ""
}

# copies N: images 1 to N like the first
copies() {
	local i
	for ((i = 1; i <= $1; i++)); do
		[ -e "c$i" ] || cp -r a "c$i"
		sed "s#/mnt/disk/a/#/mnt/disk/c$i/#g" a/config.v1.json \
			>"c$i/config.v1.json"
	done
}

again_and_again() {
	local n=$1 i disk fds threads mib threads2 mib2
	for ((i = 1; i <= n; i++)); do
		disk=$(snapshotter_attach 128 "$A")
		equal "$(cat a/result)" success
		equal "$(blockdev --getsize64 "$disk")" $((1 << 30))
		snapshotter_detach 128
		# The first ones fill what is filled once.
		[ "$i" -ne $(((n + 9) / 10)) ] || read -r fds threads mib <<<"$(weigh)"
		[ $((i % 20)) -ne 0 ] || say "$i: $(weigh)"
	done
	until_ok 30 has_descriptors "$fds"
	read -r _ threads2 mib2 <<<"$(weigh)"
	say "$n times: from $fds descriptors, $threads threads, $mib MiB to $(weigh)"
	[ $((threads2 - threads)) -le 2 ]
	[ $((mib2 - mib)) -lt 20 ]
	nothing_left
}
check "the snapshotter's attach and detach, again and again: no descriptor, thread or memory stays" \
	again_and_again "$(count 200)"

at_once() {
	local n=$1 i jobs=() serials
	copies "$n"
	for ((i = 1; i <= n; i++)); do
		snapshotter_attach "$i" "/mnt/disk/c$i/config.v1.json" >"disk$i" &
		jobs+=($!)
	done
	for i in "${jobs[@]}"; do wait "$i"; done
	equal "$(sort -u disk? disk?? 2>/dev/null | wc -l)" "$n"
	serials=$(for ((i = 1; i <= n; i++)); do
		sg_inq -p 0x83 -r "$(cat "disk$i")" | sha256sum
	done | sort -u | wc -l)
	equal "$serials" "$n"
	jobs=()
	for ((i = 1; i <= n; i++)); do
		snapshotter_detach "$i" &
		jobs+=($!)
	done
	for i in "${jobs[@]}"; do wait "$i"; done
	rm disk*
	nothing_left
}
check "many attaches at once: as many disks, each with a name of its own" \
	at_once "$([ -n "$SOAK" ] && echo 64 || echo 10)"

ids() {
	local id disk
	for id in 7 1234567890123; do
		disk=$(snapshotter_attach "$id" "$A")
		test -b "$disk"
		snapshotter_detach "$id"
	done
	nothing_left
}
check "ids of 1 and of 13 digits" ids

# path BYTES: a directory whose config.v1.json has a path of so many bytes
path() {
	local dir=/mnt/disk name=/config.v1.json left
	left=$(($1 - ${#dir} - ${#name} - 1))
	dir+=/$(printf "%${left}s" | tr ' ' p)
	mkdir -p "$dir"
	cp a/config.v1.json "$dir$name"
	echo "$dir$name"
}

long_paths() {
	local long disk
	long=$(path 245)
	equal ${#long} 245
	disk=$(snapshotter_attach 1 "$long")
	test -b "$disk"
	snapshotter_detach 1
	# The kernel cuts it without a word: only the daemon can tell.
	refused 1 "$(path 250)" "No such file|Invalid argument|File name too long"
	grep -i "truncated\|cut\|255" /tmp/overlaybd.log
	# Not even to what is another image's: that lies beside the one meant.
	cp "$long" "$long.old"
	refused 1 "$long.old" "Invalid argument"
	grep "config.v1.json.old may be meant" /tmp/overlaybd.log
	rm "$long.old"
	nothing_left
}
check "a path of 245 bytes works, one that the kernel cuts is refused for that" \
	long_paths

causes() {
	mkdir -p bad
	refused 1 /mnt/disk/bad/none "No such file"
	echo '{' >bad/config.v1.json
	refused 1 /mnt/disk/bad/config.v1.json "Invalid argument"
	echo '{"lowers": 5, "resultFile": "/mnt/disk/bad/result"}' \
		>bad/config.v1.json
	refused 1 /mnt/disk/bad/config.v1.json "Invalid argument"
	grep -q "^failed:.*lowers" bad/result
	layered /mnt/disk/bad /mnt/disk/bad/layer
	refused 1 /mnt/disk/bad/config.v1.json "No such file"
	equal "$(cat bad/result)" "failed:empty repoBlobUrl"
	grep -q "nothing at /mnt/disk/bad/layer" /tmp/overlaybd.log
	cp a/config.v1.json bad/config.v1.json
	snapshotter_attach 1 /mnt/disk/bad/config.v1.json
	# Its writable layer has one writer.
	refused 2 "$A" "busy"
	snapshotter_detach 1
	nothing_left
}
check "what the daemon refuses has its errno and a result file; mended it works" \
	causes

second_enable() {
	local device=$CORE/user_999999999/dev_1
	mkdir -p late
	mkdir -p "$device"
	echo -n "dev_config=overlaybd//mnt/disk/late/config.v1.json" \
		>"$device/control"
	fails enable_says "$device"
	cp a/config.v1.json late/config.v1.json
	enable_says "$device"
	rmdir "$device"
	nothing_left
}
check "a second enable succeeds once the configuration is there" second_enable


people() {
	local disk
	disk=$(overlaybd attach a/config.v1.json)
	equal "$(cat "/sys/block/${disk#/dev/}/device/timeout")" 2147483
	equal "$(cat $CORE/user_999999999/dev_*/attrib/cmd_time_out)" 2147483
	equal "$(overlaybd ls | sed -n 2p | cut -d' ' -f3-5 | xargs)" "$disk 1"
	refuses "cannot attach $A: the id .* is taken" \
		overlaybd attach "$A"
	refuses "cannot attach $A: cannot open .*: it is in use" \
		overlaybd attach "$A" --id 2
	mkfs.ext4 -q "$disk"
	mkdir -p mnt
	mount "$disk" mnt
	refuses "cannot detach .*: $disk is mounted at /mnt/disk/mnt" \
		overlaybd detach "$disk"
	# In a mount namespace that we do not see.
	unshare -m sleep 1000 &
	until_ok 30 grep -qx sleep "/proc/$!/comm"
	umount mnt
	refuses "cannot detach .*: $disk is in use" overlaybd detach "$disk"
	kill $!
	wait $! || :
	overlaybd detach "$A"
	nothing_left
}
check "attach prints a disk, ls shows it, detach refuses it while it is mounted" \
	people

refused_for_people() {
	mkdir -p bad
	layered /mnt/disk/bad /mnt/disk/bad/layer
	refuses "cannot attach /mnt/disk/bad/config.v1.json: empty repoBlobUrl" \
		overlaybd attach bad/config.v1.json
	refuses "5 bytes too long" overlaybd attach "$(path 250)"
	nothing_left
}
check "attach says in one line what the daemon wrote to the result file" \
	refused_for_people
