// SPDX-License-Identifier: Apache-2.0

package resolve

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sidestep.dev/sidestep/api/v1alpha1"
)

// port is a resolved port, of a service or of a container.
type port struct {
	service   string
	display   string
	protocol  corev1.Protocol
	number    int32 // the service port's number
	target    intstr.IntOrString
	only      string // the container whose port names count; empty: any
	template  int32
	container string
	tls       string // what shows that the port speaks TLS; empty: nothing
}

// in returns the container port in a pod. A name is looked up in each pod, since pods of an old and
// a new template may differ.
func (p *port) in(spec *corev1.PodSpec) int32 {
	if p.target.Type == intstr.String {
		return namedPort(spec, p.protocol, p.target.StrVal, p.only)
	}
	return p.target.IntVal
}

func findPort(c Cluster, ic *v1alpha1.Intercept, w *workload) (*port, error) {
	svc, err := findService(c, ic, w)
	if err != nil {
		return nil, err
	}
	var p *port
	if svc == nil {
		p, err = containerPort(ic, w, w.String()+", which has no service,")
	} else if p, err = servicePort(svc, ic, w); lacks(err) && ic.Spec.Port != "" {
		p, err = portBehind(svc, ic, w, err)
	}
	if err != nil {
		return nil, err
	}
	if err := checkPlaintext(ic, p); err != nil {
		return nil, err
	}
	p.container, err = containerFor(w, ic.Spec.Container, p)
	return p, err
}

// findService returns the service that leads to the workload, nil if there is none. A service that
// leads to only some of the pods is found if it is asked for, or if none leads to all.
func findService(c Cluster, ic *v1alpha1.Intercept, w *workload) (*corev1.Service, error) {
	var all, some []*corev1.Service
	var asked *corev1.Service
	for _, s := range c.Services(ic.Namespace) {
		if s.Name == ic.Spec.Service {
			asked = s
		}
		switch {
		case w.selectedBy(s):
			all = append(all, s)
		case w.partlySelectedBy(s):
			some = append(some, s)
		}
	}
	if ic.Spec.Service != "" {
		return findAsked(ic, w, asked, slices.Concat(all, some))
	}
	if len(all) == 0 {
		all = some
	}
	switch len(all) {
	case 0:
		return nil, nil
	case 1:
		return all[0], nil
	}
	return nil, invalid(ServiceAmbiguous, "%d services select the pods of %s: %s", len(all), w,
		nameList(all)).
		advise("use --service to choose one")
}

// findAsked returns the service with the name that is asked for, if it selects pods of the
// workload.
func findAsked(ic *v1alpha1.Intercept, w *workload, asked *corev1.Service,
	selecting []*corev1.Service) (*corev1.Service, error) {
	name := ic.Spec.Service
	if slices.Contains(selecting, asked) {
		return asked, nil
	}
	others := fmt.Sprintf("services of %s: %s", w, nameList(selecting))
	if len(selecting) == 0 {
		others = fmt.Sprintf("no service selects the pods of %s: leave out --service to intercept a port of the container", w)
	}
	switch {
	case asked == nil:
		return nil, invalid(ServiceNotFound, "there is no service %q in namespace %s; %s", name,
			ic.Namespace, others)
	case asked.Spec.Type == corev1.ServiceTypeExternalName:
		return nil, invalid(ServiceNotFound,
			"service %q is an ExternalName: it is another name for %s and leads to no pods; %s", name,
			asked.Spec.ExternalName, others)
	case len(asked.Spec.Selector) == 0:
		return nil, invalid(ServiceNotFound,
			"service %q has no selector, so its endpoints are not known to be pods of %s; %s", name, w, others)
	}
	return nil, invalid(ServiceNotFound, "service %q does not select the pods of %s; %s", name, w, others)
}

func nameList(services []*corev1.Service) string {
	var names []string
	for _, s := range services {
		names = append(names, s.Name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// Selects reports whether the service leads to pods with these labels.
func Selects(s *corev1.Service, podLabels map[string]string) bool {
	if s.Spec.Type == corev1.ServiceTypeExternalName || len(s.Spec.Selector) == 0 {
		return false
	}
	for k, want := range s.Spec.Selector {
		if have, ok := podLabels[k]; !ok || have != want {
			return false
		}
	}
	return true
}

// lacks reports whether err says that there is no such port.
func lacks(err error) bool {
	var bad *Invalid
	return errors.As(err, &bad) && bad.Reason == PortNotFound
}

// portBehind resolves a port that is asked for as a container knows it, and not as the service does.
// It is the service's if one of its ports leads there. Otherwise no service does, and it can be
// intercepted like that of a workload without one, unless a service is asked for. lacking is why the
// service has no such port.
func portBehind(svc *corev1.Service, ic *v1alpha1.Intercept, w *workload, lacking error) (*port, error) {
	protocols, _ := wanted(ic)
	for i, sp := range svc.Spec.Ports {
		protocol := protocolOf(sp.Protocol)
		if p := portOfService(svc, i); slices.Contains(protocols, protocol) && p.leadsTo(ic.Spec.Port, w) {
			return p.check(w)
		}
	}
	declared := declaredPorts(ic, w)
	var bad *Invalid
	if ic.Spec.Service == "" && len(declared) > 0 {
		p, err := containerPort(ic, w, w.String())
		if err == nil || !lacks(err) {
			return p, err
		}
	}
	if errors.As(lacking, &bad) && len(declared) > 0 {
		also := *bad
		also.Message += "; the containers of " + w.String() + " have: " + choices(declared)
		return nil, &also
	}
	return nil, lacking
}

// leadsTo reports whether the port is the one that id names in the workload's template.
func (p *port) leadsTo(id string, w *workload) bool {
	number := p.in(&w.template.Spec)
	return id == p.target.String() || id == strconv.Itoa(int(number)) ||
		number != 0 && number == namedPort(&w.template.Spec, p.protocol, id, "")
}

func servicePort(svc *corev1.Service, ic *v1alpha1.Intercept, w *workload) (*port, error) {
	var all []candidate
	for i, p := range svc.Spec.Ports {
		all = append(all, candidate{name: p.Name, number: p.Port, protocol: protocolOf(p.Protocol), index: i})
	}
	chosen, err := choose(all, ic, "service "+svc.Name)
	if err != nil {
		return nil, err
	}
	return portOfService(svc, chosen.index).check(w)
}

// portOfService is a port of a service, by its place in the list.
func portOfService(svc *corev1.Service, index int) *port {
	sp := svc.Spec.Ports[index]
	c := candidate{name: sp.Name, number: sp.Port}
	target := sp.TargetPort
	if target.Type == intstr.Int && target.IntVal == 0 || target.Type == intstr.String && target.StrVal == "" {
		target = intstr.FromInt32(sp.Port)
	}
	return &port{
		service: svc.Name, display: c.display(), protocol: protocolOf(sp.Protocol), number: sp.Port,
		target: target, tls: speaksTLS(sp.Name, sp.AppProtocol),
	}
}

// check returns the port of a service as the workload has it.
func (p *port) check(w *workload) (*port, error) {
	p.template = p.in(&w.template.Spec)
	if p.template == 0 && !slices.ContainsFunc(w.pods,
		func(pod *corev1.Pod) bool { return p.in(&pod.Spec) != 0 }) {
		return nil, invalid(PortNotFound,
			"port %s of service %s leads to a container port named %q, which the pods of %s do not have", p.display, p.service, p.target.StrVal, w)
	}
	return p, nil
}

// declaredPorts are those that the containers declare.
func declaredPorts(ic *v1alpha1.Intercept, w *workload) []candidate {
	var all []candidate
	for _, c := range containersOf(&w.template.Spec) {
		if ic.Spec.Container != "" && c.Name != ic.Spec.Container {
			continue
		}
		for _, p := range c.Ports {
			all = append(all, candidate{name: p.Name, number: p.ContainerPort,
				protocol: protocolOf(p.Protocol)})
		}
	}
	return all
}

// containerPort resolves a port to which no service leads: one that a container declares.
func containerPort(ic *v1alpha1.Intercept, w *workload, where string) (*port, error) {
	all := declaredPorts(ic, w)
	if len(all) == 0 {
		// Containers may listen on ports that they do not declare, so a number is accepted as it
		// is.
		number, err := strconv.ParseUint(ic.Spec.Port, 10, 16)
		if err != nil || number == 0 {
			return nil, invalid(PortNotFound, "%s declares no container ports", where).
				advise("use --port LOCAL:NUMBER to say which")
		}
		return &port{
			display: ic.Spec.Port, protocol: protocolOf(corev1.Protocol(ic.Spec.Protocol)),
			target: intstr.FromInt32(int32(number)), template: int32(number),
		}, nil
	}
	chosen, err := choose(all, ic, where)
	if err != nil {
		return nil, err
	}
	p := &port{
		display: chosen.display(), protocol: chosen.protocol, target: intstr.FromInt32(chosen.number),
		template: chosen.number,
		tls:      speaksTLS(chosen.name, nil),
	}
	if chosen.name != "" {
		p.target, p.only = intstr.FromString(chosen.name), ic.Spec.Container
	}
	return p, nil
}
