// Command bench measures what an intercept costs those whose requests it does not match, and how quick it is to make. Each figure is taken on the
// same pod with and without the intercept, and through the proxies that others put before the same app, in one run and turn about, so that a machine
// whose speed drifts does not matter: believe the ratios.
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
const quickRows = `attach, pods: 1$|Go app, connections: (1|32)$|unary calls, 32 at a time|download of 1 GiB|matched|to the laptop, near, connections: 1`

func main() {
	var s settings
	flag.BoolVar(&s.quick, "quick", false, "fewer rounds, and only the rows that say most")
	only := flag.String("only", "", "measure only rows whose name matches this regular expression")
	flag.StringVar(&s.file, "results", "", "write all figures to this file as JSON")
	flag.StringVar(&s.page, "page", "", "put the figures into this page, and a picture of them beside it")
	grpcLoad := flag.String("grpc-load", "", "be a gRPC client: KIND=N,ADDRESS,DURATION (used by bench itself)")
	grpcRelay := flag.String("grpc-relay", "", "be a gRPC server that passes streams on: PORT,ADDRESS (used by bench itself)")
	held := flag.String("hold", "", "hold connections open: N,ADDRESS (used by bench itself)")
	flag.Parse()
	s.rounds, s.duration, s.attaches = 5, time.Second, 50
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

// run measures what was asked for: what needs a cluster first, then what does not, with sidestep gone from the cluster.
func run(ctx context.Context, s settings) error {
	b := &bench{settings: s, nodes: map[string]string{}}
	var err error
	if b.results, err = b.about(); err != nil {
		return err
	}
	if s.only.String() != growthRow {
		if err := b.onCluster(ctx); err != nil {
			return err
		}
	}
	if s.only.MatchString(growthRow) {
		if err := b.without(ctx, growthRow, b.grow(ctx)); err != nil {
			return err
		}
	}
	return errors.Join(append(b.failed, b.save())...)
}

// without notes that a row has failed, so that the others are not lost with it. An error is for the whole run.
func (b *bench) without(ctx context.Context, row string, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	err = fmt.Errorf("%s: %w", row, err)
	fmt.Fprintf(os.Stderr, "bench: %v; the other rows follow\n", err)
	b.failed = append(b.failed, err)
	return nil
}

// onCluster measures what needs the local cluster.
func (b *bench) onCluster(ctx context.Context) error {
	l, err := lab.Up(ctx, os.Stderr)
	if err != nil {
		return err
	}
	defer l.Close()
	if !l.Local() {
		return fmt.Errorf("the load generators run on a node of the local cluster: unset KUBECONFIG")
	}
	admin, err := l.Administrator(ctx)
	if err != nil {
		return err
	}
	if _, _, err := admin.Install(ctx); err != nil {
		return err
	}
	defer func() { _, _ = admin.Sidestep(context.WithoutCancel(ctx), "uninstall", "--everything") }()
	ann, err := l.Developer(ctx, "ann")
	if err != nil {
		return err
	}
	defer func() { _, _ = ann.Sidestep(context.WithoutCancel(ctx), "quit", "-s") }()
	if _, err := ann.Sidestep(ctx, "connect", "--namespace", lab.Namespace); err != nil {
		return err
	}
	stop, err := ann.Serve(ctx, "serve", "127.0.0.1:9000")
	if err != nil {
		return err
	}
	defer stop()
	b.Lab, b.admin, b.ann = l, admin, ann
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
	for _, replicas := range []int{1, 10, 50} {
		row := fmt.Sprintf("attach, pods: %d", replicas)
		if b.only.MatchString(row) {
			if err := b.without(ctx, row, b.attach(ctx, replicas)); err != nil {
				return err
			}
		}
	}
	if b.only.MatchString(restRow) {
		if err := b.without(ctx, restRow, b.rest(ctx)); err != nil {
			return err
		}
	}
	return b.load(ctx)
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
