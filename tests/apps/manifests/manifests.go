// SPDX-License-Identifier: Apache-2.0

// Package manifests renders the Kubernetes objects of the sample workloads. All of them meet the
// restricted Pod Security level, which their namespace enforces.
package manifests

import (
	"embed"
	"fmt"
	"strings"
	"text/template"
)

// DefaultNamespace is the default namespace of the sample workloads.
const DefaultNamespace = "shop"

// Options is what differs from cluster to cluster.
type Options struct {
	// Image holds the program of tests/apps.
	Image string
	// PullPolicy is Never for an image that was loaded into the nodes; empty means that.
	PullPolicy string
	// Namespace is DefaultNamespace when empty.
	Namespace string
	// KeepAlive lets connections within the chain live on between requests.
	KeepAlive bool
}

//go:embed files/*.yaml
var files embed.FS

// Render returns the objects as one YAML stream, the namespace first.
func Render(options Options) (string, error) {
	if options.Image == "" {
		return "", fmt.Errorf("render the sample workloads: no image given")
	}
	if options.PullPolicy == "" {
		options.PullPolicy = "Never"
	}
	if options.Namespace == "" {
		options.Namespace = DefaultNamespace
	}
	templates, err := template.New("").Option("missingkey=error").ParseFS(files, "files/*.yaml")
	if err != nil {
		return "", fmt.Errorf("render the sample workloads: %w", err)
	}
	var out strings.Builder
	// Namespace first, and what others call before those others.
	for _, name := range []string{"namespace", "stock", "orders", "frontend", "legacy", "twoports",
		"echo", "greeter", "client"} {
		out.WriteString("---\n")
		if err := templates.ExecuteTemplate(&out, name+".yaml", options); err != nil {
			return "", fmt.Errorf("render the sample workloads: %w", err)
		}
	}
	return out.String(), nil
}
