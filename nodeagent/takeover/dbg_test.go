package takeover

import ("testing"; "sidestep.dev/sidestep/bpf")

func (p *Port) Dump(t *testing.T) {
	var k bpf.FlowKey
	var f bpf.Flow
	it := p.program.objs.Flows.Iterate()
	for it.Next(&k, &f) { t.Logf("%+v %+v", k, f) }
	t.Log(it.Err())
	var n []uint64
	for o := range uint32(4) { _ = p.program.objs.Counts.Lookup(o, &n); t.Log(o, n) }
	t.Log(p.program.devices.links, p.program.needles, p.program.generation)
}
