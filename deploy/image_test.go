// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/scheme"
)

// Whoever owned a default registry's name would own a privileged DaemonSet in every cluster.
func TestANewInstallationMustSayWhereItsImagesAre(t *testing.T) {
	for name, set := range map[string]values{
		"by default": {"image": values{}},
		"emptied":    {"image": values{"registry": ""}},
	} {
		_, err := render(t, set)
		assert.ErrorContains(t, err, "image.registry is not set", name)
		assert.ErrorContains(t, err, "--set image.registry=registry.example.com/you", name)
	}
	loaded := mustRender(t, values{"image": values{"pullPolicy": "Never"}}).pods()
	assert.Equal(t, "docker.io/sidestep/manager:v0.0.0-dev",
		loaded["Deployment/sidestep-manager"].Spec.Containers[0].Image, "nothing is pulled")
}

func TestImagesByDigest(t *testing.T) {
	const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	pods := mustRender(t, values{"nodeagent": values{"image": values{"digest": digest}}}).pods()
	assert.Equal(t, "registry.example/sidestep/nodeagent@"+digest,
		pods["DaemonSet/sidestep-nodeagent"].Spec.Containers[0].Image)
	assert.Equal(t, "registry.example/sidestep/manager:v0.0.0-dev",
		pods["Deployment/sidestep-manager"].Spec.Containers[0].Image)
	_, err := render(t, values{"manager": values{"image": values{"digest": "sha256:short"}}})
	assert.ErrorContains(t, err, "digest")
}

func TestAnUpgradeTakesImagesFromWhereTheInstalledOnesAre(t *testing.T) {
	const tag = ":v0.0.0-dev"
	for installed, want := range map[string]string{
		"docker.io/sidestep/manager:v0.1.0":                               "docker.io/sidestep/%" + tag,
		"r.example:5000/you/sidestep/manager:v0.1.0":                      "r.example:5000/you/sidestep/%" + tag,
		"registry.example:5000/manager@sha256:" + strings.Repeat("0", 64): "registry.example:5000/%" + tag,
	} {
		deployment := &appsv1.Deployment{}
		deployment.Name, deployment.Namespace = "sidestep-manager", "sidestep"
		deployment.Spec.Template.Spec.Containers = []corev1.Container{{Name: "manager", Image: installed}}
		loaded := load(t)
		all, err := chartutil.ToRenderValues(loaded, values{},
			chartutil.ReleaseOptions{Name: "sidestep", Namespace: "sidestep", IsUpgrade: true}, nil)
		require.NoError(t, err)
		files, err := engine.RenderWithClientProvider(loaded, all,
			cluster{dynamicfake.NewSimpleDynamicClient(scheme.Scheme, deployment)})
		require.NoError(t, err)
		for _, name := range []string{"manager", "nodeagent"} {
			image := regexp.MustCompile(`(?m)^ +image: (.*)$`).
				FindStringSubmatch(files["sidestep/templates/"+name+".yaml"])
			require.NotNil(t, image)
			assert.Equal(t, strings.Replace(want, "%", name, 1), image[1])
		}
	}
}
