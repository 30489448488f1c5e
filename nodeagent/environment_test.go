// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/agentpb"
)

func (m *manager) Environments(stream agentpb.Agents_EnvironmentsServer) error {
	if err := m.authenticate(stream.Context()); err != nil {
		return err
	}
	if m.asking == nil {
		return status.Error(codes.Unimplemented, "not known")
	}
	m.asking <- stream
	<-stream.Context().Done()
	return stream.Context().Err()
}

func TestTheManagerIsToldTheEnvironmentOfAContainer(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip(err) // a virtual machine for tests has no programs
	}
	w := newWorld(t)
	w.asking = make(chan agentpb.Agents_EnvironmentsServer, 10)
	app := exec.Command("/bin/sleep", "600")
	app.Env = []string{"A=1", "B=\xff\n", "C="}
	w.pod.Start(t, w.pod.Cgroup(t), app)
	// The node's /proc is one of the test's own, which shows this process too. The one that it has
	// shown for the pod so far has no memory.
	stands, err := filepath.Glob(filepath.Join(w.node.Proc(), "1[0-9]*", "stat"))
	require.NoError(t, err)
	for _, path := range stands {
		stat, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, bytes.Replace(stat, []byte(") S "), []byte(") Z "), 1), 0o644))
	}
	require.NoError(t, os.Symlink(fmt.Sprintf("/proc/%d", app.Process.Pid),
		filepath.Join(w.node.Proc(), fmt.Sprint(app.Process.Pid))))
	w.run(t)
	want := w.wants()
	want.GetTargets()[0].GetRules()[0].Environment = true
	w.assign(want)
	ask := func(stream agentpb.Agents_EnvironmentsServer, id uint64,
		container string) *agentpb.EnvironmentAnswer {
		t.Helper()
		require.NoError(t, stream.Send(&agentpb.EnvironmentQuestion{Id: id, PodUid: w.pod.UID,
			ContainerId: container}))
		answer, err := stream.Recv()
		require.NoError(t, err)
		assert.Equal(t, id, answer.GetId())
		return answer
	}
	stream := <-w.asking
	answer := ask(stream, 7, "0123456789abcdef")
	assert.Empty(t, answer.GetProblem())
	assert.Equal(t, [][]byte{[]byte("A=1"), []byte("B=\xff\n"), []byte("C=")}, answer.GetVariables())
	answer = ask(stream, 8, "fedcba9876543210")
	assert.Equal(t, "no process of the container was found on this node", answer.GetProblem())
	assert.Empty(t, answer.GetVariables())

	w.stop() // a manager that comes back is answered again
	w.start(t, w.address)
	assert.Empty(t, ask(<-w.asking, 9, "0123456789abcdef").GetProblem())
}

func TestAnEnvironmentIsReadOnlyIfTheAssignmentAsksForIt(t *testing.T) {
	w := newWorld(t)
	w.asking = make(chan agentpb.Agents_EnvironmentsServer, 10)
	w.run(t)
	w.assign(w.wants())
	stream := <-w.asking
	// No process of the container runs here: a request that is allowed is answered with that.
	const allowed = "no process of the container was found on this node"
	const refused = "no intercept in this node's assignment asks for the environment of this pod"
	ask := func(pod string) string {
		t.Helper()
		require.NoError(t, stream.Send(&agentpb.EnvironmentQuestion{PodUid: pod,
			ContainerId: "fedcba9876543210"}))
		answer, err := stream.Recv()
		require.NoError(t, err)
		return answer.GetProblem()
	}
	assert.Equal(t, refused, ask(w.pod.UID), "its intercept does not ask")
	asks := &agentpb.Rule{InterceptUid: "other", Environment: true}
	for kind, change := range map[string]func(*agentpb.Pod){
		"an intercept": func(p *agentpb.Pod) { p.GetTargets()[0].GetRules()[0].Environment = true },
		"a wiretap":    func(p *agentpb.Pod) { p.GetTargets()[0].Wiretaps = []*agentpb.Rule{asks} },
		"UDP": func(p *agentpb.Pod) {
			p.UdpTargets = []*agentpb.Target{{Port: 53, Rules: []*agentpb.Rule{asks}}}
		},
	} {
		want := w.wants()
		change(want)
		w.assign(want)
		assert.Equal(t, allowed, ask(w.pod.UID), kind)
	}
	assert.Equal(t, refused, ask("1b4e28ba-2fa1-11d2-883f-0016d3cca427"), "another pod of the node")
	w.assign(w.wants())
	assert.Eventually(t, func() bool { return ask(w.pod.UID) == refused }, 20*time.Second, time.Millisecond,
		"the intercept asks no longer")

	w.predates = true // a manager of the version before
	w.assign(w.wants())
	assert.Equal(t, allowed, ask(w.pod.UID))
	assert.Equal(t, refused, ask("1b4e28ba-2fa1-11d2-883f-0016d3cca427"))
}
