// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/cli/output"
)

type flags struct {
	ports                             []string
	address                           string
	workload, deployment              string
	service, container                string
	mechanism                         string
	headers, matches, oldMatches      []string // the same flag in the spelling of three generations
	pathEqual, pathPrefix, pathRegexp string
	plaintext                         bool
	existing                          string
	timeout                           time.Duration
	docker                            dockerFlags
	containerPort                     int32 // of the container that is run
	toPod                             []string
	environment                       environmentFlags
	wiretap                           bool // the flags are those of a wiretap
	absent                            []absentFlag
}

const (
	mechanismTCP  = "tcp"
	mechanismHTTP = "http"
)

func (f *flags) add(flags *pflag.FlagSet) {
	flags.SortFlags = false
	flags.StringArrayVarP(&f.ports, "port", "p", nil,
		"Local port, as `LOCAL[:ID]`, where ID is the name or number of the service port if there are several, or "+
			"else of a container's port. /UDP or /TCP after it chooses if both use that number (default: the container's port)")
	flags.StringVar(&f.address, "address", "127.0.0.1", "Local `IP` address to which the requests are sent")
	flags.StringVarP(&f.workload, "workload", "w", "",
		"Workload, as `[KIND/]NAME`, if the intercept is to have another name")
	flags.StringVarP(&f.deployment, "deployment", "d", "", "Same as --workload, also as `[KIND/]NAME`")
	flags.StringVar(&f.service, "service", "",
		"`NAME` of the service, if several select the workload")
	flags.StringVar(&f.container, "container", "",
		"`NAME` of the container that has the environment, and the port if there is no service "+
			"(default: the container with the port)")
	flags.StringVar(&f.mechanism, "mechanism", "",
		"`MECHANISM`: tcp takes all connections, http the requests that match (default tcp, or http with --http flags)")
	flags.StringArrayVar(&f.headers, "http-header", nil,
		"Take requests with this `HEADER`, NAME=VALUE or 'NAME: VALUE'; can be repeated. A VALUE with regexp "+
			"characters is an RE2 expression "+
			"for the whole value. \"auto\" is a header of your own, and the default with any other --http flag; "+
			"\"all\" takes every request")
	flags.StringArrayVar(&f.matches, "http-match", nil, "Same as --http-header, with a `HEADER`")
	flags.StringArrayVar(&f.oldMatches, "match", nil, "Same as --http-header")
	flags.Var(&once{value: &f.pathEqual}, "http-path-equal", "Take requests for this `PATH`")
	flags.Var(&once{value: &f.pathPrefix}, "http-path-prefix",
		"Take requests whose path begins with this `PREFIX`")
	flags.Var(&once{value: &f.pathRegexp}, "http-path-regex",
		"Take requests whose whole path matches this RE2 `EXPRESSION`")
	flags.BoolVar(&f.plaintext, "plaintext", false,
		"With --http flags: the app behind the port speaks plaintext, although the port's name or appProtocol "+
			"says TLS")
	flags.BoolVar(&f.plaintext, "http-plaintext", false, "Same as --plaintext")
	if f.existing = "none"; !f.wiretap {
		flags.StringVar(&f.existing, "existing", "auto",
			"What happens to `CONNECTIONS` that are already open: idle ends those without traffic, all ends all of "+
				"them, none leaves them with the pods. auto is idle for tcp; for http it ends only a connection that "+
				"carries a matching request, before the pod sees that request")
	}
	flags.DurationVar(&f.timeout, "timeout", 0,
		"How long to wait until all pods send their traffic here (default 30s)")
	f.docker.add(flags)
	flags.StringSliceVar(&f.toPod, "to-pod", nil,
		"Make this `PORT` of an intercepted pod reachable at localhost:PORT of this laptop while the intercept "+
			"lasts, "+
			"for example a sidecar that listens on the pod's localhost; can be repeated, or a list")
	f.environment.add(flags)
	f.absent = addAbsentFlags(flags)
	_ = flags.MarkHidden("match")
	_ = flags.MarkHidden("http-plaintext")
}

// request returns the request that the flags ask for. It checks everything that needs no cluster,
// before anything is started.
func (f *flags) request(name, namespace string,
	flags *pflag.FlagSet) (*daemonpb.InterceptRequest, error) {
	r := &daemonpb.InterceptRequest{
		Name: name, Namespace: namespace, Service: f.service, Container: f.container,
		Wiretap: f.wiretap, Plaintext: f.plaintext, Existing: f.existing, TimeoutMs: f.timeout.Milliseconds(),
	}
	for _, step := range []func(*daemonpb.InterceptRequest, *pflag.FlagSet) error{
		f.setWorkload, f.setPort, f.setAddress, f.setToPod, f.setRules, f.checkRest,
	} {
		if err := step(r, flags); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (f *flags) setWorkload(r *daemonpb.InterceptRequest, _ *pflag.FlagSet) error {
	given := f.workload
	if f.deployment != "" {
		if given != "" && given != f.deployment {
			return output.Usagef("--workload %s and --deployment %s name two workloads", given, f.deployment).
				Advise("leave one out")
		}
		given = f.deployment
	}
	r.Workload = given
	if given == "" {
		r.Workload = r.Name
	}
	if kind, name, ok := strings.Cut(r.Workload, "/"); ok {
		if r.WorkloadKind = workloadKind(kind); r.WorkloadKind == "" {
			return output.Usagef("%s: unknown kind of workload %q", r.Workload, kind).
				Advise("use deployment, statefulset, daemonset, rollout, replicaset, pod, job or cronjob")
		}
		r.Workload = name
		if given == "" {
			r.Name = name
		}
	}
	if given == "" && r.Namespace != "" {
		r.Name += "-" + r.Namespace
	}
	if !v1alpha1.ValidName(r.Name) {
		return output.Usagef("%q cannot be the name of an intercept", r.Name).
			Advise("use lower-case letters, digits, '-' and '.'")
	}
	return nil
}

func workloadKind(word string) string {
	resource, _, _ := strings.Cut(strings.ToLower(word), ".") // as in deployments.apps
	switch resource {
	case "deployment", "deployments", "deploy":
		return "Deployment"
	case "replicaset", "replicasets", "rs":
		return "ReplicaSet"
	case "statefulset", "statefulsets", "sts":
		return "StatefulSet"
	case "daemonset", "daemonsets", "ds":
		return "DaemonSet"
	case "rollout", "rollouts", "ro":
		return "Rollout"
	case "pod", "pods", "po":
		return "Pod"
	case "job", "jobs":
		return "Job"
	case "cronjob", "cronjobs", "cj":
		return "CronJob"
	default:
		return ""
	}
}

func (f *flags) setPort(r *daemonpb.InterceptRequest, _ *pflag.FlagSet) error {
	switch {
	case len(f.ports) == 0 && f.docker.wanted():
		return output.Usagef("--docker-run needs --port LOCAL:CONTAINER[:ID], where CONTAINER is the port that " +
			"the container listens on")
	case len(f.ports) == 0:
		return nil
	}
	if len(f.ports) > 1 {
		return output.Usagef("--port is given %d times and an intercept has one port", len(f.ports)).
			Advise("make an intercept for each")
	}
	given := f.ports[0]
	local, id, _ := strings.Cut(given, ":")
	if f.docker.wanted() {
		var err error
		if id, err = f.cutContainerPort(given, id); err != nil {
			return err
		}
	}
	if strings.Contains(id, ":") {
		return output.Usagef("--port %s: not of the form LOCAL[:ID]", given)
	}
	for _, part := range []*string{&local, &id} {
		port, word, ok := strings.Cut(*part, "/")
		protocol := strings.ToUpper(word)
		switch {
		case ok && protocol != "TCP" && protocol != "UDP":
			return output.Usagef("--port %s: unknown protocol %q", given, word).
				Advise("use TCP or UDP")
		case protocol == "UDP" && f.wiretap:
			return output.Usagef("--port %s: a wiretap copies TCP connections, or HTTP requests", given).
				Advise("use intercept for a UDP port")
		case ok && r.Protocol != "" && r.Protocol != protocol:
			return output.Usagef("--port %s: it is TCP or UDP on both sides", given).
				Advise("leave one out")
		case ok:
			r.Protocol = protocol
		}
		*part = port
	}
	if local != "" {
		port, err := strconv.ParseUint(local, 10, 16)
		if err != nil || port == 0 {
			return output.Usagef("--port %s: %q is not a port number", given, local).
				Advise("write LOCAL[:ID], a local port number and then the service port's name or number")
		}
		r.LocalPort = int32(port)
	}
	if local == "" && id == "" {
		return output.Usagef("--port %q: not of the form LOCAL[:ID]", given)
	}
	if number, err := strconv.Atoi(id); err == nil && (number < 1 || number > 65535) {
		return output.Usagef("--port %s: %s is not a port number", given, id)
	}
	r.PortIdentifier = id
	return nil
}

// cutContainerPort cuts CONTAINER off CONTAINER[:ID].
func (f *flags) cutContainerPort(given, rest string) (id string, err error) {
	container, id, _ := strings.Cut(rest, ":")
	container, protocol, ok := strings.Cut(container, "/")
	if ok && id == "" {
		id = "/" + protocol // of the service port, then
	}
	port, err := strconv.ParseUint(container, 10, 16)
	if err != nil || port == 0 {
		return "", output.Usagef("--port %s: with --docker-run it is LOCAL:CONTAINER[:ID], where CONTAINER is "+
			"the port that the container listens on", given)
	}
	f.containerPort = int32(port)
	return id, nil
}

func (f *flags) setToPod(r *daemonpb.InterceptRequest, _ *pflag.FlagSet) error {
	if f.wiretap && len(f.toPod) > 0 {
		return output.Unavailable("--to-pod beside a wiretap is", "use it with `intercept`")
	}
	for _, given := range f.toPod {
		text, protocol, ok := strings.Cut(strings.TrimSpace(given), "/")
		switch {
		case ok && strings.EqualFold(protocol, "udp"):
			return output.Unavailable("--to-pod "+given+": UDP is", "only TCP ports of pods can be reached")
		case ok && !strings.EqualFold(protocol, "tcp"):
			return output.Usagef("--to-pod %s: unknown protocol %q", given, protocol).
				Advise("use TCP")
		}
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			return output.Usagef("--to-pod %s: %q is not a port number", given, text).
				Advise("it is the same port on this laptop and in the pod")
		}
		if int32(port) == r.LocalPort {
			return output.Usagef("--to-pod %s: the intercept's requests go to port %d of this laptop", given, port).
				Advise("choose another port with --port")
		}
		r.ToPod = append(r.ToPod, int32(port))
	}
	return nil
}

func (f *flags) setAddress(r *daemonpb.InterceptRequest, _ *pflag.FlagSet) error {
	r.Address = strings.Trim(f.address, "[]")
	if r.Address == "localhost" {
		r.Address = "127.0.0.1"
	}
	if _, err := netip.ParseAddr(r.Address); err != nil {
		return output.Usagef("--address %s: not an IP address", f.address)
	}
	return nil
}

func (f *flags) checkRest(r *daemonpb.InterceptRequest, flags *pflag.FlagSet) error {
	if !slices.Contains(v1alpha1.ExistingWords(), f.existing) {
		return output.Usagef("--existing %s: unknown", f.existing).
			Advise("use one of %s", strings.Join(v1alpha1.ExistingWords(), ", "))
	}
	if f.timeout < 0 {
		return output.Usagef("--timeout %s must not be negative", f.timeout)
	}
	return f.environment.check(flags)
}
