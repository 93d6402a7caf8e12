#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# `make install`: the executable under all its names, its runtime unpacked
# beside it (so that no start unpacks anything), configuration, unit and
# completions.  A configuration that is there already is kept.
set -euo pipefail
exe=$BUILD/overlaybd
bin=$DESTDIR$PREFIX/bin
lib=$DESTDIR$PREFIX/lib/overlaybd
conf=$DESTDIR$SYSCONFDIR

install -d -m 0755 "$bin" "$lib" "$conf" "$DESTDIR$UNITDIR" \
	"$DESTDIR$BASHCOMPDIR" "$DESTDIR$ZSHCOMPDIR"
install -m 0755 "$exe" "$bin/overlaybd"
for name in create commit zfile merge resize tcmu; do
	ln -sfn overlaybd "$bin/overlaybd-$name"
done
OVERLAYBD_UNPACK_TO=$lib "$bin/overlaybd"
# The launcher makes private directories; these are everybody's to read.
chmod -R go+rX "$lib"
[ -e "$conf/overlaybd.json" ] ||
	install -m 0644 etc/overlaybd.json "$conf/overlaybd.json"
sed "s#/opt/overlaybd/bin#$PREFIX/bin#" etc/overlaybd-tcmu.service \
	>"$DESTDIR$UNITDIR/overlaybd-tcmu.service"
chmod 0644 "$DESTDIR$UNITDIR/overlaybd-tcmu.service"
"$bin/overlaybd" completion bash >"$DESTDIR$BASHCOMPDIR/overlaybd"
"$bin/overlaybd" completion zsh >"$DESTDIR$ZSHCOMPDIR/_overlaybd"
