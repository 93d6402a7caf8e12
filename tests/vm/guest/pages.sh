#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# What docs/devices.md says to type, typed: by hand, over iSCSI, for vhost.
. "${0%/*}/lib.sh"
install_product
mkdir -p /srv
service_config ''
PAGE=/mnt/host$ROOT/docs/devices.md
TARGET=/sys/kernel/config/target

# block PATTERN: the first shell block behind a line that matches
block() {
	sed -n "/$1/,\$p" "$PAGE" | sed -n '/^```sh/,/^```$/p' |
		sed '1d; /^```$/,$d'
}

# disks: names of ours
disks() { grep -l LIO-ORG /sys/block/sd*/device/vendor | cut -d/ -f4 | sort; }

have_disk() { [ -n "$(disks)" ]; }

by_hand() {
	modprobe -a target_core_user tcm_loop sd_mod sg
	start_daemon
	writable /srv 64
	local script disk
	script=$(block 'By hand')
	[ -n "$script" ]
	bash -ec "$script"
	until_ok 30 have_disk
	disk=/dev/$(disks)
	mkfs.ext4 -q "$disk"
	mount "$disk" /mnt/tree
	echo hello >/mnt/tree/file
	umount /mnt/tree
	equal "$(overlaybd ls --json | grep -c '"/srv/config.v1.json"')" 1
	cd $TARGET/loopback
	rm naa.*/tpgt_1/lun/lun_0/vol1
	rmdir naa.*/tpgt_1/lun/lun_0 naa.*/tpgt_1 naa.*
}
mkdir -p /mnt/tree
check "page: a disk by configfs, as written" by_hand

over_iscsi() {
	local script disk
	modprobe iscsi_tcp
	script=$(block '### iSCSI' | sed 's/192\.0\.2\.1/127.0.0.1/')
	[[ $script == *127.0.0.1:3260* ]]
	bash -ec "$script"
	iscsistart -i iqn.2026-01.example:here -t iqn.2026-01.example:vol1 \
		-g 1 -a 127.0.0.1 -p 3260
	until_ok 30 have_disk
	disk=/dev/$(disks)
	mount "$disk" /mnt/tree
	equal "$(cat /mnt/tree/file)" hello
	umount /mnt/tree
}
check "page: the same disk over iSCSI, as written" over_iscsi

for_vhost() {
	local script
	script=$(block '### vhost-scsi' | grep -v ^qemu)
	bash -ec "$script"
	[ -L $TARGET/vhost/naa.5001405000000001/tpgt_1/lun/lun_0/vol1 ]
}
check "page: the same disk for vhost-scsi, as written" for_vhost
