// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// errNotMeasured means that a load makes no sense on a way.
var errNotMeasured = errors.New("not measured")

// load measures all rows that load the places, when nothing comes from the rows before any more.
func (b *bench) load(ctx context.Context) error {
	if b.plain == nil {
		return nil
	}
	if err := b.gone(ctx, attached, resting); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sidestep-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	rows, err := b.rows(dir)
	if err != nil {
		return err
	}
	if b.idle, err = idleCPU(ctx); err != nil {
		return err
	}
	for _, r := range rows {
		if err := b.row(ctx, r.name, func(ctx context.Context) error { return b.measure(ctx, r) }); err != nil {
			return err
		}
	}
	return nil
}

// wantsLoad reports whether there is a row to measure with a load.
func (b *bench) wantsLoad() (bool, error) {
	dir, err := os.MkdirTemp("", "sidestep-bench-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	nowhere := *b
	nowhere.plain, nowhere.meshed = new(place), new(place)
	rows, err := nowhere.rows(dir)
	return slices.ContainsFunc(rows, func(r row) bool { return b.only.MatchString(r.name) }), err
}

// measure takes all ways in turn, round after round.
func (b *bench) measure(ctx context.Context, r row) error {
	if r.prepare != nil {
		undo, err := r.prepare(ctx)
		if err != nil {
			return err
		}
		defer undo()
	}
	samples := map[string][]sample{}
	for range b.rounds {
		for _, w := range r.ways {
			s, err := b.once(ctx, r, w)
			if errors.Is(err, errNotMeasured) {
				continue
			}
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			samples[w.name] = append(samples[w.name], s)
		}
	}
	b.record(r, samples)
	return nil
}

func (b *bench) once(ctx context.Context, r row, w way) (s sample, err error) {
	if w.intercept != nil {
		if err := b.intercept(ctx, measured, w.intercept...); err != nil {
			return s, err
		}
		defer func() {
			if left := b.leave(ctx, measured); err == nil {
				err = left
			}
		}()
	}
	started := time.Now()
	before, err := usedCPU()
	if err != nil {
		return s, err
	}
	if s, err = r.measure(ctx, w); err != nil {
		return s, err
	}
	after, err := usedCPU()
	if err != nil {
		return s, err
	}
	used := after - before - time.Duration(b.idle*float64(time.Since(started)))
	s.cpu = float64(used.Microseconds()) / s.done
	return s, nil
}

// idleCPU returns how many CPUs the machine uses at rest.
func idleCPU(ctx context.Context) (float64, error) {
	const long = 3 * time.Second
	before, err := usedCPU()
	if err != nil {
		return 0, err
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(long):
	}
	after, err := usedCPU()
	return float64(after-before) / float64(long), err
}

// tick is the unit of /proc/stat: USER_HZ is 100 everywhere that Go runs.
const tick = 10 * time.Millisecond

// usedCPU returns the time for which this machine's CPUs have not been idle, summed up
// (proc_stat(5)).
func usedCPU() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	var user, nice, system, idle, iowait, irq, softirq int64
	if _, err := fmt.Sscanf(strings.TrimSpace(string(text)), "cpu %d %d %d %d %d %d %d", &user, &nice,
		&system, &idle, &iowait, &irq, &softirq); err != nil {
		return 0, fmt.Errorf("read /proc/stat: %w", err)
	}
	return time.Duration(user+nice+system+irq+softirq) * tick, nil
}
