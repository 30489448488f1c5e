#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs one part of the tests and notes how long it took: `part.sh NAME COMMAND...`; `part.sh --sum` prints all parts.
set -euo pipefail
cd "$(dirname "$0")/.."
times=build/parts.txt
mkdir -p build
if [ "$1" = --sum ]; then
	awk '{ printf "%-14s %5.1f min\n", $1, $2 / 60; all += $2 } END { printf "%-14s %5.1f min\n", "all", all / 60 }' $times
	exit
fi
name=$1
shift
[ "$name" != dependencies ] || rm -f $times
echo "== $name"
began=$(date +%s)
code=0
"$@" || code=$?
took=$(($(date +%s) - began))
echo "$name $took" >>$times
printf '== %s: %d.%d min, exit code %d\n' "$name" $((took / 60)) $((took % 60 / 6)) $code
exit $code
