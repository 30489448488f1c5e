// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestAStepIsReportedWithItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		printer := New(&out)
		time.Sleep(time.Second)
		err := printer.Step("build", func() error {
			time.Sleep(1500 * time.Millisecond)
			return nil
		})
		assert.NoError(t, err)
		assert.Equal(t, "   2.5s  ✓ build (1.5s)\n", out.String())
	})
}

func TestALongStepGivesASignOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		printer := New(&out)
		printer.Step("build", func() error {
			time.Sleep(50 * time.Second)
			return nil
		})
		assert.Equal(t, "  20.0s  … build (20s so far)\n  40.0s  … build (40s so far)\n  50.0s  ✓ build (50s)\n", out.String())
	})
}

func TestAFailureNamesTheStep(t *testing.T) {
	var out bytes.Buffer
	err := New(&out).Step("build", func() error { return errors.New("no disk") })
	assert.EqualError(t, err, "build: no disk")
	assert.Contains(t, out.String(), "✗ build failed after")
}

func TestAllWaitsForEveryoneAndKeepsEveryFailure(t *testing.T) {
	one, two := errors.New("one"), errors.New("two")
	err := All(func() error { return one }, func() error { return nil }, func() error { return two })
	assert.ErrorIs(t, err, one)
	assert.ErrorIs(t, err, two)
	assert.NoError(t, All())
}
