#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the C tests named as arguments, from $BUILD/san/tests.  Each prints
# "ok - NAME" or "not ok - NAME: REASON" a test; a program that dies counts
# as one failure.  Ends with "N passed, N failed".
set -u
passed=0 failed=0
for name in "$@"; do
	log="$BUILD/san/$name.log"
	"$BUILD/san/tests/$name" >"$log" 2>&1
	code=$?
	p=$(grep -c '^ok - ' "$log")
	f=$(grep -c '^not ok - ' "$log")
	if [ "$code" -ne 0 ] || [ "$f" -gt 0 ]; then
		[ "$f" -gt 0 ] || f=1
		echo "$name: exit code $code"
		grep -v '^ok - ' "$log" | head -n 60
	fi
	passed=$((passed + p)) failed=$((failed + f))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
