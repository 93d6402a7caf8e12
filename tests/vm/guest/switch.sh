#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# A node is switched over from the original by the package, and back, with a
# disk mounted.
. "${0%/*}/lib.sh"
. "${0%/*}/systemd.sh"

# The original as its package leaves it, but that ours stands in for its
# daemon.
ORIGINAL=/mnt/host$ROOT/build/vm/opt/overlaybd
start_original() {
	local before
	before=$(replies_seen)
	mkdir -p /opt/overlaybd/bin /etc/overlaybd
	printf '#!/bin/sh\nexec %s/bin/overlaybd-tcmu "$@"\n' "$ORIGINAL" \
		>/opt/overlaybd/bin/overlaybd-tcmu
	chmod +x /opt/overlaybd/bin/overlaybd-tcmu
	cat >/opt/overlaybd/overlaybd-tcmu.service <<-END
	[Service]
	Type=simple
	LimitNOFILE=1048576
	ExecStartPre=/sbin/modprobe target_core_user
	ExecStart=/opt/overlaybd/bin/overlaybd-tcmu
	GuessMainPID=no
	Restart=always
	RestartSec=1s
	KillMode=process
	OOMScoreAdjust=-999

	[Install]
	WantedBy=multi-user.target
	END
	cat >$CONFIG <<-END
	{"logLevel": 1, "logPath": "/tmp/overlaybd.log", "ioEngine": 0,
	 "registryCacheDir": "/opt/overlaybd/registry_cache",
	 "registryCacheSizeGB": 4,
	 "credentialFilePath": "/opt/overlaybd/cred.json"}
	END
	systemctl enable --now /opt/overlaybd/overlaybd-tcmu.service
	until_ok 120 _ready "$before"
}
of_original() { grep -qz "$ORIGINAL" "/proc/$(main_pid)/cmdline"; }

switches_over() {
	local disk
	until_ok 60 systemctl is-system-running --wait
	modprobe -a target_core_user tcm_loop sd_mod
	start_original
	PATH=$ORIGINAL/bin:$PATH writable /mnt/disk/image 64
	disk=$(snapshotter_attach 7 /mnt/disk/image/config.v1.json)
	mkfs.ext4 -q "$disk"
	mkdir -p $TREE
	mount "$disk" $TREE
	head -c 8M /dev/urandom >$TREE/before
	sha256sum $TREE/before >/tmp/sum
	sync
	of_original
	cp $CONFIG /tmp/config
	dpkg_apart -i "$DEB"
	equal "$(systemctl is-active $UNIT)" active
	fails of_original
	intact
	overlaybd config check
	cmp $CONFIG /tmp/config
}
check "package: in the place of a running original, its mounted disk goes on" \
	switches_over

switches_back() {
	dpkg_apart -r overlaybd-deno
	equal "$(systemctl is-active $UNIT)" active
	of_original
	intact
	umount $TREE
	snapshotter_detach 7
}
check "package: removed with the disk mounted, the original is back and has it" \
	switches_back
