# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# What guest scripts of the package share.  Sourced behind lib.sh: what comes
# after runs under systemd.
DEB=/mnt/host$ROOT/build/package/vm.deb
ADMIN=/tmp/dpkg
UNIT=overlaybd-tcmu.service
TREE=/mnt/first
CONFIG=/etc/overlaybd/overlaybd.json

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
	# The script that comes there watches itself.
	unwatch
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

# intact: the file that was written first
intact() {
	echo 3 >/proc/sys/vm/drop_caches
	sha256sum -c /tmp/sum
	fails kernel_said 'I/O error|EXT4-fs error'
}
