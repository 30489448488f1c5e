// SPDX-License-Identifier: Apache-2.0

// Package e2e holds end-to-end tests only; they are built with the tag e2e.
package e2e
