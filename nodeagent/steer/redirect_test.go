package steer_test

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/nodeagent/steer"
)

// A sidecar of a mesh takes what arrives by rules like these. TC would come before them.
func TestPodThatRedirectsWhatArrivesIsNotSteeredByTC(t *testing.T) {
	for _, command := range []string{"iptables", "iptables-legacy", "ip6tables"} {
		t.Run(command, func(t *testing.T) {
			if _, err := exec.LookPath(command); err != nil {
				t.Skip(err) // a tool of this machine, not a feature of its kernel
			}
			everyDatapath(t, func(t *testing.T, w *world) {
				require.NoError(t, w.pod.Do(func() error {
					return exec.Command(command, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "15", "-j", "REDIRECT", "--to-ports", "16").Run()
				}))
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
