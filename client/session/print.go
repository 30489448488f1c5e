// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/intercept"
	"sidestep.dev/sidestep/client/workload"
)

// servicesTimeout bounds the requests for services whose ports matter for what is printed.
const servicesTimeout = 2 * time.Second

// Print returns what is shown about intercepts. services may be nil. Services that are needed and
// missing in it are requested.
func (s *Session) Print(ctx context.Context, all []*v1alpha1.Intercept,
	services map[client.ObjectKey]*corev1.Service) []*daemonpb.InterceptInfo {
	state, _ := s.Link.State()
	several := s.severalPorts(ctx, all, services, state.Connected)
	infos := make([]*daemonpb.InterceptInfo, len(all))
	for i, object := range all {
		infos[i] = intercept.Print(object, several[serviceKey(object)] ||
			object.Status.ServicePort == 0 && object.Spec.Port != "")
		mine := object.Spec.Client.Session == s.Client.Session
		if mine && !state.Connected && infos[i].State == string(v1alpha1.StateActive) {
			// The API has not been told yet, or the manager cannot tell it.
			infos[i].State = string(v1alpha1.StateDisconnected)
			infos[i].Message = "not connected to the traffic manager; the pods answer meanwhile"
			if object.Spec.Wiretap {
				infos[i].Message = "not connected to the traffic manager; nothing is copied meanwhile"
			}
		}
	}
	return infos
}

func serviceKey(i *v1alpha1.Intercept) client.ObjectKey {
	return client.ObjectKey{Namespace: i.Namespace, Name: i.Status.Service}
}

// severalPorts returns which services have more than one port. If the API does not answer, or most
// likely will not, it returns what was last known.
func (s *Session) severalPorts(ctx context.Context, all []*v1alpha1.Intercept,
	known map[client.ObjectKey]*corev1.Service, now bool) map[client.ObjectKey]bool {
	several := map[client.ObjectKey]bool{}
	ask := map[client.ObjectKey]bool{}
	for _, i := range all {
		k := serviceKey(i)
		if service, ok := known[k]; ok {
			several[k] = workload.SeveralPorts(service)
		} else if k.Name != "" {
			ask[k] = true
		}
	}
	if len(ask) == 0 {
		return several
	}
	if !now {
		s.mu.Lock()
		defer s.mu.Unlock()
		for k := range ask {
			several[k] = s.ports[k.String()]
		}
		return several
	}
	ctx, cancel := context.WithTimeout(ctx, servicesTimeout)
	defer cancel()
	var asking sync.WaitGroup
	for k := range ask {
		asking.Go(func() {
			service, err := s.service(ctx, k)
			s.mu.Lock()
			defer s.mu.Unlock()
			if err == nil {
				s.ports[k.String()] = workload.SeveralPorts(service)
			}
			several[k] = s.ports[k.String()]
		})
	}
	asking.Wait()
	return several
}

func (s *Session) service(ctx context.Context, k client.ObjectKey) (*corev1.Service, error) {
	cluster, err := s.Source.Cluster()
	if err != nil {
		return nil, err
	}
	api, err := cluster.Client()
	if err != nil {
		return nil, err
	}
	service := &corev1.Service{}
	return service, api.Get(ctx, k, service)
}
