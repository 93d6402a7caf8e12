#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what building and testing need, on Debian 12 and 13, as root or
# with sudo.  Says nothing when all is there.
#
# Deno comes from npm, pinned with its checksum in scripts/deno, and lives in
# the build directory: nothing global is touched but Debian packages.
set -euo pipefail
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build}
TOOLS=$BUILD/tools
export DENO_DIR=${DENO_DIR:-$PWD/build/deno_dir} DENO_NO_UPDATE_CHECK=1

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# The stamp is the sum of all that decides what is installed.
want=$(cat "$0" scripts/deno/package*.json deno.json deno.lock | sha256sum)
mkdir -p "$TOOLS"
# Several makes in one tree wait for each other here.
exec 9>"$TOOLS/.lock"
flock 9
[ "$(cat "$TOOLS/.stamp" 2>/dev/null)" = "$want" ] && [ -x "$TOOLS/deno" ] &&
	exit 0

# ---- Debian packages -------------------------------------------------------
packages=(
	# to build
	gcc libc6-dev make liblz4-dev libzstd-dev libisal-dev zlib1g-dev zstd
	liburing-dev binutils
	# to test
	clang llvm libnbd-bin nbdkit qemu-utils e2fsprogs fuse3 fio g++
	debootstrap util-linux psmisc file mandoc bindfs
	# servers of the tests and the demo
	docker-registry nginx-light openssl curl prometheus
	# to test in a virtual machine
	qemu-system-x86 busybox-static kmod xz-utils sg3-utils xfsprogs
	erofs-utils btrfs-progs open-iscsi sudo ca-certificates
	gcc-aarch64-linux-gnu libc6-dev-arm64-cross
)
installed() { dpkg-query -W -f '${Status}\n' "$1" 2>/dev/null |
	grep -q '^install ok installed$'; }

missing=()
for p in "${packages[@]}"; do installed "$p" || missing+=("$p"); done
# A node that did not come from Debian brings its own npm.
command -v npm >/dev/null || missing+=(nodejs npm)

if [ ${#missing[@]} -gt 0 ] || ! ls /usr/lib/llvm-*/lib/clang/*/lib/linux/ \
	>/dev/null 2>&1; then
	command -v apt-get >/dev/null ||
		die "cannot install ${missing[*]}: no apt-get; see scripts/setup.sh"
	sudo=
	if [ "$(id -u)" != 0 ]; then
		command -v sudo >/dev/null ||
			die "cannot install ${missing[*]}: neither root nor sudo"
		sudo=sudo
	fi
	say "installing ${missing[*]:-the sanitizers of clang}"
	$sudo apt-get update -qq || say "package lists not updated, going on"
	# The tests start servers of their own: what is installed for them does
	# not become a service of this machine.
	servers=()
	for p in "${missing[@]}"; do
		case $p in
		docker-registry) servers+=(docker-registry) ;;
		nginx-light) servers+=(nginx) ;;
		prometheus) servers+=(prometheus) ;;
		esac
	done
	policy=/usr/sbin/policy-rc.d
	if [ ${#servers[@]} -gt 0 ] && [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
		$sudo chmod 755 $policy
		trap '$sudo rm -f $policy' EXIT
	fi
	install() { $sudo env DEBIAN_FRONTEND=noninteractive apt-get install \
		-y -qq --no-install-recommends "$@" >/dev/null; }
	if [ ${#missing[@]} -gt 0 ]; then
		install "${missing[@]}"
	fi
	if [ ${#servers[@]} -gt 0 ]; then
		[ -z "$(trap -p EXIT)" ] || $sudo rm -f $policy
		trap - EXIT
		[ ! -d /run/systemd/system ] ||
			$sudo systemctl -q disable "${servers[@]}" || true
	fi
	# libFuzzer and the sanitizers: of the clang that is the default here.
	version=$(clang -dumpversion)
	install "libclang-rt-${version%%.*}-dev"
fi

# ---- Deno ------------------------------------------------------------------
case $(uname -m) in
x86_64) arch=x64 ;;
aarch64) arch=arm64 ;;
*) die "no Deno for $(uname -m)" ;;
esac
version=$(sed -n "s/.*linux-$arch-glibc\": \"\(.*\)\".*/\1/p" \
	scripts/deno/package.json)
if [ "$("$TOOLS/deno" --version 2>/dev/null | head -1 | cut -d' ' -f2)" \
	!= "$version" ]; then
	say "installing deno $version"
	cp scripts/deno/package.json scripts/deno/package-lock.json "$TOOLS/"
	(cd "$TOOLS" && npm ci --silent --no-audit --no-fund)
	ln -sf "node_modules/@deno/linux-$arch-glibc/deno" "$TOOLS/deno"
fi

# ---- npm packages, so that later steps need no network ----------------------
deno=$PWD/$TOOLS/deno
"$deno" install -q
# --bundle needs esbuild, which Deno fetches at its own pinned version.
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
echo 'console.log(1)' >"$tmp/a.ts"
(cd "$tmp" && "$deno" bundle -q -o a.js a.ts)

printf '%s\n' "$want" >"$TOOLS/.stamp"
