package main

import "sidestep.dev/sidestep/vmtests/report"

// product is what sidestep does, and the tests that show it.
var product = []report.Row{
	{Title: "steering of new connections, IPv4 and IPv6", Pattern: `nodeagent/steer TestSteering`},
}

// features is what kernels have.
var features = []report.Row{}
