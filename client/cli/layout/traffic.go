// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"
	"time"

	"sidestep.dev/sidestep/api/agentpb"
)

// Traffic is the record of the connections to an intercept's pods.
type Traffic struct {
	Open          uint64  `json:"connections_open"`
	Closed        uint64  `json:"connections_closed"`
	Aborted       uint64  `json:"connections_aborted"`
	Received      uint64  `json:"received_bytes"`
	Sent          uint64  `json:"sent_bytes"`
	Retransmitted uint64  `json:"retransmitted_segments"`
	RTT           float64 `json:"rtt_ms,omitempty"`
}

func trafficRecord(t *agentpb.Traffic) *Traffic {
	if t == nil {
		return nil
	}
	return &Traffic{
		Open: open(t), Closed: t.GetClosed(), Aborted: t.GetAborted(), Received: t.GetReceivedBytes(),
		Sent:          t.GetSentBytes(),
		Retransmitted: t.GetRetransmittedSegments(), RTT: float64(rtt(t).Microseconds()) / 1000,
	}
}

// Copies is the record of what a wiretap got.
type Copies struct {
	Copied  uint64 `json:"copied"`
	Cut     uint64 `json:"cut"`
	Dropped uint64 `json:"dropped"`
}

func copiesRecord(c *agentpb.Copies) *Copies {
	if c == nil {
		return nil
	}
	return &Copies{Copied: c.GetCopied(), Cut: c.GetCut(), Dropped: c.GetDropped()}
}

// copiesLine returns what a wiretap got, and what it did not get.
func copiesLine(c *agentpb.Copies, mechanism string) string {
	what := "connections"
	if mechanism == "http" {
		what = "requests"
	}
	line := fmt.Sprintf("copies: %d %s", c.GetCopied(), what)
	if n := c.GetCut(); n > 0 {
		line += fmt.Sprintf(", %d of them cut", n)
	}
	if n := c.GetDropped(); n > 0 {
		line += fmt.Sprintf("; %d dropped", n)
	}
	return line
}

// trafficLine returns a line about all connections to the ports of an intercept's pods.
func trafficLine(t *agentpb.Traffic) string {
	line := fmt.Sprintf("connections: %d open, %d served; %s in, %s out", open(t), t.GetClosed(),
		size(t.GetReceivedBytes()), size(t.GetSentBytes()))
	if t.GetRttSamples() > 0 {
		line += "; RTT " + roundTrip(rtt(t))
	}
	if n := t.GetAborted(); n > 0 {
		line += fmt.Sprintf("; %d aborted", n)
	}
	if n := t.GetRetransmittedSegments(); n > 0 {
		line += fmt.Sprintf("; %d segments sent again", n)
	}
	return line
}

func open(t *agentpb.Traffic) uint64 { return t.GetOpened() - min(t.GetOpened(), t.GetClosed()) }

// rtt returns the mean over the connections that have ended.
func rtt(t *agentpb.Traffic) time.Duration {
	if t.GetRttSamples() == 0 {
		return 0
	}
	return time.Duration(t.GetRttSumUs()/t.GetRttSamples()) * time.Microsecond
}

// roundTrip formats milliseconds, with enough digits to tell neighbours on a node (tens of
// microseconds) from nothing.
func roundTrip(d time.Duration) string {
	ms := float64(d.Microseconds()) / 1000
	if ms < 0.1 {
		return fmt.Sprintf("%.3f ms", ms)
	}
	return fmt.Sprintf("%.1f ms", ms)
}

// size formats bytes as people read them, in powers of ten.
func size(n uint64) string {
	value, unit := float64(n), "B"
	for _, larger := range []string{"kB", "MB", "GB", "TB", "PB", "EB"} {
		if value < 999.5 {
			break
		}
		value, unit = value/1000, larger
	}
	if unit == "B" || value >= 99.95 {
		return fmt.Sprintf("%.0f %s", value, unit)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}
