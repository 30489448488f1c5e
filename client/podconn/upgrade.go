// SPDX-License-Identifier: Apache-2.0

package podconn

import (
	"errors"

	"k8s.io/streaming/pkg/httpstream"
)

// upgradeFailure returns why the upgrade to a WebSocket failed. ok is false if err is another
// error. The error itself does not unwrap.
func upgradeFailure(err error) (cause error, ok bool) {
	var failure *httpstream.UpgradeFailureError
	if errors.As(err, &failure) {
		return failure.Cause, true
	}
	return err, httpstream.IsHTTPSProxyError(err)
}
