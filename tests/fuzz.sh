#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs each fuzz target for some time: `fuzz.sh 5s`. What a target finds is kept under testdata/fuzz of its package.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=
while IFS=: read -r file target; do
	echo "-- $target ($(dirname "$file"))"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "./$(dirname "$file")" || failed="$failed $target"
done < <(git grep -oE '^func Fuzz\w+' -- '*_test.go' ':!tests/cluster' ':!tests/http2' | sed 's/func //')
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
