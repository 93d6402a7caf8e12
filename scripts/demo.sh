#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# An image from file system to mount: two compressed layers and a writable
# one, served over NBD, read by programs that know nothing of overlaybd, and
# every file compared; then the same layers from a registry, read lazily.
# Leaves nothing behind.
#
# OVERLAYBD_BIN names the executable.  DEMO_MODE=mount|fuse|plain forces how
# the image is read (by default the first that works): mounted, through FUSE
# without mounting, or copied out of the server.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
bin=${OVERLAYBD_BIN:-$here/build/overlaybd}
want_mb=120
PATH=$PATH:/usr/sbin:/sbin

work=$(mktemp -d "${TMPDIR:-/var/tmp}/overlaybd-demo.XXXXXX")
log=$work/log
mkdir "$work/fuse" "$work/mnt" "$work/tree"
server='' fuse='' mounted='' registry=''

# As root, or with sudo; without both, nothing is mounted.
root=yes
as_root() { "$@"; }
if [ "$(id -u)" -ne 0 ]; then
	if sudo -n true 2>/dev/null; then as_root() { sudo -n "$@"; }
	else root=no; fi
fi

# ---- tidy up, however it ends ----------------------------------------------
stop_mount() {
	[ -z "$mounted" ] || as_root umount "$work/mnt"
	mounted=''
}
stop_fuse() {
	[ -n "$fuse" ] || return 0
	as_root umount "$work/fuse" 2>>"$log" ||
		fusermount3 -u "$work/fuse" 2>>"$log" || true
	wait "$fuse" || true
	fuse=''
}
stop_server() {
	[ -n "$server" ] || return 0
	kill -TERM "$server" 2>/dev/null || true
	local pid=$server
	server=''
	wait "$pid"
}
stop_registry() {
	[ -z "$registry" ] || kill "$registry" 2>/dev/null || true
	registry=''
}
clean_up() {
	local code=$?
	trap - EXIT INT TERM
	set +e
	stop_mount
	stop_fuse
	stop_server
	stop_registry
	if [ "$code" -ne 0 ] && [ "$code" -ne 130 ]; then
		echo "demo failed (exit $code); the last it said:" >&2
		tail -n 20 "$log" >&2
	fi
	as_root rm -rf "$work" 2>/dev/null || rm -rf "$work"
	exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# ---- words for people ------------------------------------------------------
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' off=$'\e[0m'
else bold='' dim='' green='' off=''; fi
title() { printf '\n%s%s%s\n' "$bold" "$1" "$off"; }
line() { printf '  %-41s %s\n' "$1" "$2"; }
note() { printf '  %s%s%s\n' "$dim" "$1" "$off"; }
now() { echo "${EPOCHREALTIME/,/.}"; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f s", b - a }'; }
# human BYTES
human() {
	awk -v b="$1" 'BEGIN {
		split("B KiB MiB GiB TiB", u); i = 1
		while (b >= 1024 && i < 5) { b /= 1024; i++ }
		printf(i == 1 ? "%d %s" : "%.1f %s", b, u[i]) }'
}
# rate BYTES START: "123 MiB/s"
rate() {
	awk -v b="$1" -v a="$2" -v e="$(now)" \
		'BEGIN { printf "%.0f MiB/s", b / 1048576 / (e - a + 1e-6) }'
}
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f : 1", a / b }'; }
size_of() { stat -c %s "$1"; }
# What a file really takes on disk: images are sparse.
used_by() { echo $(($(stat -c '%b * %B' "$1"))); }

# ---- steps -----------------------------------------------------------------
overlaybd() { "$bin" "$@" >>"$log"; }

# serve CONFIG [OPTION...]: sets $server and $uri
serve() {
	local config=$1
	shift
	: >"$work/ready"
	"$bin" serve --nbd "$work/nbd.sock" "$@" "$config" >"$work/ready" \
		2>>"$log" &
	server=$!
	for _ in $(seq 200); do
		uri=$(sed -n 's/^ready //p' "$work/ready")
		[ -z "$uri" ] || return 0
		kill -0 "$server" 2>/dev/null || break
		sleep 0.05
	done
	echo "the server did not start" >>"$log"
	return 1
}

# The served disk as the file $work/fuse/nbd.
start_fuse() {
	as_root nbdfuse "$work/fuse" "$uri" 2>>"$log" &
	fuse=$!
	for _ in $(seq 100); do
		! as_root test -e "$work/fuse/nbd" 2>/dev/null || return 0
		kill -0 "$fuse" 2>/dev/null || break
		sleep 0.05
	done
	stop_fuse
	return 1
}

can_fuse() { [ -e /dev/fuse ] && command -v nbdfuse >/dev/null; }

# sums DIRECTORY: a line for each file, sorted by name
sums() {
	(cd "$1" && as_root find . -path ./lost+found -prune -o \
		-type f -print0 | LC_ALL=C sort -z |
		as_root xargs -0r sha256sum)
}

# Which way works here: a trial with a small image.
choose_mode() {
	[ -z "${DEMO_MODE:-}" ] || { mode=$DEMO_MODE; return; }
	mode=plain
	can_fuse || return 0
	overlaybd create "$work/try.data" "$work/try.index" 1
	echo '{"upper": {"data": "'"$work/try.data"'", "index": "'"$work/try.index"'"}}' \
		>"$work/try.json"
	serve "$work/try.json"
	if start_fuse; then
		mode=fuse
		if [ "$root" = yes ] &&
			as_root mkfs.ext4 -q "$work/fuse/nbd" 2>>"$log" &&
			as_root mount -o loop "$work/fuse/nbd" "$work/mnt" 2>>"$log"
		then
			mounted=1 mode=mount
			stop_mount
		fi
		stop_fuse
	fi
	stop_server
}

# Real files of this machine, $want_mb MB or more, into $work/tree.
gather() {
	local total=0 mb dir
	for dir in /usr/share/*/ /usr/lib/*/; do
		[ "$total" -lt "$want_mb" ] || break
		mb=$(du -sm "$dir" 2>/dev/null | cut -f1)
		[ $((total + mb)) -le 400 ] || continue
		mkdir -p "$work/tree$(dirname "$dir")"
		cp -a --no-preserve=ownership,context,xattr "$dir" \
			"$work/tree$(dirname "$dir")/" 2>>"$log" || true
		total=$((total + mb))
	done
}

# The same changes to a tree as anybody would make: change, add, delete.
change_tree() {
	local root=$1 n=0 file
	while IFS= read -r file; do
		case $((n++ % 3)) in
		0) echo "changed by the demo" >>"$root/$file" ;;
		1) rm -f "$root/$file" ;;
		2) cp "$root/$file" "$root/$file.copy" ;;
		esac
	done <"$work/chosen"
	mkdir -p "$root/added"
	cp "$work/random" "$root/added/random.bin"
}

# The same through debugfs, where nothing can be mounted.  Its `write` makes
# names in the current directory only.
change_debugfs() {
	local disk=$1 n=0 file name
	{
		while IFS= read -r file; do
			name=$(basename "$file")
			printf 'cd "/%s"\n' "$(dirname "$file")"
			case $((n++ % 3)) in
			0) printf 'rm "%s"\nwrite "%s" "%s"\n' \
				"$name" "$work/changed/$file" "$name" ;;
			1) printf 'rm "%s"\n' "$name" ;;
			2) printf 'write "%s" "%s"\n' \
				"$work/changed/$file.copy" "$name.copy" ;;
			esac
		done <"$work/chosen"
		printf 'cd /\nmkdir added\ncd added\nwrite "%s" random.bin\n' \
			"$work/random"
	} >"$work/commands"
	as_root debugfs -w -f "$work/commands" "$disk" >>"$log" 2>&1
}

# Ranges in which two raw images differ, written to the server.
copy_difference() {
	local from=$1 old=$2 offset length args=()
	mkdir "$work/pieces"
	while read -r offset length; do
		dd if="$from" of="$work/pieces/$offset" bs=512 status=none \
			skip=$((offset / 512)) count=$((length / 512))
		args+=(-c "write -s $work/pieces/$offset $offset $length")
	done < <("$bin" diff "$old" "$from" | awk '/^ *[0-9]+ +[0-9]+$/')
	qemu-io -f raw "${args[@]}" -c flush "$uri" >>"$log" 2>&1
}

# A port that nobody listens on.
free_port() {
	local port
	for port in $(shuf -i 20000-32000 -n 50); do
		(: <"/dev/tcp/127.0.0.1/$port") 2>>"$log" ||
			{ echo "$port"; return; }
	done
}

# Debian's docker-registry on loopback: sets $registry and $repository
start_registry() {
	local port
	port=$(free_port)
	repository=http://127.0.0.1:$port/v2/demo
	cat >"$work/registry.yml" <<-END
	version: 0.1
	log: {level: error}
	storage: {filesystem: {rootdirectory: $work/registry}}
	http: {addr: "127.0.0.1:$port"}
	END
	docker-registry serve "$work/registry.yml" >>"$log" 2>&1 &
	registry=$!
	for _ in $(seq 200); do
		! curl -sf -o "$work/answer" "${repository%/demo}/" || return 0
		kill -0 "$registry" 2>/dev/null || break
		sleep 0.05
	done
	echo "docker-registry did not start" >>"$log"
	return 1
}

# push DATA INDEX LAYER: committed once more, into the registry; sets $digest
push() {
	"$bin" commit -z --upload "$repository/blobs/uploads/" "$@" \
		>"$work/pushed" 2>>"$log"
	digest=$(grep -o 'sha256:[0-9a-f]*' "$work/pushed")
}

# Twenty of the image's files, from all over it: "found" as sums() prints.
read_some() {
	local disk=$1 path
	case $mode in
	mount)
		as_root mount -o loop,ro,noload "$disk" "$work/mnt"
		mounted=1
		(cd "$work/mnt" && as_root xargs -d '\n' sha256sum <"$work/some")
		stop_mount
		;;
	fuse)
		while IFS= read -r path; do
			as_root debugfs -R "cat \"$path\"" "$disk" 2>>"$log" |
				sha256sum | sed "s,-\$,$path,"
		done <"$work/some"
		;;
	esac
}

[ -x "$bin" ] || { echo "no $bin: run make build" | tee "$log" >&2; exit 1; }
for tool in nbdcopy mkfs.ext4 debugfs e2fsck; do
	command -v "$tool" >/dev/null ||
		{ echo "no $tool: run make setup" | tee "$log" >&2; exit 1; }
done
start=$(now)
choose_mode
cd "$work"

title "A file system from files of this machine"
gather
(cd tree && find . -type f | grep -v '["\\]' | sort | awk 'NR % 97 == 1' |
	sed 's,^\./,,' | head -n 90) >chosen
files=$(find tree -type f | wc -l)
bytes=$(du -sb tree | cut -f1)
t=$(now)
truncate -s 1G disk.img
mkfs.ext4 -q -d tree disk.img
image=$(used_by disk.img)
line "files" "$files, $(human "$bytes")"
line "mkfs.ext4 -d, a disk of 1 GiB" "$(human "$image") used, $(since "$t")"

title "Layer 1: copied in over NBD, committed"
overlaybd create base.data base.index 1
echo '{"upper": {"data": "base.data", "index": "base.index"}}' >base.json
serve base.json
t=$(now)
nbdcopy --flush --destination-is-zero disk.img "$uri" 2>>"$log"
line "nbdcopy into a new writable layer" "$(since "$t"), $(rate "$image" "$t")"
stop_server
raw=$(size_of base.data)
t=$(now)
overlaybd commit -z base.data base.index layer1 2>>"$log"
layer1=$(size_of layer1)
line "commit -z (lz4, blocks of 4 KiB)" \
	"$(human "$raw") -> $(human "$layer1"), $(ratio "$raw" "$layer1"), $(since "$t")"

title "Layer 2: files changed, deleted, added"
head -c 5000000 /dev/urandom >random
cp -a tree changed
change_tree changed
overlaybd create top.data top.index 0
cat >top.json <<END
{"lowers": [{"file": "layer1"}],
 "upper": {"data": "top.data", "index": "top.index"}}
END
serve top.json
t=$(now)
case $mode in
mount)
	start_fuse
	as_root mount -o loop fuse/nbd mnt
	mounted=1
	as_root env work="$work" \
		bash -c "$(declare -f change_tree); change_tree mnt"
	stop_mount
	stop_fuse
	;;
fuse)
	start_fuse
	change_debugfs fuse/nbd
	stop_fuse
	;;
plain)
	cp --sparse=always disk.img disk2.img
	change_debugfs disk2.img
	copy_difference disk2.img disk.img
	;;
esac
chosen=$(wc -l <chosen)
line "changed, deleted or copied, and 5 MB new" "$chosen files, $(since "$t")"
stop_server
raw=$(size_of top.data)
t=$(now)
overlaybd commit -z top.data top.index layer2 2>>"$log"
line "commit -z" \
	"$(human "$raw") -> $(human "$(size_of layer2)"), $(since "$t")"

title "Both layers under a new writable one, read by others"
t=$(now)
overlaybd check layer1 && overlaybd check layer2
line "overlaybd check, every rule and checksum" "sound, $(since "$t")"
overlaybd create upper.data upper.index 0
cat >image.json <<END
{"lowers": [{"file": "layer1"}, {"file": "layer2"}],
 "upper": {"data": "upper.data", "index": "upper.index"}}
END
serve image.json
sums changed >expected
case $mode in
mount)
	start_fuse
	as_root e2fsck -fn fuse/nbd >>"$log" 2>&1
	as_root mount -o loop fuse/nbd mnt
	mounted=1
	line "nbdfuse, e2fsck -fn, mount -o loop" \
		"$(as_root df -h --output=used,size mnt | awk 'NR == 2 { print $1 " used of " $2 }')"
	t=$(now)
	sums mnt >found
	stop_mount
	stop_fuse
	;;
fuse | plain)
	disk=fuse/nbd how="nbdfuse, e2fsck -fn, debugfs"
	if [ "$mode" = fuse ]; then
		start_fuse
	else
		disk=copy.img how="nbdcopy, e2fsck -fn, debugfs"
		nbdcopy "$uri" "$disk" 2>>"$log"
	fi
	as_root e2fsck -fn "$disk" >>"$log" 2>&1
	mkdir out
	as_root debugfs -R "rdump / out" "$disk" >>"$log" 2>&1
	line "$how" "clean"
	stop_fuse
	t=$(now)
	sums out >found
	;;
esac
stop_server
if ! cmp -s expected found; then
	diff expected found >>"$log" || true
	echo "files differ" >&2
	exit 1
fi
line "sha256 of every file" \
	"${green}all $(wc -l <found) the same${off}, $(since "$t")"

if command -v docker-registry >/dev/null && command -v curl >/dev/null; then
	title "The same layers from a registry, read as they are needed"
	start_registry
	t=$(now)
	push base.data base.index pushed1
	digest1=$digest
	push top.data top.index pushed2
	digest2=$digest
	pushed=$(($(size_of pushed1) + $(size_of pushed2)))
	line "commit -z --upload, to docker-registry" \
		"$(human "$pushed"), $(since "$t")"
	cat >remote.json <<-END
	{"repoBlobUrl": "$repository/blobs",
	 "lowers": [{"digest": "$digest1", "size": $(size_of pushed1)},
	            {"digest": "$digest2", "size": $(size_of pushed2)}]}
	END
	cat >service.json <<-END
	{"cacheConfig": {"cacheType": "file", "cacheDir": "$work/cache"},
	 "logPath": "", "enableAudit": false}
	END
	fetched() { du -s --block-size=1 cache | cut -f1; }
	t=$(now)
	serve remote.json --service_config_path service.json
	line "opened, nothing pulled" "$(human "$(fetched)") fetched, $(since "$t")"
	t=$(now)
	if [ "$mode" = plain ]; then
		qemu-io -r -f raw -c "read 64M 8M" -c "read 256M 8M" "$uri" \
			>>"$log" 2>&1
		line "16 MiB read" "$(human "$(fetched)") fetched, $(since "$t")"
	else
		awk 'NR % 400 == 7 && !/["\\]/' expected | head -n 20 |
			sed 's/^[^ ]*  //' >some
		grep -Ff some expected | sort >some.expected
		start_fuse
		read_some fuse/nbd | sort >some.found
		stop_fuse
		grep -Fxf some.found some.expected | cmp -s - some.found ||
			{ echo "files from the registry differ" >&2; exit 1; }
		line "$(wc -l <some.found) files read, their sha256 the same" \
			"$(human "$(fetched)") fetched, $(since "$t")"
		line "of the image" "$(awk -v a="$(fetched)" -v b="$pushed" \
			'BEGIN { printf "%.0f %%", 100 * a / b }')"
	fi
	stop_server
	stop_registry
else
	note "no docker-registry: the part that reads from one is left out"
fi
note "everything in $(since "$start"); nothing is left behind"
