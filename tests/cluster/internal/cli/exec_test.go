// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestTheEndOfAProgramIsPassedOn(t *testing.T) {
	for script, want := range map[string]error{
		"exit 0":      nil,
		"exit 3":      exitCode(3),
		"kill -9 $$":  exitCode(137),
		"kill -15 $$": exitCode(143),
	} {
		assert.Equal(t, want, programError(exec.Command("sh", "-c", script).Run()), script)
	}
	other := errors.New("not started")
	assert.Equal(t, other, programError(other))
}
