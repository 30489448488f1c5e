// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/steer"
)

func TestEveryDatapathServesAndIsReported(t *testing.T) {
	for _, name := range testnet.Datapaths(t) {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.datapath = steer.Datapath(name)
			stop := w.run(t)
			w.steering(t, w.assign(w.wants()))
			w.expect(t, "me", "laptop")
			w.expect(t, "somebody", "app")
			r := w.await(t, "datapath", func(r *agentpb.Report) bool { return r.GetDatapath() != nil })
			assert.Equal(t, name, r.GetDatapath().GetName())
			assert.Equal(t, "chosen by --datapath="+name, r.GetDatapath().GetReason())
			status, metrics := fetch(t, w.http+"/metrics")
			assert.Equal(t, http.StatusOK, status)
			assert.Contains(t, metrics, `sidestep_nodeagent_datapath_info{datapath="`+name+
				`",reason="chosen by --datapath=`+name+`"} 1`)
			stop()
			w.expect(t, "me", "app")
			w.nothingLeft(t)
		})
	}
}

func TestNodeThatCannotSteerSaysWhy(t *testing.T) {
	w := newWorld(t)
	w.datapath = "xdp" // what no kernel can do stands for what this one cannot
	w.run(t)
	w.assign(w.wants())
	r := w.await(t, "reason",
		func(r *agentpb.Report) bool { return r.GetDatapath().GetReason() != "" && len(r.GetTargets()) == 1 })
	assert.Empty(t, r.GetDatapath().GetName())
	assert.Contains(t, r.GetDatapath().GetReason(), `there is no datapath "xdp"`)
	w.await(t, "reason of the pod", func(r *agentpb.Report) bool {
		return r.GetTargets()[0].GetFailed() && r.GetTargets()[0].GetMessage() == `there is no datapath "xdp"`
	})
	w.expect(t, "me", "app")
}
