#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Lines of each source file that the seed corpora of the fuzz targets named
# as arguments reach, by llvm-cov.
set -eu
dir="$BUILD/fuzz/coverage"
rm -rf "$dir"
mkdir -p "$dir"
version=$("$CLANG" -dumpversion | cut -d. -f1)
tool() { command -v "$1-$version" || command -v "$1"; }
for name in "$@"; do
	sources=$(ls c/*.c) link=
	case $name in
	fuzz_launcher)
		sources=$(ls c/launcher/*.c | grep -v -e main.c -e stamp.c) ;;
	fuzz_ring) link=-Wl,--wrap=mmap ;;
	esac
	"$CLANG" -std=gnu11 -g -O1 -pthread -Ic -I"$BUILD/launcher" \
		-fsanitize=fuzzer -fprofile-instr-generate -fcoverage-mapping \
		-o "$dir/$name" "c/fuzz/$name.c" $sources \
		-l:liblz4.a -l:libzstd.a -l:libz.a -ldl -lm $link
	LLVM_PROFILE_FILE="$dir/$name.raw" "$dir/$name" -runs=0 \
		"c/fuzz/corpus/${name#fuzz_}" >"$dir/$name.log" 2>&1
	$(tool llvm-profdata) merge -o "$dir/$name.data" "$dir/$name.raw"
	echo "== $name"
	$(tool llvm-cov) report "$dir/$name" \
		-instr-profile="$dir/$name.data" |
		awk '/\.c / { printf "%-28s %s\n", $1, $10 }'
done
