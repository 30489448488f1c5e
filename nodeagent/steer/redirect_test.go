// SPDX-License-Identifier: Apache-2.0

package steer_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/nodeagent/steer"
)

// A sidecar of a mesh takes what arrives by rules like these. TC would come before them.
func TestPodThatRedirectsWhatArrivesIsNotSteeredByTC(t *testing.T) {
	const redirect = " -t nat -A PREROUTING -p tcp --dport 15 -j REDIRECT --to-ports 16"
	const tproxy = " -t mangle -A PREROUTING -p tcp --dport 15 -j TPROXY --on-port 16"
	for _, rule := range []string{
		"iptables" + redirect, "iptables-legacy" + redirect, "ip6tables" + redirect, "iptables" +
			tproxy, "iptables-legacy" + tproxy, "ip6tables" + tproxy,
	} {
		t.Run(rule, func(t *testing.T) {
			words := strings.Fields(rule)
			if _, err := exec.LookPath(words[0]); err != nil {
				t.Skip(err) // a tool of this machine, not a feature of its kernel
			}
			everyDatapath(t, func(t *testing.T, w *world) {
				require.NoError(t, w.pod.Do(func() error { return exec.Command(words[0], words[1:]...).Run() }))
				node := w.newNode()
				defer node.Close()
				program, err := node.Load()
				require.NoError(t, err)
				defer program.Close()
				err = program.Attach(w.pod)
				if w.datapath == steer.SkLookup {
					require.NoError(t, err)
					require.NoError(t, program.Detach())
				} else {
					assert.ErrorContains(t, err, "redirect what arrives")
				}
				assert.Empty(t, w.attached(t))
			})
		})
	}
}
