// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

type values = map[string]any

func load(t *testing.T) *chart.Chart {
	t.Helper()
	var files []*loader.BufferedFile
	require.NoError(t, fs.WalkDir(Chart, "chart", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := Chart.ReadFile(path)
		files = append(files, &loader.BufferedFile{Name: strings.TrimPrefix(path, "chart/"), Data: content})
		return err
	}))
	loaded, err := loader.LoadFiles(files)
	require.NoError(t, err)
	return loaded
}

// objects are the rendered objects by "Kind/name".
type objects map[string]runtime.Object

// withRegistry adds the value that every new installation must set, unless the test is about images.
func withRegistry(set values) values {
	if _, ok := set["image"]; ok {
		return set
	}
	all := values{"image": values{"registry": "registry.example"}}
	maps.Copy(all, set)
	return all
}

// render does what "helm template sidestep chart --namespace sidestep" does. Every object is
// decoded strictly: a field that Kubernetes does not know is an error.
func render(t *testing.T, set values) (objects, error) {
	t.Helper()
	install := action.NewInstall(&action.Configuration{})
	install.DryRun, install.ClientOnly, install.Replace = true, true, true
	install.ReleaseName, install.Namespace = "sidestep", "sidestep"
	install.KubeVersion = &chartutil.KubeVersion{Version: "v1.30.0", Major: "1", Minor: "30"}
	release, err := install.Run(load(t), withRegistry(set))
	if err != nil {
		return nil, err
	}
	rendered := objects{}
	for document := range strings.SplitSeq(release.Manifest, "\n---\n") {
		var meta unstructured.Unstructured
		require.NoError(t, yaml.Unmarshal([]byte(document), &meta.Object), document)
		if len(meta.Object) == 0 {
			continue
		}
		object, err := scheme.Scheme.New(meta.GroupVersionKind())
		require.NoError(t, err)
		require.NoError(t, yaml.UnmarshalStrict([]byte(document), object), document)
		key := meta.GetKind() + "/" + meta.GetName()
		require.NotContains(t, rendered, key)
		rendered[key] = object
	}
	return rendered, nil
}

func mustRender(t *testing.T, set values) objects {
	t.Helper()
	rendered, err := render(t, set)
	require.NoError(t, err)
	return rendered
}

func get[T runtime.Object](t *testing.T, from objects, key string) T {
	t.Helper()
	require.Contains(t, from, key)
	object, ok := from[key].(T)
	require.True(t, ok, "%s is a %T", key, from[key])
	return object
}

func (o objects) pods() map[string]corev1.PodTemplateSpec {
	pods := map[string]corev1.PodTemplateSpec{}
	for key, object := range o {
		switch workload := object.(type) {
		case *appsv1.Deployment:
			pods[key] = workload.Spec.Template
		case *appsv1.DaemonSet:
			pods[key] = workload.Spec.Template
		}
	}
	return pods
}

func TestTheChartPassesLint(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, copyChart(dir))
	result := action.NewLint().Run([]string{dir}, withRegistry(nil))
	assert.Empty(t, result.Errors)
	for _, message := range result.Messages {
		assert.Contains(t, message.Err.Error(), "icon is recommended")
	}
}

func TestNoContainerIsPrivileged(t *testing.T) {
	pods := mustRender(t, values{}).pods()
	require.Len(t, pods, 2)
	for key, pod := range pods {
		for _, container := range pod.Spec.Containers {
			context := container.SecurityContext
			require.NotNil(t, context, key)
			assert.Nil(t, context.Privileged, key)
			assert.False(t, *context.AllowPrivilegeEscalation, key)
			assert.True(t, *context.ReadOnlyRootFilesystem, key)
			assert.Equal(t, []corev1.Capability{"ALL"}, context.Capabilities.Drop, key)
			assert.NotEmpty(t, container.Resources.Requests, key)
			assert.NotNil(t, container.LivenessProbe, key)
			assert.NotNil(t, container.ReadinessProbe, key)
		}
		assert.Equal(t, corev1.SeccompProfileTypeRuntimeDefault,
			pod.Spec.SecurityContext.SeccompProfile.Type, key)
		assert.False(t, pod.Spec.HostNetwork, key)
	}
}

func TestTheManagerNeedsNothingOfItsNode(t *testing.T) {
	pod := get[*appsv1.Deployment](t, mustRender(t, values{}), "Deployment/sidestep-manager").Spec.Template.Spec
	assert.True(t, *pod.SecurityContext.RunAsNonRoot)
	assert.False(t, pod.HostPID)
	assert.Empty(t, pod.Containers[0].SecurityContext.Capabilities.Add)
	for _, volume := range pod.Volumes {
		assert.Nil(t, volume.HostPath)
	}
}

func TestPodsOnTheNodesNetworkAreLeftAloneUnlessTheValuesSayOtherwise(t *testing.T) {
	for allowed, set := range map[bool]values{false: {},
		true: {"nodeagent": values{"allowHostNetwork": true}}} {
		rendered := mustRender(t, set)
		args := get[*appsv1.DaemonSet](t, rendered,
			"DaemonSet/sidestep-nodeagent").Spec.Template.Spec.Containers[0].Args
		assert.Equal(t, allowed, slices.Contains(args, "--allow-host-network"), "what node agents do")
		assert.Equal(t, allowed, get[*corev1.ConfigMap](t, rendered,
			"ConfigMap/sidestep-ca").Data["host-network"] == "allowed", "what laptops are told")
	}
}

func TestTheNodeAgentHasNoRightsInTheKubernetesAPI(t *testing.T) {
	everything := mustRender(t, values{
		"developers":          []any{values{"kind": "Group", "name": "developers"}},
		"developerNamespaces": []any{"shop"},
	})
	pod := get[*appsv1.DaemonSet](t, everything, "DaemonSet/sidestep-nodeagent").Spec.Template.Spec
	assert.False(t, *pod.AutomountServiceAccountToken)
	account := get[*corev1.ServiceAccount](t, everything, "ServiceAccount/sidestep-nodeagent")
	assert.False(t, *account.AutomountServiceAccountToken)
	assert.Equal(t, account.Name, pod.ServiceAccountName)

	bindings := 0
	for key, object := range everything {
		var subjects []rbacv1.Subject
		switch binding := object.(type) {
		case *rbacv1.RoleBinding:
			subjects = binding.Subjects
		case *rbacv1.ClusterRoleBinding:
			subjects = binding.Subjects
		default:
			continue
		}
		bindings++
		for _, subject := range subjects {
			assert.NotEqual(t, account.Name, subject.Name, key)
			if subject.Kind == "ServiceAccount" {
				assert.Equal(t, "sidestep-manager", subject.Name, key)
			}
		}
	}
	assert.Equal(t, 5, bindings)
}

func TestTheNodeAgentAuthenticatesWithATokenForTheManagerAlone(t *testing.T) {
	pod := get[*appsv1.DaemonSet](t, mustRender(t, values{}), "DaemonSet/sidestep-nodeagent").Spec.Template.Spec
	at := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Projected != nil })
	require.GreaterOrEqual(t, at, 0)
	sources := pod.Volumes[at].Projected.Sources
	require.Len(t, sources, 1)
	assert.Equal(t, "sidestep-manager", sources[0].ServiceAccountToken.Audience)
	assert.EqualValues(t, 3600, *sources[0].ServiceAccountToken.ExpirationSeconds)
}

func TestTheManagerCannotChangeWorkloads(t *testing.T) {
	role := get[*rbacv1.ClusterRole](t, mustRender(t, values{}), "ClusterRole/sidestep-manager")
	reading := []string{"get", "list", "watch"}
	for _, rule := range role.Rules {
		assert.NotContains(t, rule.Verbs, "*")
		assert.NotContains(t, rule.Resources, "*")
		if slices.Contains(rule.APIGroups, "apps") || slices.Contains(rule.Resources, "pods") {
			assert.Subset(t, reading, rule.Verbs)
		}
	}
}

func TestDevelopersGetTheirRolesOnlyWhenNamed(t *testing.T) {
	nobody := mustRender(t, values{})
	assert.NotContains(t, nobody, "RoleBinding/sidestep-user")
	role := get[*rbacv1.ClusterRole](t, nobody, "ClusterRole/sidestep-user")
	assert.Equal(t, "true", role.Labels["rbac.authorization.k8s.io/aggregate-to-edit"])

	somebody := mustRender(t, values{
		"rbac": values{"aggregateToEdit": false},
		"developers": []any{
			values{"kind": "Group", "name": "developers"},
			values{"kind": "ServiceAccount", "name": "ci", "namespace": "build"},
		},
		"developerNamespaces": []any{"shop"},
	})
	role = get[*rbacv1.ClusterRole](t, somebody, "ClusterRole/sidestep-user")
	assert.NotContains(t, role.Labels, "rbac.authorization.k8s.io/aggregate-to-edit")
	binding := get[*rbacv1.RoleBinding](t, somebody, "RoleBinding/sidestep-user")
	assert.Equal(t, []rbacv1.Subject{
		{Kind: "Group", APIGroup: "rbac.authorization.k8s.io", Name: "developers"},
		{Kind: "ServiceAccount", Name: "ci", Namespace: "build"},
	}, binding.Subjects)
	assert.Equal(t, "shop", get[*rbacv1.RoleBinding](t, somebody, "RoleBinding/sidestep-intercept").Namespace)
}

func TestDevelopersMayReadEnvironmentsUnlessTheValuesSayOtherwise(t *testing.T) {
	reads := func(role *rbacv1.ClusterRole) bool {
		return slices.ContainsFunc(role.Rules, func(r rbacv1.PolicyRule) bool {
			return slices.Equal(r.APIGroups, []string{"sidestep.dev"}) &&
				slices.Equal(r.Resources, []string{"intercepts/environment"}) &&
				slices.Equal(r.Verbs, []string{"get"})
		})
	}
	for allowed, set := range map[bool]values{true: {}, false: {"rbac": values{"environment": false}}} {
		rendered := mustRender(t, set)
		assert.Equal(t, allowed, reads(get[*rbacv1.ClusterRole](t, rendered, "ClusterRole/sidestep-user")))
		assert.True(t, reads(get[*rbacv1.ClusterRole](t, rendered, "ClusterRole/sidestep-environment")),
			"to be bound where the other does not have it")
		policy := get[*admissionv1.ValidatingAdmissionPolicy](t, rendered,
			"ValidatingAdmissionPolicy/sidestep-environment")
		assert.Equal(t, admissionv1.Fail, *policy.Spec.FailurePolicy)
		binding := get[*admissionv1.ValidatingAdmissionPolicyBinding](t, rendered,
			"ValidatingAdmissionPolicyBinding/sidestep-environment")
		assert.Equal(t, policy.Name, binding.Spec.PolicyName)
		assert.Equal(t, []admissionv1.ValidationAction{admissionv1.Deny}, binding.Spec.ValidationActions)
	}
}

func TestValuesArriveWhereTheyBelong(t *testing.T) {
	defaults := mustRender(t, values{}).pods()
	assert.Equal(t, "registry.example/sidestep/manager:v0.0.0-dev",
		defaults["Deployment/sidestep-manager"].Spec.Containers[0].Image)
	assert.Equal(t, "system-node-critical", defaults["DaemonSet/sidestep-nodeagent"].Spec.PriorityClassName)

	pods := mustRender(t, values{
		"image": values{"registry": "registry.example:5000", "repository": "", "tag": "v1",
			"pullPolicy": "Never", "pullSecrets": []any{"pull"}},
		"sessionGrace": "1h30m",
		"logLevel":     "debug",
		"nodeagent": values{
			"datapath":          "tc",
			"nodeSelector":      values{"pool": "dev"},
			"seLinuxType":       "spc_t",
			"priorityClassName": "",
			"podLabels":         values{"team": "platform"},
			"podAnnotations":    values{"example.com/scrape": "true"},
		},
	}).pods()
	manager, nodeagent := pods["Deployment/sidestep-manager"].Spec, pods["DaemonSet/sidestep-nodeagent"]
	assert.Equal(t, "registry.example:5000/manager:v1", manager.Containers[0].Image)
	assert.Equal(t, "registry.example:5000/nodeagent:v1", nodeagent.Spec.Containers[0].Image)
	assert.Equal(t, corev1.PullNever, manager.Containers[0].ImagePullPolicy)
	assert.Equal(t, []corev1.LocalObjectReference{{Name: "pull"}}, manager.ImagePullSecrets)
	assert.Contains(t, manager.Containers[0].Args, "--session-grace=1h30m")
	assert.Contains(t, nodeagent.Spec.Containers[0].Args, "--log-level=debug")
	assert.Contains(t, nodeagent.Spec.Containers[0].Args, "--datapath=tc")
	assert.Contains(t, defaults["DaemonSet/sidestep-nodeagent"].Spec.Containers[0].Args, "--datapath=auto")
	assert.Equal(t, map[string]string{"kubernetes.io/os": "linux", "pool": "dev"}, nodeagent.Spec.NodeSelector)
	assert.Equal(t, "spc_t", nodeagent.Spec.Containers[0].SecurityContext.SELinuxOptions.Type)
	assert.Empty(t, nodeagent.Spec.PriorityClassName)
	assert.Equal(t, "platform", nodeagent.Labels["team"])
	assert.Equal(t, "true", nodeagent.Annotations["example.com/scrape"])
}

func TestPartsThatCanBeLeftOutAre(t *testing.T) {
	rendered := mustRender(t, values{
		"networkPolicy": values{"enabled": false},
		"manager":       values{"podDisruptionBudget": values{"enabled": false}},
	})
	assert.NotContains(t, rendered, "NetworkPolicy/sidestep-manager")
	assert.NotContains(t, rendered, "NetworkPolicy/sidestep-nodeagent")
	assert.NotContains(t, rendered, "PodDisruptionBudget/sidestep-manager")
}

func TestOnlyNodeAgentsReachTheManagersTunnelPort(t *testing.T) {
	policy := get[*networkingv1.NetworkPolicy](t, mustRender(t, values{}), "NetworkPolicy/sidestep-manager")
	for _, rule := range policy.Spec.Ingress {
		if rule.Ports[0].Port.StrVal == "grpc" {
			require.Len(t, rule.From, 1)
			assert.Equal(t, "nodeagent", rule.From[0].PodSelector.MatchLabels["app.kubernetes.io/component"])
		}
	}
}

func TestValuesThatTheChartDoesNotKnowAreRefused(t *testing.T) {
	for name, set := range map[string]values{
		"a misspelt value":               {"loglevel": "debug"},
		"a misspelt value further down":  {"nodeagent": values{"resource": values{}}},
		"a level that does not exist":    {"logLevel": "verbose"},
		"a datapath that does not exist": {"nodeagent": values{"datapath": "iptables"}},
		"a grace period without a unit":  {"sessionGrace": "15"},
		"an unquoted number for a tag":   {"image": values{"tag": 1.2}},
		"a developer without a name":     {"developers": []any{values{"kind": "User"}}},
		"a service account without a home": {"developers": []any{values{"kind": "ServiceAccount",
			"name": "ci"}}},
		"an authority without certificates": {"tls": values{"caCertificate": "PEM"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := render(t, set)
			assert.ErrorContains(t, err, "don't meet the specifications of the schema")
		})
	}
}

func TestEveryDefaultValueIsInTheSchema(t *testing.T) {
	defaults := load(t).Values
	defaults["image"].(values)["registry"] = "registry.example"
	_, err := render(t, defaults)
	assert.NoError(t, err)
}

func TestTheCustomResourcesArePartOfTheChart(t *testing.T) {
	crds := load(t).CRDObjects()
	require.Len(t, crds, 2)
	assert.Equal(t, "crds/sidestep.dev_intercepts.yaml", crds[0].File.Name)
	assert.Equal(t, "crds/sidestep.dev_logins.yaml", crds[1].File.Name)
}
