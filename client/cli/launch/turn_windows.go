// SPDX-License-Identifier: Apache-2.0

package launch

// takeTurn lets all start a daemon at once, of which one comes to serve.
func takeTurn(string) (release func(), taken bool) { return func() {}, true }
