// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"crypto/sha256"
	"encoding/hex"
)

// WiretapKeyHash is what stands for a session's key hash in its wiretaps. No laptop ever connects
// with a key of this hash: a manager that does not know wiretaps, and holds one for an intercept,
// holds it for one whose laptop is away, and leaves the traffic with the app.
func WiretapKeyHash(keyHash string) string {
	sum := sha256.Sum256([]byte("wiretap of " + keyHash))
	return hex.EncodeToString(sum[:])
}

// HeldBy says whether the intercept, or wiretap, is one of the session whose key has that hash.
func (s *InterceptSpec) HeldBy(keyHash string) bool {
	if s.Wiretap {
		return s.Client.KeyHash == WiretapKeyHash(keyHash)
	}
	return s.Client.KeyHash == keyHash
}
