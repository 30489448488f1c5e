// SPDX-License-Identifier: Apache-2.0

package resolve_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/rollout"
	"sidestep.dev/sidestep/manager/decide/resolve"
)

var (
	num  = intstr.FromInt32
	str  = intstr.FromString
	app  = container("app", named("web", 8080))
	http = port("http", 80, str("web"))
	grpc = port("grpc", 9090, num(9000))
	// http2 leads to a port that the container need not declare.
	http2 = port("h2", 81, num(8081))
)

func TestPortIsFound(t *testing.T) {
	headless := service("orders", http)
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	dns := service("orders", udp(port("dns", 53, num(53))), port("dns-tcp", 53, num(5353)))

	type want struct {
		service   string
		port      string
		number    int32
		target    int32
		container string
	}
	for _, c := range []struct {
		name     string
		template corev1.PodTemplateSpec
		services []*corev1.Service
		ask      []func(*v1alpha1.InterceptSpec)
		want     want
	}{
		{"the only port of the only service is taken", template(app),
			[]*corev1.Service{service("orders", http)}, nil, want{"orders", "http", 80, 8080, "app"}},
		{"a port is asked for by name", template(app), []*corev1.Service{service("orders", http, grpc)},
			ask(withPort("grpc")), want{"orders", "grpc", 9090, 9000, "app"}},
		{"a port is asked for by number", template(app),
			[]*corev1.Service{service("orders", http, grpc)}, ask(withPort("80")),
			want{"orders", "http", 80, 8080, "app"}},
		{"a container port is asked for by number", template(app), []*corev1.Service{service("orders", grpc, http)},
			ask(withPort("8080")), want{"orders", "http", 80, 8080, "app"}},
		{"a container port is asked for by name", template(app), []*corev1.Service{service("orders", grpc, http)},
			ask(withPort("web")), want{"orders", "http", 80, 8080, "app"}},
		{"a container port that is not declared is asked for by number", template(container("app")),
			[]*corev1.Service{service("orders", http2, grpc)}, ask(withPort("9000")), want{"orders", "grpc", 9090, 9000, "app"}},
		{"a container port's name leads to the service port with its number", template(container("app", named("rpc", 9000))),
			[]*corev1.Service{service("orders", http2, grpc)}, ask(withPort("rpc")), want{"orders", "grpc", 9090, 9000, "app"}},
		{"the service port comes before the container port of that number",
			template(container("app", named("admin", 80), named("web", 8080))), []*corev1.Service{service("orders", http)},
			ask(withPort("80")), want{"orders", "http", 80, 8080, "app"}},
		{"a container port that no service has is asked for by number",
			template(container("app", named("web", 8080), named("admin", 9901))), []*corev1.Service{service("orders", http)},
			ask(withPort("9901")), want{"", "admin", 0, 9901, "app"}},
		{"a container port that no service has is asked for by name",
			template(container("app", named("web", 8080), named("admin", 9901))), []*corev1.Service{service("orders", http)},
			ask(withPort("admin")), want{"", "admin", 0, 9901, "app"}},
		{"a port without a name is called by its number", template(app),
			[]*corev1.Service{service("orders", port("", 80, num(8080)))}, nil,
			want{"orders", "80", 80, 8080, "app"}},
		{"a target port that is not given is the service port", template(app),
			[]*corev1.Service{service("orders", port("", 8080, num(0)))}, nil,
			want{"orders", "8080", 8080, 8080, "app"}},
		{"a headless service is one like any other", template(app), []*corev1.Service{headless}, nil,
			want{"orders", "http", 80, 8080, "app"}},
		{"one of several services is asked for", template(app),
			[]*corev1.Service{service("canary", http), service("orders", grpc)},
			ask(withService("orders")), want{"orders", "grpc", 9090, 9000, "app"}},
		{"services that lead nowhere do not count", template(app),
			[]*corev1.Service{external("bank"), manual("made"), service("orders", http)}, nil,
			want{"orders", "http", 80, 8080, "app"}},
		{"a UDP port beside the TCP port does not make it ambiguous", template(app),
			[]*corev1.Service{service("orders", udp(port("dns", 53, num(53))), http)}, nil,
			want{"orders", "http", 80, 8080, "app"}},
		{"one number for TCP and UDP is the one of TCP if that is asked for", template(app),
			[]*corev1.Service{dns}, ask(withPort("53"), withProtocol("TCP")),
			want{"orders", "dns-tcp", 53, 5353, "app"}},
		{"one number for TCP and UDP is the one of UDP if that is asked for", template(app),
			[]*corev1.Service{dns}, ask(withPort("53"), withProtocol("UDP")),
			want{"orders", "dns/UDP", 53, 53, "app"}},
		{"one number for TCP and UDP is the one of TCP for HTTP requests", template(app),
			[]*corev1.Service{dns}, ask(withPort("53"), withHTTP), want{"orders", "dns-tcp", 53, 5353, "app"}},
		{"a UDP port is found by its name", template(app),
			[]*corev1.Service{service("orders", http, udp(port("dns", 53, num(5300))))},
			ask(withPort("dns")), want{"orders", "dns/UDP", 53, 5300, "app"}},
		{"a UDP port is found by its number", template(app),
			[]*corev1.Service{service("orders", http, udp(port("dns", 53, num(5300))))},
			ask(withPort("53")), want{"orders", "dns/UDP", 53, 5300, "app"}},
		{"the only UDP port is taken if one is asked for", template(app),
			[]*corev1.Service{service("orders", http, udp(port("dns", 53, num(5300))))},
			ask(withProtocol("UDP")), want{"orders", "dns/UDP", 53, 5300, "app"}},
		{"the only port is taken, though it is of UDP", template(app),
			[]*corev1.Service{service("orders", udp(port("dns", 53, num(5300))))}, nil,
			want{"orders", "dns/UDP", 53, 5300, "app"}},
		{"a UDP port's target is looked for among those of UDP",
			template(container("app", named("dns", 7000), udpContainer("dns", 7001))),
			[]*corev1.Service{service("orders", udp(port("dns", 53, str("dns"))))}, nil,
			want{"orders", "dns/UDP", 53, 7001, "app"}},
		{"without a service a UDP container port is found",
			template(container("app", named("web", 80), udpContainer("dns", 53))), nil,
			ask(withPort("dns")), want{"", "dns/UDP", 0, 53, "app"}},
		{"without a service and declared ports a number is one of UDP if that is asked for",
			template(container("app")), nil, ask(withPort("6379"), withProtocol("UDP")),
			want{"", "6379/UDP", 0, 6379, "app"}},
		{"the container that declares the port is meant", template(container("mesh"), app),
			[]*corev1.Service{service("orders", http)}, nil, want{"orders", "http", 80, 8080, "app"}},
		{"the first container is meant when none declares the port",
			template(container("one"), container("two")), []*corev1.Service{service("orders", grpc)},
			nil, want{"orders", "grpc", 9090, 9000, "one"}},
		{"the container that is asked for is meant", template(container("one"), container("two")),
			[]*corev1.Service{service("orders", grpc)}, ask(withContainer("two")),
			want{"orders", "grpc", 9090, 9000, "two"}},
		{"without a service the only container port is taken", template(app), nil, nil,
			want{"", "web", 0, 8080, "app"}},
		{"without a service a container port is asked for by number",
			template(container("app", named("", 7000), named("", 7001))), nil, ask(withPort("7001")),
			want{"", "7001", 0, 7001, "app"}},
		{"without a service the container narrows the choice",
			template(container("one", named("web", 1)), container("two", named("web", 2))), nil,
			ask(withContainer("two")), want{"", "web", 0, 2, "two"}},
		{"without a service and declared ports a number is taken at its word",
			template(container("app")), nil, ask(withPort("6379")), want{"", "6379", 0, 6379, "app"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, err := resolve.Intercept(orders(c.template, c.services...), intercept(c.ask...))
			require.NoError(t, err)
			if res.Protocol != v1alpha1.ProtocolTCP {
				res.Port += "/" + string(res.Protocol)
			}
			assert.Equal(t, c.want, want{res.Service, res.Port, res.ServicePort, res.TemplatePort,
				res.Container})
			require.Len(t, res.Pods, 1)
			assert.Equal(t, c.want.target, res.Pods[0].Port)
			assert.True(t, res.Pods[0].Counts)
		})
	}
}

func ask(f ...func(*v1alpha1.InterceptSpec)) []func(*v1alpha1.InterceptSpec) { return f }

func other(name string) *corev1.Service {
	s := service(name, http)
	s.Spec.Selector = map[string]string{"app": name}
	return s
}

func external(name string) *corev1.Service {
	s := service(name, http)
	s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, name+".example"
	return s
}

func manual(name string) *corev1.Service {
	s := service(name, http)
	s.Spec.Selector = nil
	return s
}

func TestPodsOfEachKindOfWorkloadAreFound(t *testing.T) {
	c := orders(template(app), service("orders", http))
	c.replicaSets["orders-2"] = &appsv1.ReplicaSet{ObjectMeta: meta("orders-2", "Deployment", "orders"),
		Spec: appsv1.ReplicaSetSpec{Template: template(app)}}
	c.statefulSets = map[string]*appsv1.StatefulSet{"db": {ObjectMeta: meta("db", "", ""),
		Spec: appsv1.StatefulSetSpec{Template: template(app)}}}
	c.daemonSets = map[string]*appsv1.DaemonSet{"log": {ObjectMeta: meta("log", "", ""),
		Spec: appsv1.DaemonSetSpec{Template: template(app)}}}
	tmpl := template(app)
	c.rollouts = map[string]*rollout.Rollout{"echo": {ObjectMeta: meta("echo", "", ""), Template: &tmpl}}
	c.replicaSets["echo-1"] = &appsv1.ReplicaSet{ObjectMeta: meta("echo-1", "Rollout", "echo"),
		Spec: appsv1.ReplicaSetSpec{Template: template(app)}}
	c.jobs = map[string]*batchv1.Job{
		"import":   {ObjectMeta: meta("import", "", ""), Spec: batchv1.JobSpec{Template: template(app)}},
		"report-1": {ObjectMeta: meta("report-1", "CronJob", "report"), Spec: batchv1.JobSpec{Template: template(app)}},
		"report-2": {ObjectMeta: meta("report-2", "CronJob", "report"), Spec: batchv1.JobSpec{Template: template(app)}},
	}
	c.cronJobs = map[string]*batchv1.CronJob{"report": {ObjectMeta: meta("report", "", ""), Spec: batchv1.CronJobSpec{
		JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: template(app)}}}}}
	spec := template(app).Spec
	c.pods = append(c.pods, pod("orders-2-a", "ReplicaSet", "orders-2", spec),
		pod("db-0", "StatefulSet", "db", spec), pod("stray", "", "", spec),
		pod("log-x", "DaemonSet", "log", spec), pod("echo-1-a", "ReplicaSet", "echo-1", spec),
		pod("clone-a", "CloneSet", "clone", spec), pod("import-a", "Job", "import", spec),
		pod("report-1-a", "Job", "report-1", spec), pod("report-2-a", "Job", "report-2", spec))
	for _, tc := range []struct {
		kind, name string
		owners     []types.UID
		pods       []string
	}{
		{"Deployment", "orders", []types.UID{"orders", "orders-1", "orders-2"},
			[]string{"orders-1-a", "orders-2-a"}},
		{"ReplicaSet", "orders-2", []types.UID{"orders-2"}, []string{"orders-2-a"}},
		{"StatefulSet", "db", []types.UID{"db"}, []string{"db-0"}},
		{"DaemonSet", "log", []types.UID{"log"}, []string{"log-x"}},
		{"Rollout", "echo", []types.UID{"echo", "echo-1"}, []string{"echo-1-a"}},
		{"ReplicaSet", "echo-1", []types.UID{"echo-1"}, []string{"echo-1-a"}},
		{"Pod", "stray", []types.UID{"stray"}, []string{"stray"}},
		{"Pod", "clone-a", []types.UID{"clone-a"}, []string{"clone-a"}},
		{"Job", "import", []types.UID{"import"}, []string{"import-a"}},
		{"Pod", "import-a", []types.UID{"import-a"}, []string{"import-a"}}, // as it was before Jobs could be named
		{"CronJob", "report", []types.UID{"report", "report-1", "report-2"}, []string{"report-1-a", "report-2-a"}},
	} {
		t.Run(tc.kind+" "+tc.name, func(t *testing.T) {
			res, err := resolve.Intercept(c, intercept(withWorkload(tc.kind, tc.name)))
			require.NoError(t, err)
			assert.ElementsMatch(t, tc.owners, res.Owners)
			assert.Equal(t, tc.pods, podNames(res))
		})
	}
}

func TestHolderThatKnowsNothingOfUDPGetsNone(t *testing.T) {
	ic := intercept()
	ic.Annotations = nil
	both := orders(template(app),
		service("orders", udp(port("dns", 53, num(53))), port("dns-tcp", 53, num(5353))))
	ic.Spec.Port = "53"
	res, err := resolve.Intercept(both, ic)
	require.NoError(t, err)
	assert.Equal(t, "dns-tcp", res.Port, "as it always was")
	ic.Spec.Port = "dns"
	_, err = resolve.Intercept(both, ic)
	assert.EqualError(t, err,
		"port dns of service orders is not a TCP port, and the program that asks is older than the traffic manager and knows nothing else")
}

func podNames(res *resolve.Resolution) []string {
	var names []string
	for _, p := range res.Pods {
		names = append(names, p.Name)
	}
	return names
}

func TestWhichPodsAreSteered(t *testing.T) {
	notReady := func(p *corev1.Pod) { p.Status.Conditions = nil }
	terminating := func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }
	phase := func(ph corev1.PodPhase) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Status.Phase = ph } }
	for _, c := range []struct {
		name    string
		change  []func(*corev1.Pod)
		steered bool
		ready   bool
	}{
		{"a ready pod is steered and counts", nil, true, true},
		{"a pod that is not ready is steered, so that it is when it becomes ready",
			[]func(*corev1.Pod){notReady}, true, false},
		{"a pod whose init containers run is steered",
			[]func(*corev1.Pod){notReady, phase(corev1.PodPending)}, true, false},
		{"a terminating pod is steered while it serves, and counts while no other pod does",
			[]func(*corev1.Pod){terminating}, true, true},
		{"a terminating pod that no longer serves is let go",
			[]func(*corev1.Pod){terminating, notReady}, false, false},
		{"a pod that has ended is let go", []func(*corev1.Pod){phase(corev1.PodSucceeded)}, false, false},
		{"a pod without an address cannot be",
			[]func(*corev1.Pod){func(p *corev1.Pod) { p.Status.PodIP = "" }}, false, false},
		{"a pod without a node cannot be",
			[]func(*corev1.Pod){func(p *corev1.Pod) { p.Spec.NodeName = "" }}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := orders(template(app), service("orders", http))
			cl.pods = []*corev1.Pod{pod("p", "ReplicaSet", "orders-1", template(app).Spec, c.change...)}
			res, err := resolve.Intercept(cl, intercept())
			require.NoError(t, err)
			require.Equal(t, c.steered, len(res.Pods) == 1)
			if c.steered {
				assert.Equal(t, c.ready, res.Pods[0].Counts)
			}
		})
	}
}

func TestPodsCountAsEndpointSlicesHaveThem(t *testing.T) {
	notReady := func(p *corev1.Pod) { p.Status.Conditions = nil }
	terminating := func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }
	counting := func(cl *cluster) (names []string) {
		res, err := resolve.Intercept(cl, intercept())
		require.NoError(t, err)
		for _, p := range res.Pods {
			if p.Counts {
				names = append(names, p.Name)
			}
		}
		return names
	}
	of := func(name string, change ...func(*corev1.Pod)) *corev1.Pod {
		p := pod(name, "ReplicaSet", "orders-1", template(app).Spec, change...)
		p.Labels = template(app).Labels
		return p
	}
	cl := orders(template(app), service("orders", http))
	cl.pods = []*corev1.Pod{of("leaving", terminating), of("new"), of("starting", notReady)}
	assert.Equal(t, []string{"new"}, counting(cl))
	cl.pods = []*corev1.Pod{of("leaving", terminating), of("starting", notReady)}
	assert.Equal(t, []string{"leaving"}, counting(cl), "nobody else takes new connections")

	peers := service("peers", http)
	peers.Spec.PublishNotReadyAddresses = true
	cl.services = append(cl.services, peers)
	ic := intercept()
	ic.Spec.Service = "orders"
	res, err := resolve.Intercept(cl, ic)
	require.NoError(t, err)
	require.Len(t, res.Pods, 2)
	assert.True(t, res.Pods[1].Counts, "a service that the intercept does not name leads to it")
	assert.False(t, res.Pods[0].Counts, "another pod serves")
}

func TestNamedPortMayDifferFromPodToPodDuringARollout(t *testing.T) {
	c := orders(template(app), service("orders", http))
	c.pods = append(c.pods,
		pod("old", "ReplicaSet", "orders-1", template(container("app", named("web", 3000))).Spec),
		pod("older", "ReplicaSet", "orders-1", template(container("app")).Spec))
	res, err := resolve.Intercept(c, intercept())
	require.NoError(t, err)
	require.Equal(t, []string{"old", "older", "orders-1-a"}, podNames(res))
	assert.EqualValues(t, 3000, res.Pods[0].Port)
	assert.EqualValues(t, 0, res.Pods[1].Port)
	assert.Equal(t, "the pod has no TCP container port named web, so the service does not lead to it",
		res.Pods[1].Problem)
	assert.EqualValues(t, 8080, res.Pods[2].Port)
}

func TestNamedPortOfARestartingInitContainerCounts(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	tmpl := template(container("app"))
	side := container("side", named("web", 8081))
	side.RestartPolicy = &always
	tmpl.Spec.InitContainers = []corev1.Container{container("setup", named("web", 1)), side}
	res, err := resolve.Intercept(orders(tmpl, service("orders", http)), intercept())
	require.NoError(t, err)
	assert.EqualValues(t, 8081, res.Pods[0].Port)
	assert.Equal(t, "side", res.Container)
}
