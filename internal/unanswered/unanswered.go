// SPDX-License-Identifier: Apache-2.0

// Package unanswered names the reasons why a laptop does not answer requests that match its
// intercept, and says what to do about each.
package unanswered

import (
	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/reason"
)

// Reason is why a laptop did not answer, as the status of an Intercept has it.
type Reason string

// The reasons. They are the words in conditions and records, so they never change.
const (
	Other        Reason = "Other"
	Unreachable  Reason = "Unreachable"
	LocalRefused Reason = "LocalRefused"
	Silent       Reason = "Silent"
	LocalTLS     Reason = "LocalTLS"
	LocalNoHTTP2 Reason = "LocalNoHTTP2"
	LocalClosed  Reason = "LocalClosed"
	HeadTooLarge Reason = "HeadTooLarge"
	Framing      Reason = "Framing"
	Busy         Reason = "Busy"
	AppNotHTTP   Reason = "AppNotHTTP"
)

var reasons = map[agentpb.Unanswered_Reason]Reason{
	agentpb.Unanswered_OTHER:          Other,
	agentpb.Unanswered_UNREACHABLE:    Unreachable,
	agentpb.Unanswered_LOCAL_REFUSED:  LocalRefused,
	agentpb.Unanswered_SILENT:         Silent,
	agentpb.Unanswered_LOCAL_TLS:      LocalTLS,
	agentpb.Unanswered_LOCAL_NO_HTTP2: LocalNoHTTP2,
	agentpb.Unanswered_LOCAL_CLOSED:   LocalClosed,
	agentpb.Unanswered_HEAD_TOO_LARGE: HeadTooLarge,
	agentpb.Unanswered_FRAMING:        Framing,
	agentpb.Unanswered_BUSY:           Busy,
	agentpb.Unanswered_APP_NOT_HTTP:   AppNotHTTP,
}

// Of returns the reason that a node agent reports. One that this version does not know is Other.
func Of(r agentpb.Unanswered_Reason) Reason {
	if known, ok := reasons[r]; ok {
		return known
	}
	return Other
}

// text is what people read about a reason: what happened, and what to do.
type text struct{ what, advice string }

var texts = map[Reason]text{
	Other: {"the laptop did not take them",
		"the log of the node agent has the error of each"},
	Unreachable: {"the laptop could not be reached",
		"check `sidestep status` on the laptop; the app answers until the connection is back"},
	LocalRefused: {"nothing listens on the local port",
		"start the local process, or give the port that it listens on with --port"},
	Silent: {"the local process did not answer in time",
		"check that it accepts connections, and is not stopped in a debugger"},
	LocalTLS: {"the local process speaks only TLS",
		"have it listen without TLS: requests reach it as the app in the pod gets them"},
	LocalNoHTTP2: {"the local process does not speak HTTP/2",
		"turn on HTTP/2 without TLS (h2c, prior knowledge) in it, as the app in the pod has it"},
	LocalClosed: {"the local process closed the connection without an answer",
		"its log may say why: it may have crashed, speak only TLS, or not know HTTP/2"},
	HeadTooLarge: {"the request's head is larger than 64 KiB",
		"send fewer or shorter headers, or use --mechanism tcp to take every connection"},
	Framing: {"the request can be read in more than one way, so it passed to the app unread",
		"have the client send one Content-Length or Transfer-Encoding, CRLF after each line and no folded lines"},
	Busy: {"the node agent holds too many bytes for other requests",
		"try again with fewer or smaller requests at a time"},
	AppNotHTTP: {"the app in the pod says something on the connection that is not HTTP, so it gets all of it",
		"use --mechanism tcp to take every connection"},
}

// What returns what happened, as the end of "3 requests were not answered by the laptop: …".
func (r Reason) What() string { return r.text().what }

// Text returns both, for one line.
func (r Reason) Text() string { return r.What() + reason.Dash + r.Advice() }

// Advice returns what to do about it.
func (r Reason) Advice() string { return r.text().advice }

func (r Reason) text() text {
	if t, ok := texts[r]; ok {
		return t
	}
	return texts[Other] // of a newer version
}
