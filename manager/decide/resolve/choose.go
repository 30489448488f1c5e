// SPDX-License-Identifier: Apache-2.0

package resolve

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"sidestep.dev/sidestep/api/v1alpha1"
)

// candidate is a port to choose from.
type candidate struct {
	name     string
	number   int32
	protocol corev1.Protocol
	index    int
}

func protocolOf(p corev1.Protocol) corev1.Protocol { return cmp.Or(p, corev1.ProtocolTCP) }

func (c candidate) is(id string) bool { return id == c.name || id == strconv.Itoa(int(c.number)) }

// display returns the port as people write it: its name, else its number.
func (c candidate) display() string {
	if c.name != "" {
		return c.name
	}
	return strconv.Itoa(int(c.number))
}

// choice returns the port as it is listed among several.
func (c candidate) choice() string {
	words := []string{strconv.Itoa(int(c.number))}
	if c.name != "" {
		words = []string{c.name, words[0]}
	}
	if c.protocol != corev1.ProtocolTCP {
		words = append(words, string(c.protocol))
	}
	return strings.Join(words, "/")
}

func choices(of []candidate) string {
	var all []string
	for _, c := range of {
		all = append(all, c.choice())
	}
	return strings.Join(all, ", ")
}

// wanted returns the protocols that an intercept can have, and how messages call them.
func wanted(ic *v1alpha1.Intercept) (protocols []corev1.Protocol, called string) {
	switch {
	case ic.Spec.Protocol == v1alpha1.ProtocolUDP && !ic.Spec.Wiretap:
		return []corev1.Protocol{corev1.ProtocolUDP}, "UDP"
	case ic.Spec.Wiretap || ic.Spec.Protocol == v1alpha1.ProtocolTCP ||
		ic.Spec.Mechanism == v1alpha1.MechanismHTTP || ic.Annotations[v1alpha1.KnowsUDP] != "true":
		return []corev1.Protocol{corev1.ProtocolTCP}, "TCP"
	}
	return []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP}, "TCP or UDP"
}

// choose returns the one port that an intercept asks for, or the only one if it asks for none.
// where is "service orders" or "Deployment orders".
func choose(all []candidate, ic *v1alpha1.Intercept, where string) (candidate, error) {
	protocols, called := wanted(ic)
	var usable, others []candidate
	for _, c := range all {
		if slices.Contains(protocols, c.protocol) {
			usable = append(usable, c)
		} else {
			others = append(others, c)
		}
	}
	if ic.Spec.Port == "" {
		return chooseOnly(usable, others, ic, where, called)
	}
	return chooseNamed(usable, others, ic, where, called)
}

// chooseOnly returns the port that is meant if none is named. If there are TCP ports, UDP ports are
// ignored.
func chooseOnly(usable, others []candidate, ic *v1alpha1.Intercept, where, called string) (candidate, error) {
	if isTCP := func(c candidate) bool { return c.protocol == corev1.ProtocolTCP }; slices.ContainsFunc(
		usable, isTCP) {
		usable = slices.DeleteFunc(slices.Clone(usable), func(c candidate) bool { return !isTCP(c) })
	}
	switch {
	case len(usable) == 1:
		return usable[0], nil
	case len(usable) > 1:
		return candidate{}, invalid(PortAmbiguous, "%s has %d ports: %s", where, len(usable),
			choices(usable)).
			advise("use --port LOCAL:PORT to choose one")
	case len(others) > 0:
		return candidate{}, invalid(ProtocolNotSupported, "%s has no %s port (it has %s)%s", where,
			called, choices(others), because(ic))
	}
	return candidate{}, invalid(PortNotFound, "%s has no ports", where)
}

// because returns why ports of other protocols than the wanted ones cannot be used.
func because(ic *v1alpha1.Intercept) string {
	switch {
	case ic.Spec.Wiretap:
		return ", and a wiretap copies nothing else"
	case ic.Spec.Mechanism == v1alpha1.MechanismHTTP:
		return ", and only TCP carries HTTP requests: use --mechanism tcp to take all of a UDP port"
	case ic.Spec.Protocol == "" && ic.Annotations[v1alpha1.KnowsUDP] == "true":
		return ", and only TCP and UDP can be intercepted"
	case ic.Spec.Protocol == "":
		return ", and the program that asks is older than the traffic manager and knows nothing else"
	}
	return ""
}

func chooseNamed(usable, others []candidate, ic *v1alpha1.Intercept, where, called string) (candidate, error) {
	id := ic.Spec.Port
	match := func(c candidate) bool { return c.is(id) }
	i := slices.IndexFunc(usable, match)
	if i < 0 {
		switch {
		case slices.ContainsFunc(others, match):
			return candidate{}, invalid(ProtocolNotSupported, "port %s of %s is not a %s port%s", id,
				where, called, because(ic))
		case len(usable) == 0:
			return candidate{}, invalid(PortNotFound, "%s has no %s port %s; it has none at all", where,
				called, id)
		}
		return candidate{}, invalid(PortNotFound, "%s has no port %s; it has: %s", where, id, choices(usable))
	}
	chosen := usable[i]
	var same []candidate
	for _, c := range usable[i:] {
		if c.is(id) && (c.number != chosen.number || c.protocol != chosen.protocol || len(same) == 0) {
			same = append(same, c)
		}
	}
	switch {
	case len(same) == 1:
		return chosen, nil
	case !slices.ContainsFunc(same, func(c candidate) bool { return c.number != chosen.number }):
		return candidate{}, invalid(PortAmbiguous,
			"port %s of %s is there for TCP and for UDP: %s", id, where, choices(same)).
			advise("use --port LOCAL:%s/TCP or --port LOCAL:%s/UDP to choose one", id, id)
	}
	return candidate{}, invalid(PortAmbiguous, "several ports of %s are called %s: %s", where, id,
		choices(usable)).
		advise("use --port LOCAL:NUMBER to choose one")
}
