#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Mounted images whose layers are in a registry, as the snapshotter configures
# them: their registry goes and comes, they become local while they are read.
. "$(dirname "$0")/lib.sh"
prepare
start_daemon || exit 1
mkdir -p mnt registry
BLOBS=http://127.0.0.1:5000/v2/x/app/blobs
cat >registry.yml <<END
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: /mnt/disk/registry}}
http: {addr: "127.0.0.1:5000", secret: "of the test"}
END

start_registry() {
	docker-registry serve registry.yml >>/tmp/registry.out 2>&1 3>&- &
	echo $! >registry.pid
	until_ok 60 listens 5000
}
stop_registry() {
	kill -9 "$(cat registry.pid)"
	until_ok 60 fails listens 5000
}
# listens PORT: somebody does (curl takes a second here)
listens() { (: <>"/dev/tcp/127.0.0.1/$1"); }

digest() { sha256sum <"$1" | cut -d' ' -f1; }

# push FILE: a blob of it
push() {
	local at
	at=$(curl -sf -X POST -D - -o /dev/null $BLOBS/uploads/ |
		sed -n 's/^location: *//Ip' | tr -d '\r')
	curl -sf -X PUT -H 'content-type: application/octet-stream' \
		--data-binary "@$1" "$at&digest=sha256:$(digest "$1")"
}

# layer NR IMAGE FILE...: files of 2 MiB that nothing compresses, in a layer
# that is in the registry then
layer() {
	local nr=$1 dir=$2 disk i
	shift 2
	disk=$(snapshotter_attach 1 "$dir/config.v1.json") || return 1
	[ "$nr" -gt 1 ] || mkfs.ext4 -q "$disk" 128M
	mount "$disk" mnt
	for i; do head -c 2M /dev/urandom >"mnt/$i"; done
	(cd mnt && sha256sum "$@") >>sums
	umount mnt
	snapshotter_detach 1
	overlaybd commit -z -t "$dir/data" "$dir/index" "layer$nr"
	push "layer$nr"
}
start_registry || exit 1
writable /mnt/disk/low 64
layer 1 /mnt/disk/low 1 2 3 4 || exit 1
writable_over /mnt/disk/layer1 /mnt/disk/up
layer 2 /mnt/disk/up 5 6 7 8 || exit 1
stop_daemon

# image DIR: of these layers, as the snapshotter writes it; nothing is cached
image() {
	local dir=$1 i lowers=
	rm -rf cache cache.state
	for i in 1 2; do
		mkdir -p "$dir/$i/fs"
		lowers+="${lowers:+,}{\"digest\":\"sha256:$(digest "layer$i")\","
		lowers+="\"size\":$(stat -c %s "layer$i"),\"dir\":\"$dir/$i/fs\"}"
	done
	mkdir -p "$dir/2/block"
	cat >"$dir/2/block/config.v1.json" <<-END
	{"repoBlobUrl":"$BLOBS","lowers":[$lowers],"upper":{},"resultFile":"$dir/2/block/init-debug.log"}
	END
}

# same FILE...: they are as they were written, read from the disk (dropping
# caches has every program read again)
same() {
	local i sum name
	for i; do
		while read -r sum name; do [ "$name" != "$i" ] || break; done <sums
		equal "$(dd if="mnt/$i" bs=256k iflag=direct status=none |
			sha256sum)" "$sum  -"
	done
}

# all_same: of everything, the file system's own blocks as well
all_same() {
	echo 3 >/proc/sys/vm/drop_caches
	same 1 2 3 4 5 6 7 8
}

# start_load FILE [FIO OPTION]: random reads of it; $load is its process
start_load() {
	fio --name=reads --filename="$1" --rw=randread --direct=1 --readonly \
		--ioengine=libaio --iodepth=16 --bsrange=512-256k --rate_iops=200 \
		--time_based --runtime=600 --allow_file_create=0 --output=fio.out \
		"${@:2}" &
	load=$!
}
stop_load() {
	kill -INT "$load"
	wait "$load" || : # ended by a signal
	grep -q 'err= *0' fio.out
}

no_error() { fails kernel_said 'I/O error|EXT4-fs error'; }

# waits: requests are not answered yet, as the only disk's metrics have it
waits() {
	curl -sf http://127.0.0.1:9863/metrics |
		grep '^overlaybd_ring_depth{.*} [1-9]'
}

outlasts() {
	local dir=/mnt/disk/far disk reader
	image $dir
	service_config '"exporterConfig": {"enable": true}'
	start_daemon
	disk=$(snapshotter_attach 1 $dir/2/block/config.v1.json)
	mount -o ro "$disk" mnt
	same 1 5
	stop_registry
	same 3 8 &
	reader=$!
	until_ok 30 waits
	kill_and_start
	same 1 5
	sleep 2
	kill -0 $reader
	waits
	start_registry
	wait $reader
	all_same
	fails waits
	umount mnt
	snapshotter_detach 1
	stop_daemon
	no_error
}
check "killed while the registry is down: what is kept is read, the rest waits until it is back" \
	outlasts

# What the original leaves when it is killed: a disk that is held back, sparse
# files without a word of ours, a configuration with its older keys.
taken_over() {
	local dir=/mnt/disk/old disk held=$CORE/user_999999999/dev_1/action/block_dev
	image $dir
	service_config
	start_daemon
	disk=$(snapshotter_attach 1 $dir/2/block/config.v1.json)
	mount -o ro "$disk" mnt
	same 1 5
	kill -9 "$(daemon_pid)"
	until_ok 60 gone "$(daemon_pid)"
	stop_registry
	put 1 "$held"
	rm -r cache.state
	cat >/etc/overlaybd/overlaybd.json <<-END
	{"logLevel": 1, "logPath": "/tmp/overlaybd.log", "ioEngine": 1,
	 "registryCacheDir": "/mnt/disk/cache", "registryCacheSizeGB": 1,
	 "credentialFilePath": "/opt/overlaybd/cred.json", "registryFsVersion": "v2",
	 "download": {"enable": false, "delay": 600, "delayExtra": 30, "maxMBps": 100},
	 "enableAudit": false}
	END
	start_daemon
	same 1 5
	equal "$(cat "$held")" unblocked
	start_registry
	all_same
	umount mnt
	snapshotter_detach 1
	stop_daemon
	no_error
}
check "what the original leaves is taken over: its disk, its cache, its older keys" \
	taken_over

switched() {
	local i
	for i in 1 2; do
		grep -q "switch to localfile '$1/$i/fs/overlaybd.commit' success" \
			/tmp/overlaybd.log || return 1
	done
}

becomes_local() {
	local dir=/mnt/disk/near disk load i rounds=0 end=$((SECONDS + 300))
	image $dir
	service_config '"download":
		{"enable": true, "delay": 15, "delayExtra": 1, "maxMBps": 2}'
	start_daemon
	disk=$(snapshotter_attach 1 $dir/2/block/config.v1.json)
	equal "$(cat $dir/2/block/init-debug.log)" success
	mount -o ro "$disk" mnt
	start_load "$disk" --size=128M
	fails switched $dir
	until switched $dir; do
		same 1 3 6 8
		rounds=$((rounds + 1))
		[ $SECONDS -lt $end ]
	done
	say "$rounds rounds until it was local"
	all_same
	for i in 1 2; do
		equal "$(digest $dir/$i/fs/overlaybd.commit)" "$(digest "layer$i")"
	done
	# Nobody is needed any more, nor what was kept on the way.
	stop_registry
	rm -rf cache
	kill_and_start
	all_same
	stop_load
	umount mnt
	snapshotter_detach 1
	stop_daemon
	no_error
}
check "a mounted image is switched to its downloaded layers under fio" \
	becomes_local
