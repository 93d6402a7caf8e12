#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# `make deb` and `make tarball`, from the tree that `make install` makes.  The
# same sources give the same bytes: every date is that of the last commit
# (SOURCE_DATE_EPOCH), every owner root.
set -euo pipefail
umask 022
kind=$1
export PREFIX=${PREFIX:-/opt/overlaybd}
export DOCDIR=${DOCDIR:-/usr/share/doc/overlaybd-deno}
version=$(sed -n 's/.*VERSION = "\(.*\)";/\1/p' src/format/version.ts)
case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) arch=$(uname -m) ;;
esac
: "${SOURCE_DATE_EPOCH:?is set by make}"
# A release is small, everything else is made fast.
if [ "${PACK:-9}" -gt 15 ]; then level=9; else level=1; fi

stage=$BUILD/package/root
rm -rf "$BUILD/package"
mkdir -p "$stage"
DESTDIR=$stage PACKAGE=1 scripts/install.sh

# Only these are in the way of the original's package.
diverted=$(cd "$stage" && find "./$PREFIX/bin" "./$PREFIX/overlaybd-tcmu.service" \
	! -type d | sed 's,^\./*,/,' | LC_ALL=C sort | tr '\n' ' ')

# What only a Debian package has.
debian_documents() {
	local doc=$stage$DOCDIR overrides=$stage/usr/share/lintian/overrides
	install -D -m 0644 etc/debian/lintian-overrides \
		"$overrides/overlaybd-deno"
	gzip -9n >"$doc/changelog.gz" <<END
overlaybd-deno ($version) unstable; urgency=medium

  * Built from the commit of $(date -ud "@$SOURCE_DATE_EPOCH" +%F).

 -- overlaybd maintainers <maintainers@overlaybd.invalid>  $(
	LC_ALL=C date -uRd "@$SOURCE_DATE_EPOCH")
END
}

deb() {
	local control=$stage/DEBIAN out=$BUILD/overlaybd-deno_${version}_$arch.deb
	local size script
	debian_documents
	size=$(du -sk --apparent-size "$stage" | cut -f1)
	mkdir "$control"
	(cd "$stage" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' |
		LC_ALL=C sort -z | xargs -0 md5sum) >"$BUILD/package/md5sums"
	mv "$BUILD/package/md5sums" "$control/md5sums"
	sed -e "s/@VERSION@/$version/; s/@ARCH@/$arch/; s/@SIZE@/$size/" \
		etc/debian/control.in >"$control/control"
	for script in preinst postinst prerm postrm; do
		sed "s#@DIVERTED@#${diverted% }#" "etc/debian/$script.in" \
			>"$control/$script"
		chmod 0755 "$control/$script"
	done
	dpkg-deb --root-owner-group -Zzstd -z$level --build "$stage" "$out" >/dev/null
	echo "$out"
}

tarball() {
	local out=$BUILD/overlaybd-$version-linux-$arch.tar.gz
	tar -C "$stage" --sort=name --owner=0 --group=0 --numeric-owner \
		--mtime="@$SOURCE_DATE_EPOCH" --format=gnu -cf - . |
		gzip -"${level}n" >"$out.tmp"
	mv "$out.tmp" "$out"
	echo "$out"
}

"$kind"
