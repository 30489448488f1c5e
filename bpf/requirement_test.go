// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/bpf"
)

func TestRequirementIsReadBackFromItsLine(t *testing.T) {
	for _, r := range bpf.Requirements() {
		text := "=== RUN\n    a_test.go:12: " + r.Line() + "\n--- SKIP\n"
		got, ok := bpf.ParseRequirement(text)
		assert.True(t, ok, text)
		assert.Equal(t, r, got)
	}
	for _, text := range []string{"", "needs Linux 6.6", "kernel lacks", "kernel lacks {", "kernel lacks \"tcx\""} {
		_, ok := bpf.ParseRequirement(text)
		assert.False(t, ok, text)
	}
}

func TestRequirementIsFoundInAnError(t *testing.T) {
	err := fmt.Errorf("attach: %w", fmt.Errorf("%w: %w", bpf.NeedsTCX, ebpf.ErrNotSupported))
	var lacks bpf.Requirement
	require.ErrorAs(t, err, &lacks)
	assert.Equal(t, bpf.NeedsTCX, lacks)
	assert.ErrorIs(t, err, bpf.NeedsTCX)
	assert.NotErrorIs(t, err, bpf.NeedsTC)
	assert.True(t, errors.Is(err, ebpf.ErrNotSupported))
	for want, r := range map[string]bpf.Requirement{
		"x needs Linux 5.9":                      {Feature: "x", Linux: "5.9"},
		"x needs a Linux built with CONFIG_Y":    {Feature: "x", Config: "CONFIG_Y"},
		"x needs Linux 5.9, built with CONFIG_Y": {Feature: "x", Linux: "5.9", Config: "CONFIG_Y"},
	} {
		assert.EqualError(t, r, want)
	}
}

func TestDocumentOfKernelsListsAllRequirements(t *testing.T) {
	text, err := os.ReadFile("../docs/kernels.md")
	require.NoError(t, err)
	for _, r := range bpf.Requirements() {
		assert.Contains(t, string(text), fmt.Sprintf("\n| %s | %s | %s |\n", r.Feature, r.Linux, r.Config))
	}
}
