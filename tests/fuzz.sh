#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs each fuzz target named as an argument for $FUZZ_SECONDS on a copy of
# its corpus, two at a time.  What breaks one is kept in $BUILD/fuzz/NAME.
# Ends with "N passed, N failed".
set -u

run_target() {
	local name=$1 dir="$BUILD/fuzz/run/$1"
	rm -rf "$dir"
	mkdir -p "$dir/found"
	cp -r "c/fuzz/corpus/${name#fuzz_}" "$dir/corpus" 2>/dev/null ||
		mkdir -p "$dir/corpus"
	if "$BUILD/fuzz/$name" -max_total_time="$FUZZ_SECONDS" \
		-rss_limit_mb=2048 -timeout=25 \
		-artifact_prefix="$dir/found/" "$dir/corpus" \
		>"$dir/log" 2>&1; then
		echo "ok - $name: $(grep -c . <(ls "$dir/corpus")) inputs," \
			"$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$dir/log") runs"
	else
		echo "not ok - $name: see $dir"
		tail -n 40 "$dir/log" >&2
	fi
}
export -f run_target

results=$(printf '%s\n' "$@" | xargs -P 2 -I{} bash -c 'run_target {}')
echo "$results"
passed=$(grep -c '^ok - ' <<<"$results")
failed=$(($# - passed))
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
