// SPDX-License-Identifier: Apache-2.0

// Command demo shows sidestep at work. It starts a Kubernetes with a shop on it, installs sidestep,
// and runs the real command line on a developer's laptop. It prints each command as it is typed,
// and its output.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"sidestep.dev/sidestep/tests/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// stage is the test bed and the people of the demo.
type stage struct {
	*lab.Lab
	admin, ann, bob *lab.Developer
}

func run(ctx context.Context) error {
	l, err := lab.Up(ctx, os.Stdout)
	if err != nil {
		return err
	}
	defer l.Close()
	s := &stage{Lab: l}
	if s.admin, err = l.Administrator(ctx); err != nil {
		return err
	}
	if s.ann, err = l.Developer(ctx, "ann"); err != nil {
		return err
	}
	if s.bob, err = l.Developer(ctx, "bob"); err != nil {
		return err
	}
	// Whatever happens, the cluster is left as it was found.
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		for _, d := range []*lab.Developer{s.ann, s.bob} {
			_, _ = d.Sidestep(ctx, "quit", "-s")
		}
		_, _ = s.admin.Sidestep(ctx, "uninstall", "--everything")
	}()
	for _, act := range []func(context.Context) error{s.install, s.header, s.share, s.path, s.tcp, s.end} {
		if err := act(ctx); err != nil {
			return err
		}
	}
	say("That was it. The shop's pods were never touched; `make cluster-down` removes the local cluster.")
	return nil
}

func (s *stage) install(ctx context.Context) error {
	say("An administrator installs sidestep with the chart that the command line carries.")
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	command, out, err := s.admin.Install(ctx)
	fmt.Printf("admin$ %s\n%s\n", command, out)
	return err
}

func (s *stage) header(ctx context.Context) error {
	say("Ann, on her laptop, connects and looks at the shop: frontend calls orders, orders calls stock.")
	if err := s.types(ctx, s.ann, "connect", "--namespace", lab.Namespace); err != nil {
		return err
	}
	if err := s.types(ctx, s.ann, "list"); err != nil {
		return err
	}
	if err := s.asks(ctx, "frontend", "http://frontend/"); err != nil {
		return err
	}
	say("She runs orders on her laptop, on port 9000, and takes the requests that carry her header.")
	if _, err := s.ann.Serve(ctx, "serve", "127.0.0.1:9000"); err != nil {
		return err
	}
	if err := s.types(ctx, s.ann, "intercept", "orders", "--port", "9000", "--http-header",
		"x-user=ann"); err != nil {
		return err
	}
	if err := s.asks(ctx, "orders", "http://orders/"); err != nil {
		return err
	}
	return s.asks(ctx, "laptop/ann", "http://orders/", "x-user: ann")
}

func (s *stage) share(ctx context.Context) error {
	say("Bob shares the service with a header of his own.")
	if _, err := s.bob.Serve(ctx, "serve", "127.0.0.1:9100"); err != nil {
		return err
	}
	if err := s.types(ctx, s.bob, "intercept", "orders", "--workload", "orders", "--namespace",
		lab.Namespace, "--port", "9100", "--http-header", "x-user=bob"); err != nil {
		return err
	}
	for _, c := range []struct{ header, answered string }{{"x-user: ann", "laptop/ann"},
		{"x-user: bob", "laptop/bob"}, {"x-user: eve", "orders"}} {
		if err := s.asks(ctx, c.answered, "http://orders/", c.header); err != nil {
			return err
		}
	}
	say("The record of it is in the Kubernetes API.")
	fmt.Printf("$ kubectl get intercepts --namespace %s\n", lab.Namespace)
	table, err := s.Kubectl(ctx, "get", "intercepts", "--namespace", lab.Namespace)
	if err != nil {
		return err
	}
	fmt.Print(table, "\n")
	return s.types(ctx, s.ann, "status")
}

func (s *stage) path(ctx context.Context) error {
	say("Ann takes only what lies under /api of stock, a StatefulSet.")
	if _, err := s.ann.Serve(ctx, "serve", "127.0.0.1:9002"); err != nil {
		return err
	}
	if err := s.types(ctx, s.ann, "intercept", "stock", "--port", "9002", "--http-header", "x-user=ann",
		"--http-path-prefix", "/api"); err != nil {
		return err
	}
	for _, c := range []struct{ path, answered string }{{"/api/version", "laptop/ann"}, {"/other", "stock"}} {
		if err := s.asks(ctx, c.answered, "http://stock"+c.path, "x-user: ann"); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) tcp(ctx context.Context) error {
	say("echo speaks no HTTP: she takes all of its connections.")
	if _, err := s.ann.Serve(ctx, "lines", "127.0.0.1:9001"); err != nil {
		return err
	}
	if err := s.types(ctx, s.ann, "intercept", "echo", "--port", "9001"); err != nil {
		return err
	}
	summary, err := s.Load(ctx, 0, "tcp://echo:7777", "-n", "100", "-c", "8", "--matched", "1")
	if err != nil {
		return err
	}
	fmt.Printf("  (100 connections from a pod: %d answered by the laptop, %d failed)\n\n",
		summary.MatchedToLaptop, summary.Failures.Count)
	if summary.MatchedToLaptop != 100 {
		return fmt.Errorf("not every connection to echo reached the laptop: %+v", summary)
	}
	return s.types(ctx, s.ann, "list")
}

func (s *stage) end(ctx context.Context) error {
	say("They leave, and all is as before.")
	for _, name := range []string{"orders", "stock", "echo"} {
		if err := s.types(ctx, s.ann, "leave", name); err != nil {
			return err
		}
	}
	if err := s.types(ctx, s.bob, "leave", "orders"); err != nil {
		return err
	}
	if err := s.asks(ctx, "orders", "http://orders/", "x-user: ann"); err != nil {
		return err
	}
	return s.types(ctx, s.admin, "uninstall", "--everything")
}

func say(text string) { fmt.Printf("\n# %s\n\n", text) }

// types runs the command line as a developer would, and prints both sides of it.
func (s *stage) types(ctx context.Context, who *lab.Developer, args ...string) error {
	fmt.Printf("%s$ sidestep %s\n", who.Name, strings.Join(args, " "))
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	out, err := lab.Transcript(who.Command(ctx, append([]string{"sidestep"}, args...)...))
	fmt.Print(out, "\n")
	return err
}

// asks sends a request from a pod in the cluster and prints who answered; it is an error if that is
// not who should.
func (s *stage) asks(ctx context.Context, want, url string, headers ...string) error {
	answer, err := s.Call(ctx, url, headers...)
	if err != nil {
		return err
	}
	command := "curl " + url
	for _, h := range headers {
		command += " -H '" + h + "'"
	}
	fmt.Printf("pod$ %s\n  answered by %s (%s), chain %s\n\n", command, answer.Service, answer.Pod,
		strings.Join(answer.Chain(), " → "))
	if !strings.HasPrefix(answer.Service+"/"+answer.Pod, want) {
		return fmt.Errorf("%s was answered by %s (%s) instead of %s", command, answer.Service, answer.Pod, want)
	}
	return nil
}
