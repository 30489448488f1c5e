#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the files of a release into build/release, with checksums, an SBOM of each program (CycloneDX) and the provenance of
# all (SLSA): `release.sh v1.2.3`. REPOSITORY and BUILDER are the URLs that the provenance names.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1
out=build/release
cyclonedx=github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.9.0
[ -z "$(git status --porcelain --untracked-files=no)" ] || { echo "release: the working tree has changes" >&2; exit 1; }
rm -rf $out
mkdir -p $out
export CGO_ENABLED=0
flags="-s -w -X sidestep.dev/sidestep/internal/version.Version=$version"
for platform in linux/amd64 linux/arm64; do
	for program in sidestep sidestep-manager sidestep-nodeagent; do
		file=$out/$program-${platform/\//-}
		GOOS=${platform%/*} GOARCH=${platform#*/} go build -trimpath -ldflags "$flags" -o "$file" "./cmd/$program"
		go run $cyclonedx bin -json -licenses=false -noserial -version "$version" -output "$file.cdx.json" "$file"
	done
done
tar -C deploy --owner=0 --group=0 --numeric-owner --sort=name --mtime="@$(git log -1 --format=%ct)" -czf "$out/sidestep-chart-$version.tar.gz" chart
(cd $out && find . -type f -printf '%P\n' | sort | xargs sha256sum) >build/SHA256SUMS
mv build/SHA256SUMS $out/
go run ./deploy/provenance --repository "${REPOSITORY:?the URL of the repository}" --commit "$(git rev-parse HEAD)" \
	--version "$version" --builder "${BUILDER:?the URL of whoever builds}" $out/* >build/provenance.json
mv build/provenance.json $out/sidestep-$version.intoto.json
ls -l $out
