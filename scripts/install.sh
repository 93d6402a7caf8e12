#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# `make install`: the executable under all its names, its runtime unpacked
# beside it (so that no start unpacks anything), unit, completions, manual
# and documentation, and a configuration where there is none.
#
# The places are variables, of the same names as make's.
# PACKAGE=1 leaves the configuration out: a package's scripts, or whoever
# unpacks the tarball, make it from the samples in $SHAREDIR.
set -euo pipefail
umask 022
DESTDIR=${DESTDIR:-} PREFIX=${PREFIX:-/opt/overlaybd}
SYSCONFDIR=${SYSCONFDIR:-/etc/overlaybd} BINDIR=${BINDIR:-/usr/bin}
UNITDIR=${UNITDIR:-/usr/lib/systemd/system} MANDIR=${MANDIR:-/usr/share/man}
SHAREDIR=${SHAREDIR:-/usr/share/overlaybd}
DOCDIR=${DOCDIR:-/usr/share/doc/overlaybd-deno}
BASHCOMPDIR=${BASHCOMPDIR:-/usr/share/bash-completion/completions}
ZSHCOMPDIR=${ZSHCOMPDIR:-/usr/share/zsh/vendor-completions}
DENO=${DENO:-$BUILD/tools/deno}

exe=$BUILD/overlaybd
bin=$DESTDIR$PREFIX/bin
lib=$DESTDIR$PREFIX/lib/overlaybd

# text MODE FROM TO: with the directories that were chosen.
text() {
	install -d "$(dirname "$DESTDIR$3")"
	sed -e "s#/opt/overlaybd#$PREFIX#g" -e "s#/etc/overlaybd#$SYSCONFDIR#g" \
		"$2" >"$DESTDIR$3"
	chmod "$1" "$DESTDIR$3"
}

install -d "$bin" "$lib" "$DESTDIR$PREFIX/baselayers" "$DESTDIR$BINDIR" \
	"$DESTDIR$BASHCOMPDIR" "$DESTDIR$ZSHCOMPDIR" "$DESTDIR$MANDIR" \
	"$DESTDIR$DOCDIR"
# A running one keeps the old file.
install -m 0755 "$exe" "$bin/overlaybd.new"
mv "$bin/overlaybd.new" "$bin/overlaybd"
for name in create commit zfile merge resize tcmu; do
	ln -sfn overlaybd "$bin/overlaybd-$name"
done
ln -sfn "$PREFIX/bin/overlaybd" "$DESTDIR$BINDIR/overlaybd"
OVERLAYBD_UNPACK_TO=$lib "$bin/overlaybd"
# The launcher makes private directories; these are everybody's to read.
chmod -R go+rX "$lib"

text 0644 etc/overlaybd-tcmu.service "$UNITDIR/overlaybd-tcmu.service"
# Where the original has it, and its users enable it from.
text 0644 etc/overlaybd-tcmu.service "$PREFIX/overlaybd-tcmu.service"
text 0644 etc/overlaybd.json "$SHAREDIR/overlaybd.json"
text 0644 etc/cred.json "$SHAREDIR/cred.json"
text 0644 etc/grafana-dashboard.json "$SHAREDIR/grafana-dashboard.json"

"$exe" completion bash >"$DESTDIR$BASHCOMPDIR/overlaybd"
"$exe" completion zsh >"$DESTDIR$ZSHCOMPDIR/_overlaybd"

"$DENO" run -A --no-lock scripts/reference/man.ts "$BUILD/man"
for page in "$BUILD"/man/man?/*; do
	dir=$DESTDIR$MANDIR/$(basename "$(dirname "$page")")
	install -d "$dir"
	gzip -9n <"$page" >"$dir/$(basename "$page").gz"
done

# All in one directory.
for file in README.md docs/*.md; do
	sed 's#](docs/#](#g' "$file" >"$DESTDIR$DOCDIR/$(basename "$file")"
done
install -m 0644 etc/debian/copyright LICENSE "$DESTDIR$DOCDIR/"

[ -z "${PACKAGE:-}" ] || exit 0
install -d "$DESTDIR$SYSCONFDIR"
[ -e "$DESTDIR$SYSCONFDIR/overlaybd.json" ] ||
	text 0644 etc/overlaybd.json "$SYSCONFDIR/overlaybd.json"
[ -e "$DESTDIR$PREFIX/cred.json" ] ||
	text 0600 etc/cred.json "$PREFIX/cred.json"
