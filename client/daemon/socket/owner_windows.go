// SPDX-License-Identifier: Apache-2.0

package socket

// owned returns nil: the permissions of the directory decide.
func owned(string) error { return nil }
