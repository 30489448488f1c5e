// SPDX-License-Identifier: Apache-2.0

package resolve_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/manager/decide/resolve"
)

func TestWhatCannotBeResolvedIsExplained(t *testing.T) {
	for _, c := range []struct {
		name     string
		template corev1.PodTemplateSpec
		services []*corev1.Service
		ask      []func(*v1alpha1.InterceptSpec)
		reason   string
		message  string
	}{
		{"a workload that is not there", template(app), nil, ask(withWorkload("StatefulSet", "orders")),
			resolve.WorkloadNotFound,
			`there is no StatefulSet "orders" in namespace shop`},
		{"a kind that is not supported", template(app), nil, ask(withWorkload("Node", "orders")),
			resolve.WorkloadNotFound,
			`workloads of kind "Node" cannot be intercepted: use one of Deployment, StatefulSet, DaemonSet, Rollout, ReplicaSet, Pod, Job, CronJob`},
		{"several services", template(app),
			[]*corev1.Service{service("orders", http), service("canary", http)}, nil, resolve.ServiceAmbiguous,
			"2 services select the pods of Deployment orders: canary, orders — use --service to choose one"},
		{"a service that is not there", template(app), []*corev1.Service{service("orders", http)},
			ask(withService("order")), resolve.ServiceNotFound,
			`there is no service "order" in namespace shop; services of Deployment orders: orders`},
		{"a service that is not there, beside none", template(app), nil, ask(withService("order")),
			resolve.ServiceNotFound,
			`there is no service "order" in namespace shop; no service selects the pods of Deployment orders: leave out --service to intercept a port of the container`},
		{"a service of other pods", template(app),
			[]*corev1.Service{service("orders", http), other("stock")}, ask(withService("stock")),
			resolve.ServiceNotFound,
			`service "stock" does not select the pods of Deployment orders; services of Deployment orders: orders`},
		{"a service of other pods, beside none", template(app), []*corev1.Service{other("stock")},
			ask(withService("stock")), resolve.ServiceNotFound,
			`service "stock" does not select the pods of Deployment orders; no service selects the pods of Deployment orders: leave out --service to intercept a port of the container`},
		{"a service that leads out of the cluster", template(app),
			[]*corev1.Service{service("orders", http), external("bank")}, ask(withService("bank")),
			resolve.ServiceNotFound,
			`service "bank" is an ExternalName: it is another name for bank.example and leads to no pods; services of Deployment orders: orders`},
		{"a service without a selector", template(app), []*corev1.Service{manual("made")},
			ask(withService("made")), resolve.ServiceNotFound,
			`service "made" has no selector, so its endpoints are not known to be pods of Deployment orders; no service selects the pods of Deployment orders: leave out --service to intercept a port of the container`},
		{"several ports", template(app),
			[]*corev1.Service{service("orders", http, grpc, port("", 81, num(81)))}, nil, resolve.PortAmbiguous,
			"service orders has 3 ports: http/80, grpc/9090, 81 — use --port LOCAL:PORT to choose one"},
		{"a port that is not there", template(app), []*corev1.Service{service("orders", http, grpc)},
			ask(withPort("nosuch")), resolve.PortNotFound,
			"service orders has no port nosuch; it has: http/80, grpc/9090; the containers of Deployment orders have: web/8080"},
		{"a port that is not there, where containers declare none", template(container("app")),
			[]*corev1.Service{service("orders", grpc)}, ask(withPort("9001")), resolve.PortNotFound,
			"service orders has no port 9001; it has: grpc/9090"},
		{"a container port that the asked service does not have", template(container("app", named("web", 8080), named("admin", 9901))),
			[]*corev1.Service{service("orders", http)}, ask(withPort("admin"), withService("orders")), resolve.PortNotFound,
			"service orders has no port admin; it has: http/80; the containers of Deployment orders have: web/8080, admin/9901"},
		{"one name in two containers, which no service has",
			template(container("one", named("admin", 1)), container("two", named("admin", 2))), []*corev1.Service{service("orders", grpc)},
			ask(withPort("admin")), resolve.PortAmbiguous,
			"several ports of Deployment orders are called admin: admin/1, admin/2 — use --port LOCAL:NUMBER to choose one"},
		{"a UDP port, for HTTP requests", template(app),
			[]*corev1.Service{service("orders", udp(port("dns", 53, num(53))), http)},
			ask(withPort("dns"), withHTTP), resolve.ProtocolNotSupported,
			"port dns of service orders is not a TCP port, and only TCP carries HTTP requests: use --mechanism tcp to take all of a UDP port"},
		{"only UDP ports, for HTTP requests", template(app),
			[]*corev1.Service{service("orders", udp(port("dns", 53, num(53))))}, ask(withHTTP),
			resolve.ProtocolNotSupported,
			"service orders has no TCP port (it has dns/53/UDP), and only TCP carries HTTP requests: use --mechanism tcp to take all of a UDP port"},
		{"a UDP port, for a wiretap", template(app),
			[]*corev1.Service{service("orders", udp(port("dns", 53, num(53))), http)},
			ask(withPort("dns"), func(s *v1alpha1.InterceptSpec) { s.Wiretap = true }),
			resolve.ProtocolNotSupported,
			"port dns of service orders is not a TCP port, and a wiretap copies nothing else"},
		{"a UDP port, asked for as one of TCP", template(app),
			[]*corev1.Service{service("orders", udp(port("dns", 53, num(53))), http)},
			ask(withPort("dns"), withProtocol("TCP")), resolve.ProtocolNotSupported,
			"port dns of service orders is not a TCP port"},
		{"a TCP port, asked for as one of UDP", template(app),
			[]*corev1.Service{service("orders", http)}, ask(withPort("http"), withProtocol("UDP")),
			resolve.ProtocolNotSupported,
			"port http of service orders is not a UDP port"},
		{"a port of another protocol", template(app),
			[]*corev1.Service{service("orders", sctp(port("signal", 2905, num(2905))))}, nil,
			resolve.ProtocolNotSupported,
			"service orders has no TCP or UDP port (it has signal/2905/SCTP), and only TCP and UDP can be intercepted"},
		{"one number for TCP and UDP", template(app),
			[]*corev1.Service{service("orders", udp(port("dns", 53, num(53))),
				port("dns-tcp", 53, num(5353)))}, ask(withPort("53")), resolve.PortAmbiguous,
			"port 53 of service orders is there for TCP and for UDP: dns/53/UDP, dns-tcp/53 — use --port LOCAL:53/TCP or --port LOCAL:53/UDP to choose one"},
		{"several UDP ports", template(app),
			[]*corev1.Service{service("orders", udp(port("dns", 53, num(53))),
				udp(port("", 54, num(53))))}, nil, resolve.PortAmbiguous,
			"service orders has 2 ports: dns/53/UDP, 54/UDP — use --port LOCAL:PORT to choose one"},
		{"a target port that no pod has", template(app),
			[]*corev1.Service{service("orders", port("http", 80, str("www")))}, nil, resolve.PortNotFound,
			`port http of service orders leads to a container port named "www", which the pods of Deployment orders do not have`},
		{"a container that is not there", template(app, container("two")),
			[]*corev1.Service{service("orders", http)}, ask(withContainer("three")), resolve.ContainerNotFound,
			`Deployment orders has no container "three"; it has: app, two`},
		{"several container ports and no service",
			template(container("app", named("web", 80), named("", 81))), nil, nil, resolve.PortAmbiguous,
			"Deployment orders, which has no service, has 2 ports: web/80, 81 — use --port LOCAL:PORT to choose one"},
		{"a container port that is not there", template(app), nil, ask(withPort("80")), resolve.PortNotFound,
			"Deployment orders, which has no service, has no port 80; it has: web/8080"},
		{"one name in two containers and no service",
			template(container("one", named("web", 1)), container("two", named("web", 2))), nil,
			ask(withPort("web")), resolve.PortAmbiguous,
			"several ports of Deployment orders, which has no service, are called web: web/1, web/2 — use --port LOCAL:NUMBER to choose one"},
		{"no container ports and no service", template(container("app")), nil, nil, resolve.PortNotFound,
			"Deployment orders, which has no service, declares no container ports — use --port LOCAL:NUMBER to say which"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := resolve.Intercept(orders(c.template, c.services...), intercept(c.ask...))
			var bad *resolve.Invalid
			require.ErrorAs(t, err, &bad)
			assert.Equal(t, c.message, bad.Error())
			assert.Equal(t, c.reason, bad.Reason)
		})
	}
}
