// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/testnet"
)

// meshKind is one way in which meshes put a proxy in front of an app.
type meshKind struct {
	name  string
	uid   uint32 // whom the proxy runs as
	proxy sidecar
	rules string // of iptables; for IPv6 with the addresses on the right
	setUp string // commands in the pod
	// only4 is set where the proxy knows IPv4 alone.
	only4 bool
}

const istioRules = `
-t nat -N ISTIO_OUTPUT
-t nat -A PREROUTING -p tcp -j REDIRECT --to-ports 15006
-t nat -A OUTPUT -p tcp -j ISTIO_OUTPUT
-t nat -A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN
-t nat -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp -m owner --uid-owner 1337 -j REDIRECT --to-ports 15006
-t nat -A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-t nat -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-t nat -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN`

const linkerdRules = `
-t nat -A PREROUTING -p tcp -j REDIRECT --to-ports 4143
-t nat -A OUTPUT -m owner --uid-owner 2102 -j RETURN
-t nat -A OUTPUT -o lo -j RETURN`

// ztunnel's, both kinds that there were: by NAT and by TPROXY. Both go on with a connection to the
// app by its mark.
const ambientRules = `
-t mangle -A PREROUTING -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-t mangle -A OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark
-t nat -A PREROUTING -s 169.254.7.127/32 -p tcp -j ACCEPT
-t nat -A PREROUTING ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006`

const ambientTPROXYRules = `
-t mangle -A OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark
-t mangle -A PREROUTING -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-t mangle -A PREROUTING -s 169.254.7.127/32 -p tcp -j ACCEPT
-t mangle -A PREROUTING ! -d 127.0.0.1/32 -i lo -p tcp -j ACCEPT
-t mangle -A PREROUTING -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-t mangle -A PREROUTING ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j TPROXY --on-port 15006 --tproxy-mark 0x111/0xfff`

const ambientRoutes = `
ip rule add fwmark 0x111/0xfff pref 32764 lookup 100
ip route add local default dev lo table 100
ip -6 rule add fwmark 0x111/0xfff pref 32764 lookup 100
ip -6 route add local default dev lo table 100`

var meshKinds = []meshKind{
	{name: "Istio's sidecar", uid: 1337, rules: istioRules, setUp: "ip -6 addr add ::6/128 dev lo",
		proxy: sidecar{Port: 15006, From: "127.0.0.6", From6: "::6"}},
	{name: "Istio's sidecar whose default endpoint is on loopback", uid: 1337, rules: istioRules, only4: true,
		proxy: sidecar{Port: 15006, To: "127.0.0.1"}},
	{name: "Linkerd", uid: 2102, rules: linkerdRules,
		proxy: sidecar{Port: 4143}},
	{name: "Linkerd before 2.11", uid: 2102, rules: linkerdRules, only4: true,
		proxy: sidecar{Port: 4143, To: "127.0.0.1"}},
	{name: "ztunnel", rules: ambientRules, setUp: ambientRoutes,
		proxy: sidecar{Port: 15006, Client: true, Mark: 0x539}},
	{name: "ztunnel by TPROXY", rules: ambientTPROXYRules, setUp: ambientRoutes,
		proxy: sidecar{Port: 15006, Client: true, Mark: 0x539}},
}

// install puts the mesh into the pod.
func (k *meshKind) install(t *testing.T, w *world) {
	t.Helper()
	if _, err := exec.LookPath("iptables"); err != nil {
		if _, noShell := exec.LookPath("sh"); noShell == nil && os.Getenv("CI") != "" {
			t.Fatalf("%v (run tests/deps.sh run)", err)
		}
		t.Skip(err)
	}
	run := func(command ...string) {
		t.Helper()
		require.NoError(t, w.pod.Do(func() error {
			out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
			if err != nil {
				t.Logf("%s: %s", command, out)
			}
			return err
		}))
	}
	for line := range strings.Lines(k.setUp) {
		if words := strings.Fields(line); len(words) > 0 {
			run(words...)
		}
	}
	to6 := strings.NewReplacer("127.0.0.1/32", "::1/128", "127.0.0.6/32", "::6/128", "169.254.7.127/32",
		"fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128")
	for line := range strings.Lines(k.rules) {
		if words := strings.Fields(line); len(words) > 0 {
			run(append([]string{"iptables", "-w"}, words...)...)
			run(append([]string{"ip6tables", "-w"}, strings.Fields(to6.Replace(line))...)...)
		}
	}
	k.start(t, w)
}

// start starts the proxy, and gives what kills it.
func (k *meshKind) start(t *testing.T, w *world) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(k.proxy)
	require.NoError(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envSidecar+"="+string(text))
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: k.uid, Gid: k.uid}}
	w.pod.Start(t, "", cmd)
	require.Eventually(t, func() bool {
		got, err := w.meshed(w.pod.IP4, "", "/")
		return err == nil && got == "app"
	}, 20*time.Second, 20*time.Millisecond, "the proxy serves")
	return cmd
}

func (k *meshKind) addresses(w *world) []netip.Addr {
	if k.only4 {
		return []netip.Addr{w.pod.IP4}
	}
	return []netip.Addr{w.pod.IP4, w.pod.IP6}
}

// meshed makes one request as a client in the mesh does: by TLS, that is for the proxy to end.
func (w *world) meshed(ip netip.Addr, who, path string) (string, error) {
	return ask(w.node, "", ip, true, who, path, "")
}

// ask makes one request on a connection of its own, from an address if that is given.
func ask(from *testnet.Node, source string, ip netip.Addr, secure bool, who, path,
	userAgent string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	scheme := "http"
	if secure {
		scheme = "https"
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
			err = from.Do(func() (err error) {
				var d net.Dialer
				d.SetMultipathTCP(false)
				if source != "" {
					d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(source)}
				}
				c, err = d.DialContext(ctx, "tcp", netip.AddrPortFrom(ip, appPort).String())
				return err
			})
			return c, err
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://orders"+path, nil)
	if err != nil {
		return "", err
	}
	if who != "" {
		req.Header.Set(header, who)
	}
	if userAgent != "" {
		req.Header.Set("User-Agent", userAgent)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func TestWhatComesThroughAMeshsProxyIsIntercepted(t *testing.T) {
	for _, k := range meshKinds {
		t.Run(k.name, func(t *testing.T) {
			w := newWorld(t)
			k.install(t, w)
			inside := &testnet.Node{Namespace: w.pod.Namespace}
			expect := func(who, want string) {
				t.Helper()
				for _, ip := range k.addresses(w) {
					got, err := w.meshed(ip, who, "/")
					assert.NoError(t, err)
					assert.Equal(t, want, got, "request of %q to %s", who, ip)
				}
			}
			seen := func() (all []string) {
				for _, ip := range k.addresses(w) {
					text, err := w.meshed(ip, "", "/client")
					require.NoError(t, err)
					all = append(all, netip.MustParseAddrPort(text).Addr().String())
				}
				return all
			}
			expect("me", "app")
			before := seen()
			stop := w.run(t)
			w.steering(t, w.assign(w.wants()))
			expect("me", "laptop")
			expect("", "app")
			assert.Equal(t, before, seen(), "the app sees who it always sees")
			for _, ip := range append(k.addresses(w), netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()) {
				got, err := ask(inside, "", ip, false, "me", "/", "")
				assert.NoError(t, err)
				assert.Equal(t, "app", got, "the pod's own traffic to %s", ip)
			}
			for _, ip := range k.addresses(w) {
				got, err := ask(w.node, "", ip, false, "me", "/", "kube-probe/1.33")
				assert.NoError(t, err)
				assert.Equal(t, "app", got, "a probe of the kubelet to %s", ip)
			}
			stop()
			expect("me", "app")
			assert.Equal(t, before, seen())
			w.nothingLeft(t)
		})
	}
}

// A sidecar may start after the app, and again.
func TestMeshsProxyThatStartsLaterIsKnown(t *testing.T) {
	t.Parallel()
	k := meshKinds[2]
	w := newWorld(t)
	w.run(t)
	w.steering(t, w.assign(w.wants()))
	k.install(t, w)
	laptop := func() bool {
		got, err := w.meshed(w.pod.IP4, "me", "/")
		return err == nil && got == "laptop"
	}
	require.Eventually(t, laptop, time.Minute, 100*time.Millisecond)
}

// What a proxy had open before, with the requests of many clients on it, is left alone; but that is
// said.
func TestOlderConnectionsOfAMeshsProxyAreReported(t *testing.T) {
	for _, k := range []meshKind{meshKinds[0], meshKinds[2]} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			k.install(t, w)
			raw, err := testnet.Dial(t.Context(), w.node.Namespace, netip.AddrPortFrom(w.pod.IP4, appPort))
			require.NoError(t, err)
			c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
			defer c.Close()
			r := bufio.NewReader(c)
			get := func(who string) string {
				require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
				require.NoError(t, request(c, "/", who))
				resp, err := http.ReadResponse(r, nil)
				require.NoError(t, err)
				body, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				return string(body)
			}
			require.Equal(t, "app", get(""))
			w.run(t)
			w.steering(t, w.assign(w.wants()))
			says := func(r *agentpb.Report, text string) bool {
				return len(r.GetTargets()) == 1 && r.GetTargets()[0].GetSteering() &&
					strings.Contains(r.GetTargets()[0].GetMessage(), text)
			}
			w.await(t, "message", func(r *agentpb.Report) bool { return says(r, "stay with the app") })
			assert.Equal(t, "app", get("me"))
			require.NoError(t, c.Close())
			w.await(t, "no message", func(r *agentpb.Report) bool { return says(r, "") && !says(r, "stay") })
		})
	}
}

// From ::1 to ::1 a proxy connects like anybody in the pod. That is said, and nothing of the pod's
// own is taken for it.
func TestMeshsProxyThatCannotBeToldFromTheAppIsReported(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	k := meshKind{uid: 2102, rules: linkerdRules, proxy: sidecar{Port: 4143, To6: "::1"}}
	k.install(t, w)
	w.run(t)
	w.steering(t, w.assign(w.wants()))
	got, err := w.meshed(w.pod.IP6, "me", "/")
	require.NoError(t, err)
	assert.Equal(t, "app", got)
	r := w.await(t, "reason",
		func(r *agentpb.Report) bool { return len(r.GetTargets()) == 1 && r.GetTargets()[0].GetFailed() })
	assert.Contains(t, r.GetTargets()[0].GetMessage(),
		"Linkerd's proxy in the pod connects to the app at [::1]:8080 in a way that cannot be told from the pod's own traffic")
	got, err = w.meshed(w.pod.IP4, "me", "/")
	require.NoError(t, err)
	assert.Equal(t, "laptop", got)
}

// Istio's sidecar asks the app for its health in the kubelet's stead; in ambient mode the kubelet
// has an address of its own.
func TestProbesOfMeshesReachTheAppUnderATCPIntercept(t *testing.T) {
	w := newWorld(t)
	link, err := linkByName(w.node, "lo")
	require.NoError(t, err)
	kubelet, err := netlink.ParseAddr("169.254.7.127/32")
	require.NoError(t, err)
	require.NoError(t, w.node.Do(func() error { return netlink.AddrAdd(link, kubelet) }))
	w.run(t)
	pod := w.wants()
	pod.Targets[0].Rules[0].Http, pod.Targets[0].Rules[0].Tcp = nil, true
	pod.Targets[0].KubeletProbes = []*agentpb.Probe{{Kind: "http", Path: "/"}}
	w.steering(t, w.assign(pod))
	w.expect(t, "", "laptop")
	inside := &testnet.Node{Namespace: w.pod.Namespace}
	got, err := ask(inside, "127.0.0.6", w.pod.IP4, false, "", "/", "kube-probe/1.33")
	require.NoError(t, err)
	assert.Equal(t, "app", got)
	got, err = ask(w.node, "169.254.7.127", w.pod.IP4, false, "", "/", "kube-probe/1.33")
	require.NoError(t, err)
	assert.Equal(t, "app", got)
}

func linkByName(n *testnet.Node, name string) (l netlink.Link, err error) {
	err = n.Do(func() (err error) {
		l, err = netlink.LinkByName(name)
		return err
	})
	return l, err
}
