// SPDX-License-Identifier: Apache-2.0

package procs

import (
	"errors"
	"path"
	"regexp"
	"slices"
	"strings"
)

// ErrNoUnified says that the node has version 1 of control groups only.
var ErrNoUnified = errors.New("this node has no unified hierarchy of control groups (cgroup2)")

// Cgroups is the text of /proc/PID/cgroup (cgroups(7)): a line ID:CONTROLLERS:PATH for each
// hierarchy. Kubelets name the groups
//
//	/kubepods/burstable/pod<uid>/<id>                                        cgroupfs driver
//	/kubepods.slice/…/kubepods-burstable-pod<uid>.slice/<runtime>-<id>.scope systemd driver, uid with underscores
//	…/kubepods-burstable-pod<uid>.slice:cri-containerd:<id>                  containerd under systemd without driver
//
// and there may be more below.
type Cgroups string

// podUID finds pods in paths.
var podUID = regexp.MustCompile(
	`(?m)pod([0-9a-fA-F]{8}(?:[-_][0-9a-fA-F]{4}){3}[-_][0-9a-fA-F]{12})(?:[./:]|$)`)

// Pods returns the UIDs of the pods that the process belongs to: several where a pod of the node is
// itself a node of a cluster.
func (c Cgroups) Pods() []string {
	var uids []string
	for _, m := range podUID.FindAllStringSubmatch(string(c), -1) {
		if uid := NormalUID(m[1]); !slices.Contains(uids, uid) {
			uids = append(uids, uid)
		}
	}
	return uids
}

// InPod reports whether the process belongs to the pod.
func (c Cgroups) InPod(uid string) bool { return slices.Contains(c.Pods(), NormalUID(uid)) }

// NormalUID returns a UID as the API has it, whatever a path has made of it.
func NormalUID(uid string) string { return strings.ToLower(strings.ReplaceAll(uid, "_", "-")) }

// Unified returns the path of the process's group in the unified hierarchy, as the reader sees it.
func (c Cgroups) Unified() (string, error) {
	for line := range strings.Lines(string(c)) {
		if group, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSuffix(group, "\n"), nil
		}
	}
	return "", ErrNoUnified
}

// component is a part of a path that names a pod and nothing below it.
var component = regexp.MustCompile(`^(?:[a-z-]*-)?pod([0-9a-f_-]{36})(?:\.slice)?$`)

// PodGroup returns the pod's own part of the path of a group, or the path if it does not name the
// pod. Of nested clusters' pods it is the one with the UID.
func PodGroup(group, uid string) string {
	parts := strings.Split(group, "/")
	for i, part := range parts {
		m := component.FindStringSubmatch(strings.ToLower(part))
		if m != nil && NormalUID(m[1]) == NormalUID(uid) {
			return strings.Join(parts[:i+1], "/")
		}
	}
	return group
}

// InContainer reports whether the process is in the pod's container. CRI-O's conmon, in
// crio-conmon-<id>.scope, is not.
func (c Cgroups) InContainer(uid, containerID string) bool {
	for line := range strings.Lines(string(c)) {
		_, groups, ok := strings.Cut(line, ":")
		if _, group, more := strings.Cut(groups, ":"); ok && more &&
			inContainer(strings.TrimSpace(group), uid, containerID) {
			return true
		}
	}
	return false
}

func inContainer(group, uid, containerID string) bool {
	inPod := false
	for group != "" {
		var part string
		part, group, _ = strings.Cut(strings.TrimPrefix(group, "/"), "/")
		if before, id, ok := cutLast(part, ":"); ok && id == containerID {
			return inPod || namesPod(before, uid)
		}
		if inPod && namesContainer(part, containerID) {
			return true
		}
		inPod = inPod || namesPod(part, uid)
	}
	return false
}

func namesPod(part, uid string) bool {
	part, _, _ = strings.Cut(part, ":")
	part = NormalUID(strings.TrimSuffix(part, path.Ext(part)))
	pod := "pod" + NormalUID(uid)
	return part == pod || strings.HasSuffix(part, "-"+pod)
}

func namesContainer(part, containerID string) bool {
	part = strings.TrimSuffix(part, ".scope")
	return part == containerID || strings.HasSuffix(part, "-"+containerID) &&
		!strings.HasPrefix(part, "crio-conmon-")
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
