// SPDX-License-Identifier: Apache-2.0

package load

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"

	"sidestep.dev/sidestep/tests/apps/greeter"
	"sidestep.dev/sidestep/tests/apps/lines"
	"sidestep.dev/sidestep/tests/apps/shop"
)

type httpAsker struct {
	client    *http.Client
	method    string
	plain     *url.URL
	matching  *url.URL
	header    http.Header
	laptop    string
	laptopKey []byte
}

func newHTTPAsker(plan Plan, target *url.URL) (*httpAsker, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil
	transport.DisableKeepAlives = !plan.KeepAlive
	transport.MaxIdleConns = 0
	transport.MaxIdleConnsPerHost = plan.Concurrency
	asker := &httpAsker{
		client:    &http.Client{Transport: transport},
		method:    plan.Method,
		plain:     target,
		matching:  target,
		header:    http.Header{},
		laptop:    plan.Laptop,
		laptopKey: fmt.Appendf(nil, `"service":%q`, plan.Laptop),
	}
	if plan.Matching.Path != "" {
		matching, err := target.Parse(plan.Matching.Path)
		if err != nil {
			return nil, fmt.Errorf("path of matching requests: %w", err)
		}
		asker.matching = matching
	}
	for _, header := range plan.Matching.Headers {
		name, value, _ := strings.Cut(header, ":")
		asker.header.Add(name, strings.TrimSpace(value))
	}
	return asker, nil
}

func (a *httpAsker) ask(ctx context.Context, matched bool) (reply, error) {
	to, header := a.plain, http.Header{}
	if matched {
		to, header = a.matching, a.header
	}
	request, err := http.NewRequestWithContext(ctx, a.method, to.String(), nil)
	if err != nil {
		return reply{}, err
	}
	request.Header = header.Clone()
	if host := header.Get("Host"); host != "" {
		request.Host = host
	}
	response, err := a.client.Do(request)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return reply{}, fmt.Errorf("read the answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return reply{}, fmt.Errorf("%s: %.200s", response.Status, body)
	}
	service := response.Header.Get(shop.ServiceHeader)
	// A quote inside a JSON string is escaped, so this finds fields only: that of the service
	// asked, or of one further up the chain.
	laptop := service == a.laptop || bytes.Contains(body, a.laptopKey)
	return reply{service: service, pod: response.Header.Get(shop.PodHeader), laptop: laptop}, nil
}

func (a *httpAsker) close() { a.client.CloseIdleConnections() }

type lineAsker struct{ address, laptop string }

func (a *lineAsker) ask(ctx context.Context, _ bool) (reply, error) {
	name, err := lines.Ask(ctx, a.address, "how are you")
	return reply{service: name, pod: name, laptop: name == a.laptop}, err
}

func (a *lineAsker) close() {}

type grpcAsker struct {
	address  string
	shared   *grpc.ClientConn // nil: a connection per call
	metadata metadata.MD
	laptop   string
}

func newGRPCAsker(plan Plan, address string) (*grpcAsker, error) {
	asker := &grpcAsker{address: address, metadata: metadata.MD{}, laptop: plan.Laptop}
	for _, header := range plan.Matching.Headers {
		name, value, _ := strings.Cut(header, ":")
		asker.metadata.Append(name, strings.TrimSpace(value))
	}
	if plan.KeepAlive {
		conn, err := asker.dial()
		if err != nil {
			return nil, err
		}
		asker.shared = conn
	}
	return asker, nil
}

func (a *grpcAsker) dial() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+a.address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
}

func (a *grpcAsker) ask(ctx context.Context, matched bool) (reply, error) {
	conn := a.shared
	if conn == nil {
		var err error
		if conn, err = a.dial(); err != nil {
			return reply{}, err
		}
		defer conn.Close()
	}
	if matched {
		ctx = metadata.NewOutgoingContext(ctx, a.metadata)
	}
	var header metadata.MD
	_, err := testpb.NewTestServiceClient(conn).UnaryCall(ctx, &testpb.SimpleRequest{ResponseSize: 100},
		grpc.Header(&header))
	if err != nil {
		return reply{}, err
	}
	service := strings.Join(header.Get(greeter.ServiceKey), ",")
	return reply{service: service, pod: strings.Join(header.Get(greeter.PodKey), ","),
		laptop: service == a.laptop}, nil
}

func (a *grpcAsker) close() {
	if a.shared != nil {
		a.shared.Close()
	}
}
