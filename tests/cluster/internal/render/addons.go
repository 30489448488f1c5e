// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	_ "embed"
	"fmt"
	"net/netip"
	"text/template"

	"sidestep.dev/sidestep/tests/cluster/internal/plan"
)

// Policy is the admission policy that keeps sidestep and developers from changing workloads in
// application namespaces.
//
//go:embed manifests/policy.yaml
var Policy []byte

//go:embed manifests/coredns.yaml
var coreDNS string

// CoreDNS is everything that the cluster's DNS consists of, with the image of this reference.
func CoreDNS(p plan.Plan, image string) ([]byte, error) {
	parsed, err := template.New("coredns").Parse(coreDNS)
	if err != nil {
		return nil, fmt.Errorf("write the manifest of CoreDNS: %w", err)
	}
	var text bytes.Buffer
	err = parsed.Execute(&text, struct {
		Image     string
		Replicas  int
		Addresses []netip.Addr
	}{image, min(2, p.Nodes), p.DNSService()})
	if err != nil {
		return nil, fmt.Errorf("write the manifest of CoreDNS: %w", err)
	}
	return text.Bytes(), nil
}
