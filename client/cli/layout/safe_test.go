// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/daemonpb"
)

// hostile clears the screen, sets the title, fakes a line, goes from right to left, and is no UTF-8.
const hostile = "ann\x1b[2J\x1b]0;title\x07\r\nfaked \u202eline\u200b \x9b1m\u009b1m\x7f"

func TestTextOfOthersDoesNothingToATerminal(t *testing.T) {
	assert.Equal(t, `ann\x1b[2J\x1b]0;title\a\r\nfaked \u202eline\u200b \x9b1m\u009b1m\x7f`, Safe(hostile))
	assert.Equal(t, "two\nlines\tof `ann`", SafeLines("two\nlines\tof `ann`"))
	for _, plain := range []string{"", "jane@laptop", "Größe — 日本 🎉", `a\b "c"`} {
		assert.Equal(t, plain, Safe(plain))
	}
}

func FuzzSafe(f *testing.F) {
	f.Add(hostile)
	f.Fuzz(func(t *testing.T, text string) {
		shown := Safe(text)
		assert.False(t, strings.ContainsFunc(shown, func(r rune) bool { return harmful(r, false) }), "%q", shown)
		assert.Equal(t, shown, Safe(shown), "what is safe stays as it is")
	})
}

// Every text of every answer is hostile, so that a field that is added later is seen too.
func TestNothingThatIsPrintedHoldsEscapes(t *testing.T) {
	i := &daemonpb.InterceptInfo{
		Name: hostile, Namespace: hostile, WorkloadKind: hostile, Workload: hostile, State: hostile,
		Message: hostile, Destination: hostile, Service: hostile, ServicePort: hostile, Protocol: hostile,
		Container: hostile, Mechanism: hostile, Holder: hostile, Coverage: hostile, Conditions: []string{hostile},
		CurlHeaders: []string{hostile}, Pods: []*daemonpb.PodInfo{{Name: hostile, Node: hostile, Message: hostile}},
	}
	w := &daemonpb.WorkloadInfo{Name: hostile, Namespace: hostile, Kind: hostile, NotInterceptable: hostile,
		Intercepts: []*daemonpb.InterceptInfo{i}, Others: []*daemonpb.InterceptInfo{i}}
	s := &daemonpb.StatusInfo{Session: hostile, State: hostile, Message: hostile, Connected: true,
		KubernetesServer: hostile, KubernetesContext: hostile, Namespace: hostile, ManagerNamespace: hostile,
		ManagerVersion: hostile, Holder: hostile, Intercepts: []*daemonpb.InterceptInfo{i},
		Ended: []*daemonpb.EndedInfo{{Name: hostile, Namespace: hostile, Workload: hostile, Reason: hostile}}}
	told := &daemonpb.NodeAgentsReply{Agents: []*daemonpb.NodeAgentInfo{{Node: hostile, Attached: true,
		Version: hostile, Kernel: hostile, Datapath: hostile, Reason: hostile}}}
	var out strings.Builder
	require.NoError(t, NewIntercept(&out, i, "http://orders.shop"+hostile, Paint{}))
	require.NoError(t, List(&out, []*daemonpb.WorkloadInfo{w, {Name: hostile, Namespace: "x", Kind: hostile}}, time.Time{}, Paint{}))
	require.NoError(t, StatusText{Brand: "Sidestep", Wide: true, Told: told}.Write(&out, s))
	assert.Contains(t, out.String(), `ann\x1b[2J`)
	assert.False(t, strings.ContainsFunc(out.String(), func(r rune) bool { return r != '\n' && harmful(r, false) }))
	for line := range strings.Lines(out.String()) {
		assert.False(t, strings.HasPrefix(line, "faked"), line)
	}
	assert.Equal(t, hostile, i.GetHolder(), "what programs read is what was written")
}
