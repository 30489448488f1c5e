// SPDX-License-Identifier: Apache-2.0

// Package shop is an HTTP service that tells all about the request it received, and calls the next
// service of a chain with the headers that applications propagate.
package shop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// InterceptHeader is forwarded by every service, as applications do that support intercepts of a
// chain.
const InterceptHeader = "X-Telepresence-Intercept-Id"

// Headers of every answer, for clients that do not read the body.
const (
	ServiceHeader = "X-Service"
	PodHeader     = "X-Pod"
)

// Answer is what a service says about a request. The field names are part of what tests look for.
type Answer struct {
	Service    string              `json:"service"`
	Pod        string              `json:"pod"`
	Method     string              `json:"method"`
	Path       string              `json:"path"`
	Host       string              `json:"host"`
	Protocol   string              `json:"protocol"`
	RemoteAddr string              `json:"remoteAddr"`
	Headers    map[string][]string `json:"headers"`
	// Upstream is the answer of the next service of the chain.
	Upstream *Answer `json:"upstream,omitempty"`
	// Error says why there is no answer from upstream.
	Error string `json:"error,omitempty"`
}

// Chain lists the services that answered, outermost first.
func (a *Answer) Chain() []string {
	var chain []string
	for ; a != nil; a = a.Upstream {
		chain = append(chain, a.Service)
	}
	return chain
}

// Service is one service of the chain.
type Service struct {
	Name string
	Pod  string
	// Upstream is the base URL of the next service; empty at the end of the chain.
	Upstream string
	// Forward names the request headers that go on to upstream, besides InterceptHeader.
	Forward []string
	// KeepAlive lets connections to upstream live on between requests.
	KeepAlive bool
	// Log gets a line per request; nil for none.
	Log *slog.Logger
}

// Handler serves:
//
//	/          an Answer; every path that is not listed here too
//	/bytes/N   N bytes
//	/slow?ms=N an Answer after N milliseconds
//	/echo      the request's body, as it comes in
//	/sink      the number of bytes in the request's body
//	/healthz   "ok", for probes
func (s *Service) Handler() http.Handler {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil
	transport.DisableKeepAlives = !s.KeepAlive
	transport.MaxIdleConnsPerHost = 64
	upstream := &http.Client{Transport: transport, Timeout: 30 * time.Second}

	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, upstream) })
	mux.HandleFunc("/bytes/{count}", serveBytes)
	mux.HandleFunc("/echo", serveEcho)
	mux.HandleFunc("/sink", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintln(w, n)
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		if waitAsAsked(w, r) {
			s.answer(w, r, upstream)
		}
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.Log != nil {
			s.Log.Info("request", "service", s.Name, "method", r.Method, "path", r.URL.RequestURI(),
				"remote", r.RemoteAddr,
				"user_agent", r.UserAgent(), "intercept", r.Header.Get(InterceptHeader))
		}
		w.Header().Set(ServiceHeader, s.Name)
		w.Header().Set(PodHeader, s.Pod)
		mux.ServeHTTP(w, r)
	})
}

func (s *Service) answer(w http.ResponseWriter, r *http.Request, upstream *http.Client) {
	answer := Answer{
		Service:    s.Name,
		Pod:        s.Pod,
		Method:     r.Method,
		Path:       r.URL.RequestURI(),
		Host:       r.Host,
		Protocol:   r.Proto,
		RemoteAddr: r.RemoteAddr,
		Headers:    r.Header,
	}
	status := http.StatusOK
	if s.Upstream != "" {
		next, err := s.ask(r, upstream)
		if err != nil {
			status, answer.Error = http.StatusBadGateway, err.Error()
		}
		answer.Upstream = next
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The client is gone if this fails.
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *Service) ask(r *http.Request, upstream *http.Client) (*Answer, error) {
	url := strings.TrimSuffix(s.Upstream, "/") + r.URL.RequestURI()
	request, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("ask upstream: %w", err)
	}
	for _, name := range append([]string{InterceptHeader}, s.Forward...) {
		for _, value := range r.Header.Values(name) {
			request.Header.Add(name, value)
		}
	}
	response, err := upstream.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask upstream: %w", err)
	}
	defer response.Body.Close()
	var answer Answer
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, fmt.Errorf("answer of upstream %s: %s: %w", s.Upstream, response.Status, err)
	}
	if response.StatusCode != http.StatusOK {
		return &answer, fmt.Errorf("answer of upstream %s: %s", s.Upstream, response.Status)
	}
	return &answer, nil
}

func serveBytes(w http.ResponseWriter, r *http.Request) {
	count, err := strconv.ParseInt(r.PathValue("count"), 10, 64)
	if err != nil || count < 0 {
		http.Error(w, "the path is /bytes/N with a number of bytes", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(count, 10))
	_, _ = io.CopyN(w, pattern{}, count)
}

// pattern is an endless stream of letters, the same each time.
type pattern struct{}

const letters = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-\n"

func (pattern) Read(p []byte) (int, error) {
	n := 0
	for n+len(letters) <= len(p) {
		n += copy(p[n:], letters)
	}
	if n == 0 {
		n = copy(p, letters)
	}
	return n, nil
}

func serveEcho(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	// HTTP/2 is full duplex anyway and says so by an error.
	_ = control.EnableFullDuplex()
	if kind := r.Header.Get("Content-Type"); kind != "" {
		w.Header().Set("Content-Type", kind)
	}
	buffer := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return
			}
			_ = control.Flush()
		}
		if err != nil {
			return
		}
	}
}

func waitAsAsked(w http.ResponseWriter, r *http.Request) bool {
	milliseconds, err := strconv.Atoi(r.URL.Query().Get("ms"))
	if err != nil || milliseconds < 0 {
		http.Error(w, "the path is /slow?ms=N with a number of milliseconds", http.StatusBadRequest)
		return false
	}
	select {
	case <-time.After(time.Duration(milliseconds) * time.Millisecond):
		return true
	case <-r.Context().Done():
		return false
	}
}

// Serve answers on the listener, HTTP/1 and HTTP/2 without TLS, until the context ends. Then it
// goes on for the linger time, so that those who still have its address are served, and closes.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler, linger time.Duration) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	time.Sleep(linger)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := server.Shutdown(closing); err != nil {
		err = server.Close()
		if err != nil {
			return fmt.Errorf("close the server: %w", err)
		}
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
