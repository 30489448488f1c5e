// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sidestep.dev/sidestep/tests/apps/shop"
)

// Request is one that curl is to send.
type Request struct {
	URL     string
	Headers []string // "name: value"
}

// Curl sends the requests with one curl that runs on a node of the local cluster, up to parallel at
// a time, each on a connection of its own, and returns the answers in order. Any request that fails
// makes it fail.
func (l *Lab) Curl(ctx context.Context, node string, parallel int, requests []Request) ([]shop.Answer, error) {
	if !l.local {
		return nil, errors.New("curl runs on nodes of the local cluster only")
	}
	dir, err := os.MkdirTemp(l.dir, "curl-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var config strings.Builder
	for i, r := range requests {
		if i > 0 {
			config.WriteString("next\n")
		}
		fmt.Fprintf(&config, "url = %q\noutput = %q\nfail\nsilent\nshow-error\nno-keepalive\nmax-time = 30\nheader = \"Connection: close\"\n", r.URL, filepath.Join(dir, fmt.Sprint(i)))
		for _, h := range r.Headers {
			fmt.Fprintf(&config, "header = %q\n", h)
		}
	}
	path := filepath.Join(dir, "config")
	if err := os.WriteFile(path, []byte(config.String()), 0o600); err != nil {
		return nil, err
	}
	if _, err := Output(l.OnNode(ctx, node, "curl", "--parallel", "--parallel-immediate",
		"--parallel-max", fmt.Sprint(parallel), "--config", path)); err != nil {
		return nil, err
	}
	answers := make([]shop.Answer, len(requests))
	for i := range requests {
		text, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			return nil, fmt.Errorf("no answer to request %d (%s): %w", i, requests[i].URL, err)
		}
		if err := json.Unmarshal(text, &answers[i]); err != nil {
			return nil, fmt.Errorf("answer to request %d (%s): %w", i, requests[i].URL, err)
		}
	}
	return answers, nil
}
