// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
)

// defaultTimeout is how long all ready pods together may take to be steering.
const defaultTimeout = 30 * time.Second

// defaultExisting is the API's default of spec.existing.
const defaultExisting = "auto"

// Ask is a checked request for an intercept.
type Ask struct {
	Namespace string
	Spec      v1alpha1.InterceptSpec
	Timeout   time.Duration
	undecided bool // the workload's kind is not known yet
}

// NeedsKind reports whether the caller has yet to find the workload's kind and to set it in
// Spec.Workload.
func (a *Ask) NeedsKind() bool { return a.undecided }

func invalid(format string, args ...any) *reason.Error {
	return reason.New(codes.InvalidArgument, reason.Invalid, format, args...)
}

// NewAsk checks a request. namespace is the default of the request's namespace.
func NewAsk(req *daemonpb.InterceptRequest, client Client, namespace string) (*Ask, error) {
	a := &Ask{
		Namespace: cmp.Or(req.GetNamespace(), namespace),
		Timeout:   time.Duration(req.GetTimeoutMs()) * time.Millisecond,
		undecided: req.GetWorkloadKind() == "",
		Spec: v1alpha1.InterceptSpec{
			Name: req.GetName(),
			Workload: v1alpha1.WorkloadReference{Kind: req.GetWorkloadKind(),
				Name: cmp.Or(req.GetWorkload(), req.GetName())},
			Service:     req.GetService(),
			Port:        req.GetPortIdentifier(),
			Protocol:    v1alpha1.Protocol(req.GetProtocol()),
			Container:   req.GetContainer(),
			Mechanism:   v1alpha1.Mechanism(cmp.Or(req.GetMechanism(), string(v1alpha1.MechanismTCP))),
			Plaintext:   req.GetPlaintext(),
			Environment: req.GetEnvironment() != daemonpb.InterceptRequest_NOT_WANTED,
			ToPod:       slices.Clone(req.GetToPod()),
			Existing:    cmp.Or(req.GetExisting(), defaultExisting),
			Wiretap:     req.GetWiretap(),
			Client: v1alpha1.ClientReference{Session: client.Session, Holder: client.Holder,
				KeyHash: client.KeyHash},
			Destination: v1alpha1.Destination{Address: cmp.Or(req.GetAddress(), DefaultAddress),
				Port: req.GetLocalPort()},
		},
	}
	if a.Timeout <= 0 {
		a.Timeout = defaultTimeout
	}
	if a.Spec.Wiretap {
		a.Spec.Client.KeyHash = v1alpha1.WiretapKeyHash(client.KeyHash)
	}
	if err := a.check(); err != nil {
		return nil, err
	}
	if err := a.addRule(req, client.Session); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Ask) check() error {
	s := &a.Spec
	if !v1alpha1.ValidName(s.Name) || len(s.Name) > 253-len(suffix(s.Client.Session)) {
		return invalid("%q cannot be the name of an intercept", s.Name).
			Advise("use lower-case letters, digits, '-' and '.'")
	}
	if kind := s.Workload.Kind; kind != "" && !slices.Contains(v1alpha1.WorkloadKinds, kind) {
		return invalid("workloads of kind %s cannot be intercepted", kind).
			Advise("use one of %s", strings.Join(v1alpha1.WorkloadKinds, ", "))
	}
	if p := s.Protocol; p != "" && p != v1alpha1.ProtocolTCP && p != v1alpha1.ProtocolUDP {
		return invalid("ports of %s cannot be intercepted", p).
			Advise("use TCP or UDP")
	}
	if s.Protocol == v1alpha1.ProtocolUDP && s.Wiretap {
		return invalid("a wiretap copies TCP connections, or HTTP requests").
			Advise("use intercept for a UDP port")
	}
	if s.Protocol == v1alpha1.ProtocolUDP && s.Mechanism == v1alpha1.MechanismHTTP {
		return invalid("UDP ports cannot be filtered by HTTP header or path").
			Advise("leave out the conditions, or /UDP")
	}
	if p := s.Destination.Port; p < 0 || p > 65535 {
		return invalid("%d is not a port", p).
			Advise("use 1 to 65535")
	}
	address, err := netip.ParseAddr(s.Destination.Address)
	if err != nil {
		return invalid("--address %s is not an IP address", s.Destination.Address)
	}
	s.Destination.Address = address.Unmap().String()
	if err := a.checkPodPorts(); err != nil {
		return err
	}
	if !slices.Contains(v1alpha1.ExistingWords(), s.Existing) {
		return invalid("--existing %s is none of auto, idle, all and none", s.Existing)
	}
	return nil
}

// addRule sets spec.http from the request's conditions.
func (a *Ask) addRule(req *daemonpb.InterceptRequest, session string) error {
	rule := &v1alpha1.HTTPMatch{}
	if text := req.GetHttp(); text != "" {
		if err := json.Unmarshal([]byte(text), rule); err != nil {
			return invalid("the conditions cannot be read: %v", err)
		}
	}
	if req.GetAutoHeader() {
		value := session + ":" + req.GetName()
		rule.Headers = append(rule.Headers, v1alpha1.HeaderMatch{Name: match.AutoHeader, Value: &value})
	}
	conditions := len(rule.Headers) > 0 || rule.Path != nil
	switch a.Spec.Mechanism {
	case v1alpha1.MechanismTCP:
		if conditions {
			return invalid("mechanism tcp takes every connection and does not read HTTP requests").
				Advise("leave out the conditions, or use --mechanism http")
		}
	case v1alpha1.MechanismHTTP:
		if conditions {
			a.Spec.HTTP = rule
		}
		if _, err := match.FromSpec(a.Spec.HTTP); err != nil {
			return invalid("%v", err)
		}
	default:
		return invalid("there is no mechanism %q", a.Spec.Mechanism).
			Advise("use tcp or http")
	}
	return nil
}

// suffix makes the objects of different sessions differ in name.
func suffix(session string) string { return "-" + session[:min(8, len(session))] }

func objectName(name, session string) string { return name + suffix(session) }

func (a *Ask) object() *v1alpha1.Intercept {
	return &v1alpha1.Intercept{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: a.Namespace, Name: objectName(a.Spec.Name, a.Spec.Client.Session),
			Labels:      map[string]string{names.LabelSession: a.Spec.Client.Session},
			Annotations: map[string]string{v1alpha1.KnowsUDP: "true"},
		},
		Spec: *a.Spec.DeepCopy(),
	}
}

// canMove returns nil if an intercept can become what is asked for. Only what movable returns may
// change.
func (a *Ask) canMove(have *v1alpha1.Intercept) error {
	h, w := have.Spec, a.Spec
	name := w.Name
	if have.Namespace == a.Namespace && h.Workload.Name == w.Workload.Name &&
		h.Workload.Kind != w.Workload.Kind {
		return reason.New(codes.AlreadyExists, reason.InterceptExists,
			"intercept %q already exists, for %s %s", name, h.Workload.Kind, h.Workload.Name).
			Advise("choose another name for that of the %s, with --workload %s/%s, or run `sidestep leave %s` first",
				w.Workload.Kind, strings.ToLower(w.Workload.Kind), w.Workload.Name, name)
	}
	if have.Namespace != a.Namespace || h.Workload != w.Workload {
		return reason.New(codes.AlreadyExists, reason.InterceptExists,
			"intercept %q already exists, for %s %s in namespace %s", name, h.Workload.Kind,
			h.Workload.Name, have.Namespace).
			Advise("choose another name with --workload %s, or run `sidestep leave %s` first",
				w.Workload.Name, name)
	}
	differs := h.Wiretap != w.Wiretap || h.Mechanism != w.Mechanism || w.Protocol != "" &&
		w.Protocol != protocolOf(have)
	if differs || !reflect.DeepEqual(h.HTTP, w.HTTP) || cmp.Or(h.Existing, defaultExisting) != w.Existing {
		return reason.New(codes.AlreadyExists, reason.InterceptExists,
			"intercept %q already exists and takes %s", name, what(have)).
			Advise("run `sidestep leave %s` first, or choose another name with --workload %s",
				name, w.Workload.Name)
	}
	return nil
}

// what returns what an intercept takes, in a few words.
func what(i *v1alpha1.Intercept) string {
	if i.Spec.Wiretap {
		taken := *i
		taken.Spec.Wiretap = false
		return "copies of " + what(&taken)
	}
	if protocolOf(i) == v1alpha1.ProtocolUDP {
		return "all UDP datagrams"
	}
	if i.Spec.Mechanism == v1alpha1.MechanismTCP {
		return "all TCP connections"
	}
	rule, err := match.FromSpec(i.Spec.HTTP)
	if err != nil {
		return "other requests"
	}
	return rule.String()
}
