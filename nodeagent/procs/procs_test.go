// SPDX-License-Identifier: Apache-2.0

package procs_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/nodeagent/procs"
)

const (
	uid = "12345678-9abc-def0-1234-56789abcdef0"
	id  = "4f1c8a9be0d15ad0a3a05d5a0f2f7c1f0f4a8d1b2c3d4e5f60718293a4b5c6d7"
)

var underscores = strings.ReplaceAll(uid, "-", "_")

func TestAContainerIsToldByItsControlGroup(t *testing.T) {
	other := strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		cgroup string
		is     bool
	}{
		"containerd, cgroupfs driver": {"0::/kubepods/burstable/pod" + uid + "/" + id, true},
		"containerd, systemd driver":  {"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + underscores + ".slice/cri-containerd-" + id + ".scope", true},
		"guaranteed, systemd driver": {"0::/kubepods.slice/kubepods-pod" + underscores +
			".slice/cri-containerd-" + id + ".scope", true},
		"containerd in systemd, without its driver": {"1:name=systemd:/system.slice/containerd.service/kubepods-besteffort-pod" + underscores + ".slice:cri-containerd:" + id, true},
		"cri-o": {"0::/kubepods.slice/kubepods-pod" + underscores +
			".slice/crio-" + id + ".scope/container", true},
		"conmon of cri-o": {"0::/kubepods.slice/kubepods-pod" + underscores +
			".slice/crio-conmon-" + id + ".scope", false},
		"docker": {"0::/kubepods.slice/kubepods-pod" + underscores +
			".slice/docker-" + id + ".scope", true},
		"systemd in the container":        {"0::/kubepods/pod" + uid + "/" + id + "/init.scope", true},
		"seen from another control group": {"0::/../../pod" + uid + "/" + id, true},
		"version 1 first": {"12:cpu,cpuacct:/kubepods/pod" + uid + "/" + id +
			"\n0::/", true},
		"a cluster in a pod":                     {"0::/kubepods/podaaaaaaaa-9abc-def0-1234-56789abcdef0/" + other + "/kubelet/kubepods/pod" + uid + "/" + id, true},
		"the pause container":                    {"0::/kubepods/pod" + uid + "/" + other, false},
		"another pod":                            {"0::/kubepods/podaaaaaaaa-9abc-def0-1234-56789abcdef0/" + id, false},
		"the pod's own group":                    {"0::/kubepods/pod" + uid, false},
		"a group that ends like the container's": {"0::/kubepods/pod" + uid + "/x" + id, false},
		"no pod":                                 {"0::/system.slice/docker-" + id + ".scope", false},
		"nothing":                                {"", false},
	} {
		assert.Equal(t, c.is, procs.Cgroups(c.cgroup+"\n").InContainer(uid, id), name)
	}
}

func TestPathOfAPod(t *testing.T) {
	for path, want := range map[string]string{
		"/kubepods/burstable/pod" + uid +
			"/0123": "/kubepods/burstable/pod" + uid,
		"/kubepods.slice/kubepods-pod" + underscores +
			".slice/x.scope": "/kubepods.slice/kubepods-pod" + underscores + ".slice",
		"/kubelet.slice/kubelet-kubepods-besteffort-pod" + underscores +
			".slice/x.scope/init": "/kubelet.slice/kubelet-kubepods-besteffort-pod" + underscores + ".slice",
		"/kubepods/podffffffff-1111-2222-3333-000000000001/c/kubepods/pod" + uid +
			"/d": "/kubepods/podffffffff-1111-2222-3333-000000000001/c/kubepods/pod" + uid,
		"/kubepods/podffffffff-1111-2222-3333-000000000001/c": "/kubepods/podffffffff-1111-2222-3333-000000000001/c",
		"/system.slice/containerd.service":                    "/system.slice/containerd.service",
		"/":                                                   "/",
	} {
		assert.Equal(t, want, procs.PodGroup(path, uid))
	}
}

func TestStat(t *testing.T) {
	of := func(stat string) (procs.Stat, error) {
		return procs.FS{FS: fstest.MapFS{"42/stat": {Data: []byte(stat)}}}.Stat("42")
	}
	fields := func(n int) string { return strings.Repeat(" 7", n) }
	got, err := of("42 (a ) Z b) S" + fields(18) + " 4711" + fields(27) + " 100 200" + fields(1) + "\n")
	require.NoError(t, err)
	assert.Equal(t, procs.Stat{Started: 4711, State: 'S', EnvStart: 100, EnvEnd: 200}, got)
	assert.False(t, got.Ended())
	got, err = of("42 (app) Z" + fields(18) + " 4711 0\n") // as tests write it
	require.NoError(t, err)
	assert.True(t, got.Ended())
	for _, bad := range []string{"", "42 (app", "42 (app) S 1 2", "42 (app) S" + fields(18) + " x"} {
		_, err := of(bad)
		assert.Error(t, err, "%q", bad)
	}
}

func TestInnerPID(t *testing.T) {
	proc := procs.FS{FS: fstest.MapFS{
		"42/status": {Data: []byte("Name:\tapp\nNSpid:\t42\t7\t1\nVmPeak: 3\n")},
		"43/status": {Data: []byte("Name:\tapp\n")},
	}}
	assert.Equal(t, 1, proc.InnerPID("42"))
	assert.Equal(t, 43, proc.InnerPID("43"), "an old kernel")
	assert.Equal(t, 44, proc.InnerPID("44"), "it has ended")
}
