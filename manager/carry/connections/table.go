// SPDX-License-Identifier: Apache-2.0

// Package connections knows the connections that are being carried, to end those of an intercept or of
// a session whose right to them has been withdrawn.
package connections

import "sync"

// Table has the connections that are under way. It is safe for concurrent use; the zero value is
// empty.
type Table struct {
	mu         sync.Mutex
	intercepts map[string]map[*connection]struct{} // by UID
	sessions   map[string]map[*connection]struct{} // by hash of the session key
}

type connection struct{ end func(error) }

// Add notes a connection of an intercept and a session. end is to end it, and may be called several
// times. Whoever adds it calls remove when it has ended.
//
// What has been withdrawn a moment before ends nothing that is added now: whoever adds a connection has
// to look again, afterwards, whether there may be one.
func (t *Table) Add(interceptUID, keyHash string, end func(error)) (remove func()) {
	one := &connection{end}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.intercepts == nil {
		t.intercepts = map[string]map[*connection]struct{}{}
		t.sessions = map[string]map[*connection]struct{}{}
	}
	put(t.intercepts, interceptUID, one)
	put(t.sessions, keyHash, one)
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		drop(t.intercepts, interceptUID, one)
		drop(t.sessions, keyHash, one)
	}
}

func put(in map[string]map[*connection]struct{}, name string, one *connection) {
	if in[name] == nil {
		in[name] = map[*connection]struct{}{}
	}
	in[name][one] = struct{}{}
}

func drop(in map[string]map[*connection]struct{}, name string, one *connection) {
	if delete(in[name], one); len(in[name]) == 0 {
		delete(in, name)
	}
}

// EndIntercept ends the connections of an intercept.
func (t *Table) EndIntercept(uid string, why error) { t.end(&t.intercepts, uid, why) }

// EndSession ends the connections of a session.
func (t *Table) EndSession(keyHash string, why error) { t.end(&t.sessions, keyHash, why) }

func (t *Table) end(in *map[string]map[*connection]struct{}, name string, why error) {
	t.mu.Lock()
	var all []*connection
	for one := range (*in)[name] {
		all = append(all, one)
	}
	t.mu.Unlock()
	for _, one := range all {
		one.end(why)
	}
}
