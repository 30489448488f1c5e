// SPDX-License-Identifier: Apache-2.0

//go:build race

package match_test

// raceDetector is on: sync.Pool forgets on purpose then.
const raceDetector = true
