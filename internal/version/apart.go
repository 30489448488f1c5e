// SPDX-License-Identifier: Apache-2.0

package version

import "github.com/Masterminds/semver/v3"

// Apart says of a version whether it is older than another, newer, or neither, by more than one
// minor version: nobody tests such two together. Of versions that are no releases, as those of
// programs that developers build, it says neither.
func Apart(version, other string) (older, newer bool) {
	a, errA := semver.NewVersion(version)
	b, errB := semver.NewVersion(other)
	if errA != nil || errB != nil || none(a) || none(b) {
		return false, false
	}
	switch {
	case a.Major() != b.Major():
		return a.Major() < b.Major(), a.Major() > b.Major()
	default:
		return a.Minor()+1 < b.Minor(), b.Minor()+1 < a.Minor()
	}
}

func none(v *semver.Version) bool { return v.Major() == 0 && v.Minor() == 0 && v.Patch() == 0 }
