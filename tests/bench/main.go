// SPDX-License-Identifier: Apache-2.0

// Command bench measures what an intercept costs those whose requests it does not match, and how
// quick it is to make. Each figure is taken on the same pod with and without the intercept, and
// through the proxies that others put before the same app, in one run and turn about, so that a
// machine whose speed drifts does not matter: believe the ratios.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"sidestep.dev/sidestep/tests/lab"
)

// settings are what the flags say.
type settings struct {
	rounds   int           // of each row
	duration time.Duration // of one measurement
	attaches int
	quick    bool
	only     *regexp.Regexp // rows
	file     string         // for the figures
	page     string         // for tables and picture
}

// quickRows are those that say most.
const quickRows = `attach, pods: 1$|Go app, connections: (1|32)$|unary calls, 32 at a time|download|matched|to the laptop, near, connections: 1|80ms away, connections: 8`

func main() {
	var s settings
	flag.BoolVar(&s.quick, "quick", false, "fewer rounds, and only the rows that say most")
	only := flag.String("only", "", "measure only rows whose name matches this regular expression")
	flag.StringVar(&s.file, "results", "", "write all figures to this file as JSON")
	flag.StringVar(&s.page, "page", "", "put the figures into this page, and a picture of them beside it")
	grpcLoad := flag.String("grpc-load", "", "be a gRPC client: KIND=N,ADDRESS,DURATION (used by bench itself)")
	grpcRelay := flag.String("grpc-relay", "",
		"be a gRPC server that passes streams on: PORT,ADDRESS (used by bench itself)")
	bulkLoad := flag.String("bulk-load", "",
		"make bulk transfers: KIND=N,ADDRESS,SETTLE,DURATION (used by bench itself)")
	bulkServer := flag.String("bulk-server", "",
		"be the other end of bulk transfers, at this address (used by bench itself)")
	held := flag.String("hold", "", "hold connections open: N,ADDRESS (used by bench itself)")
	flag.Parse()
	s.rounds, s.duration, s.attaches = 5, 750*time.Millisecond, 50
	if s.quick {
		s.rounds, s.attaches = 3, 10
		*only = cmp.Or(*only, quickRows)
	}
	var err error
	if s.only, err = regexp.Compile(*only); err != nil {
		fmt.Fprintln(os.Stderr, "bench: --only:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch {
	case *grpcLoad != "":
		err = runGRPCLoad(ctx, *grpcLoad, os.Stdout)
	case *grpcRelay != "":
		err = runGRPCRelay(ctx, *grpcRelay)
	case *bulkLoad != "":
		err = runBulkLoad(ctx, *bulkLoad, os.Stdout)
	case *bulkServer != "":
		err = runBulkServer(ctx, *bulkServer)
	case *held != "":
		err = runHold(ctx, *held)
	default:
		err = run(ctx, s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures what was asked for: what needs a cluster first, then what does not, with sidestep
// gone from the cluster.
func run(ctx context.Context, s settings) error {
	b := &bench{settings: s, nodes: map[string]string{}}
	began := time.Now()
	var err error
	if b.results, err = b.about(); err != nil {
		return err
	}
	if s.only.String() != growthRow {
		if err := b.onCluster(ctx); err != nil {
			return err
		}
	}
	if err := b.row(ctx, growthRow, b.grow); err != nil {
		return err
	}
	b.took("everything", began)
	return errors.Join(append(b.failed, b.save())...)
}

// row measures a row if it is wanted. One that fails is noted, so that the others are not lost with
// it; an error is for the whole run.
func (b *bench) row(ctx context.Context, name string, measure func(context.Context) error) error {
	if !b.only.MatchString(name) {
		return nil
	}
	defer b.took(name, time.Now())
	err := measure(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	err = fmt.Errorf("%s: %w", name, err)
	fmt.Fprintf(os.Stderr, "bench: %v; the other rows follow\n", err)
	b.failed = append(b.failed, err)
	return nil
}

// took notes how long a part of the run took, which ends now.
func (b *bench) took(part string, since time.Time) {
	seconds := time.Since(since).Seconds()
	b.results.Took = append(b.results.Took, span{part, seconds})
	fmt.Fprintf(os.Stderr, "  %6.1f s for %s\n", seconds, part)
}

// onCluster measures what needs the local cluster.
func (b *bench) onCluster(ctx context.Context) error {
	began := time.Now()
	l, err := lab.Up(ctx, os.Stderr)
	if err != nil {
		return err
	}
	defer l.Close()
	if !l.Local() {
		return fmt.Errorf("the load generators run on a node of the local cluster: unset KUBECONFIG")
	}
	b.Lab = l
	if b.apps, err = filepath.Abs("bin/apps"); err != nil {
		return err
	}
	for _, machine := range []string{"laptop", "control-plane", "node2"} {
		out, err := lab.Output(l.OnNode(ctx, machine, "hostname", "--all-ip-addresses"))
		if err != nil {
			return err
		}
		b.nodes[machine], _, _ = strings.Cut(strings.TrimSpace(out), " ")
	}
	defer b.uninstall(ctx)
	defer b.downPlaces()
	wanted, err := b.wantsLoad()
	if err != nil {
		return err
	}
	group, inTime := errgroup.WithContext(ctx)
	group.Go(func() error { return b.install(inTime) })
	if wanted {
		group.Go(func() error { return b.upPlaces(ctx) }) // they run until ctx ends
	}
	if err := group.Wait(); err != nil {
		return err
	}
	stop, err := b.ann.Serve(ctx, "serve", fmt.Sprint("127.0.0.1:", laptopPort))
	if err != nil {
		return err
	}
	defer stop()
	b.took("setting up", began)
	if err := b.attachAll(ctx); err != nil {
		return err
	}
	if err := b.row(ctx, restRow, b.rest); err != nil {
		return err
	}
	return b.load(ctx)
}

// install installs sidestep in the cluster, and gives a developer a session and a service on the
// laptop.
func (b *bench) install(ctx context.Context) (err error) {
	if b.admin, err = b.Administrator(ctx); err != nil {
		return err
	}
	if _, _, err := b.admin.Install(ctx); err != nil {
		return err
	}
	if b.ann, err = b.Developer(ctx, "ann"); err != nil {
		return err
	}
	return b.connect(ctx)
}

// uninstall leaves the cluster as it was.
func (b *bench) uninstall(ctx context.Context) {
	defer b.took("uninstalling", time.Now())
	ctx = context.WithoutCancel(ctx)
	if b.ann != nil {
		_, _ = b.ann.Sidestep(ctx, "quit", "-s")
	}
	if b.admin != nil {
		_, _ = b.admin.Sidestep(ctx, "uninstall", "--everything")
	}
}

// bench is one run.
type bench struct {
	*lab.Lab
	settings
	admin, ann    *lab.Developer
	apps          string            // program of the sample workloads
	nodes         map[string]string // addresses of machines
	plain, meshed *place
	idle          float64 // CPUs that are busy at rest
	results       results
	failed        []error // rows
}

func (b *bench) intercept(ctx context.Context, workload string, flags ...string) error {
	_, err := b.ann.Sidestep(ctx, append([]string{"intercept", workload}, flags...)...)
	return err
}

func (b *bench) leave(ctx context.Context, workload string) error {
	_, err := b.ann.Sidestep(ctx, "leave", workload)
	return err
}
