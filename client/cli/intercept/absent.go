// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"strconv"

	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/client/cli/output"
)

// absentFlag is a flag of Telepresence that this version knows but does not support. Its harmless
// values are accepted, so that scripts that set them run.
type absentFlag struct {
	name, shorthand string
	boolean         bool     // may be given without a value, which means true
	harmless        []string // values that change nothing
	list            bool
	what, instead   string
}

func addAbsentFlags(flags *pflag.FlagSet) []absentFlag {
	off := []string{"false", ""}
	const ingress = "leave it out and use --http-header"
	absent := []absentFlag{
		{name: "preview-url", shorthand: "u", boolean: true, harmless: off, what: "preview URLs are",
			instead: "leave --preview-url out and use --http-header"},
		{name: "preview-url-banner", shorthand: "b", boolean: true, harmless: []string{"true", "false", ""}},
		{name: "preview-url-add-request-headers", what: "preview URLs are", instead: ingress},
		{name: "ingress-host", what: "preview URLs are", instead: ingress},
		{name: "ingress-port", what: "preview URLs are", instead: ingress},
		{name: "ingress-tls", boolean: true, harmless: off, what: "preview URLs are", instead: ingress},
		{name: "ingress-l5", what: "preview URLs are", instead: ingress},
		{name: "mount", boolean: true, harmless: off, what: "--mount is",
			instead: "the container's volumes cannot be mounted; use --mount=false"},
		{name: "local-mount-port", what: "--local-mount-port is",
			instead: "the container's volumes cannot be mounted"},
		{name: "docker-mount", what: "--docker-mount is", instead: "the container's volumes cannot be mounted"},
		{name: "replace", boolean: true, harmless: off, what: "--replace is",
			instead: "leave it out: the container keeps running, and what the laptop cannot answer goes to it"},
		{name: "http-meta", list: true, what: "--http-meta is",
			instead: "leave it out: there is no API that would tell it to anybody"},
		{name: "metadata", list: true, what: "--metadata is",
			instead: "leave it out: there is no API that would tell it to anybody"},
		{name: "local-only", shorthand: "l", boolean: true, harmless: off, what: "--local-only is",
			instead: "nothing of the cluster's network is on this laptop that it could give; use kubectl " +
				"port-forward"},
		{name: "wait-message", what: "--wait-message is", instead: "leave it out"},
		{name: "detailed-output", boolean: true, harmless: []string{"true", "false", ""}},
		{name: "node-agent", boolean: true, harmless: []string{"true"},
			what:    "an intercept by sidecar is",
			instead: "leave --node-agent out: node agents are all there is"},
	}
	for _, a := range absent {
		if a.list {
			flags.StringArrayP(a.name, a.shorthand, nil, "")
		} else {
			flags.StringP(a.name, a.shorthand, "", "")
		}
		if a.boolean {
			flags.Lookup(a.name).NoOptDefVal = "true"
		}
		_ = flags.MarkHidden(a.name)
	}
	return absent
}

// refuseUnavailable returns an error for the first flag that was set to something that this version
// does not support.
func (f *flags) refuseUnavailable(flags *pflag.FlagSet) error {
	for _, a := range f.absent {
		flag := flags.Lookup(a.name)
		if !flag.Changed || a.accepts(flag.Value.String()) {
			continue
		}
		return output.Unavailable(a.what, a.instead)
	}
	return nil
}

func (a absentFlag) accepts(value string) bool {
	if b, err := strconv.ParseBool(value); err == nil && a.boolean {
		value = strconv.FormatBool(b)
	}
	for _, h := range a.harmless {
		if value == h {
			return true
		}
	}
	return false
}
