// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/cli"
	"helm.sh/helm/v3/pkg/getter"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/storage/driver"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
)

// undoPatience bounds the removal of a half-made installation.
const undoPatience = 30 * time.Second

// Install installs the chart. If it fails, or ctx ends, before all objects are created, the created
// ones are removed. If pods are not ready in time they stay, so that the user can look at them, and
// the error says what is wrong with them.
func (c *Cluster) Install(ctx context.Context, s Settings) error {
	chrt, helm, vals, err := c.prepare(ctx, s)
	if err != nil {
		return err
	}
	last, err := c.lastRelease(ctx, helm)
	if err != nil {
		return err
	}
	if last != nil {
		if last.Info.Status == release.StatusDeployed {
			return reason.Advise(fmt.Errorf("the traffic manager %s is already installed in namespace %s",
				last.Chart.Metadata.AppVersion, c.namespace),
				"use `%s helm upgrade` to change it", c.program)
		}
		s.step("removing what is left of an installation that was not finished")
		if err := c.uninstallRelease(ctx, helm, s); err != nil {
			return err
		}
	}
	undo, err := c.create(ctx, s, helm, chrt, vals)
	if err == nil && s.Wait {
		err = c.waitReady(ctx, s)
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
	if err == nil {
		return nil
	}
	if undoErr := undo(context.WithoutCancel(ctx)); undoErr != nil {
		return errors.Join(err, reason.Advise(fmt.Errorf("and what had been made could not be removed: %w", undoErr),
			"use `%s uninstall --everything`", c.program))
	}
	return err
}

// create creates all objects and does not wait for pods. undo removes what it created, and nothing
// else.
func (c *Cluster) create(ctx context.Context, s Settings, helm *action.Configuration, chrt *chart.Chart,
	vals map[string]any) (undo func(context.Context) error, err error) {
	var madeNamespace, madeRelease bool
	var madeCRDs []string
	installing := ctx
	undo = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, undoPatience)
		defer cancel()
		// A user who interrupts an installation wants the prompt back. The cluster ends the pods by
		// itself.
		s := Settings{Timeout: undoPatience, NoHooks: true, Progress: s.Progress,
			background: installing.Err() != nil}
		s.step("removing what was made")
		var errs []error
		if madeRelease {
			errs = append(errs, c.uninstallRelease(ctx, helm, s))
		}
		for _, name := range madeCRDs {
			errs = append(errs, c.removeCRD(ctx, s, name))
		}
		if madeNamespace {
			errs = append(errs, c.removeNamespace(ctx, s))
		}
		return errors.Join(errs...)
	}

	s.step("creating namespace %s", c.namespace)
	if madeNamespace, err = c.ensureNamespace(ctx, s.CreateNamespace); err != nil {
		return undo, rights(err)
	}
	s.step("creating the definition of intercepts")
	if madeCRDs, err = c.applyCRDs(ctx, chrt); err != nil {
		return undo, rights(err)
	}
	s.step("installing the traffic manager")
	install := action.NewInstall(helm)
	install.ReleaseName, install.Namespace = releaseName, c.namespace
	install.SkipCRDs, install.DisableHooks, install.Timeout = true, s.NoHooks, s.Timeout
	madeRelease = true
	// helm gets no context, because it would go on in the background when that ends. It does not
	// wait for pods, so it is done in a moment.
	if _, err = install.Run(chrt, vals); err != nil {
		return undo, rights(fmt.Errorf("install the chart: %w", err))
	}
	return undo, ctx.Err()
}

// Upgrade brings the installation to this program's version.
func (c *Cluster) Upgrade(ctx context.Context, s Settings) error {
	chrt, helm, vals, err := c.prepare(ctx, s)
	if err != nil {
		return err
	}
	last, err := c.lastRelease(ctx, helm)
	if err != nil {
		return err
	}
	if last == nil {
		return c.notInstalled()
	}
	s.step("updating the definition of intercepts")
	if _, err := c.applyCRDs(ctx, chrt); err != nil {
		return rights(err)
	}
	s.step("upgrading the traffic manager")
	upgrade := action.NewUpgrade(helm)
	upgrade.Namespace, upgrade.SkipCRDs, upgrade.DisableHooks, upgrade.Timeout = c.namespace, true,
		s.NoHooks, s.Timeout
	upgrade.ResetValues = s.ResetValues
	// helm's ReuseValues would also keep the old chart's defaults and miss the new chart's.
	upgrade.ResetThenReuseValues = s.ReuseValues
	upgrade.MaxHistory = 10
	if _, err := upgrade.Run(releaseName, chrt, vals); err != nil {
		return rights(fmt.Errorf("upgrade the chart: %w", err))
	}
	if s.Wait {
		err = c.waitReady(ctx, s)
	}
	if err == nil {
		c.warnLacking(ctx, s)
	}
	return err
}

// prepare does everything that can fail before anything is changed.
func (c *Cluster) prepare(ctx context.Context, s Settings) (*chart.Chart, *action.Configuration,
	map[string]any, error) {
	chrt, err := load(c.chart, c.version)
	if err != nil {
		return nil, nil, nil, err
	}
	vals, err := s.Values.MergeValues(getter.All(cli.New()))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read the values: %w", err)
	}
	if err := valid(chrt, vals); err != nil {
		return nil, nil, nil, err
	}
	s.step("looking at the cluster")
	if err := c.answer(ctx); err != nil {
		return nil, nil, nil, err
	}
	helm, err := c.helm()
	if err != nil {
		return nil, nil, nil, err
	}
	return chrt, helm, vals, nil
}

// valid checks the values against the chart's schema. helm would do so only after it has created
// the first objects.
func valid(chrt *chart.Chart, vals map[string]any) error {
	all, err := chartutil.CoalesceValues(chrt, vals)
	if err != nil {
		return fmt.Errorf("read the values: %w", err)
	}
	if err := chartutil.ValidateAgainstSchema(chrt, all); err != nil {
		text := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(err.Error()), chrt.Name()+":"))
		text = strings.ReplaceAll(strings.TrimPrefix(text, "- "), "\n- ", "; ")
		return reason.Advise(fmt.Errorf("the chart does not take these values: %s", text),
			"correct --set or --values")
	}
	return nil
}

// lastRelease returns the release, in whatever state, or nil.
func (c *Cluster) lastRelease(ctx context.Context, helm *action.Configuration) (*release.Release, error) {
	last, err := helm.Releases.Last(releaseName)
	switch {
	case errors.Is(err, driver.ErrReleaseNotFound):
		return nil, c.foreignInstallation(ctx)
	case err != nil:
		return nil, rights(fmt.Errorf("look for the release %s in namespace %s: %w", releaseName,
			c.namespace, err))
	default:
		return last, nil
	}
}

// foreignInstallation returns an error if another tool than helm, such as a GitOps tool, has
// installed the traffic manager.
func (c *Cluster) foreignInstallation(ctx context.Context) error {
	there, err := c.kube.AppsV1().Deployments(c.namespace).Get(ctx, names.Manager, metav1.GetOptions{})
	if err != nil || there.Annotations["meta.helm.sh/release-name"] == releaseName {
		return nil // there is none, or helm will report why it cannot be read
	}
	return reason.Advise(fmt.Errorf("the traffic manager in namespace %s was not installed by helm", c.namespace),
		"change it with what installed it")
}

func (c *Cluster) notInstalled() error {
	return reason.Advise(fmt.Errorf("the traffic manager is not installed in namespace %s", c.namespace),
		"run `%s helm install`, or name its namespace with --manager-namespace", c.program)
}

// rights adds advice to the error that a right is missing.
func rights(err error) error {
	if apierrors.IsForbidden(err) {
		return reason.Advise(err, "this needs the rights of a cluster administrator")
	}
	return err
}
