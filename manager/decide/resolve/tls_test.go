// SPDX-License-Identifier: Apache-2.0

package resolve_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/manager/decide/resolve"
)

func byRequest(s *v1alpha1.InterceptSpec) { s.Mechanism = v1alpha1.MechanismHTTP }

func byConnection(s *v1alpha1.InterceptSpec) { s.Mechanism = v1alpha1.MechanismTCP }

func inPlaintext(s *v1alpha1.InterceptSpec) { s.Plaintext = true }

func speaking(p corev1.ServicePort, protocol string) corev1.ServicePort {
	p.AppProtocol = &protocol
	return p
}

func TestRequestsOfATLSPortAreRefused(t *testing.T) {
	const advice = ", so its requests cannot be read to match them: use --mechanism tcp to take every connection, or --plaintext if the app behind it speaks plaintext after all"
	for name, c := range map[string]struct {
		port    corev1.ServicePort
		message string // empty: it is not refused
	}{
		"appProtocol https": {speaking(http, "https"),
			"port http of service orders speaks TLS (its appProtocol is https)" + advice},
		"appProtocol HTTPS": {speaking(http, "HTTPS"),
			"port http of service orders speaks TLS (its appProtocol is HTTPS)" + advice},
		"appProtocol tls": {speaking(http, "tls"),
			"port http of service orders speaks TLS (its appProtocol is tls)" + advice},
		"appProtocol kubernetes.io/wss": {speaking(port("", 80, num(8080)),
			"kubernetes.io/wss"), "port 80 of service orders speaks TLS (its appProtocol is kubernetes.io/wss)" + advice},
		"the name https": {port("https", 443, num(8443)),
			"port https of service orders speaks TLS (its name is https)" + advice},
		"a name that begins with https-": {port("https-api", 443, num(8443)),
			"port https-api of service orders speaks TLS (its name is https-api)" + advice},
		"a name that begins with tls-": {port("tls-db", 5432, num(5432)),
			"port tls-db of service orders speaks TLS (its name is tls-db)" + advice},
		"appProtocol http, whatever the name":        {speaking(port("https", 443, num(8080)), "http"), ""},
		"appProtocol kubernetes.io/ws":               {speaking(http, "kubernetes.io/ws"), ""},
		"another name":                               {port("httpsy", 80, num(8080)), ""},
		"the number 443 alone":                       {port("", 443, num(8443)), ""},
		"a name that is nothing but a word the same": {port("http-tls", 80, num(8080)), ""},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := orders(template(app), service("orders", c.port))
			_, err := resolve.Intercept(cluster, intercept(byRequest))
			if c.message == "" {
				assert.NoError(t, err)
			} else {
				var bad *resolve.Invalid
				require.ErrorAs(t, err, &bad)
				assert.Equal(t, c.message, bad.Error())
				assert.Equal(t, resolve.PortSpeaksTLS, bad.Reason)
			}
			_, err = resolve.Intercept(cluster, intercept(byRequest, inPlaintext))
			assert.NoError(t, err, "the developer knows better")
			_, err = resolve.Intercept(cluster, intercept(byConnection))
			assert.NoError(t, err, "connections can be taken whole")
		})
	}
	t.Run("a container's port, where there is no service", func(t *testing.T) {
		_, err := resolve.Intercept(orders(template(container("app", named("https", 8443)))),
			intercept(byRequest))
		assert.EqualError(t, err, "port https speaks TLS (its name is https)"+advice)
	})
}
