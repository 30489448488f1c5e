// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
)

// screen is what has been written to a terminal. The line's own goroutine writes to it.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// drawings are the lines as they were drawn one over the other.
func (s *screen) drawings() []string {
	return strings.Split(s.String(), "\r\x1b[K")[1:]
}

func TestTheSpinnerTurnsAndIsWiped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &screen{}
		l := New(out, Spinner, func() int { return 80 })
		l.Set("waiting for pods: 0/2")
		time.Sleep(frame + frame/2)
		l.Set("waiting for pods: 1/2")
		l.Set("waiting for pods: 1/2")
		l.Close()
		assert.Equal(t, []string{"⠋ waiting for pods: 0/2", "⠙ waiting for pods: 0/2",
			"⠙ waiting for pods: 1/2", ""}, out.drawings())
		before := out.String()
		time.Sleep(10 * frame)
		l.Close()
		assert.Equal(t, before, out.String(), "nothing is drawn after the line was closed")
		l.Set("again")
		l.Close()
		assert.Contains(t, out.drawings(), "⠙ again")
	})
}

func TestTheSpinnerStaysOnOneLineOfANarrowTerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &screen{}
		width := 20
		l := New(out, Spinner, func() int { return width })
		l.Set("waiting for sidestep-nodeagent 1/2, sidestep-manager 0/1")
		width = 1
		l.Set("of no width at all")
		width = 0
		l.Set("of a width that is not known")
		l.Close()
		drawn := out.drawings()
		assert.Equal(t, "⠋ waiting for side…", drawn[0])
		assert.Less(t, utf8.RuneCountInString(drawn[0]), 20)
		assert.LessOrEqual(t, utf8.RuneCountInString(drawn[1]), 1)
		assert.Equal(t, "⠋ of a width that is not known", drawn[2])
	})
}

func TestPlainProgressIsALineForEachStep(t *testing.T) {
	out := &screen{}
	l := New(out, Plain, nil)
	for _, step := range []string{"one", "one", " two ", "", "three"} {
		l.Set(step)
	}
	l.Close()
	assert.Equal(t, "one\ntwo\nthree\n", out.String())
}

func TestNoProgressIsNothing(t *testing.T) {
	out := &screen{}
	l := New(out, None, nil)
	l.Set("one")
	l.Close()
	assert.Empty(t, out.String())
}
