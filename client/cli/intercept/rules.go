// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/internal/reason"
)

// Words that take the place of a header.
const (
	headerAuto = "auto"
	headerAll  = "all"
)

// once is a flag that can be given only once. Otherwise the last of two would win silently.
type once struct {
	value *string
	set   bool
}

func (o *once) String() string {
	if o.value == nil {
		return ""
	}
	return *o.value
}

func (o *once) Set(text string) error {
	if o.set {
		return reason.Advise(errors.New("it is given twice, and an intercept has one path"),
			"make an intercept for each")
	}
	*o.value, o.set = text, true
	return nil
}

func (o *once) Type() string { return "string" }

// setRules sets the mechanism and, for http, the conditions.
func (f *flags) setRules(r *daemonpb.InterceptRequest, flags *pflag.FlagSet) error {
	var used []string
	flags.Visit(func(flag *pflag.Flag) {
		if strings.HasPrefix(flag.Name, "http-") && flag.Name != "http-plaintext" || flag.Name == "match" {
			used = append(used, "--"+flag.Name)
		}
	})
	r.Mechanism = f.mechanism
	switch f.mechanism {
	case "":
		r.Mechanism = mechanismTCP
		if len(used) > 0 {
			r.Mechanism = mechanismHTTP
		}
	case mechanismHTTP:
	case mechanismTCP:
		if len(used) > 0 {
			return output.Usagef("--mechanism tcp contradicts %s: it takes connections without looking into them", strings.Join(used, ", ")).
				Advise("leave one out")
		}
	default:
		return output.Usagef("--mechanism %s: unknown", f.mechanism).
			Advise("use tcp or http")
	}
	if r.Mechanism == mechanismTCP {
		return nil
	}
	if r.Protocol == "UDP" {
		return output.Usagef("--port %s: UDP ports cannot be filtered by HTTP header or path", f.ports[0]).
			Advise("leave out %s", strings.Join(append(used, mechanismFlag(f.mechanism)...), ", "))
	}
	rule := &v1alpha1.HTTPMatch{}
	if err := f.setPath(rule, flags); err != nil {
		return err
	}
	if err := f.setHeaders(r, rule); err != nil {
		return err
	}
	if len(rule.Headers) == 0 && rule.Path == nil {
		return nil
	}
	text, err := json.Marshal(rule)
	r.Http = string(text)
	return err
}

// conditions returns the conditions of a request, empty if it has none.
func conditions(r *daemonpb.InterceptRequest) v1alpha1.HTTPMatch {
	var rule v1alpha1.HTTPMatch
	_ = json.Unmarshal([]byte(cmp.Or(r.GetHttp(), "{}")), &rule) // setRules has written it
	return rule
}

func mechanismFlag(given string) []string {
	if given == "" {
		return nil
	}
	return []string{"--mechanism " + given}
}

func (f *flags) setPath(rule *v1alpha1.HTTPMatch, flags *pflag.FlagSet) error {
	var used []string
	for _, p := range []struct {
		flag      string
		value     string
		condition *v1alpha1.PathMatch
	}{
		{"http-path-equal", f.pathEqual, &v1alpha1.PathMatch{Equal: &f.pathEqual}},
		{"http-path-prefix", f.pathPrefix, &v1alpha1.PathMatch{Prefix: &f.pathPrefix}},
		{"http-path-regex", f.pathRegexp, &v1alpha1.PathMatch{Regex: &f.pathRegexp}},
	} {
		if !flags.Changed(p.flag) {
			continue
		}
		if p.value == "" {
			return output.Usagef("--%s is empty", p.flag)
		}
		used = append(used, "--"+p.flag)
		rule.Path = p.condition
	}
	if len(used) > 1 {
		return output.Usagef("%s contradict each other", strings.Join(used, " and ")).
			Advise("use one of them")
	}
	switch {
	case f.pathRegexp != "":
		if _, err := regexp.Compile(f.pathRegexp); err != nil {
			return badRegexp("--http-path-regex", f.pathRegexp, err)
		}
	case f.pathEqual != "" && !strings.HasPrefix(f.pathEqual, "/"):
		return output.Usagef("--http-path-equal %s: a path begins with /", f.pathEqual).
			Advise("did you mean /%s?", f.pathEqual)
	case f.pathPrefix != "" && !strings.HasPrefix(f.pathPrefix, "/"):
		return output.Usagef("--http-path-prefix %s: a path begins with /", f.pathPrefix).
			Advise("did you mean /%s?", f.pathPrefix)
	}
	return nil
}

func (f *flags) setHeaders(r *daemonpb.InterceptRequest, rule *v1alpha1.HTTPMatch) error {
	all := false
	for _, given := range slices.Concat(f.headers, f.matches, f.oldMatches) {
		switch given {
		case headerAuto:
			r.AutoHeader = true
			continue
		case headerAll:
			all = true
			continue
		}
		h, err := match.ParseHeaderFlag(given)
		if err != nil {
			return badHeader(given, err)
		}
		rule.Headers = append(rule.Headers, h)
	}
	if all && (r.AutoHeader || len(rule.Headers) > 0) {
		return output.Usagef("--http-header all takes every request, and another --http-header narrows that").
			Advise("leave one out")
	}
	if !all && len(rule.Headers) == 0 && !f.wiretap { // a wiretap takes nothing from others, so it needs no header
		r.AutoHeader = true
	}
	return nil
}

// badHeader returns the error about a header condition.
func badHeader(given string, err error) error {
	if at := strings.IndexAny(given, "=:"); at >= 0 {
		if _, err := regexp.Compile(strings.TrimSpace(given[at+1:])); err != nil {
			return badRegexp("--http-header", given, err)
		}
	}
	return output.Usagef("--http-header: %w", err)
}

// badRegexp returns the error about an expression, with where it is in the flag's value.
func badRegexp(flag, given string, err error) error {
	var bad *syntax.Error
	if !errors.As(err, &bad) {
		return output.Usagef("%s %s: bad regular expression: %w", flag, given, err)
	}
	where := ""
	if at := strings.LastIndex(given, bad.Expr); at >= 0 && bad.Expr != "" {
		where = fmt.Sprintf(": %q at position %d", bad.Expr, utf8.RuneCountInString(given[:at])+1)
	}
	return output.Usagef("%s %s: bad regular expression: %s%s", flag, given, bad.Code, where).
		Advise("the syntax is RE2's, and \\ goes before a character that stands for itself")
}
