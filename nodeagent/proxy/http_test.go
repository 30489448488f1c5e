package proxy

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestMatchedGoesToTheLaptopAndAllElseToTheApp(t *testing.T) {
	w := newWorld(t, says(t, "app"), says(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	c := w.connect()
	assert.Equal(t, "app GET /1 0\n", c.get("/1", ""))
	assert.Equal(t, "laptop GET /2 0\n", c.get("/2", mine))
	assert.Equal(t, "app GET /3 0\n", c.get("/3", ""))
	assert.Equal(t, "laptop GET /4 0\n", c.get("/4", mine))
	assert.Equal(t, 1, w.laptop.opened(), "the tunnel is used again")
	assert.Equal(t, 1, w.appDials())
	assert.Equal(t, InterceptStats{Matched: 2}, w.target.Stats().Intercepts["uid-1"])
}
