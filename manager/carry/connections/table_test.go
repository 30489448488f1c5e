// SPDX-License-Identifier: Apache-2.0

package connections

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestConnectionsEndWithTheRightToThem(t *testing.T) {
	var table Table
	why := errors.New("withdrawn")
	ended := map[string]error{}
	add := func(name, intercept, session string) func() {
		return table.Add(intercept, session, func(err error) { ended[name] = err })
	}
	table.EndIntercept("i1", why)
	add("a", "i1", "s1")
	removeB := add("b", "i1", "s1")
	removeC := add("c", "i2", "s1")
	add("d", "i2", "s2")
	removeB()
	table.EndIntercept("i1", why)
	assert.Equal(t, map[string]error{"a": why}, ended)
	removeC()
	add("e", "i3", "s1")
	clear(ended)
	table.EndSession("s1", why)
	assert.Equal(t, map[string]error{"a": why, "e": why}, ended, "a has not been removed")
	table.EndSession("s3", why)
	table.EndIntercept("i3", why)
	assert.Equal(t, why, ended["e"])
	assert.NotContains(t, ended, "d")
}
