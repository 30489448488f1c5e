// SPDX-License-Identifier: Apache-2.0

package debian

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Newest asks for the newest kernel that is packaged, whatever its version.
const Newest = "newest"

// packaged is a kernel in Debian's index. Cloud kernels are small, and have all that this needs.
type packaged struct {
	name, version, depends string
}

var (
	// A package of one kernel, and not one of those that depend on the newest of them.
	imageName  = regexp.MustCompile(`^linux-image-\d+\.\d+\.\d+\S*-cloud-\w+$`)
	twoNumbers = regexp.MustCompile(`^\d+\.\d+`)
	numbers    = regexp.MustCompile(`\d+`)
)

// series is the first two numbers of the version.
func (p packaged) series() string { return twoNumbers.FindString(p.version) }

// archives names what to download, in apt's way. Debian 13 has split the image's package.
func (p packaged) archives() []string {
	all := []string{p.name + "=" + p.version}
	for dependency := range strings.SplitSeq(p.depends, ",") {
		name, _, _ := strings.Cut(strings.TrimSpace(dependency), " ")
		if strings.HasPrefix(name, "linux-binary-") || strings.HasPrefix(name, "linux-modules-") {
			all = append(all, name+"="+p.version)
		}
	}
	return all
}

// pick returns the newest kernel of the series in an index.
func pick(index, series string) (packaged, error) {
	var all []packaged
	var names []string
	for _, s := range stanzas(index) {
		p := packaged{s["package"], s["version"], s["depends"]}
		if !imageName.MatchString(p.name) {
			continue
		}
		names = append(names, p.series())
		if series == Newest || p.series() == series {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		slices.Sort(names)
		return packaged{}, fmt.Errorf("there is no kernel %s among those that are packaged: %s", series,
			strings.Join(slices.Compact(names), ", "))
	}
	return slices.MaxFunc(all, func(a, b packaged) int { return compare(a.version, b.version) }), nil
}

// compare compares kernel versions, which differ only in their numbers.
func compare(a, b string) int {
	return slices.Compare(numbersOf(a), numbersOf(b))
}

func numbersOf(version string) (all []int) {
	for _, digits := range numbers.FindAllString(version, -1) {
		n, _ := strconv.Atoi(digits)
		all = append(all, n)
	}
	return all
}
