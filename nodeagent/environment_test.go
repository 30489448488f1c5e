// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

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
	w.assign()
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
