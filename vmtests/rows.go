// SPDX-License-Identifier: Apache-2.0

package main

import "sidestep.dev/sidestep/vmtests/report"

// product is what sidestep does, and the tests that show it.
var product = []report.Row{
	{Title: "steering by sk_lookup", Pattern: `nodeagent/steer Test\w+/sk_lookup`},
	{Title: "steering by TC, with a filter (clsact)", Pattern: `nodeagent/steer Test\w+/clsact`},
	{Title: "steering by TC, with a link (tcx)", Pattern: `nodeagent/steer Test\w+/tcx`, Since: "6.6"},
	{Title: "the datapath is chosen, forced and reported", Pattern: `nodeagent TestEveryDatapath|nodeagent TestNodeThatCannotSteer`},
	{Title: "steering under SYN cookies", Pattern: `nodeagent/steer TestSteeringWorksWithSYNCookies`},
	{Title: "headers of IPv6 and IPv4 before the one of TCP", Pattern: `nodeagent/steer Test(HeadersBefore|OddPackets|DeviceWithoutLinkHeaders)`},
	{Title: "datagrams of UDP ports, and their answers", Pattern: `nodeagent/steer TestDatagrams|nodeagent/datagrams Test`},
	{Title: "a mesh proxy in the pod is steered", Pattern: `nodeagent/steer TestMeshProxyInThePodIsSteered`},
	{Title: "proxies that connect like anybody in the pod, too", Pattern: `nodeagent/mesh TestProxyIsMadeKnown/to_`, Since: "5.14"},
	{Title: "pods on the node's network", Pattern: `nodeagent TestPodOnTheNodesNetwork`},
	{Title: "open connections are taken over, and no others", Pattern: `nodeagent/takeover Test(Matching|Of32|NothingIsTakenOver)`},
	{Title: "they outlive an agent that is killed or hangs", Pattern: `nodeagent/takeover Test(AgentThatEnds|WhoDecides|FilterOfAKilled)`},
	{Title: "so they do with large, cut, lost and repeated packets", Pattern: `nodeagent/takeover Test(PacketsOf|HeadMay|Lost|Probes|WhatIsNo)`},
	{Title: "so they do with extension headers of IPv6", Pattern: `nodeagent/takeover Test(IPv6With|PacketsThat)`},
	{Title: "many of them, and many intercepts of a port", Pattern: `nodeagent/takeover Test(TenThousand|Many|RulesThat)`},
	{Title: "idle connections end where that is wanted", Pattern: `nodeagent/takeover TestExisting`},
	{Title: "the filter of open connections misses no request", Pattern: `nodeagent/takeover Test(Prefilter|FalseAlarm)`},
	{Title: "apps see their clients' addresses", Pattern: `nodeagent/peername Test|nodeagent TestAppSeesItsClients`},
	{Title: "clients' connections are counted (sockops)", Pattern: `nodeagent/tcpstats Test|nodeagent TestConnectionsOfClients`},
	{Title: "bytes pass by splice(2)", Pattern: `nodeagent/proxy/stream Test`},
	{Title: "sockets in pods' namespaces, more than there are ports", Pattern: `nodeagent/podnet Test`},
	{Title: "pods' control groups are found", Pattern: `nodeagent/cgroup Test`},
	{Title: "no request fails while intercepts come and go", Pattern: `nodeagent TestNoRequestFails`},
	{Title: "an agent that ends drains, and leaves nothing", Pattern: `nodeagent Test(AgentGivesEverythingBack|EndedAgent)`},
	{Title: "the younger of two agents takes over", Pattern: `nodeagent(/steer)? Test(YoungerAgent|OlderAgent|ManyAgents|NoConnectionIsLost)`},
	{Title: "a killed agent leaves connections to the app", Pattern: `nodeagent TestKilledAgent|nodeagent/steer Test(ClosedListener|KilledAgent)`},
	{Title: "a hung agent leaves connections to the app", Pattern: `nodeagent TestStoppedAgent|nodeagent/steer Test(SilentAgent|HushedAgent)`},
	{Title: "so does one without memory or file descriptors", Pattern: `nodeagent Test(AgentShortOfMemory|AgentWithoutFileDescriptors)`},
	{Title: "lost pins are mended, those of the dead removed", Pattern: `nodeagent(/steer)? Test(RemovedPins|RubbishAmongThePins|FilterThatSomebodyRemoved|Pins|Sweep|Purge)`},
	{Title: "deleted pods are let go", Pattern: `nodeagent Test\w*DeletedPod`},
	{Title: "the node agent needs no more than its capabilities", Pattern: `nodeagent Test(MissingCapabilities|KilledAgentLeaves)`},
}

// features is what kernels have for it.
var features = []report.Row{
	{Title: "programs at the lookup of sockets (sk_lookup)", Pattern: `features TestKernel/sk_lookup$`, Since: "5.9"},
	{Title: "sockets assigned in TC (bpf_sk_assign)", Pattern: `features TestKernel/sk_assign_in_TC`},
	{Title: "filters at devices (clsact, cls_bpf)", Pattern: `features TestKernel/clsact`},
	{Title: "links at devices (tcx)", Pattern: `features TestKernel/tcx`, Since: "6.6"},
	{Title: "getpeername in cgroups", Pattern: `features TestKernel/getpeername`},
	{Title: "SOCK_DESTROY, IPv4 and IPv6", Pattern: `features TestKernel/SOCK_DESTROY`},
	{Title: "ring buffers", Pattern: `features TestKernel/ring_buffer`},
	{Title: "events of sockets (sockops)", Pattern: `features TestKernel/sockops`},
	{Title: "types of the kernel (BTF)", Pattern: `features TestKernel/types_of_the_kernel`},
	{Title: "bounded loops", Pattern: `features TestKernel/bounded_loops`},
	{Title: "loops by callback (bpf_loop)", Pattern: `features TestKernel/bpf_loop`, Since: "5.17"},
	{Title: "cookies of network namespaces", Pattern: `features TestKernel/cookies_of_namespaces`, Since: "5.14"},
	{Title: "maps that do not count as locked memory", Pattern: `features TestKernel/memory_of_maps`, Since: "5.11"},
}
