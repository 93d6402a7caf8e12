#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# What file systems, sg3-utils and hostile programs see of a disk.
. "$(dirname "$0")/lib.sh"
prepare
writable /mnt/disk/log 1024
writable /mnt/disk/sparse 1024 -s
writable /mnt/disk/big 65536
start_daemon || exit 1
mkdir -p mnt tree
cp -r /usr/share/doc/[ab]* /usr/share/common-licenses tree/ 2>/dev/null
find tree -type l -delete
(cd tree && find . -type f -exec sha256sum {} +) >sums
say "$(wc -l <sums) files, $(du -sh tree | cut -f1)"

same_files() { (cd "$1" && sha256sum --quiet -c /mnt/disk/sums); }

ext4_log() {
	local disk
	disk=$(snapshotter_attach 1 /mnt/disk/log/config.v1.json)
	mkfs.ext4 -q -O '^has_journal,sparse_super,flex_bg' -G 1 -E discard -F "$disk"
	mount -o discard "$disk" mnt
	cp -r tree/. mnt/
	umount mnt
	e2fsck -fn "$disk"
	mount -o discard "$disk" mnt
	same_files mnt
	rm -r mnt/[ab]*
	fstrim -v mnt
	umount mnt
	e2fsck -fn "$disk"
	snapshotter_detach 1
}
check "ext4 on an append-only layer: every file's sha256, fstrim, e2fsck -fn clean" \
	ext4_log

xfs_sparse() {
	local disk
	disk=$(snapshotter_attach 1 /mnt/disk/sparse/config.v1.json)
	# No word of stripes; discards by 4 KiB, up to 2 GiB each.
	equal "$(mkfs.xfs -q -f "$disk" 2>&1)" ""
	equal "$(cd "/sys/block/${disk#/dev/}/queue" && cat minimum_io_size \
		optimal_io_size discard_granularity discard_max_bytes | xargs)" \
		"512 0 4096 2147483648"
	mount -o nouuid,discard "$disk" mnt
	cp -r tree/. mnt/
	umount mnt
	mount -o nouuid,discard "$disk" mnt
	same_files mnt
	rm -r mnt/[ab]*
	fstrim -v mnt
	umount mnt
	xfs_repair -n "$disk"
	snapshotter_detach 1
}
check "xfs on a sparse layer: every file's sha256, fstrim, xfs_repair -n clean" \
	xfs_sparse

erofs_lower() {
	local disk
	writable /mnt/disk/e 64
	disk=$(snapshotter_attach 1 /mnt/disk/e/config.v1.json)
	mkfs.erofs -zlz4 erofs.img tree >/dev/null
	dd if=erofs.img of="$disk" bs=1M conv=fsync status=none
	snapshotter_detach 1
	overlaybd commit -z e/data e/index e/layer
	layered /mnt/disk/r /mnt/disk/e/layer
	disk=$(snapshotter_attach 1 /mnt/disk/r/config.v1.json)
	equal "$(blockdev --getro "$disk")" 1
	mount -o ro "$disk" mnt
	same_files mnt
	umount mnt
	snapshotter_detach 1
}
check "erofs in a committed layer: every file's sha256, the disk is read-only" \
	erofs_lower

# uses_ring: the daemon reads by io_uring, past the page cache
uses_ring() {
	local pid
	pid=$(daemon_pid)
	ls -l "/proc/$pid/fd" | grep -F 'anon_inode:[io_uring]'
	equal "$(fincore --noheadings --output PAGES e/layer | xargs)" 0
}

by_ring() {
	local disk
	stop_daemon
	service_config '"ioEngine": 1'
	start_daemon
	disk=$(snapshotter_attach 1 /mnt/disk/r/config.v1.json)
	echo 3 >/proc/sys/vm/drop_caches
	mount -o ro "$disk" mnt
	same_files mnt
	umount mnt
	fio --name=x --filename="$disk" --rw=randread --direct=1 --readonly \
		--ioengine=libaio --iodepth=32 --bsrange=512-1M --size=16M \
		--io_size=32M --output=fio.ring
	grep -q "err= 0" fio.ring
	blockdev --flushbufs "$disk"
	cmp -n "$(stat -c %s erofs.img)" erofs.img "$disk"
	uses_ring
	fails grep ioEngine /tmp/overlaybd.log
	snapshotter_detach 1
	stop_daemon
	service_config
	start_daemon
}
check "the same with ioEngine 1: by io_uring with O_DIRECT, 32 reads at once" by_ring

mkfs_64() {
	local disk
	disk=$(snapshotter_attach 1 /mnt/disk/big/config.v1.json)
	equal "$(blockdev --getsize64 "$disk")" $((64 << 30))
	mkfs.ext4 -q -E discard -F "$disk"
	e2fsck -fn "$disk"
	blkdiscard "$disk"
	snapshotter_detach 1
	# Discards are a few records, not gigabytes.
	[ "$(stat -c %s big/index)" -lt 1000000 ]
}
check "mkfs with discard on 64 GiB, and blkdiscard of all of it" mkfs_64

dd if=/dev/urandom of=block bs=512 count=1 status=none

# ---- sg3-utils -----------------------------------------------------------------
RW='' RO=''
RW=$(snapshotter_attach 1 /mnt/disk/log/config.v1.json)
[ ! -e r/config.v1.json ] ||
	RO=$(snapshotter_attach 2 /mnt/disk/r/config.v1.json)
# The disk itself opens for reading only.
RO_SG=/dev/$(ls "/sys/block/${RO#/dev/}/device/scsi_generic")

says() { # PATTERN COMMAND...
	local said pattern=$1
	shift
	said=$("$@" 2>&1) || { echo "$*: exit $?: $said"; return 1; }
	grep -Eq -- "$pattern" <<<"$said" ||
		{ echo "$*: no '$pattern' in: $said"; return 1; }
}

# raw CDB...: sg_raw's exit code, and what it said in $said; never a hang
raw() {
	local rc=0
	said=$(timeout 60 sg_raw -t 20 "$@" 2>&1) || rc=$?
	[ $rc -ne 124 ] && [ $rc -ne 33 ] || { echo "hangs: sg_raw $*"; return 1; }
	[[ ! ${said,,} =~ timed?\ ?out|did_ ]] || { echo "sg_raw $*: $said"; return 1; }
}
sense() { # PATTERN ARGUMENT...
	local pattern=$1
	shift
	raw "$@"
	[[ ${said,,} =~ $pattern ]] ||
		{ echo "sg_raw $*: no '$pattern': $said"; return 1; }
}

inquiry() {
	local page
	says "Vendor identification: LIO-ORG" sg_inq "$RW"
	says "Product identification: TCMU device" sg_inq "$RW"
	says "Product revision level: 0002" sg_inq "$RW"
	for page in 0x00 0x80 0x83 0xb0 0xb1 0xb2; do sg_vpd -p $page "$RW"; done
	says "0x0,.*0x80|Unit serial number" sg_vpd -p 0 "$RW"
	says "0x6001405" sg_vpd -p 0x83 "$RW"
	says "Maximum write same length: 0x|Maximum write same length: [0-9]" \
		sg_vpd -p 0xb0 "$RW"
	says "Non-rotating medium" sg_vpd -p 0xb1 "$RW"
	says "\(LBPWS\): 1" sg_vpd -p 0xb2 "$RW"
	says "\(LBPRZ\): 1" sg_vpd -p 0xb2 "$RW"
	fails sg_vpd -p 0xb6 "$RW"
	fails sg_inq -p 0x99 "$RW"
}
check "sg_inq and sg_vpd: identity and every VPD page" inquiry

capacity() {
	says "Last LBA=2097151" sg_readcap "$RW"
	says "Last LBA=2097151" sg_readcap -l "$RW"
	says "lbpme=1, lbprz=1" sg_readcap -l "$RW"
}
check "sg_readcap: 10 and 16 agree with the disk" capacity

modes() {
	says "WP=0" sg_modes -a "$RW"
	says "WP=1" sg_modes -a "$RO"
	equal "$(write_cache 2>/dev/null)" "WCE=1"
	sg_modes -6 -p 0x3f "$RW"
	sg_modes -p 0x08 "$RW"
	fails sg_modes -p 0x1c "$RW"
}
# byte 2 bit 2 of page 8
write_cache() {
	local byte
	# What has changed is told once.
	sg_turs "$RW" >/dev/null 2>&1 || :
	byte=$(sg_modes -r -6 -p 8 "$RW" 2>/dev/null | od -An -tu1 -j6 -N1)
	echo "WCE=$(((byte >> 2) & 1))"
}
check "sg_modes: pages, WP of a read-only disk, WCE" modes

commands() {
	sg_turs "$RW"
	sg_requests "$RW"
	sg_start --start "$RW"
	sg_sync "$RW"
	sg_sync -S "$RW"
	sg_sync "$RO_SG"
	sg_verify --lba=0 --count=8 "$RW"
	# One block over eight, then none, then eight of zeros.
	sg_write_same --16 --lba=2000000 --num=8 --xferlen=512 --in=block "$RW"
	blockdev --flushbufs "$RW"
	cmp -n 512 block <(dd if="$RW" bs=512 skip=2000007 count=1 status=none)
	cat block block >two
	sg_compare_and_write --lba=2000000 --num=1 --in=two "$RW"
	dd if=/dev/zero of=zero bs=512 count=1 status=none
	cat zero block >other
	fails sg_compare_and_write --lba=2000000 --num=1 --in=other "$RW"
	sg_unmap --force --lba=2000000 --num=4 "$RW"
	sg_write_same --16 --unmap --lba=2000004 --num=4 --xferlen=512 "$RW"
	blockdev --flushbufs "$RW"
	cmp <(head -c 4096 /dev/zero) \
		<(dd if="$RW" bs=512 skip=2000000 count=8 status=none)
	says "Write same" sg_opcodes "$RW"
	fails sg_unmap --force --lba=0 --num=4 "$RO_SG"
	fails sg_write_same --16 --lba=0 --num=8 --xferlen=512 --in=block "$RO_SG"
	sense "incompatible format" -s 512 -i block "$RO_SG" \
		2a 0 0 0 0 0 0 0 1 0
}
check "sg_unmap, write_same, verify, opcodes, sync, compare_and_write" commands

# Bytes of READ, WRITE ... that sg_opcodes says it has are really answered.
opcodes() {
	local code n=0
	for code in $(sg_opcodes -n "$RW" 2>/dev/null |
		awk '$1 ~ /^[0-9a-f][0-9a-f]$/ { print $1 }' | sort -u); do
		case $code in
		00 | 03 | 12 | 25 | 28 | 2f | 35 | 88 | 8f | 91) ;;
		*) continue ;;
		esac
		sg_raw -t 20 -r 512 "$RW" "$code" 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 >/dev/null \
			2>&1 || { echo "$code is listed, and refused"; return 1; }
		n=$((n + 1))
	done
	[ $n -ge 8 ] || { sg_opcodes "$RW"; return 1; }
}
check "what sg_opcodes lists is answered" opcodes

# ---- odd CDBs -------------------------------------------------------------------
every_opcode() {
	local op step=1 code
	[ -n "${SOAK:-}" ] || step=11
	for ((op = 0; op < 256; op += step)); do
		printf -v code %02x $op
		case $code in
		# Kept by the kernel, or about others: reservations.
		16 | 17 | 56 | 57 | 5e | 5f) continue ;;
		esac
		raw "$RW" "$code" 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
		raw -r 4096 "$RW" "$code" 1f ff ff ff ff ff ff ff ff ff ff ff ff ff 0
	done
	# Groups 3, 6 and 7; of some sg_raw thinks that they are NVMe.
	for code in 60 6f 7e 7f c0 c5 df e0 ff; do
		sense "illegal request|nvme result=0x2" "$RW" "$code" 0 0 0 0 0 0 0 0 0
	done
	sense "illegal request" "$RW" 7f 0 0 0 0 0 0 18 0 9 0 0 0 0 0 0 \
		0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
	sg_turs "$RW"
}
check "every opcode, groups 3, 6 and 7: a sense code each, never a hang" \
	every_opcode

odd_lengths() {
	# Past the end: 2097152 blocks is 0x200000.
	sense "out of range" -r 512 "$RW" 28 0 0 20 0 0 0 0 1 0
	sense "out of range" -r 1024 "$RW" 28 0 0 1f ff ff 0 0 2 0
	sense "out of range" -r 512 "$RW" 88 0 7f ff ff ff ff ff ff ff 0 0 0 1 0 0
	sense "out of range" -s 512 -i block "$RW" 2a 0 0 20 0 0 0 0 1 0
	sense "out of range" -s 512 -i block "$RW" 8a 0 ff ff ff ff ff ff ff ff 0 0 0 1 0 0
	sense "out of range" -s 512 -i block "$RW" 93 8 0 0 0 0 0 1f ff ff 0 0 0 2 0 0
	sense "out of range" "$RW" 2f 0 0 20 0 0 0 0 1 0
	# Lengths that disagree with the data: any answer, no hang.
	raw -r 512 "$RW" 28 0 0 0 0 0 0 0 8 0
	raw -r 8192 "$RW" 28 0 0 0 0 0 0 0 1 0
	raw -s 512 -i block "$RW" 2a 0 0 10 0 0 0 0 8 0
	raw "$RW" 28 0 0 0 0 0 0 0 8 0
	raw "$RW" 2a 0 0 10 0 0 0 0 8 0
	raw -s 512 -i block "$RW" 2a 0 0 10 0 0 0 0 0 0
	raw -r 100 "$RW" 28 0 0 0 0 0 0 0 1 0
	# Parameter lists that are none.
	raw -s 512 -i block "$RW" 42 0 0 0 0 0 0 2 0 0
	raw -s 8 -i block "$RW" 42 0 0 0 0 0 0 0 8 0
	raw -s 8 -i block "$RW" 15 10 0 0 8 0
	raw -s 8 -i block "$RW" 55 10 0 0 0 0 0 0 8 0
	raw -s 512 -i block "$RW" 89 0 0 0 0 0 0 0 0 0 0 0 0 1 0 0
	sense "illegal request" -r 255 "$RW" 12 1 99 0 ff 0
	for alloc in 0 1 5 36; do
		raw -r 255 "$RW" 12 0 0 0 $alloc 0
		raw -r 255 "$RW" 1a 0 3f 0 $alloc 0
		raw -r 255 "$RW" 1a 0 3f ff $alloc 0
	done
	# And it works on.
	sg_turs "$RW"
	dd if="$RW" of=/dev/null bs=1M count=4 status=none
	daemon_alive
}
check "LBA past the end, lengths that disagree, odd lists: a sense code each" \
	odd_lengths

reconfig() {
	local device=$CORE/user_999999999/dev_1 disk=${RW#/dev/}
	echo $((2 << 30)) >"$device/attrib/dev_size"
	echo 1 >"/sys/block/$disk/device/rescan"
	equal "$(blockdev --getsize64 "$RW")" $((2 << 30))
	fails put $((1 << 20)) "$device/attrib/dev_size"
	fails put overlaybd//other "$device/attrib/dev_config"
	echo 0 >"$device/attrib/emulate_write_cache"
	equal "$(write_cache)" "WCE=0"
	echo 1 >"$device/attrib/emulate_write_cache"
	equal "$(write_cache)" "WCE=1"
	daemon_alive
}
check "RECONFIG: a disk grows, its write cache goes off and on, the rest is refused" \
	reconfig

# A file system on a sparse layer grows under its mount, and is as large again.
grown_sparse() {
	local disk device=$CORE/user_999999999/dev_3
	disk=$(snapshotter_attach 3 /mnt/disk/sparse/config.v1.json)
	mkfs.ext4 -q -F "$disk"
	mount "$disk" mnt
	cp -r tree/. mnt/
	echo $((2 << 30)) >"$device/attrib/dev_size"
	echo 1 >"/sys/block/${disk#/dev/}/device/rescan"
	equal "$(blockdev --getsize64 "$disk")" $((2 << 30))
	resize2fs "$disk"
	umount mnt
	snapshotter_detach 3
	disk=$(snapshotter_attach 3 /mnt/disk/sparse/config.v1.json)
	equal "$(blockdev --getsize64 "$disk")" $((2 << 30))
	e2fsck -fn "$disk"
	mount "$disk" mnt
	same_files mnt
	umount mnt
	snapshotter_detach 3
}
check "a sparse disk grows by RECONFIG while it is mounted, for good" grown_sparse

# The head that the kernel keeps in the mailbox is put where no entry begins.
broken_ring() {
	local uio pid at job
	uio=$(grep -l "/mnt/disk/log/" /sys/class/uio/uio*/name | cut -d/ -f5)
	pid=$(daemon_pid)
	at=$(awk -v dev="/dev/$uio" '$NF == dev { sub("-.*", "", $1); print $1 }' \
		"/proc/$pid/maps" | head -1)
	head -c 1M /dev/urandom >random
	printf '\003\000\000\000' |
		dd of="/proc/$pid/mem" bs=1 seek=$((0x$at + 12)) conv=notrunc status=none
	dd if=random of="$RW" bs=64k oflag=direct conv=fsync status=none &
	job=$!
	until_ok 30 grep "the ring of $uio, .*/log/config.v1.json, is broken" \
		/tmp/overlaybd.log
	wait $job
	cmp -n 1048576 random "$RW"
	# Nothing of before is lost, and the device goes as any other.
	until_ok 30 grep -qx unblocked $CORE/user_999999999/dev_1/action/block_dev
	daemon_alive
}
check "a broken ring is told, reset, and the disk goes on without an error" \
	broken_ring
