// SPDX-License-Identifier: Apache-2.0

// Package progress prints what is being done and how long each step took.
package progress

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Printer writes one line for each finished step, and a sign of life for a long one. Steps may run
// in parallel.
type Printer struct {
	mu    sync.Mutex
	out   io.Writer
	start time.Time
}

// New makes a printer whose clock starts now.
func New(out io.Writer) *Printer { return &Printer{out: out, start: time.Now()} }

// signOfLife is how often an unfinished step is mentioned.
const signOfLife = 20 * time.Second

// Step runs one step and reports it.
func (p *Printer) Step(title string, run func() error) error {
	begin := time.Now()
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		ticker := time.NewTicker(signOfLife)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				p.Printf("… %s (%s so far)", title, round(time.Since(begin)))
			}
		}
	})
	err := run()
	close(done)
	watch.Wait()
	if err != nil {
		p.Printf("✗ %s failed after %s", title, round(time.Since(begin)))
		return fmt.Errorf("%s: %w", title, err)
	}
	p.Printf("✓ %s (%s)", title, round(time.Since(begin)))
	return nil
}

// Printf writes one line with the time since the start.
func (p *Printer) Printf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, "%7s  %s\n", fmt.Sprintf("%.1fs", p.Elapsed().Seconds()), fmt.Sprintf(format, args...))
}

// Elapsed is the time since the printer was made.
func (p *Printer) Elapsed() time.Duration { return time.Since(p.start) }

// All runs functions in parallel and waits for all of them.
func All(functions ...func() error) error {
	failures := make([]error, len(functions))
	var running sync.WaitGroup
	for i, function := range functions {
		running.Go(func() { failures[i] = function() })
	}
	running.Wait()
	return errors.Join(failures...)
}

func round(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(100 * time.Millisecond)
}
