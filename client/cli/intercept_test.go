// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/internal/reason"
)

func TestInterceptAsksTheDaemonForWhatTheFlagsSay(t *testing.T) {
	const tcp = `"address":"127.0.0.1","existing":"auto","mechanism":"tcp"`
	const http = `"address":"127.0.0.1","existing":"auto","mechanism":"http"`
	orders := func(rest string) string { return `{"name":"orders","workload":"orders",` + rest + `}` }
	header := func(name, value string) string { return fmt.Sprintf(`{"name":%q,"value":%q}`, name, value) }
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"everything by default", []string{"orders"}, orders(tcp)},
		{"a local port", []string{"orders", "--port", "9000"}, orders(tcp + `,"localPort":9000`)},
		{"a service port by name", []string{"orders", "-p", "9000:http"},
			orders(tcp + `,"localPort":9000,"portIdentifier":"http"`)},
		{"a service port by number", []string{"orders", "-p9000:8080/TCP"},
			orders(tcp + `,"localPort":9000,"portIdentifier":"8080","protocol":"TCP"`)},
		{"a UDP port", []string{"orders", "-p", "5353:dns/UDP"},
			orders(tcp + `,"localPort":5353,"portIdentifier":"dns","protocol":"UDP"`)},
		{"a local UDP port", []string{"orders", "-p", "5353/udp"},
			orders(tcp + `,"localPort":5353,"protocol":"UDP"`)},
		{"a UDP port on both sides", []string{"orders", "-p", "5353/udp:53/UDP"},
			orders(tcp + `,"localPort":5353,"portIdentifier":"53","protocol":"UDP"`)},
		{"only a service port", []string{"orders", "-p", ":http"}, orders(tcp + `,"portIdentifier":"http"`)},
		{"another address", []string{"orders", "--address", "::1"},
			orders(`"address":"::1","existing":"auto","mechanism":"tcp"`)},
		{"localhost", []string{"orders", "--address=localhost"}, orders(tcp)},
		{"a namespace, which becomes part of the name",
			[]string{"hello", "--namespace", "myns", "--port", "9000"},
			`{"name":"hello-myns","workload":"hello","namespace":"myns","localPort":9000,` + tcp + `}`},
		{"a namespace and a workload",
			[]string{"myhello", "--namespace", "myns", "--workload", "hello"},
			`{"name":"myhello","workload":"hello","namespace":"myns",` + tcp + `}`},
		{"a deployment", []string{"myhello", "-n", "myns", "--deployment", "hello"},
			`{"name":"myhello","workload":"hello","namespace":"myns",` + tcp + `}`},
		{"both, the same", []string{"myhello", "-d", "hello", "-w", "hello"},
			`{"name":"myhello","workload":"hello",` + tcp + `}`},
		{"a workload of a kind", []string{"x", "-w", "sts/hello"},
			`{"name":"x","workload":"hello","workloadKind":"StatefulSet",` + tcp + `}`},
		{"a DaemonSet", []string{"daemonsets.apps/hello"},
			`{"name":"hello","workload":"hello","workloadKind":"DaemonSet",` + tcp + `}`},
		{"a Rollout", []string{"rollouts.argoproj.io/hello"},
			`{"name":"hello","workload":"hello","workloadKind":"Rollout",` + tcp + `}`},
		{"a Pod", []string{"x", "-w", "pod/hello"},
			`{"name":"x","workload":"hello","workloadKind":"Pod",` + tcp + `}`},
		{"a workload of a kind as the name", []string{"deployment/hello", "-n", "myns"},
			`{"name":"hello-myns","workload":"hello","namespace":"myns","workloadKind":"Deployment",` +
				tcp + `}`},
		{"a service", []string{"orders", "--service", "echo-stable"}, orders(tcp + `,"service":"echo-stable"`)},
		{"a container", []string{"orders", "--container", "app"}, orders(tcp + `,"container":"app"`)},
		{"ports of the pod", []string{"orders", "-p", "9000", "--to-pod", "8081,9090/TCP",
			"--to-pod=15000"}, orders(tcp + `,"localPort":9000,"toPod":[8081,9090,15000]`)},
		{"a timeout", []string{"orders", "--timeout", "1m30s"}, orders(tcp + `,"timeoutMs":"90000"`)},
		{"idle connections", []string{"orders", "--existing=idle"},
			orders(`"address":"127.0.0.1","existing":"idle","mechanism":"tcp"`)},
		{"all connections", []string{"orders", "--existing", "all"},
			orders(`"address":"127.0.0.1","existing":"all","mechanism":"tcp"`)},
		{"mechanism tcp", []string{"orders", "--mechanism=tcp"}, orders(tcp)},
		{"mechanism http, which means a header of one's own", []string{"orders", "--mechanism", "http"},
			orders(http + `,"autoHeader":true`)},
		{"auto", []string{"orders", "--http-header=auto"}, orders(http + `,"autoHeader":true`)},
		{"auto, spelled as it was in the second era", []string{"orders", "--http-match=auto"},
			orders(http + `,"autoHeader":true`)},
		{"auto, spelled as it was in the first era", []string{"orders", "--match=auto"},
			orders(http + `,"autoHeader":true`)},
		{"all", []string{"orders", "--http-header=all"}, orders(http)},
		{"all below a path", []string{"orders", "--http-header=all", "--http-path-prefix=/api"},
			orders(http + rule(`{"path":{"prefix":"/api"}}`))},
		{"a header with =", []string{"orders", "--http-header", "Coder=Bob"},
			orders(http + rule(`{"headers":[`+header("Coder", "Bob")+`]}`))},
		{"a header with :", []string{"orders", "--http-header", "Coder: Bob"},
			orders(http + rule(`{"headers":[`+header("Coder", "Bob")+`]}`))},
		{"several headers", []string{"orders", "--http-header=a=1", "--http-match=b=2", "--http-header=auto"},
			orders(http + `,"autoHeader":true` +
				rule(`{"headers":[`+header("a", "1")+`,`+header("b", "2")+`]}`))},
		{"an expression", []string{"orders", "--http-header", "x-user=(ann|bob)"},
			orders(http + rule(`{"headers":[{"name":"x-user","regex":"(ann|bob)"}]}`))},
		{"a path", []string{"orders", "--http-path-equal=/api/version"},
			orders(http + `,"autoHeader":true` + rule(`{"path":{"equal":"/api/version"}}`))},
		{"a path's prefix and a header",
			[]string{"orders", "--http-path-prefix=/api", "--http-header=Coder=Bob"},
			orders(http + rule(`{"headers":[`+header("Coder", "Bob")+`],"path":{"prefix":"/api"}}`))},
		{"a path's expression", []string{"orders", "--http-path-regex=/(staging-)?api/.*"},
			orders(http + `,"autoHeader":true` + rule(`{"path":{"regex":"/(staging-)?api/.*"}}`))},
		{"plaintext, whatever the port is called",
			[]string{"orders", "--http-header=auto", "--plaintext"},
			orders(http + `,"autoHeader":true,"plaintext":true`)},
		{"plaintext in its older spelling",
			[]string{"orders", "--http-header=auto", "--http-plaintext=true"},
			orders(http + `,"autoHeader":true,"plaintext":true`)},
		{"plaintext, which is no condition", []string{"orders", "--http-plaintext"},
			orders(tcp + `,"plaintext":true`)},
		{"harmless values of what is not there",
			[]string{"orders", "--preview-url=false", "--mount=false", "--replace=false",
				"--node-agent", "--detailed-output", "--mount="}, orders(tcp)},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t).connected(true)
			require.Zero(t, w.do(append([]string{"intercept"}, c.args...)...), w.stderr.String())
			got, err := protojson.Marshal(request[*daemonpb.InterceptRequest](t, w))
			require.NoError(t, err)
			assert.JSONEq(t, c.want, string(got))
		})
	}
}

func TestInterceptRefusesWhatCannotBeMeant(t *testing.T) {
	text := ""
	for _, args := range [][]string{
		{},
		{"a", "b"},
		{"orders", "--"},
		{"orders", "python", "--", "-m"},
		{"Orders"},
		{"orders", "--nonsense"},
		{"orders", "-p"},
		{"orders", "-p", "http"},
		{"orders", "-p", "0"},
		{"orders", "-p", "70000"},
		{"orders", "-p", "9000:0"},
		{"orders", "-p", "9000:8080:http"},
		{"orders", "-p", "9000:http/SCTP"},
		{"orders", "-p", ":"},
		{"orders", "-p", "5353/TCP:dns/UDP"},
		{"orders", "-p", "5353:dns/UDP", "--http-header", "auto"},
		{"orders", "-p", "5353:dns/UDP", "--mechanism", "http"},
		{"orders", "-p", "9000", "-p", "9001"},
		{"orders", "--address", "laptop.example"},
		{"orders", "-w", "a", "-d", "b"},
		{"orders", "-w", "node/a"},
		{"orders", "--mechanism", "udp"},
		{"orders", "--mechanism", "tcp", "--http-header", "auto"},
		{"orders", "--mechanism=tcp", "--http-match=a=b", "--http-path-equal=/x"},
		{"orders", "--http-header", "all", "--http-header", "a=b"},
		{"orders", "--http-header", "auto", "--http-match", "all"},
		{"orders", "--http-header", "nothing"},
		{"orders", "--http-header", "=x"},
		{"orders", "--http-header", "x-user=(ann|bob"},
		{"orders", "--http-header", "x-user: a[b-"},
		{"orders", "--http-header", "x-user=*"},
		{"orders", "--http-header", "x-user=a$b"},
		{"orders", "--http-path-regex", "/api/(?=x)"},
		{"orders", "--http-path-regex", "api/.*"},
		{"orders", "--http-path-regex", ""},
		{"orders", "--http-path-equal", "api"},
		{"orders", "--http-path-prefix", "api/"},
		{"orders", "--http-path-equal", "/a", "--http-path-prefix", "/b"},
		{"orders", "--http-path-equal", "/a", "--http-path-prefix", "/b", "--http-path-regex", "/c"},
		{"orders", "--docker-run", "--", "image"},
		{"orders", "--docker-run", "-p", "9000", "--", "image"},
		{"orders", "--docker-run", "-p", "9000:http", "--", "image"},
		{"orders", "--docker-run", "-p", "9000:8080"},
		{"orders", "--docker-run", "-p", "9000:8080", "--", "-d", "image"},
		{"orders", "--docker-run", "-p", "9000:8080", "--", "--detach=true", "image"},
		{"orders", "-p", "9000:8080", "--docker-run", "--docker-build", ".", "--", "image"},
		{"orders", "-p", "9000:8080", "--docker-build-opt", "tag=x"},
		{"orders", "-p", "9000:8080", "--docker-build", ".", "--", "--verbose"},
		{"orders", "-p", "9000:8080", "--docker-build", ".", "--", "-d", "IMAGE"},
		{"orders", "-p", "9000", "--docker-build", "."},
		{"orders", "--http-path-prefix", "/a", "--http-path-prefix=/b"},
		{"orders", "--existing", "some"},
		{"orders", "--to-pod", "8081:8082"},
		{"orders", "--to-pod", "0"},
		{"orders", "--to-pod", "8081,metrics"},
		{"orders", "--to-pod", "8081/SCTP"},
		{"orders", "--port", "9000", "--to-pod", "9000"},
		{"orders", "--timeout", "-1s"},
		{"orders", "--timeout", "soon"},
		{"orders", "--output", "xml"},
		{"orders", "--progress", "loud"},
	} {
		w := newWorld(t)
		text += w.transcript(append([]string{"intercept"}, args...)...) + "\n"
		assert.Zero(t, w.launches, "nothing is started for a wrong command line")
		assert.Contains(t, text[len(text)-10:], fmt.Sprintf("[exit %d]", exitUsage), "%s: %s", args,
			w.stderr.String())
	}
	golden(t, "intercept wrong usage", text)
}

func TestInterceptSaysWhatIsNotAvailable(t *testing.T) {
	text := ""
	for _, args := range [][]string{
		{"--preview-url"}, {"--preview-url=true"}, {"-u"}, {"--ingress-host", "x"},
		{"--ingress-port=80"}, {"--ingress-tls"}, {"--ingress-l5", "x"},
		{"--mount"}, {"--mount=true"}, {"--mount=/tmp/x"},
		{"--to-pod", "8080/UDP"}, {"--docker-mount", "/x"}, {"--replace"},
		{"--http-meta", "a=b"}, {"--metadata", "a=b"}, {"--local-only"}, {"--node-agent=false"},
		{"--use", "x"}, {"--docker"},
	} {
		w := newWorld(t)
		text += w.transcript(append([]string{"intercept", "orders"}, args...)...) + "\n"
		assert.Zero(t, w.launches)
		assert.Contains(t, text[len(text)-10:], fmt.Sprintf("[exit %d]", exitError), "%s: %s", args,
			w.stderr.String())
	}
	golden(t, "intercept not available", text)
}

func TestInterceptPrints(t *testing.T) {
	info := func(change func(*daemonpb.InterceptInfo)) func(context.Context,
		*daemonpb.InterceptRequest) (*daemonpb.InterceptInfo, error) {
		return func(_ context.Context, r *daemonpb.InterceptRequest) (*daemonpb.InterceptInfo, error) {
			i := made(r)
			change(i)
			return i, nil
		}
	}
	for name, c := range map[string]struct {
		args   []string
		change func(*daemonpb.InterceptInfo)
	}{
		"tcp":              {[]string{"orders", "--port", "9000"}, nil},
		"several ports":    {[]string{"orders", "--port", "9000:http"}, nil},
		"auto":             {[]string{"orders", "--port", "9000:http", "--http-header", "auto"}, nil},
		"all requests":     {[]string{"orders", "-p", "9000", "--http-header", "all"}, nil},
		"ports of the pod": {[]string{"orders", "--port", "9000", "--to-pod", "8081,15000"}, nil},
		"udp": {[]string{"orders", "--port", "5353:dns/UDP"}, func(i *daemonpb.InterceptInfo) {
			i.Protocol, i.ServicePort = "UDP", "dns/UDP"
		}},
		"no pods": {[]string{"orders", "-p", "9000"}, func(i *daemonpb.InterceptInfo) {
			i.State, i.Message = "NO_PODS", "Deployment orders has no ready pod at the moment"
		}},
		"quotes": {[]string{"orders", "-p", "9000", "--http-header", "x-user=it's"},
			func(i *daemonpb.InterceptInfo) {
				i.Conditions = []string{`header("x-user") == "it's"`, `header("x-b") == "$HOME"`}
				i.CurlHeaders = []string{"x-user: it's", "x-b: $HOME"}
			}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t).connected(true)
			if c.change != nil {
				w.daemon.intercept = info(c.change)
			}
			text := ""
			for _, format := range []string{"default", "json", "yaml"} {
				text += w.transcript(append([]string{"intercept"},
					append(c.args, "--output", format)...)...) + "\n"
			}
			golden(t, "intercept "+name, text)
		})
	}
}

func TestInterceptConnectsByItselfWithTheFlagsGiven(t *testing.T) {
	w := newWorld(t)
	text := w.transcript("intercept", "orders", "-p", "9000", "-n", "shop", "--context", "staging",
		"--kubeconfig", "here/config", "--as-group", "a", "--as-group", "b",
		"--manager-namespace", "tools")
	golden(t, "intercept connects", text)
	r := request[*daemonpb.ConnectRequest](t, w)
	assert.Equal(t, map[string]string{"context": "staging", "kubeconfig": "here/config",
		"as-group": "a,b"}, r.GetKubeFlags())
	assert.Equal(t, "/home/jane/orders", r.GetWorkingDir())
	assert.Equal(t, "kube/config", r.GetKubeconfigEnv())
	assert.Equal(t, "tools", r.GetManagerNamespace())
	assert.Empty(t, r.GetNamespace(), "the workload's namespace is not the session's")
	assert.Equal(t, 1, w.launches)
}

func TestASessionIsUsedAsItIsUnlessFlagsAskForACluster(t *testing.T) {
	w := newWorld(t).connected(true)
	require.Zero(t, w.do("intercept", "orders", "--request-timeout", "10s"))
	assert.Len(t, w.daemon.requests, 1, "Intercept and no Connect")

	w.daemon.connectErr = reason.New(codes.FailedPrecondition, reason.OtherCluster,
		"there is a session with https://10.0.0.1:6443")
	golden(t, "intercept other cluster", w.transcript("intercept", "orders", "--context", "production"))
}

func TestInterceptShowsProgressOnATerminalOnly(t *testing.T) {
	w := newWorld(t).connected(true)
	w.daemon.progress = []string{"looking for orders", "waiting for pods to steer: 1/2"}
	require.Zero(t, w.do("intercept", "orders"))
	assert.Empty(t, w.stderr.String())

	w.terminal = true
	require.Zero(t, w.do("intercept", "orders"))
	assert.Contains(t, w.stderr.String(), "waiting for pods to steer: 1/2")
	assert.Equal(t, "\r\x1b[K", w.stderr.String()[w.stderr.Len()-4:], "the line is wiped")

	require.Zero(t, w.do("intercept", "orders", "--quiet"))
	assert.Empty(t, w.stderr.String())
	assert.Contains(t, w.stdout.String(), "intercepted", "the result is printed all the same")

	w.vars["TERM"] = "dumb"
	require.Zero(t, w.do("intercept", "orders"))
	assert.Empty(t, w.stderr.String())

	require.Zero(t, w.do("intercept", "orders", "--progress=plain"))
	assert.Equal(t, "intercepting orders\nlooking for orders\nwaiting for pods to steer: 1/2\n",
		w.stderr.String())
}

func TestWarningsOfTheDaemonStay(t *testing.T) {
	w := newWorld(t).connected(true)
	w.daemon.progress = []string{"looking for orders", "nearly there"}
	w.daemon.warning = "nothing listens on 127.0.0.1:9000 yet"
	require.Zero(t, w.do("intercept", "orders", "-p", "9000"))
	assert.Equal(t, "warning: nothing listens on 127.0.0.1:9000 yet\n", w.stderr.String())
}

func TestInterceptErrorsOfTheDaemon(t *testing.T) {
	text := ""
	for _, c := range []struct {
		code   codes.Code
		reason string
		text   string
	}{
		{codes.NotFound, reason.WorkloadNotFound,
			`workload "ordres" not found in namespace default — did you mean "orders"?`},
		{codes.InvalidArgument, reason.WorkloadAmbiguous,
			`"orders" is a Deployment and a StatefulSet in namespace default — choose with --workload deployment/orders or --workload statefulset/orders`},
		{codes.InvalidArgument, reason.Invalid,
			"service orders has several ports — say which with --port LOCAL:ID:\n    http (8080)\n    admin (9090)"},
		{codes.AlreadyExists, reason.LocalPortTaken,
			"127.0.0.1:9000 is already in use by intercept stock — use another --port"},
		{codes.FailedPrecondition, reason.Conflict,
			"conflict with intercept orders of bob@desk, which takes all TCP connections of port http — ask " +
				"bob@desk to leave it"},
		{codes.PermissionDenied, reason.Forbidden,
			`jane may not create intercepts in namespace default — ask for ClusterRole sidestep-user there`},
		{codes.DeadlineExceeded, reason.NotSteering,
			"after 30s 1 of 2 pods are steering; pod orders-1 on node2: needs Linux 5.9 — intercept without it is " +
				"not possible"},
		{codes.Internal, "", "something that nobody thought of"},
		{codes.InvalidArgument, reason.Invalid,
			"service twoports has 2 ports: http/80, admin/81 — use --port LOCAL:PORT to choose one"},
		{codes.InvalidArgument, reason.Invalid, "service twoports has no port nope; it has: http/80, admin/81"},
		{codes.NotFound, reason.WorkloadNotFound, `workload "ordrs" not found in namespace shop`},
	} {
		w := newWorld(t).connected(true)
		w.daemon.intercept = func(context.Context, *daemonpb.InterceptRequest) (*daemonpb.InterceptInfo,
			error) {
			return nil, reason.New(c.code, c.reason, "%s", c.text)
		}
		text += w.transcript("intercept", "orders", "-p", "9000") + "\n"
	}
	for _, c := range []struct{ reason, text string }{
		{reason.NoCluster, "cannot reach the cluster at https://10.0.0.1:6443: connection refused — check " +
			"--context and your network"},
		{reason.Unauthorized, "https://10.0.0.1:6443 does not accept your credentials — log in to the cluster again"},
		{reason.ManagerNotInstalled,
			"there is no traffic manager in namespace sidestep of https://10.0.0.1:6443"},
		{reason.VersionSkew, "the traffic manager is v9.0.0 and this is v1.2.3 — get the same version"},
	} {
		w := newWorld(t).connected(false)
		w.daemon.connectErr = reason.New(codes.FailedPrecondition, c.reason, "%s", c.text)
		text += w.transcript("intercept", "orders", "-p", "9000") + "\n"
	}
	w := newWorld(t).connected(false)
	w.Name = "telepresence"
	w.daemon.connectErr = reason.New(codes.FailedPrecondition, reason.OtherCluster, "already connected to "+
		"context one").
		Advise("run `sidestep quit` first")
	text += w.transcript("intercept", "orders") + "\n"
	w = newWorld(t).connected(true)
	w.daemon.version = "v1.0.0"
	text += w.transcript("intercept", "orders") + "\n"
	w = newWorld(t)
	w.Launch = func(context.Context) error {
		return errors.New("start the daemon: exit status 1 — its log is /x/daemon.log")
	}
	text += w.transcript("intercept", "orders", "--output", "json") + "\n"
	golden(t, "intercept errors", text)
}

func TestCtrlCEndsInterceptWithoutAnIntercept(t *testing.T) {
	w := newWorld(t).connected(true)
	undone := make(chan struct{})
	ctx, cancel := context.WithCancelCause(context.Background())
	w.daemon.intercept = func(call context.Context,
		_ *daemonpb.InterceptRequest) (*daemonpb.InterceptInfo, error) {
		cancel(output.SignalError(2))
		<-call.Done()
		close(undone)
		return nil, call.Err()
	}
	assert.Equal(t, 130, w.doCtx(ctx, "intercept", "orders"))
	assert.Equal(t, "sidestep intercept: error: interrupted\n", w.stderr.String())
	select {
	case <-undone:
	case <-time.After(10 * time.Second):
		t.Error("the daemon was not told")
	}
}

// rule returns the conditions as a request to the daemon has them.
func rule(spec string) string { return `,"http":` + strconv.Quote(spec) }
