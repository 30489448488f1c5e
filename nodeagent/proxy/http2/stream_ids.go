// SPDX-License-Identifier: Apache-2.0

package http2

import "sort"

// maxDetours bounds how many streams of one connection come to the app later than streams that
// began after them.
const maxDetours = 1024

// ids are the numbers that the client's streams have on the app's connection. They are the client's
// own, until a stream that had been on its way to a laptop goes to the app behind a later one:
// numbers must grow in the order in which streams begin (RFC 9113 §5.1.1), so that stream and all
// that follow get higher ones.
type streamIDs struct {
	client, app uint32 // the highest so far
	shifts      []shift
	toApp       map[uint32]uint32 // of the streams that came late
	toClient    map[uint32]uint32
}

// shift is what is added to the numbers of streams from one on.
type shift struct{ from, by uint32 }

// began says that the client began a stream.
func (n *streamIDs) began(id uint32) { n.client = max(n.client, id) }

// assign gives a stream its number for the app; ok is false if it cannot have one any more.
func (n *streamIDs) assign(id uint32) (app uint32, ok bool) {
	app = n.appID(id)
	if app <= n.app {
		app = n.app + 2
		if len(n.toApp) >= maxDetours || app > maxID {
			return 0, false
		}
		if n.toApp == nil {
			n.toApp, n.toClient = make(map[uint32]uint32), make(map[uint32]uint32)
		}
		n.toApp[id], n.toClient[app] = app, id
		if next := n.client + 2; n.appID(next) <= app {
			n.shifts = append(n.shifts, shift{from: next, by: app + 2 - next})
		}
	}
	if app > maxID {
		return 0, false
	}
	n.app = app
	return app, true
}

// appID translates a number of the client's.
func (n *streamIDs) appID(id uint32) uint32 {
	if app, late := n.toApp[id]; late {
		return app
	}
	if id%2 == 0 {
		return id
	}
	i := sort.Search(len(n.shifts), func(i int) bool { return n.shifts[i].from > id })
	if i == 0 {
		return id
	}
	return id + n.shifts[i-1].by
}

// clientID translates a number of the app's.
func (n *streamIDs) clientID(app uint32) uint32 {
	if id, late := n.toClient[app]; late {
		return id
	}
	if app%2 == 0 {
		return app
	}
	i := sort.Search(len(n.shifts), func(i int) bool { return n.shifts[i].from+n.shifts[i].by > app })
	if i == 0 {
		return app
	}
	return app - n.shifts[i-1].by
}
