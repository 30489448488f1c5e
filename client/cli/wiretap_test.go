// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/daemonpb"
)

func TestWiretapAsksTheDaemonForWhatTheFlagsSay(t *testing.T) {
	const common = `"wiretap":true,"address":"127.0.0.1","existing":"none"`
	orders := func(rest string) string {
		return `{"name":"orders","workload":"orders",` + common + `,` +
			rest + `}`
	}
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"everything by default", []string{"orders", "-p", "9000:http"},
			orders(`"mechanism":"tcp","localPort":9000,"portIdentifier":"http"`)},
		{"every request", []string{"orders", "--http-header=all"}, orders(`"mechanism":"http"`)},
		{"every request below a path, whoever sends it", []string{"orders", "--http-path-prefix=/api"},
			orders(`"mechanism":"http"` + rule(`{"path":{"prefix":"/api"}}`))},
		{"every request by the mechanism", []string{"orders", "--mechanism=http"},
			orders(`"mechanism":"http"`)},
		{"a header of one's own", []string{"orders", "--http-header=auto"},
			orders(`"mechanism":"http","autoHeader":true`)},
		{"a header", []string{"orders", "--http-header=a=1", "--plaintext"},
			orders(`"mechanism":"http","plaintext":true` + rule(`{"headers":[{"name":"a","value":"1"}]}`))},
		{"a namespace, which becomes part of the name", []string{"orders", "-n", "shop"},
			`{"name":"orders-shop","namespace":"shop","workload":"orders","mechanism":"tcp",` + common + `}`},
		{"another name, service and container",
			[]string{"x", "-w", "sts/orders", "--service", "s", "--container", "c", "--timeout", "1s"},
			`{"name":"x","workload":"orders","workloadKind":"StatefulSet","service":"s","container":"c","timeoutMs":"1000","mechanism":"tcp",` + common + `}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t).connected(true)
			require.Zero(t, w.do(append([]string{"wiretap"}, c.args...)...), w.stderr.String())
			got, err := protojson.Marshal(request[*daemonpb.InterceptRequest](t, w))
			require.NoError(t, err)
			assert.JSONEq(t, c.want, string(got))
		})
	}
}

func TestWiretapPrints(t *testing.T) {
	w := newWorld(t).connected(true)
	text := ""
	for _, args := range [][]string{
		{"orders", "-p", "9000"}, {"orders", "-p", "9000:http", "--http-header=auto"},
		{"orders", "--http-header=all", "--output=json"}, {"orders", "--output=yaml"},
		{"orders", "--existing=all"}, {"orders", "--preview-url"}, {"orders", "--to-pod=8081"},
		{"orders", "python"},
	} {
		text += w.transcript(append([]string{"wiretap"}, args...)...) + "\n"
	}
	golden(t, "wiretap", text)
}

// aWiretap is an active one of two pods.
func aWiretap() *daemonpb.InterceptInfo {
	i := anIntercept()
	i.Name, i.Wiretap, i.Id, i.Conditions, i.CurlHeaders = "listen", true, testSession+":listen", nil, nil
	return i
}

func TestListAndStatusTellWiretapsFromIntercepts(t *testing.T) {
	theirs := aWiretap()
	theirs.Holder = "bob@desk"
	both := anIntercept()
	both.Holder = "ann@mac"
	w := newWorld(t)
	w.daemon.workloads = []*daemonpb.WorkloadInfo{
		{Kind: "Deployment", Name: "both", Namespace: "shop",
			Intercepts: []*daemonpb.InterceptInfo{anIntercept(), aWiretap()},
			Others:     []*daemonpb.InterceptInfo{theirs}},
		{Kind: "Deployment", Name: "mine", Namespace: "shop",
			Intercepts: []*daemonpb.InterceptInfo{aWiretap()}, Others: []*daemonpb.InterceptInfo{theirs, both}},
		{Kind: "Deployment", Name: "theirs", Namespace: "shop", Others: []*daemonpb.InterceptInfo{theirs}},
	}
	away := aWiretap()
	away.Name, away.Id, away.State, away.Message = "away", testSession+":away", "FAILED",
		"the node agent is older"
	w.daemon.status = statusOf(anIntercept(), aWiretap(), away)
	w.daemon.agents = &daemonpb.NodeAgentsReply{Traffic: []*daemonpb.TrafficInfo{
		{InterceptId: aWiretap().Id, Traffic: &agentpb.Traffic{Opened: 3, Closed: 2},
			Copies: &agentpb.Copies{Copied: 120, Cut: 2, Dropped: 7}},
		{InterceptId: away.Id, Copies: &agentpb.Copies{}},
	}}
	w.connected(true)
	text := ""
	for _, args := range [][]string{{"list"}, {"list", "--output=json"}, {"status"},
		{"status", "--wide"}, {"status", "--wide", "--output=yaml"}} {
		text += w.transcript(args...) + "\n"
	}
	golden(t, "wiretaps in list and status", text)

	w.daemon.workloads = nil
	assert.Contains(t, w.transcript("list", "--wiretaps"), "No wiretaps")
}

func TestLeavingAWiretap(t *testing.T) {
	w := newWorld(t)
	w.daemon.status = statusOf(aWiretap())
	w.connected(true)
	assert.Equal(t, "$ sidestep leave listen\nLeft wiretap listen of Deployment orders in namespace "+
		"shop\n[exit 0]\n", w.transcript("leave", "listen"))
}

func TestACommandBesideAWiretap(t *testing.T) {
	w := newWorld(t).connected(true)
	w.daemon.status = statusOf(made(&daemonpb.InterceptRequest{Name: "orders", Wiretap: true}))
	require.Zero(t, w.do("wiretap", "orders", "-p", "9000", "--", "record", "--all"), w.stderr.String())
	assert.Equal(t, [][]string{{"record", "--all"}}, w.programs)
	assert.Contains(t, w.programVars, "TELEPRESENCE_INTERCEPT_ID="+testSession+":orders")
}
