// SPDX-License-Identifier: Apache-2.0

// Package config shows how the daemon is configured.
package config

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/output"
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

// New returns the command config.
func New(e *env.Env, g *env.Global) *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Show the configuration",
		Example: fmt.Sprintf("  %[1]s config view", e.Name),
		Args:    env.UnknownCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var clientOnly bool
	view := &cobra.Command{
		Use:   "view",
		Short: "Show how the daemon runs and to what it is connected",
		Long: `Show how the daemon runs and to what it is connected, as YAML or, with --output json, as JSON. There is no configuration file:
what can be configured for all developers are the values of the chart, and the daemon takes $SIDESTEP_LOG_LEVEL,
$SIDESTEP_DAEMON_SOCKET, $XDG_RUNTIME_DIR and $XDG_CACHE_HOME from the command that starts it.`,
		Example: fmt.Sprintf("  %[1]s config view\n\n  # Where the daemon logs\n  %[1]s config view "+
			"--client-only --output json | jq -r .client.log_file", e.Name),
		Args: env.Exactly(0, ""), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			record, err := View(cmd.Context(), e, g)
			if err != nil {
				return err
			}
			if clientOnly {
				record.Cluster = nil
			}
			format := output.OutputOf(cmd)
			if format == output.FormatText {
				format = output.FormatYAML
			}
			return e.Write(format, record)
		},
	}
	view.Flags().BoolVarP(&clientOnly, "client-only", "c", false, "Leave out what is about the cluster")
	cmd.AddCommand(view)
	return cmd
}

// View returns the daemon's configuration if a daemon runs. It does not start one.
func View(ctx context.Context, e *env.Env, g *env.Global) (configRecord, error) {
	record := configRecord{Client: clientConfig{LogFile: e.LogFile()}}
	s, err := e.Reach(ctx, g)
	if env.NotRunning(err) {
		return record, nil
	}
	if err != nil {
		return record, err
	}
	defer s.Close()
	if err := e.OtherVersion(s); err != nil {
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
