// SPDX-License-Identifier: Apache-2.0

package http1

import "sidestep.dev/sidestep/nodeagent/http1"

// queue holds the kinds of the requests that a peer has not answered, oldest first.
type queue struct {
	kinds []http1.RequestKind
	first int
	few   [8]http1.RequestKind
}

func (q *queue) len() int { return len(q.kinds) - q.first }

func (q *queue) push(kinds ...http1.RequestKind) {
	if q.first == len(q.kinds) {
		q.first = 0
		if q.kinds == nil {
			q.kinds = q.few[:]
		}
		q.kinds = q.kinds[:0]
	}
	q.kinds = append(q.kinds, kinds...)
}

// at returns the i-th oldest.
func (q *queue) at(i int) http1.RequestKind { return q.kinds[q.first+i] }

func (q *queue) pop(n int) { q.first += n }
