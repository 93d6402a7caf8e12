#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# What doctor finds missing is missing, and what it prints mends it: things
# are broken together, doctor is asked, its commands are run, it is asked
# again.  Each check then looks at one line of both answers.
. "$(dirname "$0")/lib.sh"
install_product
modprobe loop
cd /run || exit 1

# ask FILE: doctor's answer; $? is its exit code
ask() { overlaybd doctor >"$1"; }
# lines FILE: "STATE NAME"
state_of() { sed -n "s|^\([A-Za-z]*\) *$2  .*|\1|p" "$1"; }
mend_of() {
	sed -n "\|^[A-Za-z]* *$2  |{n;s/^ *mend: //p}" "$1"
}
mend_all() {
	local command
	sed -n 's/^ *mend: //p' "$1" >commands
	while read -r command; do
		say "$command"
		eval "$command" </dev/null || say "that failed: $?"
	done <commands
}

# examine NUMBER: doctor before and after its commands
examine() {
	local before=0 after=0
	ask "$1.before" || before=$?
	mend_all "$1.before"
	ask "$1.after" || after=$?
	echo "$before $after" >"$1.codes"
	cat "$1.before" "$1.after"
}

# mended NUMBER NAME [STATE]: its line was STATE, and is ok now
mended() {
	cat "$1.before" "$1.after"
	equal "$(state_of "$1.before" "$2")" "${3:-MISSING}"
	equal "$(state_of "$1.after" "$2")" ok
}

# ---- a machine on which nothing was prepared ---------------------------------
echo '{"cacheConfig": {"cacheSizeGB": "4"}}' >/etc/overlaybd/overlaybd.json
umount /sys/kernel/config
mount -o remount,ro /sys
mkdir -p /opt/overlaybd/registry_cache
mount -t ramfs ramfs /opt/overlaybd/registry_cache
# Two authorities: what makes the bundle of all takes minutes here.
rm -f /etc/ssl/certs/*
grep -m2 '^mozilla' /etc/ca-certificates.conf >two
mv two /etc/ca-certificates.conf
(exec -a /other/overlaybd-tcmu sleep 1000) &
examine 1

check "doctor: a configuration that cannot be used is moved away" \
	mended 1 configuration
check "doctor: target_core_user is loaded" mended 1 "module target_core_user"
check "doctor: tcm_loop is loaded" mended 1 "module tcm_loop"
check "doctor: a read-only /sys is made writable" mended 1 sysfs
check "doctor: configfs is mounted" mended 1 configfs
check "doctor: another daemon is ended" mended 1 daemon
check "doctor: the CA bundle is made, which is not needed" \
	mended 1 "CA bundle" warning
check "doctor: a cache on a file system without holes gets one with" \
	mended 1 cache
codes() { equal "$(cat "$1.codes")" "1 0"; }
check "doctor: exit code 1 when something needed is missing, 0 when not" codes 1

# ---- a machine that worked once ----------------------------------------------
cat >/etc/overlaybd/overlaybd.json <<'END'
{"logConfig": {"logPath": "/var/log/ours/overlaybd.log"},
 "auditPath": "/var/log/audits/audit.log",
 "gzipCacheConfig": {"enable": true, "cacheDir": "/run/file/gzip"},
 "credentialConfig": {"mode": "file", "path": "/run/cred.json"}}
END
echo '{"auths": {}}' >cred.json
chmod 644 cred.json
touch /run/file
device=$CORE/user_1/vol1
mkdir -p "$device"
echo -n "dev_config=overlaybd//x,dev_size=1048576,hw_block_size=512" \
	>"$device/control"
echo -n 1 >"$device/enable"
rm /dev/uio0
echo 1 >/sys/module/target_core_user/parameters/block_netlink
mount -o remount,ro /sys/kernel/config
sysctl -qw fs.nr_open=100000
examine 2

check "doctor: the log's directory is made" mended 2 log
check "doctor: the audit log's directory is made" mended 2 "audit log"
check "doctor: a file where the cache's directory should be is moved away" \
	mended 2 "gzip cache"
check "doctor: credentials that others can read are closed to them" \
	mended 2 credentials warning
check "doctor: a missing /dev/uio0 is made" mended 2 "/dev/uio."
check "doctor: a kernel that a daemon left blocked is opened" mended 2 netlink
check "doctor: devices that nobody serves get a daemon" mended 2 devices
check "doctor: a read-only configfs is made writable" mended 2 configfs
check "doctor: fs.nr_open is raised" mended 2 "open files"

# ---- a user, and a shell, that may not ---------------------------------------
echo 'nobody ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/nobody
chmod 711 /run
echo 127.0.0.1 vm-run >>/etc/hosts
rights() {
	as_nobody() { setpriv --reuid nobody --regid nogroup --clear-groups "$@"; }
	! as_nobody env HOME=/nonexistent overlaybd doctor >3.before || return 1
	cat 3.before
	equal "$(state_of 3.before permissions)" MISSING
	as_nobody sh -c "$(mend_of 3.before permissions)" >3.after || :
	cat 3.after
	equal "$(state_of 3.after permissions)" ok
}
check "doctor: a user without rights is told to use sudo" rights

limited() {
	# The shell of a container that has little.
	mkfifo go
	setpriv --bounding-set -sys_resource bash -c 'ulimit -n 1024
		overlaybd doctor >4.before
		read -r _ <go
		overlaybd doctor >4.after; :' &
	until_ok 60 grep -q prlimit 4.before
	eval "$(mend_of 4.before "open files")"
	echo >go
	wait $!
	cat 4.before 4.after
	equal "$(state_of 4.before "open files")" MISSING
	equal "$(state_of 4.after "open files")" ok
}
check "doctor: a hard limit that is too low is raised" limited
