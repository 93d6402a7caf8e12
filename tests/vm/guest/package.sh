#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The package under systemd: installed, upgraded and removed with a disk
# mounted.
. "${0%/*}/lib.sh"
DEB=/mnt/host$ROOT/build/package/vm.deb
ADMIN=/tmp/dpkg
UNIT=overlaybd-tcmu.service
TREE=/mnt/tree

# systemd as it would be in a container, with our unit and nothing else: the
# guest's root is thrown away.  It talks to processes of its PID namespace
# only: the rest of this script runs there.
under_systemd() {
	local units=/usr/lib/systemd/system target outer
	# What keeps package scripts from starting services in a container.
	rm -f /usr/sbin/policy-rc.d
	rm -rf $units/*.wants /etc/systemd/system /run/systemd
	mkdir -p /etc/systemd/system
	for target in sysinit basic multi-user shutdown; do
		printf '[Unit]\nDefaultDependencies=no\n' \
			>"/etc/systemd/system/$target.target"
	done
	container=vm unshare --fork --pid --mount-proc \
		/usr/lib/systemd/systemd --unit=multi-user.target \
		</dev/null >/tmp/systemd.out 2>&1 3>&- &
	outer=$!
	until_ok 60 test -S /run/systemd/private
	exec nsenter --pid --mount \
		--target "$(cat /proc/$outer/task/$outer/children | xargs)" \
		env INSIDE=1 bash "$0" >&3
}
[ -n "${INSIDE:-}" ] || under_systemd

main_pid() { systemctl show -P MainPID $UNIT; }
# A database of its own: this machine's has a hundred thousand files in it.
dpkg_apart() {
	mkdir -p $ADMIN/info $ADMIN/updates
	touch $ADMIN/status
	DEBIAN_FRONTEND=noninteractive dpkg --admindir=$ADMIN --no-triggers \
		--force-depends "$@" </dev/null
}

installs() {
	until_ok 60 systemctl is-system-running --wait
	modprobe -a target_core_user tcm_loop sd_mod
	dpkg_apart -i "$DEB"
	equal "$(systemctl is-enabled $UNIT)" enabled
	equal "$(systemctl is-active $UNIT)" active
	equal "$(overlaybd ctl health)" ok
}
check "package: installed, the service is enabled and runs" installs

attaches() {
	writable /mnt/disk/image 64
	local disk
	disk=$(overlaybd attach --id 1 /mnt/disk/image/config.v1.json)
	mkfs.ext4 -q "$disk"
	mkdir -p $TREE
	mount "$disk" $TREE
	head -c 8M /dev/urandom >$TREE/before
	sha256sum $TREE/before >/tmp/sum
	sync
}
check "package: a disk is attached, made and mounted" attaches

upgrades() {
	local before writer
	before=$(main_pid)
	(
		i=0
		while [ ! -e /tmp/enough ]; do
			dd if=/dev/urandom of=$TREE/file$((i++ % 8)) bs=64k \
				count=4 conv=fsync status=none || exit 1
		done
	) &
	writer=$!
	dpkg_apart -i "$DEB"
	equal "$(systemctl is-active $UNIT)" active
	[ "$(main_pid)" != "$before" ]
	touch /tmp/enough
	wait $writer
	echo 3 >/proc/sys/vm/drop_caches
	sha256sum -c /tmp/sum
	fails kernel_said 'I/O error|EXT4-fs error'
}
check "package: upgraded over itself, a mounted disk goes on" upgrades

refuses_removal() {
	local said
	if said=$(dpkg_apart -r overlaybd-deno 2>&1); then return 1; fi
	[[ $said == *"cannot be removed: 1 disks are attached"* ]] ||
		{ echo "$said"; return 1; }
	equal "$(systemctl is-active $UNIT)" active
	sha256sum -c /tmp/sum
}
check "package: not removed while a disk is attached" refuses_removal

removes() {
	umount $TREE
	overlaybd detach 1
	dpkg_apart -r overlaybd-deno
	fails systemctl --quiet is-active $UNIT
	[ ! -e /opt/overlaybd/bin/overlaybd ]
	[ -e /etc/overlaybd/overlaybd.json ]
	dpkg_apart -P overlaybd-deno
	[ ! -e /opt/overlaybd ]
	[ ! -e /etc/overlaybd ]
}
check "package: detached, removed and purged, nothing runs or stays" removes
