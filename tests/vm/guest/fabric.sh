#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The same core device over iSCSI, and how fast it is beside a null one.
. "$(dirname "$0")/lib.sh"
prepare
modprobe -a iscsi_target_mod iscsi_tcp
writable /mnt/disk/a 64
start_daemon || exit 1

# A layer of 8 MiB that nothing compresses, in a registry.
writable /mnt/disk/noise 64
disk=$(snapshotter_attach 1 /mnt/disk/noise/config.v1.json) || exit 1
head -c 8M /dev/urandom | dd of="$disk" bs=1M conv=fsync status=none
snapshotter_detach 1
overlaybd commit noise/data noise/index layer
registry

DEVICE=$CORE/user_1/vol1
mkdir -p "$DEVICE"
echo -n "dev_config=overlaybd//mnt/disk/a/config.v1.json" >"$DEVICE/control"
echo -n 1 >"$DEVICE/enable"

IQN=iqn.2026-01.io.overlaybd:vol1
PORT=/sys/kernel/config/target/iscsi/$IQN/tpgt_1

# log_in DEVICE: exports it as the README says; prints the initiator's disk
log_in() {
	mkdir -p $PORT/lun/lun_0 $PORT/np/127.0.0.1:3260
	ln -s "$1" $PORT/lun/lun_0/vol1
	echo 0 >$PORT/attrib/authentication
	echo 1 >$PORT/attrib/generate_node_acls
	echo 0 >$PORT/attrib/demo_mode_write_protect
	echo 1 >$PORT/enable

	mkdir -p /etc/iscsi /run/lock/iscsi
	[ -s /etc/iscsi/initiatorname.iscsi ] ||
		echo "InitiatorName=iqn.2026-01.io.overlaybd:test" \
			>/etc/iscsi/initiatorname.iscsi
	pgrep -x iscsid >/dev/null || iscsid 3>&-
	iscsiadm -m discovery -t sendtargets -p 127.0.0.1 >&2
	iscsiadm -m node -T $IQN -p 127.0.0.1 --login >&2
	until_ok 30 lsscsi_tcmu
	lsscsi | awk '/TCMU/ { print $NF }'
}
lsscsi_tcmu() { lsscsi | grep -q "TCMU.*/dev/sd"; }
log_out() { iscsiadm -m node -T $IQN -p 127.0.0.1 --logout; }
remove_target() { rmdir $PORT/lun/lun_0 $PORT/np/127.0.0.1:3260 $PORT ${PORT%/*}; }

iscsi() {
	local disk
	disk=$(log_in "$DEVICE")
	equal "$(overlaybd ls --json | grep -c "iscsi $IQN")" 1
	head -c 1M /dev/urandom >random
	dd if=random of="$disk" bs=64k oflag=direct conv=fsync status=none
	cmp -n 1048576 random "$disk"
	refuses "it is exported: iscsi $IQN" overlaybd detach user_1/vol1
	log_out
	echo 0 >$PORT/enable
	rm $PORT/lun/lun_0/vol1
	remove_target
}
check "iSCSI over the same device, by configfs: written and read through it" iscsi

# The initiator is told to wait for ever, and the LUN is taken away under it.
silent_iscsi() {
	local device=$CORE/user_1/slow disk job
	remote slow "$(sha256sum <layer | cut -d' ' -f1)"
	mkdir -p "$device"
	echo -n "dev_config=overlaybd//mnt/disk/slow/config.v1.json" >"$device/control"
	echo -n 1 >"$device/enable"
	echo -n 2147483 >"$device/attrib/cmd_time_out"
	disk=$(log_in "$device")
	echo 2147483 >"/sys/block/${disk#/dev/}/device/timeout"
	kill -STOP $REGISTRY
	dd if="$disk" of=/dev/null bs=64k skip=100 count=1 iflag=direct 2>/dev/null &
	job=$!
	sleep 2
	kill -0 $job
	# Without a word to the daemon the kernel waits for that read.
	rm $PORT/lun/lun_0/vol1
	grep "what waits on .*/slow/.* is ended" /tmp/overlaybd.log
	kill -CONT $REGISTRY
	log_out
	wait $job || :
	echo 0 >$PORT/enable
	remove_target
	rmdir "$device"
}
check "a LUN whose source never answers is taken away at once" silent_iscsi

vhost() {
	local port=/sys/kernel/config/target/vhost/naa.5001405000000001/tpgt_1
	modprobe vhost_scsi
	mkdir -p $port/lun/lun_0
	echo naa.5001405000000002 >$port/nexus
	ln -s "$DEVICE" $port/lun/lun_0/vol1
	rm $port/lun/lun_0/vol1
	rmdir $port/lun/lun_0
	echo NULL >$port/nexus
	rmdir $port ${port%/*}
}
check "vhost-scsi over the same device: the steps of configfs" vhost
rmdir "$DEVICE"

# loop_disk ID CORE: a loopback disk of any core device
loop_disk() {
	local port=$LOOPBACK/$(wwn "$1")/tpgt_1
	mkdir -p "$port/lun/lun_0"
	echo -n "$(wwn "$1")" >"$port/nexus"
	ln -s "$2" "$port/lun/lun_0/dev_$1"
	until_ok 20 test -e "/sys/class/scsi_device/$(cat "$port/address"):0/device/block"
	echo "/dev/$(ls "/sys/class/scsi_device/$(cat "$port/address"):0/device/block")"
}

# iops DISK RW: of some seconds at 4 KiB and queue depth 16
iops() {
	fio --name=x --filename="$1" --rw="$2" --bs=4k --iodepth=16 --direct=1 \
		--ioengine=libaio --size=60M --time_based --runtime="$SECS" \
		--output-format=terse --terse-version=3 |
		awk -F';' '{ print $8 + $49 }'
}
jiffies() { awk '{ print $14 + $15 }' "/proc/$(daemon_pid)/stat"; }

speed() {
	local null=$CORE/rd_mcp_1/null ours theirs rw i before cpu a b
	SECS=$1
	mkdir -p "$null"
	echo "rd_pages=16384,rd_nullio=1" >"$null/control"
	echo 1 >"$null/enable"
	theirs=$(loop_disk 2 "$null")
	ours=$(snapshotter_attach 1 /mnt/disk/a/config.v1.json)
	dd if=/dev/urandom of="$ours" bs=1M count=60 oflag=direct status=none
	for rw in randread randwrite; do
		a=$(iops "$theirs" $rw)
		before=$(jiffies)
		b=$(iops "$ours" $rw)
		cpu=$(($(jiffies) - before))
		echo "$rw 4k qd16: null backstore $a/s, ours $b/s," \
			"$(awk -v a="$a" -v b="$b" 'BEGIN { printf "%.2f", b / a }') of it;" \
			"daemon's CPU $(awk -v j="$cpu" -v n="$((b * SECS))" \
				'BEGIN { printf "%.0f us", j * 10000 / (n + 1) }') per request" |
			tee -a speed
	done
	snapshotter_detach 1
	[ "$(wc -l <speed)" = 2 ]
	sed 's,^,# ,' speed >&3
}
check "speed beside a null backstore in one guest" speed "$(count 20)"
