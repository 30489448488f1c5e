// SPDX-License-Identifier: Apache-2.0

package logs

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"sidestep.dev/sidestep/client/cli/env"
)

// pseudonyms replace names by others that reveal nothing. Each name has the same pseudonym
// everywhere.
type pseudonyms struct {
	names  map[string]string
	counts map[string]int
	kept   []string // names that stay: they are the same in every cluster
	owners []string // workloads, whose pods and objects are called NAME-…
}

// kinds of names.
const (
	kindNamespace = "namespace"
	kindWorkload  = "workload"
	kindPod       = "pod"
	kindIntercept = "intercept"
	kindNode      = "node"
	kindUser      = "user"
	kindHost      = "host"
)

func newPseudonyms(managerNamespace string) *pseudonyms {
	return &pseudonyms{
		names: map[string]string{}, counts: map[string]int{},
		kept: []string{"default", "kube-system", "kube-public", "kube-node-lease",
			env.DefaultManagerNamespace, managerNamespace},
	}
}

// learn adds a name. A known name keeps its pseudonym.
func (p *pseudonyms) learn(kind, name string) {
	if name == "" || p.names[name] != "" || slices.Contains(p.kept, name) ||
		strings.HasPrefix(name, "sidestep-") {
		return
	}
	p.counts[kind]++
	p.names[name] = fmt.Sprintf("%s-%d", kind, p.counts[kind])
	if kind == kindWorkload {
		p.owners = append(p.owners, name)
		// If two names begin a word, the longer one is its owner.
		slices.SortFunc(p.owners, func(a, b string) int { return len(b) - len(a) })
	}
}

var (
	// Names as the logs of node agents and daemons have them, and as the logs of the manager and
	// records have them.
	inText = regexp.MustCompile(`\b(pod|intercept|namespace|node|workload|holder)=("[^"\s]*"|[^"\s]+)`)
	inJSON = regexp.MustCompile(
		`"(pod|intercept|namespace|node|workload|holder|client|name)"\s*:\s*"([^"\s]*)"`)
)

// collect learns the names that a text has where names are expected.
func (p *pseudonyms) collect(text string) {
	for _, pattern := range []*regexp.Regexp{inText, inJSON} {
		for _, found := range pattern.FindAllStringSubmatch(text, -1) {
			p.learnValue(found[1], strings.Trim(found[2], `"`))
		}
	}
}

func (p *pseudonyms) learnValue(key, value string) {
	if user, host, ok := strings.Cut(value, "@"); ok {
		p.learn(kindUser, user)
		p.learn(kindHost, host)
		return
	}
	if namespace, name, ok := strings.Cut(value, "/"); ok {
		p.learn(kindNamespace, namespace)
		value = name
	}
	switch key {
	case "name", "client", "holder":
		key = kindIntercept
	}
	p.learn(key, value)
}

// word matches a name, or several with dots between them.
var word = regexp.MustCompile(`[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*`)

// replace returns a text with pseudonyms instead of names. Keys of records and logs stay.
func (p *pseudonyms) replace(text string) string {
	var out strings.Builder
	last := 0
	for _, at := range word.FindAllStringIndex(text, -1) {
		out.WriteString(text[last:at[0]])
		last = at[1]
		found, rest := text[at[0]:at[1]], text[at[1]:]
		if strings.HasPrefix(rest, "=") || strings.HasPrefix(rest, `":`) {
			out.WriteString(found)
		} else {
			out.WriteString(p.of(found))
		}
	}
	out.WriteString(text[last:])
	return out.String()
}

func (p *pseudonyms) of(name string) string {
	if other := p.names[name]; other != "" {
		return other
	}
	if strings.Contains(name, ".") {
		parts := strings.Split(name, ".")
		for i, part := range parts {
			parts[i] = p.of(part)
		}
		return strings.Join(parts, ".")
	}
	for _, owner := range p.owners {
		if strings.HasPrefix(name, owner+"-") {
			p.learn(kindPod, name)
			return p.names[name]
		}
	}
	return name
}
