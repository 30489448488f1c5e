// SPDX-License-Identifier: Apache-2.0

package launch

// takeTurn lets all commands start a daemon at once. One of the daemons then serves.
func takeTurn(string) (release func(), taken bool) { return func() {}, true }
