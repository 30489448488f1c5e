// SPDX-License-Identifier: Apache-2.0

package env

import (
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/cli-runtime/pkg/genericclioptions"
)

// NewKubeFlags returns kubectl's flags that choose the cluster and the user. It leaves out
// --namespace, which has its own meaning here, and the one-letter forms, which the commands use
// themselves.
func NewKubeFlags() *pflag.FlagSet {
	all := pflag.NewFlagSet("kubernetes", pflag.ContinueOnError)
	genericclioptions.NewConfigFlags(true).AddFlags(all)
	flags := pflag.NewFlagSet("kubernetes", pflag.ContinueOnError)
	flags.SortFlags = true
	all.VisitAll(func(f *pflag.Flag) {
		if f.Name == "namespace" {
			return
		}
		f.Shorthand = ""
		if f.Name == "cache-dir" {
			f.DefValue = "" // a path of this machine, which help need not show
		}
		flags.AddFlag(f)
	})
	return flags
}

// setFlags returns the flags that were set, as the daemon wants them: lists joined with commas.
func setFlags(flags *pflag.FlagSet) map[string]string {
	set := map[string]string{}
	flags.VisitAll(func(f *pflag.Flag) {
		if !f.Changed {
			return
		}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			set[f.Name] = strings.Join(list.GetSlice(), ",")
			return
		}
		set[f.Name] = f.Value.String()
	})
	return set
}

// choosesCluster reports whether the flags choose another cluster or user than the kubeconfig does
// by itself.
func choosesCluster(flags map[string]string) bool {
	for name := range flags {
		switch name {
		case "request-timeout", "cache-dir", "disable-compression":
		default:
			return true
		}
	}
	return false
}
