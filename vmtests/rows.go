// SPDX-License-Identifier: Apache-2.0

package main

import (
	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/vmtests/report"
)

// product is what sidestep does, and the tests that show it.
var product = []report.Row{
	{Title: "steering by sk_lookup", Pattern: `nodeagent/steer Test\w+/sk_lookup`},
	{Title: "steering by TC, with a filter (clsact)", Pattern: `nodeagent/steer Test\w+/clsact`},
	{Title: "steering by TC, with a link (tcx)", Pattern: `nodeagent/steer Test\w+/tcx`, Since: bpf.NeedsTCX.Linux},
	{Title: "the datapath is chosen, forced and reported",
		Pattern: `nodeagent TestEveryDatapath|nodeagent TestNodeThatCannotSteer`},
	{Title: "steering under SYN cookies", Pattern: `nodeagent/steer TestSteeringWorksWithSYNCookies`},
	{Title: "IPv4 options and IPv6 extension headers before TCP",
		Pattern: `nodeagent/steer Test(HeadersBefore|OddPackets|DeviceWithoutLinkHeaders)`},
	{Title: "UDP ports, and responses from them",
		Pattern: `nodeagent/steer TestDatagrams|nodeagent/datagrams Test`},
	{Title: "connections of a mesh's proxy in the pod are steered",
		Pattern: `nodeagent/steer TestMeshProxyInThePodIsSteered`},
	{Title: "… also if the proxy connects from the pod's own address",
		Pattern: `nodeagent/mesh TestProxyIsMadeKnown/to_`, Since: bpf.NeedsMesh.Linux},
	{Title: "pods on the host's network", Pattern: `nodeagent TestPodOnTheNodesNetwork`},
	{Title: "older connections with a matching request are taken over, and no others",
		Pattern: `nodeagent/takeover Test(Matching|Of32|NothingIsTakenOver)`},
	{Title: "older connections survive an agent that is killed or hangs",
		Pattern: `nodeagent/(takeover|headwatch) Test(AgentThatEnds|WhoDecides|FilterOfAKilled|Verdict)`},
	{Title: "… with large, cut, lost and repeated packets",
		Pattern: `nodeagent/(takeover|headwatch) Test(PacketsOf|HeadMay|Lost|Probes|WhatIsNo)`},
	{Title: "… with IPv6 extension headers",
		Pattern: `nodeagent/(takeover|headwatch) Test(IPv6With|PacketsThat)`},
	{Title: "… many at once, and many intercepts of a port",
		Pattern: `nodeagent/(takeover|headwatch) Test(TenThousand|Many|RulesThat|PortsOf)`},
	{Title: "idle connections are ended if requested", Pattern: `nodeagent/takeover TestExisting`},
	{Title: "the filter of older connections misses no request",
		Pattern: `nodeagent/(takeover|headwatch) Test(Prefilter|FalseAlarm)`},
	{Title: "apps see their clients' addresses",
		Pattern: `nodeagent/peername Test|nodeagent TestAppSeesItsClients`},
	{Title: "clients' connections are counted (sockops)",
		Pattern: `nodeagent/tcpstats Test|nodeagent TestConnectionsOfClients`},
	{Title: "bytes pass by splice(2)", Pattern: `nodeagent/proxy/stream Test`},
	{Title: "sockets in pods' namespaces, more connections than ports", Pattern: `nodeagent/podnet Test`},
	{Title: "pods' control groups are found", Pattern: `nodeagent/cgroup Test`},
	{Title: "no request fails while intercepts come and go", Pattern: `nodeagent TestNoRequestFails`},
	{Title: "an agent that ends drains and leaves nothing behind",
		Pattern: `nodeagent Test(AgentGivesEverythingBack|EndedAgent)`},
	{Title: "the younger of two agents takes over",
		Pattern: `nodeagent(/steer)? Test(YoungerAgent|OlderAgent|ManyAgents|NoConnectionIsLost)`},
	{Title: "a killed agent leaves connections to the app",
		Pattern: `nodeagent TestKilledAgent|nodeagent/steer Test(ClosedListener|KilledAgent)`},
	{Title: "a hung agent leaves connections to the app",
		Pattern: `nodeagent TestStoppedAgent|nodeagent/steer Test(SilentAgent|HushedAgent)`},
	{Title: "an agent without memory or file descriptors leaves connections to the app",
		Pattern: `nodeagent Test(AgentShortOfMemory|AgentWithoutFileDescriptors)`},
	{Title: "lost pins are restored, pins of dead agents removed",
		Pattern: `nodeagent(/steer)? Test(RemovedPins|RubbishAmongThePins|FilterThatSomebodyRemoved|Pins|Sweep|Purge)`},
	{Title: "deleted pods are released", Pattern: `nodeagent Test\w*DeletedPod`},
	{Title: "the node agent needs no more than its capabilities",
		Pattern: `nodeagent Test(MissingCapabilities|KilledAgentLeaves)`},
}

// features is what kernels have for it.
var features = []report.Row{
	{Title: "programs at the socket lookup (sk_lookup)", Pattern: `features TestKernel/sk_lookup$`,
		Since: "5.9"},
	{Title: "sockets assigned in TC (bpf_sk_assign)", Pattern: `features TestKernel/sk_assign_in_TC`},
	{Title: "filters on devices (clsact, cls_bpf)", Pattern: `features TestKernel/clsact`},
	{Title: "links on devices (tcx)", Pattern: `features TestKernel/tcx`, Since: "6.6"},
	{Title: "getpeername in cgroups", Pattern: `features TestKernel/getpeername`},
	{Title: "SOCK_DESTROY, IPv4 and IPv6", Pattern: `features TestKernel/SOCK_DESTROY`},
	{Title: "ring buffers", Pattern: `features TestKernel/ring_buffer`},
	{Title: "socket events (sockops)", Pattern: `features TestKernel/sockops`},
	{Title: "type information of the kernel (BTF)", Pattern: `features TestKernel/types_of_the_kernel`},
	{Title: "bounded loops", Pattern: `features TestKernel/bounded_loops`},
	{Title: "loops by callback (bpf_loop)", Pattern: `features TestKernel/bpf_loop`, Since: "5.17"},
	{Title: "network namespace cookies", Pattern: `features TestKernel/cookies_of_namespaces`,
		Since: "5.14"},
	{Title: "BPF maps do not count as locked memory", Pattern: `features TestKernel/memory_of_maps`,
		Since: "5.11"},
}
