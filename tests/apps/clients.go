// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/tests/apps/load"
)

func newCallCommand(e env) *cobra.Command {
	var (
		headers []string
		method  string
		body    string
		timeout time.Duration
	)
	command := &cobra.Command{
		Use:   "call URL",
		Short: "Send one HTTP request and print the body of the answer",
		Args:  cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			request, err := http.NewRequestWithContext(command.Context(), method, args[0],
				strings.NewReader(body))
			if err != nil {
				return err
			}
			for _, header := range headers {
				name, value, found := strings.Cut(header, ":")
				if !found {
					return fmt.Errorf(`header %q is not "name: value"`, header)
				}
				request.Header.Add(name, strings.TrimSpace(value))
			}
			transport := http.DefaultTransport.(*http.Transport).Clone()
			transport.Proxy = nil
			response, err := (&http.Client{Timeout: timeout, Transport: transport}).Do(request)
			if err != nil {
				return err
			}
			defer response.Body.Close()
			if _, err := io.Copy(e.stdout, response.Body); err != nil {
				return fmt.Errorf("read the answer: %w", err)
			}
			if response.StatusCode >= http.StatusBadRequest {
				return errors.New(response.Status)
			}
			return nil
		},
	}
	flags := command.Flags()
	flags.StringArrayVarP(&headers, "header", "H", nil, `header, as "name: value"`)
	flags.StringVarP(&method, "method", "X", http.MethodGet, "method")
	flags.StringVarP(&body, "data", "d", "", "body")
	flags.DurationVar(&timeout, "timeout", 10*time.Second, "time for the whole request")
	return command
}

func newLoadCommand(e env) *cobra.Command {
	var plan load.Plan
	command := &cobra.Command{
		Use:   "load TARGET",
		Short: "Ask a service many times and print who answered, as JSON",
		Long: "Ask a service many times and print who answered, as JSON.\n\n" +
			"TARGET is http://HOST:PORT/PATH, tcp://HOST:PORT for a line server or grpc://HOST:PORT for a greeter.\n" +
			"Failed requests are counted and listed; they do not make the command fail.",
		Example: "  apps load http://orders -n 1000 -c 8 --matched 0.5 -H 'x-user: ada'",
		Args:    cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			plan.Target = args[0]
			summary, err := load.Run(command.Context(), plan)
			if err != nil {
				return err
			}
			out := json.NewEncoder(e.stdout)
			out.SetIndent("", "  ")
			return out.Encode(summary)
		},
	}
	flags := command.Flags()
	flags.IntVarP(&plan.Requests, "requests", "n", 0, "number of requests; 0: as many as fit into --duration")
	flags.DurationVar(&plan.Duration, "duration", 0, "how long to go on; 0: until all requests are done")
	flags.IntVarP(&plan.Concurrency, "concurrency", "c", 4, "requests at once")
	flags.Float64Var(&plan.Rate, "rate", 0, "requests to start per second at most; 0: no limit")
	flags.Float64Var(&plan.Matched, "matched", 0,
		"share of requests that carry the headers and the path below, 0 to 1")
	flags.StringArrayVarP(&plan.Matching.Headers, "header", "H", nil,
		`header of matched requests, as "name: value"`)
	flags.StringVar(&plan.Matching.Path, "path", "", "path of matched requests; empty: that of TARGET")
	flags.StringVarP(&plan.Method, "method", "X", http.MethodGet,
		"method; on kept-alive connections POST is never sent again by the client itself")
	flags.BoolVar(&plan.KeepAlive, "keep-alive", false,
		"use connections again; otherwise each request has its own")
	flags.DurationVar(&plan.Timeout, "timeout", 10*time.Second, "time for one request")
	flags.StringVar(&plan.Laptop, "laptop", "laptop", "name of the service that answers in the app's place")
	return command
}
