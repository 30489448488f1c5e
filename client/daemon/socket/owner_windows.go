// SPDX-License-Identifier: Apache-2.0

package socket

// owned is up to the rights of the directory.
func owned(string) error { return nil }
