// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

func nodeAgent(t *testing.T, set values) corev1.PodSpec {
	t.Helper()
	return get[*appsv1.DaemonSet](t, mustRender(t, values{"nodeagent": set}),
		"DaemonSet/sidestep-nodeagent").Spec.Template.Spec
}

// TestTheNodeAgentHasTheCapabilitiesThatItsFeaturesNeed is the table of docs/security.md.
func TestTheNodeAgentHasTheCapabilitiesThatItsFeaturesNeed(t *testing.T) {
	off := func(names ...string) values {
		features := values{}
		for _, name := range names {
			features[name] = false
		}
		return features
	}
	for _, tc := range []struct {
		name string
		set  values
		want []corev1.Capability
	}{
		{"by default", values{}, []corev1.Capability{"SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE"}},
		{"before Linux 5.11", values{"beforeLinux511": true},
			[]corev1.Capability{"SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE", "SYS_RESOURCE"}},
		{"without environments", values{"features": off("environment")},
			[]corev1.Capability{"SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE"}},
		{"without UDP", values{"features": off("udp")},
			[]corev1.Capability{"SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE"}},
		{"without takeover", values{"features": off("takeover")},
			[]corev1.Capability{"SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE"}},
		{"without UDP and takeover", values{"features": off("udp", "takeover")},
			[]corev1.Capability{"SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE"}},
		{"since Linux 6.9, with takeover", values{"sinceLinux69": true},
			[]corev1.Capability{"SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE"}},
		{"since Linux 6.9, without takeover", values{"sinceLinux69": true, "features": off("takeover")},
			[]corev1.Capability{"SYS_ADMIN", "NET_RAW", "SYS_PTRACE"}},
		{"since Linux 6.9, by tc", values{"sinceLinux69": true, "datapath": "tc", "features": off("takeover")},
			[]corev1.Capability{"SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE"}},
		{"as few as can be", values{"sinceLinux69": true, "features": off("environment", "udp", "takeover")},
			[]corev1.Capability{"SYS_ADMIN", "SYS_PTRACE"}},
	} {
		pod := nodeAgent(t, tc.set)
		assert.Equal(t, tc.want, pod.Containers[0].SecurityContext.Capabilities.Add, tc.name)
		features, _ := tc.set["features"].(values)
		for _, name := range []string{"environment", "udp", "takeover"} {
			_, isOff := features[name]
			arg := "--" + name + map[bool]string{true: "=false", false: "=true"}[isOff]
			assert.Contains(t, pod.Containers[0].Args, arg, tc.name)
		}
	}
}

func TestTheNodeAgentMountsItsOwnDirectoryOfBPFFSAlone(t *testing.T) {
	mounts := func(set values) (on, in string, pod corev1.PodSpec) {
		pod = nodeAgent(t, set)
		for _, volume := range pod.Volumes {
			if volume.HostPath == nil {
				continue
			}
			assert.Empty(t, on, "one directory of the node")
			on = volume.HostPath.Path
			at := slices.IndexFunc(pod.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
				return m.Name == volume.Name
			})
			require.GreaterOrEqual(t, at, 0)
			in = pod.Containers[0].VolumeMounts[at].MountPath
		}
		return on, in, pod
	}
	on, in, pod := mounts(values{})
	assert.Equal(t, "/sys/fs/bpf/sidestep", on, "where agents of all versions pin")
	assert.Contains(t, pod.Containers[0].Args, "--bpffs=/run/sidestep/bpf")
	assert.Equal(t, "/run/sidestep/bpf/sidestep", in)

	on, in, pod = mounts(values{"allOfBPFFS": true})
	assert.Equal(t, "/sys/fs/bpf", on)
	assert.Contains(t, pod.Containers[0].Args, "--bpffs=/sys/fs/bpf")
	assert.Equal(t, "/sys/fs/bpf", in)
}

func TestTheNodeAgentNarrowsItself(t *testing.T) {
	pod := nodeAgent(t, values{})
	assert.Contains(t, pod.Containers[0].Args, "--seccomp=true")
	assert.Equal(t, corev1.AppArmorProfileTypeUnconfined, pod.Containers[0].SecurityContext.AppArmorProfile.Type)

	pod = nodeAgent(t, values{"seccompFilter": false, "appArmorProfile": "sidestep-nodeagent"})
	assert.Contains(t, pod.Containers[0].Args, "--seccomp=false")
	profile := pod.Containers[0].SecurityContext.AppArmorProfile
	assert.Equal(t, corev1.AppArmorProfileTypeLocalhost, profile.Type)
	assert.Equal(t, "sidestep-nodeagent", *profile.LocalhostProfile)
}

// A new installation requires addresses. An upgrade from a version that did not goes on without, and
// the next one knows.
func TestWhetherClientsAddressesAreRequired(t *testing.T) {
	for _, tc := range []struct {
		name    string
		set     string
		kept    string // in the cluster; "" for an installation of the version before
		upgrade bool
		want    string
	}{
		{"new", "auto", "", false, "required"},
		{"upgraded from the version before", "auto", "", true, "preferred"},
		{"upgraded again", "auto", "preferred", true, "preferred"},
		{"new, and upgraded", "auto", "required", true, "required"},
		{"upgraded, and told so", "required", "preferred", true, "required"},
		{"new, and told so", "preferred", "", false, "preferred"},
	} {
		config := &corev1.ConfigMap{Data: map[string]string{"older-laptops": "true"}}
		config.Name, config.Namespace = "sidestep-config", "sidestep"
		if tc.kept != "" {
			config.Data["client-addresses"] = tc.kept
		}
		loaded := load(t)
		all, err := chartutil.ToRenderValues(loaded,
			withRegistry(values{"nodeagent": values{"clientAddresses": tc.set}}),
			chartutil.ReleaseOptions{Name: "sidestep", Namespace: "sidestep", IsUpgrade: tc.upgrade}, nil)
		require.NoError(t, err)
		fake := dynamicfake.NewSimpleDynamicClient(scheme.Scheme)
		if tc.upgrade {
			fake = dynamicfake.NewSimpleDynamicClient(scheme.Scheme, config)
		}
		files, err := engine.RenderWithClientProvider(loaded, all, cluster{fake})
		require.NoError(t, err, tc.name)
		assert.Contains(t, files["sidestep/templates/nodeagent.yaml"],
			"            - --client-addresses="+tc.want+"\n", tc.name)
		var rendered corev1.ConfigMap
		require.NoError(t, yaml.UnmarshalStrict([]byte(files["sidestep/templates/config.yaml"]), &rendered))
		assert.Equal(t, tc.want, rendered.Data["client-addresses"], tc.name)
	}
}
