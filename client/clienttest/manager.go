// SPDX-License-Identifier: Apache-2.0

package clienttest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/tunnel"
)

// Namespace of the installation.
const Namespace = names.Sidestep

// Manager is a manager that does what tests tell it to.
type Manager struct {
	clientpb.UnimplementedClientsServer
	Protocol   uint32 // the protocol that it claims to speak
	Refuses    error  // its answer to every laptop, if not nil
	Newer      bool   // its messages have fields and kinds that the client cannot know
	NoWiretaps bool   // it supports none
	Proof      bool   // it refuses laptops without a Login
	Forgets    int    // so many of this laptop's Logins prove nothing to it

	api         *APIServer
	certificate *tls.Certificate
	again       chan struct{} // judge again

	mu        sync.Mutex
	server    *grpc.Server
	sessions  map[string]clientpb.Clients_SessionServer // by hash of the key
	hellos    []*clientpb.ClientHello
	forgotten []string // names of Logins
	parked    map[string]chan *parked
	judge     func(*v1alpha1.Intercept) *v1alpha1.InterceptStatus
	pod       *corev1.Pod
	starts    int
	counted   []*clientpb.InterceptTraffic

	toPod       func(*tunnelpb.Open) string
	environment func(*clientpb.EnvironmentRequest) (*clientpb.EnvironmentReply, error)
}

// NewManager installs a manager in a cluster. Intercepts become active as soon as they are made,
// unless Judge says otherwise.
func NewManager(t testing.TB, api *APIServer) *Manager {
	m := &Manager{
		Protocol: 1, api: api, judge: Active,
		sessions: map[string]clientpb.Clients_SessionServer{}, parked: map[string]chan *parked{},
		again: make(chan struct{}, 1),
	}
	m.Rotate(t)
	m.Start(t)
	ctx, cancel := context.WithCancel(context.Background())
	var control sync.WaitGroup
	control.Go(func() { m.control(ctx) })
	t.Cleanup(func() {
		m.Kill()
		cancel()
		control.Wait()
	})
	return m
}

// Rotate replaces the manager's authority and certificate. Connections that there are go on.
func (m *Manager) Rotate(t testing.TB) {
	ca, certificate := certificates(t)
	config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: names.CA},
		Data: map[string]string{names.CACert: ca}}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.certificate != nil {
		m.api.Remove(t, config)
	}
	m.api.Add(t, config)
	m.certificate = &certificate
}

func (m *Manager) shows(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.certificate, nil
}

// Start starts a new pod of the manager.
func (m *Manager) Start(t testing.TB) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer(append(tunnel.ServerOptions(),
		grpc.Creds(credentials.NewTLS(&tls.Config{GetCertificate: m.shows})))...)
	clientpb.RegisterClientsServer(server, m)
	go func() { _ = server.Serve(listener) }()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.starts++
	name := fmt.Sprintf("sidestep-manager-%d", m.starts)
	m.api.forwards.set(Namespace, name, listener.Addr().String())
	m.pod = &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name, Labels: map[string]string{
			names.LabelName: names.Sidestep, names.LabelComponent: names.ComponentManager,
		}},
		Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady,
			Status: corev1.ConditionTrue}}},
	}
	m.api.Add(t, m.pod)
	m.server = server
}

// Kill ends the manager's pod at once.
func (m *Manager) Kill() {
	m.mu.Lock()
	server, pod := m.server, m.pod
	m.server, m.pod = nil, nil
	m.mu.Unlock()
	if server == nil {
		return
	}
	server.Stop()
	m.api.store.delete(objectKey{"pods", pod.Namespace, pod.Name}, "")
}

// Judge decides the status of intercepts from now on. If judge returns nil, a status stays as it
// is.
func (m *Manager) Judge(judge func(*v1alpha1.Intercept) *v1alpha1.InterceptStatus) {
	m.mu.Lock()
	m.judge = judge
	m.mu.Unlock()
	select {
	case m.again <- struct{}{}:
	default:
	}
}

// Active returns the status of an intercept that works: one pod steers its port 8080, of service
// port http.
func Active(i *v1alpha1.Intercept) *v1alpha1.InterceptStatus {
	port := i.Spec.Port
	if port == "" {
		port = "http"
	}
	protocol := i.Spec.Protocol
	if protocol == v1alpha1.ProtocolTCP {
		protocol = ""
	}
	return &v1alpha1.InterceptStatus{
		Protocol: protocol,
		State:    v1alpha1.StateActive, Service: i.Spec.Workload.Name, Port: port, ServicePort: 80,
		Coverage: "1/1",
		Pods: []v1alpha1.PodStatus{{Name: i.Spec.Workload.Name + "-0", Node: "node1", Port: 8080,
			Steering: true}},
	}
}

// State returns a judge whose status has only a state and a message.
func State(state v1alpha1.State, message string) func(*v1alpha1.Intercept) *v1alpha1.InterceptStatus {
	return func(*v1alpha1.Intercept) *v1alpha1.InterceptStatus {
		return &v1alpha1.InterceptStatus{State: state, Message: message}
	}
}

// control writes the status of every intercept whose status differs from the judge's.
func (m *Manager) control(ctx context.Context) {
	for {
		_, _, changed := m.api.store.since(0)
		m.mu.Lock()
		judge := m.judge
		m.mu.Unlock()
		for _, i := range m.api.Intercepts() {
			status := judge(&i)
			if status == nil {
				continue
			}
			status.ObservedGeneration = i.Generation
			if reflect.DeepEqual(*status, i.Status) {
				continue
			}
			i.Status = *status
			m.api.store.update(objectKey{"intercepts", i.Namespace, i.Name}, toUnstructured(&i), true)
		}
		select {
		case <-changed:
		case <-m.again:
		case <-ctx.Done():
			return
		}
	}
}

// Intercepts lists the stored Intercepts.
func (a *APIServer) Intercepts() []v1alpha1.Intercept {
	items, _ := a.store.list("intercepts", "", func(*unstructured.Unstructured) bool { return true })
	found := make([]v1alpha1.Intercept, len(items))
	for i, item := range items {
		data, _ := json.Marshal(item)
		_ = json.Unmarshal(data, &found[i])
	}
	return found
}

// Logins lists the stored Logins.
func (a *APIServer) Logins() []v1alpha1.Login {
	items, _ := a.store.list("logins", "", func(*unstructured.Unstructured) bool { return true })
	found := make([]v1alpha1.Login, len(items))
	for i, item := range items {
		data, _ := json.Marshal(item)
		_ = json.Unmarshal(data, &found[i])
	}
	return found
}

// proven reports whether the session with this key hash has a Login that counts.
func (m *Manager) proven(hash string) bool {
	logins := slices.DeleteFunc(m.api.Logins(), func(l v1alpha1.Login) bool { return l.Spec.KeyHash != hash })
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range logins {
		if !slices.Contains(m.forgotten, l.Name) && len(m.forgotten) < m.Forgets {
			m.forgotten = append(m.forgotten, l.Name)
		}
	}
	return slices.ContainsFunc(logins,
		func(l v1alpha1.Login) bool { return !slices.Contains(m.forgotten, l.Name) })
}

// Hellos lists the hellos of laptops.
func (m *Manager) Hellos() []*clientpb.ClientHello {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]*clientpb.ClientHello(nil), m.hellos...)
}

// keyHash returns the hash of the session key that a call shows.
func keyHash(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get(names.SessionKeyMetadata) {
		if key, err := hex.DecodeString(v); err == nil && len(key) == 32 {
			hash := sha256.Sum256(key)
			return hex.EncodeToString(hash[:]), nil
		}
	}
	return "", status.Error(codes.Unauthenticated, "no session key")
}

// Count makes the manager report an intercept's connections, whether there is such an intercept or
// not.
func (m *Manager) Count(interceptUID string, t *agentpb.Traffic) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counted = append(m.counted, &clientpb.InterceptTraffic{InterceptUid: interceptUID, Traffic: t})
}

func (m *Manager) traffic() []*clientpb.InterceptTraffic {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.counted)
}

// Nodes returns two nodes, of which one has a node agent.
func (m *Manager) Nodes(ctx context.Context, _ *clientpb.NodesRequest) (*clientpb.NodesReply, error) {
	if _, err := keyHash(ctx); err != nil {
		return nil, err
	}
	return &clientpb.NodesReply{Agents: []*clientpb.NodeAgent{
		{Node: "node1", Attached: true, Version: "v9", Kernel: "6.12.48", Datapath: "sk_lookup",
			Reason: "the kernel has it"},
		{Node: "node2"},
	}, Traffic: m.traffic()}, nil
}

// Environments sets the answer to laptops. Without it the manager is one that does not support
// environments.
func (m *Manager) Environments(answer func(*clientpb.EnvironmentRequest) (*clientpb.EnvironmentReply, error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.environment = answer
}

// Environment returns what the test wants.
func (m *Manager) Environment(ctx context.Context,
	req *clientpb.EnvironmentRequest) (*clientpb.EnvironmentReply, error) {
	if _, err := keyHash(ctx); err != nil {
		return nil, err
	}
	m.mu.Lock()
	answer := m.environment
	m.mu.Unlock()
	if answer == nil {
		return m.UnimplementedClientsServer.Environment(ctx, req)
	}
	return answer(req)
}

// Session greets a laptop and answers its pings.
func (m *Manager) Session(stream clientpb.Clients_SessionServer) error {
	hash, err := keyHash(stream.Context())
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	for queue := m.queue(hash); len(queue) > 0; { // of an earlier connection
		<-queue
	}
	m.mu.Lock()
	m.hellos = append(m.hellos, first.GetHello())
	m.sessions[hash] = stream
	protocol := m.Protocol
	m.mu.Unlock()
	if m.Refuses != nil {
		return m.Refuses
	}
	if m.Proof && !m.proven(hash) {
		return reason.New(codes.PermissionDenied, reason.NotProven, "the API server vouches for no user").
			Advise("ask for the Role sidestep-user")
	}
	hello := &clientpb.ManagerHello{Version: "v9", Protocol: protocol, GraceSeconds: 900,
		Wiretaps: !m.NoWiretaps}
	if m.Newer {
		hello.ProtoReflect().SetUnknown(strange().ProtoReflect().GetUnknown())
	}
	if err := stream.Send(&clientpb.ManagerMessage{Message: &clientpb.ManagerMessage_Hello{Hello: hello}}); err != nil {
		return err
	}
	if m.Newer {
		if err := stream.Send(strange()); err != nil {
			return err
		}
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		if ping := message.GetPing(); ping != nil {
			m.mu.Lock()
			err := stream.Send(&clientpb.ManagerMessage{Message: &clientpb.ManagerMessage_Pong{Pong: ping}})
			m.mu.Unlock()
			if err != nil {
				return err
			}
		}
	}
}

// strange returns a message that the client cannot know.
func strange() *clientpb.ManagerMessage {
	m := &clientpb.ManagerMessage{}
	m.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 1000,
		protowire.BytesType), "of the future"))
	return m
}

// certificates creates an authority and a certificate of the manager.
func certificates(t testing.TB) (ca string, certificate tls.Certificate) {
	sign := func(template, parent *x509.Certificate, key *ecdsa.PrivateKey,
		parentKey *ecdsa.PrivateKey) []byte {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
		require.NoError(t, err)
		return der
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER := sign(authority, authority, caKey, caKey)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der := sign(&x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{names.Manager}},
		authority, key, caKey)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})),
		tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
