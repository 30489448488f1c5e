// SPDX-License-Identifier: Apache-2.0

package helm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/install"
	"sidestep.dev/sidestep/internal/reason"
)

// OfferInstall asks the user whether to install the traffic manager, and does it. missing is the
// error that there is none.
func OfferInstall(ctx context.Context, e *env.Env, g *env.Global, yes bool, missing error) error {
	if !yes {
		_, in := e.IsTerminal(e.Stdin)
		_, out := e.IsTerminal(e.Stderr)
		if !in || !out {
			return fmt.Errorf("%w, or use --yes", missing)
		}
	}
	c, err := e.Cluster(e.ClusterOptions(g))
	if err != nil {
		return err
	}
	if !yes {
		fmt.Fprintf(e.Stderr, "There is no traffic manager in namespace %s of %s.\nInstall it now? "+
			"[Y/n]: ", g.ManagerNamespace, c.Server())
		agreed, err := readYes(ctx, e)
		if err != nil {
			return err
		}
		if !agreed {
			return missing
		}
	}
	return runInstall(ctx, e, g, c, install.Settings{CreateNamespace: true, Wait: true, Timeout: installTimeout})
}

// readYes reads an answer. Enter alone means yes.
func readYes(ctx context.Context, e *env.Env) (bool, error) {
	answer := make(chan string, 1)
	go func() {
		line, err := bufio.NewReader(e.Stdin).ReadString('\n')
		if err != nil && line == "" {
			line = "no"
		}
		answer <- line
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(e.Stderr)
		return false, ctx.Err()
	case line := <-answer:
		switch strings.ToLower(strings.TrimSpace(line)) {
		case "", "y", "yes":
			return true, nil
		case "n", "no":
			return false, nil
		default:
			return false, reason.Advise(errors.New("the answer is neither yes nor no"),
				"try again")
		}
	}
}
