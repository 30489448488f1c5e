// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/api/daemonpb"
)

// configRecord is how the daemon runs, and what it knows of the cluster.
type configRecord struct {
	Client  clientConfig   `json:"client"`
	Cluster *clusterConfig `json:"cluster,omitempty"`
}

type clientConfig struct {
	DaemonRunning   bool   `json:"daemon_running"`
	LogLevel        string `json:"log_level,omitempty"`
	LogLevelReverts string `json:"log_level_reverts_in,omitempty"`
	Socket          string `json:"socket,omitempty"`
	LogFile         string `json:"log_file"`
	SessionFile     string `json:"session_file,omitempty"`
}

type clusterConfig struct {
	Context          string `json:"context"`
	Server           string `json:"server"`
	Namespace        string `json:"namespace"`
	ManagerNamespace string `json:"manager_namespace"`
	ManagerVersion   string `json:"manager_version,omitempty"`
	SessionGrace     string `json:"session_grace,omitempty"`
}

func newConfigCmd(e *env, g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Show the configuration", GroupID: groupOther,
		Example: fmt.Sprintf("  %[1]s config view", e.name),
		Args:    unknownCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var clientOnly bool
	view := &cobra.Command{
		Use:   "view",
		Short: "Show how the daemon runs and to what it is connected",
		Long: `Show how the daemon runs and to what it is connected, as YAML or, with --output json, as JSON. There is no configuration file:
what can be configured for all developers are the values of the chart, and the daemon takes $SIDESTEP_LOG_LEVEL,
$SIDESTEP_DAEMON_SOCKET, $XDG_RUNTIME_DIR and $XDG_CACHE_HOME from the command that starts it.`,
		Example: fmt.Sprintf("  %[1]s config view\n\n  # Where the daemon logs\n  %[1]s config view --client-only --output json | jq -r .client.log_file", e.name),
		Args:    exactly(0, ""), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			record, err := e.config(cmd.Context(), g)
			if err != nil {
				return err
			}
			if clientOnly {
				record.Cluster = nil
			}
			format := outputOf(cmd)
			if format == formatText {
				format = formatYAML
			}
			return e.write(format, record)
		},
	}
	view.Flags().BoolVarP(&clientOnly, "client-only", "c", false, "Leave out what is about the cluster")
	cmd.AddCommand(view)
	return cmd
}

// config asks a daemon that runs; none is started for it.
func (e *env) config(ctx context.Context, g *global) (configRecord, error) {
	record := configRecord{Client: clientConfig{LogFile: e.logFile()}}
	s, err := e.reach(ctx, g)
	if notRunning(err) {
		return record, nil
	}
	if err != nil {
		return record, err
	}
	defer s.Close()
	if err := e.otherVersion(s); err != nil {
		return record, err
	}
	c, err := s.Config(ctx, &daemonpb.Empty{})
	if err != nil {
		return record, err
	}
	record.Client = clientConfig{
		DaemonRunning: true, LogLevel: c.GetLogLevel(), Socket: c.GetSocket(), LogFile: c.GetLogFile(),
		SessionFile: c.GetSessionFile(),
	}
	if ms := c.GetLogLevelRevertsMs(); ms > 0 {
		record.Client.LogLevelReverts = (time.Duration(ms) * time.Millisecond).Round(time.Second).String()
	}
	st, err := s.Status(ctx, &daemonpb.Empty{})
	if err != nil || st.GetSession() == "" {
		return record, err
	}
	record.Cluster = &clusterConfig{
		Context: st.GetKubernetesContext(), Server: st.GetKubernetesServer(), Namespace: st.GetNamespace(),
		ManagerNamespace: st.GetManagerNamespace(), ManagerVersion: st.GetManagerVersion(),
	}
	if ms := c.GetSessionGraceMs(); ms > 0 {
		record.Cluster.SessionGrace = (time.Duration(ms) * time.Millisecond).String()
	}
	return record, nil
}

// levels are the words for log levels, those of Telepresence too.
var levels = map[string]string{"error": "error", "warning": "warn", "warn": "warn", "info": "info",
	"debug": "debug", "trace": "debug"}

func newLogLevelCmd(e *env, g *global) *cobra.Command {
	var duration time.Duration
	var local, remote bool
	cmd := &cobra.Command{
		Use:     "loglevel LEVEL",
		Short:   "Change what the daemon logs, for a while",
		GroupID: groupOther,
		Long: `Change what the daemon logs to error, warning, info or debug, and back after --duration. What the traffic manager and the node
agents log is the chart's value logLevel, which whoever installs it sets.`,
		Example: fmt.Sprintf(`  # Half an hour of details
  %[1]s loglevel debug

  # Until the daemon ends
  %[1]s loglevel debug --duration 0s

  # In the cluster
  %[1]s helm upgrade --reuse-values --set logLevel=debug`, e.name),
		Args:              exactly(1, "the level"),
		ValidArgsFunction: first(words("error", "warning", "info", "debug")),
		RunE: func(cmd *cobra.Command, args []string) error {
			level, ok := levels[strings.ToLower(args[0])]
			switch {
			case !ok:
				return usagef("there is no log level %q — use error, warning, info or debug", args[0])
			case duration < 0:
				return usagef("--duration %s: less than nothing", duration)
			case remote && local:
				return usagef("--local-only and --remote-only contradict each other — leave one out")
			case remote:
				return unavailable("--remote-only is",
					fmt.Sprintf("use `%s helm upgrade --reuse-values --set logLevel=%s`", e.name, level))
			}
			s, err := e.started(cmd.Context(), g)
			if err != nil {
				return err
			}
			defer s.Close()
			if err := e.otherVersion(s); err != nil {
				return err
			}
			if _, err := s.SetLogLevel(cmd.Context(),
				&daemonpb.LogLevelRequest{Level: level, DurationMs: duration.Milliseconds()}); err != nil {
				return err
			}
			until := "until it ends"
			if duration > 0 {
				until = "for " + duration.String()
			}
			e.say(g, "The daemon's log level is %s %s", level, until)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.DurationVarP(&duration, "duration", "d", 30*time.Minute, "How long; 0s means until the daemon ends")
	flags.BoolVarP(&local, "local-only", "l", false, "Change only the daemon's, as is done anyway")
	flags.BoolVarP(&remote, "remote-only", "r", false, "Change only the traffic manager's")
	_ = flags.MarkHidden("local-only")
	_ = flags.MarkHidden("remote-only")
	return cmd
}
