// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

func parse(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	require.NotNil(t, block)
	certificate, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return certificate
}

func TestTheManagersCertificateVerifiesForTheNameThatIsDialled(t *testing.T) {
	rendered := mustRender(t, values{})
	secret := get[*corev1.Secret](t, rendered, "Secret/sidestep-manager-tls")
	ca := get[*corev1.ConfigMap](t, rendered, "ConfigMap/sidestep-ca")
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM([]byte(ca.Data["ca.crt"])))
	certificate := parse(t, secret.Data["tls.crt"])
	for _, name := range []string{"sidestep-manager", "sidestep-manager.sidestep",
		"sidestep-manager.sidestep.svc"} {
		_, err := certificate.Verify(x509.VerifyOptions{DNSName: name, Roots: roots})
		assert.NoError(t, err, name)
	}
	_, err := certificate.Verify(x509.VerifyOptions{DNSName: "other", Roots: roots})
	assert.Error(t, err)
	assert.Equal(t, strings.TrimSpace(ca.Data["ca.crt"]), strings.TrimSpace(string(secret.Data["ca.crt"])))
}

func TestACertificateOfOnesOwnIsUsedAsItIs(t *testing.T) {
	alone := mustRender(t, values{"tls": values{"existingSecret": "mine"}})
	assert.NotContains(t, alone, "Secret/sidestep-manager-tls")
	assert.NotContains(t, alone, "ConfigMap/sidestep-ca")
	volumes := alone.pods()["Deployment/sidestep-manager"].Spec.Volumes
	assert.Equal(t, "mine", volumes[0].Secret.SecretName)

	with := mustRender(t, values{"tls": values{"existingSecret": "mine",
		"caCertificate": "-----BEGIN CERTIFICATE-----\n"}})
	assert.Equal(t, "-----BEGIN CERTIFICATE-----",
		get[*corev1.ConfigMap](t, with, "ConfigMap/sidestep-ca").Data["ca.crt"])
}

// cluster answers the chart's lookups.
type cluster struct{ dynamic.Interface }

func (c cluster) GetClientFor(apiVersion, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	resource := strings.ToLower(kind) + "s"
	return c.Resource(schema.FromAPIVersionAndKind(apiVersion,
		kind).GroupVersion().WithResource(resource)), true, nil
}

// renderTLS renders for an upgrade of an installation of which in is what the cluster has.
func renderTLS(t *testing.T, in cluster, set values) (files map[string]string, secret corev1.Secret) {
	t.Helper()
	loaded := load(t)
	all, err := chartutil.ToRenderValues(loaded, withRegistry(set),
		chartutil.ReleaseOptions{Name: "sidestep", Namespace: "sidestep"}, nil)
	require.NoError(t, err)
	files, err = engine.RenderWithClientProvider(loaded, all, in)
	require.NoError(t, err)
	for document := range strings.SplitSeq(files["sidestep/templates/tls.yaml"], "---\n") {
		if strings.Contains(document, "kind: Secret") {
			require.NoError(t, yaml.UnmarshalStrict([]byte(document), &secret))
		}
	}
	return files, secret
}

func TestAnUpgradeKeepsWhatTheManagerHasRenewed(t *testing.T) {
	nothing := cluster{dynamicfake.NewSimpleDynamicClient(scheme.Scheme)}
	first, made := renderTLS(t, nothing, nil)
	_, other := renderTLS(t, nothing, nil)
	assert.NotEqual(t, made.Data, other.Data, "two installations share a key")
	assert.Contains(t, made.Data, "ca.key", "the manager cannot renew without it")

	made.Data["next.crt"] = []byte("the manager's")
	trusted := &corev1.ConfigMap{Data: map[string]string{"ca.crt": string(made.Data["ca.crt"]) + "NEXT\n"}}
	trusted.Name, trusted.Namespace = "sidestep-ca", "sidestep"
	upgraded, kept := renderTLS(t, cluster{dynamicfake.NewSimpleDynamicClient(scheme.Scheme, &made, trusted)}, nil)
	assert.Equal(t, made.Data, kept.Data)
	assert.Contains(t, upgraded["sidestep/templates/tls.yaml"], "NEXT")
	for _, file := range []string{"manager.yaml", "nodeagent.yaml"} {
		assert.Equal(t, first["sidestep/templates/"+file], upgraded["sidestep/templates/"+file],
			"certificates restart nothing")
	}
}

func TestAnUpgradeAdoptsACertificateWhoseAuthorityHasNoKey(t *testing.T) {
	old := corev1.Secret{Data: map[string][]byte{"ca.crt": []byte("CA"), "tls.crt": []byte("CERT"),
		"tls.key": []byte("KEY")}}
	old.Name, old.Namespace = "sidestep-manager-tls", "sidestep"
	files, kept := renderTLS(t, cluster{dynamicfake.NewSimpleDynamicClient(scheme.Scheme, &old)}, nil)
	assert.Equal(t, old.Data, kept.Data)
	assert.Contains(t, files["sidestep/templates/tls.yaml"], "\n    CA\n")
}

func TestTheManagerMayChangeItsOwnCertificatesAlone(t *testing.T) {
	role := get[*rbacv1.Role](t, mustRender(t, values{}), "Role/sidestep-manager")
	for _, rule := range role.Rules {
		assert.Len(t, rule.ResourceNames, 1)
		assert.Equal(t, []string{"get", "update"}, rule.Verbs)
	}
	assert.NotContains(t, mustRender(t, values{"tls": values{"existingSecret": "mine"}}), "Role/sidestep-manager")
}
