// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/deploy/images/pack"
	"sidestep.dev/sidestep/internal/version"
)

// Names of images are REGISTRY/sidestep/NAME:TAG, as the chart's defaults say; its value
// image.registry is the registry.
const (
	repository      = "sidestep"
	defaultRegistry = "docker.io"
)

type options struct {
	bin, out, tag, push string
	apps                bool
}

func newCommand(stdout io.Writer) *cobra.Command {
	var opts options
	command := &cobra.Command{
		Use:           "images",
		Short:         "Pack the programs in bin/ into container images",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(command *cobra.Command, _ []string) error {
			return run(command.Context(), stdout, opts)
		},
	}
	flags := command.Flags()
	flags.StringVar(&opts.bin, "bin", "bin", "directory with the programs, statically linked")
	flags.StringVar(&opts.out, "out", "", "directory for the tarballs, one per image")
	flags.StringVar(&opts.tag, "tag", version.Version, "tag of all images")
	flags.StringVar(&opts.push, "push", "",
		"registry to push to, as sidestep/NAME, such as registry.example:5000")
	flags.BoolVar(&opts.apps, "apps", false, "also the sample workloads")
	command.MarkFlagsOneRequired("out", "push")
	return command
}

// programs lists the images by name.
func programs(opts options) map[string]pack.Image {
	manager := pack.Program(filepath.Join(opts.bin, "sidestep-manager"))
	manager.ExposedPorts = []string{"8080/tcp", "8443/tcp"}
	nodeagent := pack.Program(filepath.Join(opts.bin, "sidestep-nodeagent"))
	nodeagent.ExposedPorts = []string{"8080/tcp"}
	// Capabilities are only effective for root.
	nodeagent.User = "0:0"
	images := map[string]pack.Image{"manager": manager, "nodeagent": nodeagent}
	if opts.apps {
		images["apps"] = pack.Program(filepath.Join(opts.bin, "apps"))
	}
	return images
}

func run(ctx context.Context, stdout io.Writer, opts options) error {
	if opts.out != "" {
		if err := os.MkdirAll(opts.out, 0o755); err != nil {
			return fmt.Errorf("make a directory for the images: %w", err)
		}
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	images := programs(opts)
	for _, name := range []string{"manager", "nodeagent", "apps"} {
		spec, wanted := images[name]
		if !wanted {
			continue
		}
		architecture, err := staticArchitecture(spec.Files[0].Source)
		if err != nil {
			return err
		}
		spec.Architecture = architecture
		spec.Labels = map[string]string{
			"org.opencontainers.image.title":   "sidestep " + name,
			"org.opencontainers.image.version": opts.tag,
		}
		image, err := spec.Build()
		if err != nil {
			return err
		}
		if err := deliver(ctx, table, opts, name, image); err != nil {
			return err
		}
	}
	return table.Flush()
}

func deliver(ctx context.Context, table io.Writer, opts options, name string, image v1.Image) error {
	size, err := compressedSize(image)
	if err != nil {
		return fmt.Errorf("size of image %s: %w", name, err)
	}
	if opts.out != "" {
		ref := reference(defaultRegistry, name, opts.tag)
		path := filepath.Join(opts.out, name+".tar")
		if err := pack.Save(path, ref, image); err != nil {
			return err
		}
		fmt.Fprintf(table, "%s\t%.1f MiB\t%s\n", ref, size, path)
	}
	if opts.push != "" {
		ref := reference(opts.push, name, opts.tag)
		digest, err := pack.Push(ctx, ref, image)
		if err != nil {
			return err
		}
		fmt.Fprintf(table, "%s\t%.1f MiB\tpushed %s\n", ref, size, digest)
	}
	return nil
}

func reference(registry, name, tag string) string {
	return fmt.Sprintf("%s/%s/%s:%s", strings.TrimSuffix(registry, "/"), repository, name, tag)
}

// compressedSize is what a node downloads, in MiB.
func compressedSize(image v1.Image) (float64, error) {
	manifest, err := image.Manifest()
	if err != nil {
		return 0, err
	}
	size := manifest.Config.Size
	for _, layer := range manifest.Layers {
		size += layer.Size
	}
	return float64(size) / (1 << 20), nil
}
