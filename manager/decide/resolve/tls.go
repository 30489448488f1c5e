// SPDX-License-Identifier: Apache-2.0

package resolve

import (
	"fmt"
	"slices"
	"strings"

	"sidestep.dev/sidestep/api/v1alpha1"
)

// speaksTLS returns what shows that a port speaks TLS, or "". An appProtocol takes precedence over
// a name.
func speaksTLS(name string, appProtocol *string) string {
	if appProtocol != nil && *appProtocol != "" {
		if slices.Contains([]string{"https", "tls", "wss", "kubernetes.io/wss"},
			strings.ToLower(*appProtocol)) {
			return "its appProtocol is " + *appProtocol
		}
		return ""
	}
	for _, word := range []string{"https", "tls"} {
		if name == word || strings.HasPrefix(name, word+"-") {
			return "its name is " + name
		}
	}
	return ""
}

// checkPlaintext refuses an intercept that would never see a request.
func checkPlaintext(ic *v1alpha1.Intercept, p *port) error {
	if ic.Spec.Mechanism != v1alpha1.MechanismHTTP || ic.Spec.Plaintext || p.tls == "" {
		return nil
	}
	where := "port " + p.display
	if p.service != "" {
		where += " of service " + p.service
	}
	return &Invalid{Reason: PortSpeaksTLS,
		Message: fmt.Sprintf("%s speaks TLS (%s), so its requests cannot be read to match them: "+
			"use --mechanism tcp to take every connection, or --plaintext if the app behind it speaks plaintext after all", where, p.tls)}
}
