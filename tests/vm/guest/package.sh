#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The package under systemd, used as its page says: installed, upgraded and
# removed with a disk mounted.
. "${0%/*}/lib.sh"
. "${0%/*}/systemd.sh"
PAGE=/mnt/host$ROOT/docs/install.md

# typed N: block N of what the page says on a first disk
typed() {
	sed -n '/^## A first disk/,/^## A conf/p' "$PAGE" | awk -v n="$1" '
		/^```$/ { inside = 0 }
		inside && i == n
		/^```sh$/ { inside = 1; i++ }'
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
	eval "$(typed 1)" >/tmp/ls
	grep " $TREE" /tmp/ls
	head -c 8M /dev/urandom >$TREE/before
	sha256sum $TREE/before >/tmp/sum
	sync
}
check "package: a first disk as the page says, attached, made and mounted" attaches

snapshots() {
	cd /srv/first
	eval "$(typed 2)"
	overlaybd check first.tar
	eval "$(typed 3)" >/tmp/metrics
	grep '^overlaybd_devices ' /tmp/metrics
	intact
}
check "package: a snapshot of it and its metrics, as the page says" snapshots

tried_again() { [ "$(systemctl show -P NRestarts $UNIT)" -gt 0 ]; }

mends() {
	local pid
	pid=$(main_pid)
	sed -i.right 's/"cacheSizeGB": 4/"cacheSizeGB": "4 GB"/' $CONFIG
	refuses "$CONFIG: cacheConfig.cacheSizeGB: got \"4 GB\", expected a whole number" \
		overlaybd config check
	fails systemctl reload $UNIT
	equal "$(main_pid)" "$pid"
	systemctl restart $UNIT || :
	until_ok 60 tried_again
	mv $CONFIG.right $CONFIG
	until_ok 60 systemctl is-active $UNIT
	systemctl reload $UNIT
	intact
}
check "package: a configuration that cannot be used is named; mended, the service runs" \
	mends

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
	intact
}
check "package: upgraded over itself, a mounted disk goes on" upgrades

refuses_removal() {
	local said
	if said=$(dpkg_apart -r overlaybd-deno 2>&1); then return 1; fi
	[[ $said == *"cannot be removed: 1 disks are attached"* ]] ||
		{ echo "$said"; return 1; }
	equal "$(systemctl is-active $UNIT)" active
	intact
}
check "package: not removed while a disk is attached" refuses_removal

removes() {
	cd /srv/first
	eval "$(typed 4)"
	dpkg_apart -r overlaybd-deno
	fails systemctl --quiet is-active $UNIT
	[ ! -e /opt/overlaybd/bin/overlaybd ]
	[ -e /etc/overlaybd/overlaybd.json ]
	dpkg_apart -P overlaybd-deno
	[ ! -e /opt/overlaybd ]
	[ ! -e /etc/overlaybd ]
}
check "package: detached, removed and purged, nothing runs or stays" removes
