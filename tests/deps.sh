#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that are missing. `run`: for tests and demo; `generate`: for regenerating code; `bench`: for benchmarks; `vm`: for virtual machines.
set -eu
case "${1:-}" in
run)      want="curl:curl h2load:nghttp2-client ip:iproute2 iptables:iptables gcc:gcc git:git wrk:wrk python3:python3 node:nodejs nginx:nginx-light tcsh:tcsh zsh:zsh /usr/lib/python3/dist-packages/urllib3:python3-urllib3 /usr/lib/python3/dist-packages/requests:python3-requests" ;;
generate) want="clang-19:clang-19 llvm-strip-19:llvm-19 protoc:protobuf-compiler /usr/include/bpf/bpf_helpers.h:libbpf-dev /usr/include/linux/bpf.h:linux-libc-dev" ;;
bench)    want="haproxy:haproxy iptables:iptables nsenter:util-linux" ;;
vm)       want="qemu-system-x86_64:qemu-system-x86 xz:xz-utils" ;;
*) echo "usage: $0 run|generate|bench|vm" >&2; exit 2 ;;
esac
missing=
for pair in $want; do
	have=${pair%%:*} package=${pair##*:}
	case "$have" in
	/*) [ -e "$have" ] || missing="$missing $package" ;;
	*) command -v "$have" >/dev/null || missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null || { echo "please install:$missing" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "please run as root, or install:$missing" >&2; exit 1; }
echo "installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends $missing >/dev/null
