package cli

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/api/daemonpb"
)

type interceptFlags struct {
	ports                             []string
	address                           string
	workload, deployment              string
	service, container                string
	mechanism                         string
	headers                           []string
	pathEqual, pathPrefix, pathRegexp string
	existing                          string
	timeout                           time.Duration
	absent                            []absentFlag
}

const (
	mechanismTCP  = "tcp"
	mechanismHTTP = "http"
)

func (f *interceptFlags) add(flags *pflag.FlagSet) {
	flags.SortFlags = false
	flags.StringArrayVarP(&f.ports, "port", "p", nil,
		"Local port, and the service port if there are several, by name or number: `LOCAL[:ID]` (default: the container's port)")
	flags.StringVar(&f.address, "address", "127.0.0.1", "Local `IP` address to which the requests are sent")
	flags.StringVarP(&f.workload, "workload", "w", "", "Workload to intercept, if the intercept is to have another name: `NAME` or KIND/NAME")
	flags.StringVarP(&f.deployment, "deployment", "d", "", "Same as --workload: `NAME`")
	flags.StringVar(&f.service, "service", "", "Service whose requests are meant, when several select the workload: `NAME`")
	flags.StringVar(&f.container, "container", "", "Container whose port is meant, when the port does not tell: `NAME`")
	flags.StringVar(&f.mechanism, "mechanism", "", "Take all connections (`tcp`, the default) or HTTP requests that match (http)")
	flags.StringArrayVar(&f.headers, "http-header", nil,
		"Take HTTP requests with this header, `NAME=VALUE` or 'NAME: VALUE'; can be repeated. A VALUE with regexp characters is an RE2 "+
			"expression for the whole value. \"auto\" is a header of your own, and the default with any other --http flag; \"all\" takes every "+
			"request. Implies --mechanism http")
	flags.StringArrayVar(&f.headers, "http-match", nil, "Same as --http-header")
	flags.StringArrayVar(&f.headers, "match", nil, "Same as --http-header")
	flags.StringVar(&f.pathEqual, "http-path-equal", "", "Take HTTP requests for this `PATH`. Implies --mechanism http")
	flags.StringVar(&f.pathPrefix, "http-path-prefix", "", "Take HTTP requests whose path begins with `PREFIX`. Implies --mechanism http")
	flags.StringVar(&f.pathRegexp, "http-path-regex", "", "Take HTTP requests whose whole path matches the RE2 expression `REGEX`. Implies --mechanism http")
	flags.StringVar(&f.existing, "existing", "auto",
		"Which `CONNECTIONS` that are already open are taken over: auto (those that carry what matches), idle, all or none")
	flags.DurationVar(&f.timeout, "timeout", 0, "How long to wait for all pods (default 30s)")
	f.absent = addAbsentFlags(flags)
	for _, name := range []string{"match"} {
		_ = flags.MarkHidden(name)
	}
}

// intercept names as the API server takes them.
var interceptName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

// request is what the flags ask for. It is checked here as far as that can be done without a cluster, before anything is started.
func (f *interceptFlags) request(name, namespace string, flags *pflag.FlagSet) (*daemonpb.InterceptRequest, error) {
	r := &daemonpb.InterceptRequest{
		Name: name, Namespace: namespace, Service: f.service, Container: f.container,
		Existing: f.existing, TimeoutMs: f.timeout.Milliseconds(),
	}
	for _, step := range []func(*daemonpb.InterceptRequest, *pflag.FlagSet) error{
		f.setWorkload, f.setPort, f.setAddress, f.setRules, f.checkRest,
	} {
		if err := step(r, flags); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (f *interceptFlags) setWorkload(r *daemonpb.InterceptRequest, _ *pflag.FlagSet) error {
	given := f.workload
	if f.deployment != "" {
		if given != "" && given != f.deployment {
			return usagef("--workload %s and --deployment %s name two workloads — leave one out", given, f.deployment)
		}
		given = f.deployment
	}
	r.Workload = given
	if given == "" {
		r.Workload = r.Name
	}
	if kind, name, ok := strings.Cut(r.Workload, "/"); ok {
		if r.WorkloadKind = workloadKind(kind); r.WorkloadKind == "" {
			return usagef("%s: unknown kind of workload %q — use deployment, replicaset or statefulset", r.Workload, kind)
		}
		r.Workload = name
		if given == "" {
			r.Name = name
		}
	}
	if given == "" && r.Namespace != "" {
		r.Name += "-" + r.Namespace
	}
	if !interceptName.MatchString(r.Name) || len(r.Name) > 253 {
		return usagef("%q cannot be the name of an intercept — use lower-case letters, digits, '-' and '.'", r.Name)
	}
	return nil
}

func workloadKind(word string) string {
	switch strings.TrimSuffix(strings.ToLower(word), ".apps") {
	case "deployment", "deployments", "deploy":
		return "Deployment"
	case "replicaset", "replicasets", "rs":
		return "ReplicaSet"
	case "statefulset", "statefulsets", "sts":
		return "StatefulSet"
	default:
		return ""
	}
}

func (f *interceptFlags) setPort(r *daemonpb.InterceptRequest, _ *pflag.FlagSet) error {
	if len(f.ports) == 0 {
		return nil
	}
	if len(f.ports) > 1 {
		return usagef("--port is given %d times and an intercept has one port — make an intercept for each", len(f.ports))
	}
	given := f.ports[0]
	local, id, _ := strings.Cut(given, ":")
	if strings.Contains(id, ":") {
		return usagef("--port %s: not of the form LOCAL[:ID]", given)
	}
	for _, part := range []*string{&local, &id} {
		port, protocol, ok := strings.Cut(*part, "/")
		switch {
		case !ok || strings.EqualFold(protocol, "tcp"):
			*part = port
		case strings.EqualFold(protocol, "udp"):
			return unavailable("--port "+given+": UDP is", "only TCP ports can be intercepted")
		default:
			return usagef("--port %s: unknown protocol %q — use TCP", given, protocol)
		}
	}
	if local != "" {
		port, err := strconv.ParseUint(local, 10, 16)
		if err != nil || port == 0 {
			return usagef("--port %s: %q is not a port number — write LOCAL[:ID], a local port number and then the service port's name or number", given, local)
		}
		r.LocalPort = int32(port)
	}
	if local == "" && id == "" {
		return usagef("--port %q: not of the form LOCAL[:ID]", given)
	}
	if number, err := strconv.Atoi(id); err == nil && (number < 1 || number > 65535) {
		return usagef("--port %s: %s is not a port number", given, id)
	}
	r.PortIdentifier = id
	return nil
}

func (f *interceptFlags) setAddress(r *daemonpb.InterceptRequest, _ *pflag.FlagSet) error {
	r.Address = strings.Trim(f.address, "[]")
	if r.Address == "localhost" {
		r.Address = "127.0.0.1"
	}
	if _, err := netip.ParseAddr(r.Address); err != nil {
		return usagef("--address %s: not an IP address", f.address)
	}
	return nil
}

func (f *interceptFlags) checkRest(r *daemonpb.InterceptRequest, _ *pflag.FlagSet) error {
	switch f.existing {
	case "auto", "idle", "all", "none":
	default:
		return usagef("--existing %s: unknown — use auto, idle, all or none", f.existing)
	}
	if f.timeout < 0 {
		return usagef("--timeout %s: less than nothing", f.timeout)
	}
	return nil
}
