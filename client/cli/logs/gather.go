// SPDX-License-Identifier: Apache-2.0

// Package logs gathers the logs of all components into one file, and sets the daemon's log level.
package logs

import (
	"archive/zip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/config"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/install"
	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/client/cli/status"
	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
)

// none and all are words of the flags that choose logs; their case does not matter.
const (
	wordNone = "none"
	wordAll  = "all"
)

type flags struct {
	output          string
	daemons, agents string
	manager, yaml   bool
	anonymize       bool
}

// New returns the command gather-logs.
func New(e *env.Env, g *env.Global) *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "gather-logs",
		Short: "Put the logs of the daemon, the traffic manager and the node agents into a zip file",
		Long: `Put the logs of the daemon, the traffic manager and the node agents into a zip file, with the versions and the status, for somebody
who is to find out what went wrong. What may not be read or cannot be reached is left out, and the file errors.txt in it
says why. Logs name users, hosts, namespaces and pods, unless --anonymize replaces these names; addresses, and the headers and paths of
intercepts, stay. Keys, tokens and environments of containers are in none of it.`,
		Example: fmt.Sprintf(`  %[1]s gather-logs

  # Into a file of your choice, with the node agents' pods as YAML
  %[1]s gather-logs --output-file /tmp/logs.zip --get-pod-yaml

  # To be shown to others
  %[1]s gather-logs --anonymize

  # Only those of this laptop
  %[1]s gather-logs --traffic-manager=false --traffic-agents none`, e.Name),
		Args: env.Exactly(0, ""), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error { return gatherLogs(e, cmd, g, f) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.output, "output-file", "o", "",
		"Zip `FILE` to write (default: a new one in this directory)")
	flags.StringVar(&f.daemons, "daemons", wordAll, `Which daemons' logs: "all", "user" or "none"`)
	flags.BoolVar(&f.manager, "traffic-manager", true, "Whether the traffic manager's logs are wanted")
	flags.StringVar(&f.agents, "traffic-agents", wordAll,
		`Which node agents' logs: "all", "none", or those with this text in the pod's name`)
	flags.BoolVarP(&f.yaml, "get-pod-yaml", "y", false, "Add the pods as YAML")
	flags.BoolVarP(&f.anonymize, "anonymize", "a", false,
		"Replace the names of namespaces, workloads, pods, nodes, intercepts, users and hosts, each by the same "+
			"word everywhere")
	_ = cmd.RegisterFlagCompletionFunc("daemons", env.Words(wordAll, "user", wordNone))
	_ = cmd.RegisterFlagCompletionFunc("traffic-agents", env.Words(wordAll, wordNone))
	return cmd
}

// check reports whether the daemon's log is wanted.
func (f *flags) check() (daemon bool, err error) {
	if f.output != "" && !strings.HasSuffix(f.output, ".zip") {
		return false, output.Usagef("--output-file %s: its name must end with .zip", f.output)
	}
	for _, word := range strings.Split(strings.ToLower(f.daemons), ",") {
		switch word {
		case wordAll, "user":
			daemon = true
		case "root", "kubeauth", wordNone: // there are none of these
		default:
			return false, output.Usagef("--daemons %s: unknown", f.daemons).
				Advise("use all, user or none")
		}
	}
	return daemon, nil
}

func gatherLogs(e *env.Env, cmd *cobra.Command, g *env.Global, f flags) error {
	daemon, err := f.check()
	if err != nil {
		return err
	}
	path := f.output
	if path == "" {
		path = fmt.Sprintf("%s_logs_%s.zip", e.Name, e.Now().UTC().Format("2006-01-02T15-04-05Z"))
	}
	file, err := create(path)
	if err != nil {
		return reason.Advise(fmt.Errorf("write the logs: %w", err),
			"choose another place with --output-file")
	}
	b := &bundle{zip: zip.NewWriter(file)}
	fill(cmd.Context(), e, g, b, f, daemon)
	var names *pseudonyms
	if f.anonymize {
		names = learnNames(cmd.Context(), e, g)
	}
	err = errors.Join(b.close(names), file.Close())
	if err == nil {
		err = cmd.Context().Err()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write the logs to %s: %w", path, err), os.Remove(path))
	}
	for _, problem := range b.problems {
		e.Warn(g, problem)
	}
	e.Say(g, "Logs have been exported to %s", path)
	return nil
}

// create creates a new file. It never opens an existing one: in a directory that all may write to,
// another user's link would lead to another file, and another user's file could be read by them.
func create(path string) (*os.File, error) {
	if info, err := os.Lstat(path); err == nil && !info.IsDir() {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
}

// fill gathers everything. What cannot be gathered is recorded as a problem in the bundle.
func fill(ctx context.Context, e *env.Env, g *env.Global, b *bundle, f flags, daemon bool) {
	line := e.Line(g)
	defer line.Close()
	line.Set("gathering the daemon's logs")
	b.record("version.json", map[string]string{"program": e.Name, "version": e.Version,
		"os": runtime.GOOS, "arch": runtime.GOARCH})
	if config, err := config.View(ctx, e, g); err != nil {
		b.problem("ask the daemon for its configuration", err)
	} else {
		b.record("config.json", config)
		b.status(ctx, e, g, config.Client.DaemonRunning)
	}
	if daemon {
		b.add("daemon", e.LogFile())
	}
	var components []string
	if f.manager {
		components = append(components, names.ComponentManager)
	}
	agents := strings.ToLower(f.agents)
	if agents != wordNone {
		components = append(components, names.ComponentNodeAgent)
	}
	if len(components) == 0 {
		return
	}
	c, err := e.Cluster(e.ClusterOptions(g))
	if err != nil {
		b.problem("reach the cluster", err)
		return
	}
	err = c.Logs(ctx, install.LogOptions{
		PodYAML:  f.yaml,
		Progress: line.Set,
		Wanted: func(component, pod string) bool {
			return slices.Contains(components, component) &&
				(component == names.ComponentManager || agents == wordAll || strings.Contains(pod, f.agents))
		},
		Write:   b.write,
		Problem: b.problem,
	})
	if err != nil {
		b.problem("get logs from "+c.Server(), err)
	}
}

// bundle is what goes into the zip file.
type bundle struct {
	zip      *zip.Writer
	files    []logFile
	problems []string
}

type logFile struct{ name, text string }

func (b *bundle) problem(doing string, err error) {
	b.problems = append(b.problems, fmt.Sprintf("could not %s: %s", doing, output.Sentence(err)))
}

// write adds a file. A read error is a problem of this file only.
func (b *bundle) write(name string, content io.Reader) {
	text, err := io.ReadAll(content)
	if err != nil {
		b.problem("read "+name, err)
	}
	b.files = append(b.files, logFile{name, string(text)})
}

func (b *bundle) record(name string, record any) {
	text, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		b.problem("write "+name, err)
		return
	}
	b.write(name, strings.NewReader(string(text)+"\n"))
}

func (b *bundle) status(ctx context.Context, e *env.Env, g *env.Global, running bool) {
	if !running {
		return
	}
	st, err := status.Of(ctx, e, g)
	if err != nil {
		b.problem("ask the daemon for its status", err)
		return
	}
	var agents *daemonpb.NodeAgentsReply
	if st.GetConnected() {
		if agents, err = status.NodeAgents(ctx, e, g); err != nil {
			b.problem("ask for the node agents", err)
		}
	}
	b.record("status.json", layout.StatusRecord(st, agents))
}

// add adds a log file and its rotated predecessors.
func (b *bundle) add(dir, log string) {
	paths, _ := filepath.Glob(log + "*")
	if len(paths) == 0 {
		b.problem("read "+log, errors.New("it does not exist"))
	}
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			b.problem("read "+path, err)
			continue
		}
		b.write(dir+"/"+filepath.Base(path), file)
		_ = file.Close()
	}
}

// close writes the zip file, with names replaced if there are pseudonyms.
func (b *bundle) close(names *pseudonyms) error {
	if len(b.problems) > 0 {
		b.write("errors.txt", strings.NewReader(strings.Join(b.problems, "\n")+"\n"))
	}
	if names != nil {
		for _, f := range b.files {
			names.collect(f.text)
		}
		for i, f := range b.files {
			b.files[i].text = names.replace(f.text)
		}
	}
	for _, f := range b.files {
		w, err := b.zip.Create(f.name)
		if err == nil {
			_, err = io.WriteString(w, f.text)
		}
		if err != nil {
			return errors.Join(err, b.zip.Close())
		}
	}
	return b.zip.Close()
}

// learnNames asks the cluster for names, as far as the user may list them. It finds others in the
// logs.
func learnNames(ctx context.Context, e *env.Env, g *env.Global) *pseudonyms {
	p := newPseudonyms(g.ManagerNamespace)
	ctx, cancel := context.WithTimeout(ctx, namesTimeout)
	defer cancel()
	var namespaces []string
	if st, err := status.Of(ctx, e, g); err == nil {
		namespaces = append(namespaces, st.GetNamespace())
		p.learnValue("holder", st.GetHolder())
		for _, i := range st.GetIntercepts() {
			namespaces = append(namespaces, i.GetNamespace())
			p.learn(kindWorkload, i.GetWorkload())
		}
	}
	c, err := e.Cluster(e.ClusterOptions(g))
	if err != nil {
		return p
	}
	all, _ := c.NamespaceNames(ctx) // a user who may not list them still has those of their intercepts
	namespaces = append(namespaces, all...)
	slices.Sort(namespaces)
	for _, namespace := range slices.Compact(namespaces) {
		p.learn(kindNamespace, namespace)
		workloads, err := c.WorkloadNames(ctx, namespace)
		for _, workload := range workloads {
			p.learn(kindWorkload, workload[strings.LastIndex(workload, "/")+1:])
		}
		if err != nil && ctx.Err() != nil {
			break
		}
	}
	return p
}

// namesTimeout bounds the requests to the cluster for names.
const namesTimeout = 20 * time.Second
