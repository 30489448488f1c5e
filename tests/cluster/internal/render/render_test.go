// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"encoding/json"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"

	"sidestep.dev/sidestep/tests/cluster/internal/plan"
)

var (
	single = plan.Plan{Name: "sidestep", Nodes: 2, Family: plan.IPv4}
	dual   = plan.Plan{Name: "sidestep", Nodes: 1, Family: plan.Dual}
)

func node(t *testing.T, p plan.Plan) map[string][]byte {
	t.Helper()
	files, err := Node(p, p.AllNodes()[0], Facts{PauseImage: "localhost/pause:v1", CNIPlugins: "/usr/lib/cni"})
	require.NoError(t, err)
	return files
}

func read(t *testing.T, text []byte) map[string]any {
	t.Helper()
	var parsed map[string]any
	require.NoError(t, sigsyaml.Unmarshal(text, &parsed))
	return parsed
}

func manifest(t *testing.T, text []byte) map[string]*unstructured.Unstructured {
	t.Helper()
	objects := map[string]*unstructured.Unstructured{}
	for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if err == io.EOF {
			return objects
		}
		require.NoError(t, err)
		objects[object.GetKind()] = object
	}
}

func TestKubeletAsksTheAPIServerWhoMayCallIt(t *testing.T) {
	kubelet := read(t, node(t, single)["kubelet.yaml"])
	assert.Equal(t, "KubeletConfiguration", kubelet["kind"])
	authentication := kubelet["authentication"].(map[string]any)
	assert.Equal(t, false, authentication["anonymous"].(map[string]any)["enabled"])
	assert.Equal(t, true, authentication["webhook"].(map[string]any)["enabled"])
	assert.Equal(t, "Webhook", kubelet["authorization"].(map[string]any)["mode"])
	assert.Equal(t, []any{"198.19.0.10"}, kubelet["clusterDNS"])
	assert.Equal(t, "", kubelet["resolvConf"], "an empty value, for without one the computer's own is used")
	assert.Contains(t, kubelet, "resolvConf")
}

func TestPodsGetAnAddressOfEachFamily(t *testing.T) {
	for name, test := range map[string]struct {
		plan    plan.Plan
		subnets []string
		routes  []string
	}{
		"one family": {single, []string{"198.18.65.0/24"}, []string{"0.0.0.0/0"}},
		"two families": {dual, []string{"198.18.65.0/24", "fd5d:57e9:c10c:101::/64"},
			[]string{"0.0.0.0/0", "::/0"}},
	} {
		t.Run(name, func(t *testing.T) {
			var conflist struct {
				Plugins []struct {
					Type string
					IPAM struct {
						Ranges [][]struct{ Subnet string }
						Routes []struct{ Dst string }
					}
				}
			}
			require.NoError(t, json.Unmarshal(node(t, test.plan)["cni/10-pods.conflist"], &conflist))
			require.NotEmpty(t, conflist.Plugins)
			assert.Equal(t, "ptp", conflist.Plugins[0].Type)
			var subnets, routes []string
			for _, choice := range conflist.Plugins[0].IPAM.Ranges {
				require.Len(t, choice, 1)
				subnets = append(subnets, choice[0].Subnet)
			}
			for _, route := range conflist.Plugins[0].IPAM.Routes {
				routes = append(routes, route.Dst)
			}
			assert.Equal(t, test.subnets, subnets)
			assert.Equal(t, test.routes, routes)
		})
	}
}

func TestProxyLeavesTheComputersOwnSettingsAlone(t *testing.T) {
	proxy := read(t, node(t, dual)["kube-proxy.yaml"])
	assert.Equal(t, "iptables", proxy["mode"])
	assert.Equal(t, "198.18.64.0/18,fd5d:57e9:c10c:100::/56", proxy["clusterCIDR"])
	conntrack := proxy["conntrack"].(map[string]any)
	assert.EqualValues(t, 0, conntrack["maxPerCore"])
	assert.EqualValues(t, 0, conntrack["min"])
}

func TestContainerdUsesTheGivenImageAndPlugins(t *testing.T) {
	text := string(node(t, single)["containerd.toml"])
	assert.Contains(t, text, `sandbox_image = "localhost/pause:v1"`)
	assert.Contains(t, text, `bin_dir = "/usr/lib/cni"`)
	assert.Contains(t, text, "version = 2\n")
}

func TestCommandLinesFollowThePlan(t *testing.T) {
	assert.Contains(t, APIServer(dual), "--service-cluster-ip-range=198.19.0.0/20,fd5d:57e9:c10c:ffff::/112")
	assert.Contains(t, ControllerManager(single), "--service-cluster-ip-range=198.19.0.0/20")
	assert.Contains(t, Kubelet(dual.AllNodes()[0]), "--node-ip=198.18.0.11,fd5d:57e9:c10c::11")
	for _, args := range [][]string{
		Etcd(), APIServer(single), ControllerManager(single), Scheduler(), Containerd(),
		Kubelet(single.AllNodes()[0]), Proxy(),
	} {
		assert.False(t, strings.HasPrefix(args[0], "/"),
			"%s is looked up where the cluster's programs are", args[0])
		sorted := slices.Sorted(slices.Values(args))
		assert.Equal(t, len(args), len(slices.Compact(sorted)), "a flag of %s is given twice", args[0])
	}
}

func TestDNSHasItsFixedAddresses(t *testing.T) {
	for name, test := range map[string]struct {
		plan     plan.Plan
		policy   string
		replicas int64
	}{
		"one family and two nodes":  {single, "SingleStack", 2},
		"two families and one node": {dual, "RequireDualStack", 1},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := CoreDNS(test.plan, "localhost/coredns:v1")
			require.NoError(t, err)
			objects := manifest(t, text)

			addresses, _, err := unstructured.NestedStringSlice(objects["Service"].Object, "spec", "clusterIPs")
			require.NoError(t, err)
			var parsed []netip.Addr
			for _, address := range addresses {
				parsed = append(parsed, netip.MustParseAddr(address))
			}
			assert.Equal(t, test.plan.DNSService(), parsed)
			policy, _, _ := unstructured.NestedString(objects["Service"].Object, "spec", "ipFamilyPolicy")
			assert.Equal(t, test.policy, policy)

			replicas, _, _ := unstructured.NestedInt64(objects["Deployment"].Object, "spec", "replicas")
			assert.Equal(t, test.replicas, replicas)
			containers, _, _ := unstructured.NestedSlice(objects["Deployment"].Object, "spec",
				"template", "spec", "containers")
			assert.Equal(t, "localhost/coredns:v1", containers[0].(map[string]any)["image"])
		})
	}
}

func TestThePolicyCoversEveryKindOfWorkload(t *testing.T) {
	objects := manifest(t, Policy)
	rules, _, err := unstructured.NestedSlice(objects["ValidatingAdmissionPolicy"].Object, "spec",
		"matchConstraints", "resourceRules")
	require.NoError(t, err)
	covered := map[string][]any{}
	for _, rule := range rules {
		rule := rule.(map[string]any)
		for _, resource := range rule["resources"].([]any) {
			covered[resource.(string)] = rule["operations"].([]any)
		}
	}
	for _, resource := range []string{
		"pods", "pods/*", "deployments", "deployments/*", "replicasets", "replicasets/*",
		"statefulsets", "statefulsets/*",
		"daemonsets", "daemonsets/*", "jobs", "jobs/*", "cronjobs", "cronjobs/*", "replicationcontrollers",
	} {
		assert.Equal(t, []any{"CREATE", "UPDATE", "DELETE"}, covered[resource], resource)
	}
	binding := objects["ValidatingAdmissionPolicyBinding"]
	actions, _, _ := unstructured.NestedStringSlice(binding.Object, "spec", "validationActions")
	assert.Equal(t, []string{"Deny"}, actions)
	policy, _, _ := unstructured.NestedString(binding.Object, "spec", "policyName")
	assert.Equal(t, objects["ValidatingAdmissionPolicy"].GetName(), policy)
}
