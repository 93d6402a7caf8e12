# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# What guest scripts share.  Sourced; stdout carries results only, everything
# else goes to stderr.
#
# From the host: ROOT, the source tree; SOAK, not empty for whole counts;
# ONLY, a pattern of the checks to run.
export PATH=/opt/overlaybd/bin:$PATH
export OVERLAYBD_CACHE_DIR=/run/overlaybd-unpacked
CORE=/sys/kernel/config/target/core
LOOPBACK=/sys/kernel/config/target/loopback
exec 3>&1 >&2
# Nobody writes to it: reading from it for a time is a sleep that costs no
# process.
exec {NAP}<> <(:)

nap() { read -rt "$1" -u "$NAP" || :; }

# ---- what takes too long -----------------------------------------------------
WATCH=
# watch NAME: should it not end in time, this guest says where it is, and ends
watch() {
	unwatch
	(
		nap $((SOAK ? 2400 : 240))
		echo "not ended in time: $1"
		sh /run/vm/stuck
		_tails
		kill -9 $$
	) 3>&- &
	WATCH=$!
	disown
}
unwatch() { [ -z "$WATCH" ] || kill "$WATCH"; }
trap unwatch EXIT
watch "what is done before the checks"

_tails() { tail -v -n 15 /tmp/overlaybd.log /tmp/daemon.out 2>/dev/null; }

# lap: sets $lap, seconds and how much of them CPUs had work, since the last
lap() {
	local _ user nice system idle iowait irq softirq busy now=${EPOCHREALTIME/./}
	read -r _ user nice system idle iowait irq softirq _ </proc/stat
	busy=$((user + nice + system + irq + softirq))
	printf -v lap '%d s (%d busy)' $(((now - ${_now:=$now}) / 1000000)) \
		$(((busy - ${_busy:=$busy}) / 100))
	_now=$now _busy=$busy
}

# check NAME COMMAND...: a shell of its own, that ends at the first failure.
check() {
	local name=$1 rc
	shift
	[[ -z ${ONLY:-} || $name =~ $ONLY ]] || return 0
	lap
	echo "-- $name"
	watch "$name"
	(
		set -eE
		shopt -s inherit_errexit
		trap 'echo "failed: $BASH_COMMAND (line $LINENO)" >&2' ERR
		"$@"
	) &
	wait $!
	rc=$?
	watch "what comes behind: $name"
	lap
	echo "# $lap: $name" >&3
	if [ $rc -eq 0 ]; then echo "ok - $name" >&3; else
		echo "not ok - $name" >&3
		_tails
	fi
	echo "-- end"
}

# count N: N when everything is asked for, else a tenth, at least 1
count() {
	if [ -n "${SOAK:-}" ]; then echo "$1"; else echo $((($1 + 9) / 10)); fi
}

say() { echo "$EPOCHREALTIME $*"; }

# until_ok SECONDS COMMAND...: tries it until it succeeds
until_ok() {
	local end=$((SECONDS + $1))
	shift
	until "$@" 2>/dev/null; do
		[ $SECONDS -lt $end ] || { echo "never: $*"; return 1; }
		nap 0.1
	done
}

# fails COMMAND...: it does (a "!" would never end a check)
fails() {
	if "$@"; then echo "did not fail: $*"; return 1; fi
}
# put TEXT FILE: written to an attribute
put() { (echo "$1" >"$2"); }
# kernel_said PATTERN: in its log
kernel_said() { dmesg | grep -iE "$1"; }

# refuses PATTERN COMMAND...: fails, saying PATTERN in one line on stderr
refuses() {
	local pattern=$1 said
	shift
	if said=$("$@" 2>&1); then echo "not refused: $*: $said"; return 1; fi
	[[ $said != *$'\n'* && $said =~ $pattern ]] ||
		{ echo "$*: said '$said', not '$pattern'"; return 1; }
}

equal() { [ "$1" = "$2" ] || { echo "got '$1', expected '$2'"; return 1; }; }

# As `make install` leaves it, and writable here.
# prepare: modules, product, the service's configuration
prepare() {
	modprobe -a target_core_user tcm_loop sd_mod sg
	install_product
	service_config
	cd /mnt/disk || exit 1
}

install_product() {
	mkdir -p /etc/overlaybd
	mount_product vm /opt/overlaybd
	ln -sf /opt/overlaybd/bin/overlaybd /usr/bin/overlaybd
}

# mount_product BUILT DIR: what was installed into build/BUILT
mount_product() {
	local from=/mnt/host$ROOT/build/$1/opt/overlaybd over=/run/product-$1
	mkdir -p "$2" "$over/upper" "$over/work"
	mount -t overlay -o "lowerdir=$from,upperdir=$over/upper,workdir=$over/work" \
		product "$2"
	chown root "$2/lib/overlaybd"
}

# service_config KEYS: writes the service's configuration
service_config() {
	mkdir -p /mnt/disk/cache
	cat >/etc/overlaybd/overlaybd.json <<-END
	{"logConfig": {"logLevel": ${LOG_LEVEL:-1}, "logPath": "/tmp/overlaybd.log"},
	 "cacheConfig": {"cacheType": "file", "cacheDir": "/mnt/disk/cache", "cacheSizeGB": 1},
	 "enableAudit": false ${1:+, $1}}
	END
}

# ---- the daemon ------------------------------------------------------------
DAEMON=/run/daemon.pid

replies_seen() { dmesg | grep -c 'tcmu daemon: command reply support 1' || :; }
netlink_open() {
	local state
	read -r state </sys/module/target_core_user/parameters/block_netlink
	[ "$state" = unblocked ]
}
daemon_pid() {
	local pid
	read -r pid <"$DAEMON" && echo "$pid"
}
daemon_alive() { kill -0 "$(daemon_pid)"; }

# launch_daemon: starts it, does not wait
launch_daemon() {
	overlaybd-tcmu </dev/null >>/tmp/daemon.out 2>&1 3>&- {NAP}>&- &
	echo $! >"$DAEMON"
}
_ready() { [ "$(replies_seen)" -gt "$1" ] && netlink_open; }
# It says something as soon as its program has been loaded, which takes most of
# the time: until then nobody looks into the kernel's log.
_ready_now() { [ /tmp/overlaybd.log -nt $DAEMON ] && _ready "$1"; }
start_daemon() {
	local before
	before=$(replies_seen)
	launch_daemon
	until_ok 120 _ready_now "$before" ||
		{ tail -20 /tmp/daemon.out /tmp/overlaybd.log; return 1; }
}
stop_daemon() {
	local pid
	pid=$(daemon_pid)
	kill -TERM "$pid"
	until_ok "${1:-30}" gone "$pid"
}
kill_and_start() {
	local pid
	pid=$(daemon_pid)
	kill -9 "$pid"
	until_ok 60 gone "$pid"
	start_daemon
}
gone() {
	local _ state
	! kill -0 "$1" || ! read -r _ _ state _ <"/proc/$1/stat" || [ "$state" = Z ]
}

# weigh: descriptors, threads, MiB of the daemon
weigh() {
	local pid fds key value threads kib
	pid=$(daemon_pid)
	fds=("/proc/$pid/fd"/*)
	while read -r key value _; do
		case $key in
		Threads:) threads=$value ;;
		RssAnon:) kib=$value ;;
		esac
	done <"/proc/$pid/status"
	echo "${#fds[@]} ${threads:?} $((${kib:?} / 1024))"
}

has_descriptors() { [ "$(weigh | cut -d' ' -f1)" = "$1" ]; }

# ---- images ----------------------------------------------------------------
# writable DIR MB [-s]: an image with only a writable layer
writable() {
	local dir=$1 mb=$2
	shift 2
	mkdir -p "$dir"
	overlaybd create "$@" "$dir/data" "$dir/index" $(((mb + 1023) / 1024))
	cat >"$dir/config.v1.json" <<-END
	{"lowers": [], "upper": {"data": "$dir/data", "index": "$dir/index"},
	 "resultFile": "$dir/result"}
	END
}

# layered DIR LAYER...: a read-only image of these layers
layered() {
	local dir=$1 layer lowers=
	shift
	mkdir -p "$dir"
	for layer; do lowers+="${lowers:+, }{\"file\": \"$layer\"}"; done
	cat >"$dir/config.v1.json" <<-END
	{"lowers": [$lowers], "resultFile": "$dir/result"}
	END
}

# writable_over LAYER DIR [-s]: an image of this layer and a writable one on it
writable_over() {
	local layer=$1 dir=$2
	shift 2
	mkdir -p "$dir"
	overlaybd create "$@" "$dir/data" "$dir/index" 0
	cat >"$dir/config.v1.json" <<-END
	{"lowers": [{"file": "$layer"}],
	 "upper": {"data": "$dir/data", "index": "$dir/index"},
	 "resultFile": "$dir/result"}
	END
}

# ---- configfs, as the snapshotter does it (spec/client.md, section 2) --------
# wwn ID: naa.199 and the id, padded to 13 digits
wwn() { printf 'naa.199%013d' "$1"; }

# snapshotter_attach ID CONFIG: prints /dev/sdX
snapshotter_attach() {
	local id=$1 config=$2 i device port address disk
	device=$CORE/user_999999999/dev_$id
	port=$LOOPBACK/$(wwn "$id")/tpgt_1
	mkdir -p "$device"
	echo -n "dev_config=overlaybd/$config" >"$device/control"
	echo -n "max_data_area_mb=4" >"$device/control"
	for ((i = 0; ; i++)); do
		! enable_says "$device" || break
		[[ $said == *"temporarily unavailable"* && $i -lt 100 ]] ||
			{ echo "enable: $said"; return 1; } >&2
		nap 0.05
	done
	echo -n 2147483 >"$device/attrib/cmd_time_out"
	mkdir -p "$port/lun/lun_0"
	echo -n "$(wwn "$id")" >"$port/nexus"
	ln -s "$device" "$port/lun/lun_0/dev_$id"
	address=$(cat "$port/address")
	# It waits for 0.5 s; a guest is slower than that, with 64 disks far more.
	until_ok 180 test -e "/sys/class/scsi_device/$address:0/device/block"
	disk=$(ls "/sys/class/scsi_device/$address:0/device/block")
	echo 2147483 >"/sys/block/$disk/device/timeout"
	echo "/dev/$disk"
}

# refused ID CONFIG PATTERN: enable fails, with words of an errno; nothing stays
refused() {
	local device=$CORE/user_999999999/dev_$1
	mkdir -p "$device"
	echo -n "dev_config=overlaybd/$2" >"$device/control"
	if enable_says "$device"; then echo "not refused"; return 1; fi
	rmdir "$device"
	[[ $said =~ $3 ]] || { echo "enable said '$said', not '$3'"; return 1; }
}

# enable_says DEVICE: writes enable; $said is what the kernel said
enable_says() {
	said=$( (echo -n 1 >"$1/enable") 2>&1)
}

snapshotter_detach() {
	local id=$1 port
	port=$LOOPBACK/$(wwn "$id")
	rm "$port/tpgt_1/lun/lun_0/dev_$id"
	rmdir "$port/tpgt_1/lun/lun_0" "$port/tpgt_1" "$port"
	rmdir "$CORE/user_999999999/dev_$id"
}

# ---- a registry, as far as reads go --------------------------------------------
# registry: every blob is /mnt/disk/layer; $REGISTRY is its process
registry() {
	cat >/mnt/disk/nginx.conf <<'END'
daemon off; master_process off; user root;
error_log /tmp/nginx.out; pid /run/registry.pid;
events {}
http {
	access_log off;
	server {
		listen 127.0.0.1:5000;
		location / { root /mnt/disk; try_files /layer =404; }
	}
}
END
	nginx -c /mnt/disk/nginx.conf >&2 3>&- &
	REGISTRY=$!
}

# remote NAME DIGEST: an image of that blob
remote() {
	local dir=/mnt/disk/$1
	mkdir -p "$dir"
	cat >"$dir/config.v1.json" <<-END
	{"repoBlobUrl": "http://127.0.0.1:5000/v2/x/blobs",
	 "lowers": [{"digest": "sha256:$2", "size": $(stat -c %s /mnt/disk/layer),
	  "dir": "$dir"}], "resultFile": "$dir/result"}
	END
}
