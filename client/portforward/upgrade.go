package portforward

import (
	"errors"

	"k8s.io/apimachinery/pkg/util/httpstream"
	streaming "k8s.io/streaming/pkg/httpstream"
)

// upgradeFailure is why a WebSocket could not be had, if err says so. The error is of two types, since client-go's streams are moving to a module
// of their own, and neither unwraps.
func upgradeFailure(err error) (cause error, ok bool) {
	var older *httpstream.UpgradeFailureError
	if errors.As(err, &older) {
		return older.Cause, true
	}
	var newer *streaming.UpgradeFailureError
	if errors.As(err, &newer) {
		return newer.Cause, true
	}
	return err, httpstream.IsHTTPSProxyError(err)
}
