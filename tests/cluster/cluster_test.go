// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/deploy/images/pack"
)

var withCluster = flag.Bool("cluster", false, "bring up clusters of its own; needs root and some minutes")

// lab is a cluster beside the one that may be in use on this machine.
type lab struct {
	t       *testing.T
	program string
	name    string
	env     []string
}

func newLab(t *testing.T, name string) lab {
	t.Helper()
	if !*withCluster {
		t.Skip("run with -cluster")
	}
	program := filepath.Join(t.TempDir(), "cluster")
	build := exec.Command("go", "build", "-o", program, ".")
	output, err := build.CombinedOutput()
	require.NoError(t, err, string(output))
	return lab{t: t, program: program, name: name,
		env: append(os.Environ(), "SIDESTEP_CLUSTER_STATE="+filepath.Join(t.TempDir(), "state"))}
}

func (l lab) command(args ...string) *exec.Cmd {
	command := exec.Command(l.program, args...)
	command.Env = l.env
	return command
}

// run expects success and returns what was printed.
func (l lab) run(args ...string) string {
	l.t.Helper()
	output, err := l.try(args...)
	require.NoError(l.t, err, "cluster %s:\n%s", strings.Join(args, " "), output)
	return strings.TrimSpace(output)
}

func (l lab) try(args ...string) (string, error) {
	output, err := l.command(args...).CombinedOutput()
	return string(output), err
}

func (l lab) up(args ...string) string {
	l.t.Helper()
	return l.run(append([]string{"up", "--name", l.name, "--host-link=false"}, args...)...)
}

// eventually waits for a command to succeed with an output that is as it should be.
func (l lab) eventually(limit time.Duration, good func(output string) bool, args ...string) {
	l.t.Helper()
	var output string
	var err error
	require.Eventually(l.t, func() bool {
		output, err = l.try(args...)
		return err == nil && good(strings.TrimSpace(output))
	}, limit, 200*time.Millisecond, "cluster %s", strings.Join(args, " "))
}

func TestUpDown(t *testing.T) {
	l := newLab(t, "ctest")
	before := takeInventory(t)
	t.Cleanup(func() { l.try("down") })

	t.Log(l.up("--ip-family", "dual"))
	start := time.Now()
	t.Log(l.up("--ip-family", "dual"))
	assert.Less(t, time.Since(start), 5*time.Second, "up on a cluster that is up")
	l.run("status")

	image, err := pack.Program(buildProbe(t)).Build()
	require.NoError(t, err)
	tarball := filepath.Join(t.TempDir(), "probe.tar")
	require.NoError(t, pack.Save(tarball, "localhost/cluster/probe:test", image))
	l.run("load-image", tarball)
	l.run("kubectl", "apply", "--server-side", "-f", "testdata/app.yaml")
	l.run("kubectl", "rollout", "status", "-n", "shop", "deployment/probe", "--timeout=60s")
	l.run("kubectl", "rollout", "status", "-n", "kube-system", "daemonset/agent", "--timeout=60s")
	l.run("kubectl", "wait", "--for=condition=Available", "-n", "kube-system", "deployment/coredns",
		"--timeout=60s")

	t.Run("pods find and reach services over both families and nodes", l.testServices)
	t.Run("the laptop reaches the API server and nothing else", l.testLaptop)
	t.Run("exec, logs and port-forward work from the laptop", l.testStreams)
	t.Run("a service account token names the node", l.testToken)
	t.Run("protected workloads cannot be changed by developers or sidestep", l.testPolicy)
	t.Run("protected namespaces take restricted pods only", l.testPodSecurity)
	t.Run("an agent sees the processes of its own node", l.testAgent)
	t.Run("a container that is killed again and again is back within seconds", l.testRestart)
	t.Run("up repairs what was killed", l.testRepair)
	t.Run("another plan is refused", func(t *testing.T) {
		output, err := l.try("up", "--name", l.name, "--host-link=false", "--nodes", "1")
		require.Error(t, err)
		assert.Contains(t, output, "bring it down first")
	})
	if t.Failed() {
		t.Log(l.try("kubectl", "get", "pods,events", "-A", "-o", "wide"))
	}

	// A program in the laptop's network does not outlive the cluster.
	left := l.command("exec", "laptop", "--", "sleep", "1000")
	require.NoError(t, left.Start())
	ended := make(chan error, 1)
	go func() { ended <- left.Wait() }()
	t.Log(l.run("down"))
	assert.Error(t, <-ended)
	before.assertSame(t)
	assert.Contains(t, l.run("down"), "no cluster is up")
}

func TestAnInterruptedUpLeavesNothingAfterDown(t *testing.T) {
	l := newLab(t, "ctest2")
	before := takeInventory(t)
	t.Cleanup(func() { l.try("down") })
	for _, test := range []struct {
		after  string
		signal syscall.Signal
	}{
		{"lay the network", syscall.SIGKILL},
		{"start machine node1", syscall.SIGKILL},
		{"API server", syscall.SIGINT},
		{"kubelet", syscall.SIGKILL},
	} {
		t.Run("after "+test.after, func(t *testing.T) {
			command := l.command("up", "--name", l.name, "--host-link=false", "--nodes", "1")
			output, err := command.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, command.Start())
			var seen bytes.Buffer
			for buffer := make([]byte, 4096); !strings.Contains(seen.String(), test.after); {
				n, err := output.Read(buffer)
				seen.Write(buffer[:n])
				require.NoError(t, err, seen.String())
			}
			require.NoError(t, command.Process.Signal(test.signal))
			command.Wait()
			l.run("down")
			before.assertSame(t)
		})
	}
	t.Run("and up goes on from there", func(t *testing.T) {
		command := l.command("up", "--name", l.name, "--host-link=false", "--nodes", "1")
		require.NoError(t, command.Start())
		time.AfterFunc(2*time.Second, func() { command.Process.Signal(syscall.SIGINT) })
		command.Wait()
		l.up("--nodes", "1")
		l.run("status")
		l.run("down")
		before.assertSame(t)
	})
}

func buildProbe(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "probe")
	build := exec.Command("go", "build", "-o", path, "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	output, err := build.CombinedOutput()
	require.NoError(t, err, string(output))
	return path
}

// pods lists the names of a namespace's pods with a label, sorted by node.
func (l lab) pods(namespace, label string) []string {
	l.t.Helper()
	return strings.Fields(l.run("kubectl", "get", "pods", "-n", namespace, "-l", "app="+label,
		"--sort-by", ".spec.nodeName",
		"-o", "jsonpath={.items[*].metadata.name}"))
}

func (l lab) testServices(t *testing.T) {
	l.t = t
	pods := l.pods("shop", "probe")
	require.Len(t, pods, 2)
	addresses := strings.Fields(l.run("kubectl", "get", "service", "-n", "shop", "probe", "-o",
		"jsonpath={.spec.clusterIPs[*]}"))
	require.Len(t, addresses, 2)
	for _, pod := range pods {
		found := l.run("kubectl", "exec", "-n", "shop", pod, "--", "/probe", "lookup", "probe.shop")
		assert.ElementsMatch(t, addresses, strings.Fields(found),
			"addresses that %s finds for the service", pod)
		output, err := l.try("kubectl", "exec", "-n", "shop", pod, "--", "/probe", "lookup", "example.com")
		require.Error(t, err)
		assert.Contains(t, output, "no such host")

		for _, address := range append(addresses, "probe") {
			url := "http://" + net.JoinHostPort(address, "80")
			answers := map[string]bool{} // the pod itself is among those that may answer
			for _, answer := range strings.Fields(l.run("kubectl", "exec", "-n", "shop", pod, "--",
				"/probe", "poll", url)) {
				answers[answer] = true
			}
			assert.Len(t, answers, 2, "pods that answer %s at %s", pod, url)
		}
	}
	// From the node itself, too.
	assert.Contains(t, l.run("exec", "node1", "--", buildProbe(t), "get", "http://"+addresses[0]), "probe-")
}

func (l lab) testLaptop(t *testing.T) {
	l.t = t
	config := l.kubeconfig(t)
	l.run("exec", "laptop", "--", "kubectl", "--kubeconfig", config, "get", "nodes")
	pod := l.run("kubectl", "get", "pods", "-n", "shop", "-o", "jsonpath={.items[0].status.podIP}")
	probe := buildProbe(t)
	for _, target := range []string{"198.18.0.11:10250", pod + ":8080", "198.19.0.1:443", "198.19.0.10:53"} {
		output, err := l.try("exec", "laptop", "--", probe, "get", "http://"+target)
		assert.Error(t, err, target)
		assert.Contains(t, output, "unreachable", target)
	}
}

func (l lab) kubeconfig(t *testing.T, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path, []byte(l.run(append([]string{"kubeconfig"}, args...)...)), 0o600))
	return path
}

func (l lab) testStreams(t *testing.T) {
	l.t = t
	config, pod := l.kubeconfig(t), l.pods("shop", "probe")[0]
	kubectl := []string{"exec", "laptop", "--", "kubectl", "--kubeconfig", config, "-n", "shop"}
	assert.Contains(t, l.run(append(kubectl, "logs", pod)...), "listens on")
	assert.Equal(t, pod, l.run(append(kubectl, "exec", pod, "--", "/probe", "get", "http://localhost:8080")...))

	ctx, cancel := context.WithCancel(t.Context())
	forward := exec.CommandContext(ctx, l.program, append(kubectl, "port-forward", pod, "18080:8080")...)
	forward.Env = l.env
	require.NoError(t, forward.Start())
	defer forward.Wait()
	defer cancel()
	l.eventually(10*time.Second, func(output string) bool { return output == pod },
		"exec", "laptop", "--", buildProbe(t), "get", "http://127.0.0.1:18080")
}

func (l lab) testToken(t *testing.T) {
	l.t = t
	pod := l.pods("shop", "probe")[0]
	token := l.run("kubectl", "exec", "-n", "shop", pod, "--", "/probe", "print", "/token/token")
	parts := strings.Split(token, ".")
	require.Len(t, parts, 3)
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	require.NoError(t, err)
	var claims struct {
		Kubernetes struct{ Node, Pod struct{ Name string } } `json:"kubernetes.io"`
	}
	require.NoError(t, json.Unmarshal(text, &claims))
	assert.Equal(t, pod, claims.Kubernetes.Pod.Name)
	assert.Equal(t, "node1", claims.Kubernetes.Node.Name)

	review := filepath.Join(t.TempDir(), "review.yaml")
	require.NoError(t, os.WriteFile(review,
		[]byte("apiVersion: authentication.k8s.io/v1\nkind: TokenReview\nspec: {audiences: [probe], token: "+token+"}\n"), 0o600))
	answer := l.run("kubectl", "create", "-f", review, "-o", "yaml")
	assert.Contains(t, answer, "authenticated: true")
	assert.Contains(t, answer, "system:serviceaccount:shop:default")
}

func (l lab) testPolicy(t *testing.T) {
	l.t = t
	developer := l.kubeconfig(t, "--user", "alice", "--group", "developers")
	pod := l.pods("shop", "probe")[0]
	who := map[string][]string{
		"a developer": {"--kubeconfig", developer},
		"an account of sidestep's own": {"--as", "system:serviceaccount:sidestep:manager", "--as-group",
			"system:serviceaccounts:sidestep"},
	}
	for name, credentials := range who {
		as := func(args ...string) (string, error) {
			return l.try(append(append([]string{"exec", "control-plane", "--", "kubectl"},
				l.adminUnless(credentials)...), args...)...)
		}
		for _, forbidden := range [][]string{
			{"delete", "pod", "-n", "shop", pod},
			{"scale", "deployment", "-n", "shop", "probe", "--replicas=3"},
			{"set", "env", "deployment/probe", "-n", "shop", "A=B"},
			{"label", "pod", "-n", "shop", pod, "a=b"},
			{"create", "job", "-n", "shop", "job", "--image=localhost/cluster/probe:test"},
			{"create", "deployment", "-n", "shop", "another", "--image=localhost/cluster/probe:test"},
			{"delete", "deployment", "-n", "shop", "probe"},
		} {
			output, err := as(forbidden...)
			assert.Error(t, err, "%s may not %v", name, forbidden)
			assert.Contains(t, output, "its workloads are protected", "%s: %v", name, forbidden)
		}
		output, err := as("create", "deployment", "-n", "playground", "mine",
			"--image=localhost/cluster/probe:test")
		assert.NoError(t, err, "%s elsewhere: %s", name, output)
		output, err = as("delete", "deployment", "-n", "playground", "mine")
		assert.NoError(t, err, "%s elsewhere: %s", name, output)
		output, err = as("exec", "-n", "shop", pod, "--", "/probe", "lookup", "localhost")
		assert.NoError(t, err, "%s looks: %s", name, output)
	}
	owner := []string{"kubectl", "--as", "olga", "--as-group", "owners"}
	l.run(append(owner, "label", "pod", "-n", "shop", pod, "owned=yes")...)
}

// adminUnless adds the administrator's kubeconfig to flags without one.
func (l lab) adminUnless(flags []string) []string {
	if flags[0] == "--kubeconfig" {
		return flags
	}
	return append([]string{"--kubeconfig", "/var/lib/cluster/admin.kubeconfig"}, flags...)
}

func (l lab) testPodSecurity(t *testing.T) {
	l.t = t
	output, err := l.try("kubectl", "run", "-n", "shop", "bad", "--image=localhost/cluster/probe:test")
	require.Error(t, err)
	assert.Contains(t, output, `violates PodSecurity "restricted:latest"`)
}

func (l lab) testAgent(t *testing.T) {
	l.t = t
	agents := l.pods("kube-system", "agent")
	require.Len(t, agents, 2)
	for i, node := range []string{"node1", "node2"} {
		first := l.run("kubectl", "exec", "-n", "kube-system", agents[i], "--", "/probe", "print",
			"/proc/1/cmdline")
		assert.Contains(t, first, node, "the first process that the agent of %s sees", node)
		mounts := l.run("kubectl", "exec", "-n", "kube-system", agents[i], "--", "/probe", "print",
			"/proc/self/mounts")
		assert.Contains(t, mounts, "/sys/fs/bpf bpf rw")
		// A program that runs on the node, with its cgroup at the root of what it sees.
		assert.NotContains(t, l.run("exec", node, "--", "cat", "/proc/self/cgroup"), l.name)
	}
}

func (l lab) testRestart(t *testing.T) {
	l.t = t
	pod := l.pods("shop", "probe")[0]
	for round := range 3 {
		pid := l.run("exec", "node1", "--", "pgrep", "-f", "^/probe serve", "-u", "65532")
		l.run("exec", "node1", "--", "kill", "-9", pid)
		l.eventually(15*time.Second,
			func(output string) bool { return output == "true "+string(rune('1'+round)) },
			"kubectl", "get", "pod", "-n", "shop", pod, "-o",
			"jsonpath={.status.containerStatuses[0].ready} {.status.containerStatuses[0].restartCount}")
	}
}

func (l lab) testRepair(t *testing.T) {
	l.t = t
	for _, program := range []string{"kubelet", "containerd", "kube-proxy"} {
		l.run("exec", "node2", "--", "pkill", "-9", "-x", program)
	}
	l.run("exec", "control-plane", "--", "pkill", "-9", "-x", "kube-scheduler")
	output, err := l.try("status")
	require.Error(t, err)
	assert.Contains(t, output, "stopped")
	t.Log(l.up("--ip-family", "dual"))
	l.run("status")
	// A whole machine, too: it comes back as after a power failure.
	pid := regexp.MustCompile(`node2 .* init +running, pid (\d+)`).FindStringSubmatch(l.run("status"))
	require.Len(t, pid, 2)
	require.NoError(t, exec.Command("kill", "-9", pid[1]).Run())
	require.Eventually(t, func() bool {
		output, err := l.try("status")
		return err != nil && regexp.MustCompile(`node2 .* init +stopped`).MatchString(output)
	}, 30*time.Second, 100*time.Millisecond)
	t.Log(l.up("--ip-family", "dual"))
	l.run("kubectl", "rollout", "status", "-n", "shop", "deployment/probe", "--timeout=60s")
}
