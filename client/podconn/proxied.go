// SPDX-License-Identifier: Apache-2.0

package podconn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"sidestep.dev/sidestep/internal/tlsbatch"
)

// ErrNotUpgraded means that the API server, the pod, or a proxy before either answered a request
// without an upgrade.
var ErrNotUpgraded = errors.New("the request was not upgraded")

// DialUpgrade connects to an HTTP server of a pod, through the API server's pod proxy, with a GET
// that is upgraded to a protocol. A port-forward adds framing, and passes through kubelet and
// container runtime. These bytes pass through the API server alone.
func DialUpgrade(ctx context.Context, config *rest.Config, namespace, pod string, port int, path,
	protocol string) (*Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, errors.New("no answer in time"))
	defer cancel()
	conn, err := dialUpgrade(ctx, config, namespace, pod, port, path, protocol)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("upgraded request to pod %s/%s: %w", namespace, pod, err)
	}
	return conn, nil
}

func dialUpgrade(ctx context.Context, config *rest.Config, namespace, pod string, port int, path,
	protocol string) (*Conn, error) {
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("the API server's address: %w", err)
	}
	address := base.JoinPath("api", "v1", "namespaces", namespace, "pods",
		fmt.Sprintf("%s:%d", pod, port), "proxy", path)
	transport, err := upgradeTransport(config)
	if err != nil {
		return nil, err
	}
	wrapped, err := rest.HTTPWrappersForConfig(config, transport) // the credentials
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	res, err := wrapped.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	stream, ok := res.Body.(io.ReadWriteCloser)
	if res.StatusCode != http.StatusSwitchingProtocols || !ok {
		defer res.Body.Close()
		return nil, refusal(res)
	}
	return &Conn{
		session: stream, data: stream, remote: addr(fmt.Sprintf("%s/%s:%d", namespace, pod, port)),
		closed: make(chan struct{}),
		reason: func() error { return nil },
	}, nil
}

// upgradeTransport returns a transport for a single request.
func upgradeTransport(config *rest.Config) (*http.Transport, error) {
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	if tlsConfig == nil {
		tlsConfig = &tls.Config{}
	}
	tlsConfig = tlsConfig.Clone()
	tlsConfig.NextProtos = []string{"http/1.1"} // HTTP/2 has no upgrades
	dial := config.Dial
	if dial == nil {
		dial = (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
	}
	transport := &http.Transport{
		Proxy: config.Proxy, DialContext: dial, TLSClientConfig: tlsConfig, DisableCompression: true,
		Protocols: new(http.Protocols),
		// not called if there is a proxy
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			raw, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			config := tlsConfig.Clone()
			if config.ServerName == "" {
				config.ServerName, _, _ = net.SplitHostPort(address)
			}
			return tlsbatch.Client(ctx, raw, config)
		},
	}
	transport.Protocols.SetHTTP1(true)
	if transport.Proxy == nil {
		transport.Proxy = http.ProxyFromEnvironment
	}
	return transport, nil
}

// refusal returns the answer that came instead of an upgrade as an error.
func refusal(res *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(res.Body, maxMessage))
	if err != nil {
		return fmt.Errorf("%w: %s", ErrNotUpgraded, res.Status)
	}
	if object, _, err := scheme.Codecs.UniversalDeserializer().Decode(text, nil, nil); err == nil {
		return fmt.Errorf("%w: %w", ErrNotUpgraded, apierrors.FromObject(object))
	}
	if res.StatusCode >= http.StatusInternalServerError {
		answer := apierrors.NewGenericServerResponse(res.StatusCode, http.MethodGet,
			schema.GroupResource{Resource: "pods/proxy"}, "", "", 0, false)
		return fmt.Errorf("%w: %w: %s", ErrNotUpgraded, answer, text)
	}
	return fmt.Errorf("%w: %s: %s", ErrNotUpgraded, res.Status, text)
}
