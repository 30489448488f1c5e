#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs govulncheck on the programs. Where its database cannot be reached, a line says so and nothing fails.
set -euo pipefail
cd "$(dirname "$0")/.."
db=${GOVULNDB:-https://vuln.go.dev}
if ! curl -sSf -m 20 -o /dev/null "$db/index/db.json"; then
	echo "govulncheck: not run, because the database at $db cannot be reached"
	exit 0
fi
go run golang.org/x/vuln/cmd/govulncheck@v1.1.4 ./cmd/...
