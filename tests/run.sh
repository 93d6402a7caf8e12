#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# `make test`: every part in turn, each with its own output, and one closing
# line "N passed, N failed, N skipped" over all of them.
set -u
passed=0 failed=0 skipped=0
logs="$BUILD/test-logs"
mkdir -p "$logs"
deno="$BUILD/tools/deno"
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

# Deno's closing line: "ok | 3 passed | 0 failed | 1 ignored (1s)".
deno_tests() {
	local part=$1 log="$logs/$1.log" line p f s
	shift
	echo "== $part"
	"$deno" test -A "$@" 2>&1 | tee "$log"
	local code=${PIPESTATUS[0]}
	line=$(grep -E '^(ok|FAILED) \| ' "$log" | tail -n 1)
	p=$(sed -n 's/.* \([0-9]*\) passed.*/\1/p' <<<"$line")
	f=$(sed -n 's/.* \([0-9]*\) failed.*/\1/p' <<<"$line")
	s=$(sed -n 's/.* \([0-9]*\) ignored.*/\1/p' <<<"$line")
	p=${p:-0} f=${f:-0} s=${s:-0}
	[ "$code" -eq 0 ] || [ "$f" -gt 0 ] || f=1
	add "$part" "$p" "$f" "$s"
}

whole build make -s BUILD="$BUILD" build
[ ! -x "$BUILD/overlaybd" ] ||
	export OVERLAYBD_BIN="$PWD/$BUILD/overlaybd"
whole check make -s BUILD="$BUILD" check
whole lint make -s BUILD="$BUILD" lint
whole aarch64 make -s BUILD="$BUILD" aarch64
counted c-test make -s BUILD="$BUILD" c-test
counted fuzz make -s BUILD="$BUILD" FUZZ_SECONDS="$FUZZ_SECONDS" fuzz
for part in lib unit interop model fault build vm; do
	ls tests/$part/*_test.ts >/dev/null 2>&1 || continue
	deno_tests "$part" "tests/$part"
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
