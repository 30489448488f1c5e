// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestTransitions(t *testing.T) {
	for _, tc := range []struct {
		name string
		from phase
		now  facts
		do   action
		to   phase
	}{
		{"a pod that is wanted is opened", pending, facts{wanted: true}, open, steering},
		{"one that is refused is not", pending, facts{wanted: true, refused: true}, wait, pending},
		{"nor one that a newer agent has", pending, facts{wanted: true, superseded: true}, wait, pending},
		{"one that is steered is kept so", steering, facts{wanted: true}, apply, steering},
		{"one that is wanted no longer is drained", steering, facts{}, drain, draining},
		{"also while a newer agent has it", standby, facts{superseded: true}, drain, draining},
		{"until none is on its way to the listeners", draining, facts{}, wait, draining},
		{"which are closed then", draining, facts{drained: true}, finish, pending},
		{"unless it is wanted again", draining, facts{wanted: true, drained: true}, apply, steering},
		{"a newer agent is yielded to", steering, facts{wanted: true, superseded: true}, yield, standby},
		{"once", standby, facts{wanted: true, superseded: true}, wait, standby},
		{"and its end makes this one steer again", standby, facts{wanted: true}, apply, steering},
		{"a pod that is gone is aborted", steering, facts{wanted: true, gone: true}, abort, pending},
		{"whatever else is", draining, facts{superseded: true, gone: true}, abort, pending},
		{"and so is one that is refused from now on", steering, facts{wanted: true, refused: true}, abort, pending},
	} {
		do, to := tc.from.next(tc.now)
		assert.Equal(t, tc.do, do, tc.name)
		assert.Equal(t, tc.to, to, tc.name)
	}
}

func TestEachPhaseHasATransitionWhateverIs(t *testing.T) {
	for bits := range 1 << 5 {
		now := facts{gone: bits&1 > 0, wanted: bits&2 > 0, superseded: bits&4 > 0, refused: bits&8 > 0,
			drained: bits&16 > 0}
		for _, from := range []phase{pending, steering, standby, draining} {
			do, to := from.next(now)
			assert.NotEmpty(t, do)
			assert.NotEmpty(t, to)
		}
	}
}
