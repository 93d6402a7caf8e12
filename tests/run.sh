#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# `make test`: every part with its own output, and one closing line
# "N passed, N failed, N skipped" over all of them.
set -u
passed=0 failed=0 skipped=0
logs="$BUILD/test-logs"
mkdir -p "$logs"
# A server of the tests may write where a user would.
export NO_COLOR=1

# add PART P F S: counts of a part.
add() {
	passed=$((passed + $2)) failed=$((failed + $3))
	skipped=$((skipped + $4))
	printf '== %s: %d passed, %d failed, %d skipped\n' "$@"
}

# A command that passes or fails as a whole.
whole() {
	local part=$1
	shift
	echo "== $part"
	if "$@"; then add "$part" 1 0 0; else add "$part" 0 1 0; fi
}

# A command whose last line counts: "N passed, N failed".
counted() {
	local part=$1 log="$logs/$1.log" p f
	shift
	echo "== $part"
	"$@" 2>&1 | tee "$log"
	local code=${PIPESTATUS[0]}
	read -r p f < <(sed -n \
		's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$log" |
		tail -n 1)
	p=${p:-0} f=${f:-0}
	[ "$code" -eq 0 ] || [ "$f" -gt 0 ] || f=1
	add "$part" "$p" "$f" 0
}

# A part of the TypeScript tests: its output when it has ended.
run_deno() {
	local log="$logs/$1.log"
	echo "== $1 runs, see $log"
	"$BUILD/tools/deno" test -A "tests/$1" >"$log" 2>&1
	echo $? >"$log.code"
	flock "$logs" -c "echo '== $1'; cat '$log'"
}
export -f run_deno
export BUILD logs

# What a part that has ended counts, by Deno's closing line:
# "ok | 3 passed | 0 failed | 1 ignored (1s)".
count_deno() {
	local part=$1 log="$logs/$1.log" line p f s
	line=$(grep -E '^(ok|FAILED) \| ' "$log" | tail -n 1)
	p=$(sed -n 's/.* \([0-9]*\) passed.*/\1/p' <<<"$line")
	f=$(sed -n 's/.* \([0-9]*\) failed.*/\1/p' <<<"$line")
	s=$(sed -n 's/.* \([0-9]*\) ignored.*/\1/p' <<<"$line")
	p=${p:-0} f=${f:-0} s=${s:-0}
	[ "$(cat "$log.code")" = 0 ] || [ "$f" -gt 0 ] || f=1
	add "$part" "$p" "$f" "$s"
}

# deno_tests N PART...: N parts at once, those that take longest first.
deno_tests() {
	local jobs=$1 part
	shift
	for part in "$@"; do rm -f "$logs/$part.log" "$logs/$part.log.code"; done
	printf '%s\n' "$@" | xargs -P "$jobs" -I{} bash -c 'run_deno {}'
	for part in "$@"; do count_deno "$part"; done
}

whole build make -s BUILD="$BUILD" build
[ ! -x "$BUILD/overlaybd" ] ||
	export OVERLAYBD_BIN="$PWD/$BUILD/overlaybd"
whole check make -s BUILD="$BUILD" check
whole lint make -s BUILD="$BUILD" lint
whole aarch64 make -s BUILD="$BUILD" aarch64
counted c-test make -s BUILD="$BUILD" c-test
counted fuzz make -s BUILD="$BUILD" FUZZ_SECONDS="$FUZZ_SECONDS" fuzz
# A part keeps one CPU busy, or less.
deno_tests 2 interop model unit fault build lib
deno_tests 1 vm
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
