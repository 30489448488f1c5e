// SPDX-License-Identifier: Apache-2.0

package takeover_test

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/nodeagent/takeover"
)

// threads asks with as many pools as it is told to, without the header until a file appears. Then
// the first one has it.
const threads = `
import os, sys, threading, time
import urllib3
host, flag, n, after = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
say = threading.Lock()
def client(i):
    pool = urllib3.PoolManager(maxsize=1)
    def ask(headers):
        try:
            return pool.request("GET", host, headers=headers).headers["Served-By"]
        except Exception as e:
            return repr(e)
    def report(phase, who):
        with say:
            print(i, phase, who, flush=True)
    while not os.path.exists(flag):
        report("before", ask({}))
        time.sleep(0.005)
    for _ in range(after):
        report("after", ask({"X-User": "ann"} if i == 0 else {}))
for i in range(n):
    threading.Thread(target=client, args=(i,)).start()
`

const (
	ofEach = 8  // clients of each kind
	after  = 20 // requests of each client once the intercept is there
)

// pools is 32 busy clients of four kinds, of which the first of each kind is a developer's.
type pools struct {
	t       *testing.T
	w       *world
	flag    string
	on      atomic.Bool
	running sync.WaitGroup
	mu      sync.Mutex
	seen    map[string][]string // by client: who answered since the intercept began
}

func (p *pools) saw(client, who string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[client] = append(p.seen[client], who)
}

// program runs a program, of whose lines "number phase who" come.
func (p *pools) program(kind string, cmd *exec.Cmd) {
	out, err := cmd.StdoutPipe()
	require.NoError(p.t, err)
	cmd.Stderr = p.t.Output()
	require.NoError(p.t, p.w.node.Do(cmd.Start))
	p.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p.running.Go(func() {
		var i int
		var phase, who string
		for {
			if _, err := fmt.Fscanf(out, "%d %s %s\n", &i, &phase, &who); err != nil {
				return
			}
			if phase == "after" {
				p.saw(fmt.Sprint(kind, i), who)
			} else if who != "app" {
				p.saw(fmt.Sprint(kind, i), "before: "+who)
			}
		}
	})
}

func (p *pools) python() {
	p.program("urllib3-", exec.CommandContext(p.t.Context(), need(p.t, "/usr/bin/python3"), "-c", threads,
		"http://"+netip.AddrPortFrom(p.w.pod.IP4, port).String()+"/", p.flag, fmt.Sprint(ofEach),
		fmt.Sprint(after)))
}

// curls ask some times, wait for an answer when the intercept begins, and go on.
func (p *pools) curls() {
	host := "http://" + netip.AddrPortFrom(p.w.pod.IP4, port).String()
	for i := range ofEach {
		print := func(phase string) []string {
			return []string{"-sS", "-o", "/dev/null", "-w",
				fmt.Sprintf("%d %s %%header{served-by}\\n", i, phase)}
		}
		args := append(print("before"), host+"/?[1-20]", "--next")
		args = append(append(args, print("before")...), host+"/gate", "--next")
		args = append(append(args, print("after")...), fmt.Sprintf("%s/?[1-%d]", host, after))
		if i == 0 {
			args = append(args, "-H", "X-User: ann")
		}
		p.program("curl-", exec.CommandContext(p.t.Context(), need(p.t, "curl"), args...))
	}
}

func (p *pools) golang(kind, url string, to netip.Addr) (all []*pooled) {
	for i := range ofEach {
		c := newPooled(p.w.node.Namespace, to)
		c.url = url
		all = append(all, c)
		name := fmt.Sprint(kind, i)
		p.running.Go(func() {
			for n := 0; n < after; {
				on := p.on.Load()
				who, err := c.ask(context.WithoutCancel(p.t.Context()), on && i == 0)
				if err != nil {
					who = err.Error()
				}
				if on {
					n++
					p.saw(name, who)
				} else if who != "app" {
					p.saw(name, "before: "+who)
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	return all
}

func TestPoolsOfRealClients(t *testing.T) {
	nginx := need(t, "nginx")
	w := newWorld(t)
	w.startNginx(t, nginx)
	p := &pools{t: t, w: w, flag: filepath.Join(t.TempDir(), "on"), seen: map[string][]string{}}
	direct := p.golang("go-", fmt.Sprintf("http://%s/", netip.AddrPortFrom(w.pod.IP4, port)), w.pod.IP4)
	p.golang("nginx-", "http://127.0.0.1:8000/", w.pod.IP4)
	p.python()
	p.curls()
	require.Eventually(t, func() bool {
		w.app.mu.Lock()
		defer w.app.mu.Unlock()
		busy := 0
		for _, n := range w.app.seen {
			if n >= 5 {
				busy++
			}
		}
		return busy >= 3*ofEach+1 && w.app.waiting == ofEach
	}, 60*time.Second, 10*time.Millisecond, "all are busy")
	w.watch(t, nil, rule(t, takeover.Auto))
	w.steer(t)
	require.GreaterOrEqual(t, w.port.Watched(), 3*ofEach+1)
	p.on.Store(true)
	require.NoError(t, os.WriteFile(p.flag, nil, 0o600))
	close(w.app.gate)
	p.running.Wait()
	assert.Len(t, p.seen, 4*ofEach)
	for client, answers := range p.seen {
		want := "app"
		if strings.HasSuffix(client, "-0") {
			want = "laptop"
		}
		assert.Len(t, answers, after, client)
		for i, who := range answers {
			assert.Equal(t, want, who, "request %d of %s", i, client)
		}
	}
	assert.Zero(t, w.app.marked.Load(), "the app has seen none of the developers' requests")
	assert.Zero(t, w.laptop.strangers.Load(), "nobody else has needed a new connection")
	for i, c := range direct[1:] {
		assert.Zero(t, c.ended.Load(), "nobody has ended the connection of client %d", i+1)
	}
	t.Logf("of %d connections %d were taken over, %d packets were let go", 4*ofEach,
		w.counters.TakenOver.Load(), w.counters.Released.Load())
}

// startNginx starts a proxy at port 8000 of the node, with a pool of connections to the app.
func (w *world) startNginx(t *testing.T, nginx string) {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "nginx.conf")
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, `
daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events {}
http {
	access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	upstream app { server %[2]s; keepalive 8; }
	server {
		listen 127.0.0.1:8000;
		location / { proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Via nginx; }
	}
}`, dir, netip.AddrPortFrom(w.pod.IP4, port)), 0o644))
	cmd, out := start(t, w.node.Namespace, nginx, "-p", dir, "-c", conf)
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	ask := newPooled(w.node.Namespace, w.pod.IP4)
	ask.url = "http://127.0.0.1:8000/"
	require.Eventually(t, func() bool {
		who, err := ask.ask(t.Context(), false)
		return err == nil && who == "app"
	}, 30*time.Second, 50*time.Millisecond, "%s", out)
}

// posts says what becomes of the developer's requests that may not be repeated: of the first, on a
// connection that is older than the intercept, and of the next.
func TestPostOnAnOpenConnection(t *testing.T) {
	const python = `
import sys
host, kind = sys.argv[1], sys.argv[2]
if kind == "urllib3":
    import urllib3
    pool = urllib3.PoolManager()
    ask = lambda method, path, headers: pool.request(method, host + path, headers=headers, body=b"x" if method == "POST" else None)
else:
    import requests
    session = requests.Session()
    ask = lambda method, path, headers: session.request(method, host + path, headers=headers, data=b"x" if method == "POST" else None)
print(ask("GET", "/wait", {}).headers["Served-By"])
for i in range(2):
    try:
        print(ask("POST", "/", {"X-User": "ann"}).headers["Served-By"])
    except Exception as e:
        print("error", type(e).__name__)
`
	run := func(name string, args ...string) func(*testing.T, *world) string {
		return func(t *testing.T, w *world) string {
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "HOST", "http://"+
					netip.AddrPortFrom(w.pod.IP4, port).String())
			}
			cmd, out := start(t, w.node.Namespace, need(t, name), args...)
			w.begin(t)
			assert.NoError(t, cmd.Wait(), out)
			return out.String()
		}
	}
	print := []string{"-sS", "-o", "/dev/null", "-w", "%header{served-by}\\n"}
	post := append([]string{"--next", "-H", "X-User: ann", "-d", "x"}, print...)
	for _, c := range []struct {
		name, want string
		run        func(*testing.T, *world) string
	}{
		{"curl repeats it", "app\nlaptop\nlaptop\n",
			run("curl", append(append(append(append([]string{}, print...), "HOST/wait"),
				append(post, "HOST/")...), append(post, "HOST/")...)...)},
		{"urllib3 does not", "app\nerror ProtocolError\nlaptop\n",
			run("/usr/bin/python3", "-c", python, "HOST", "urllib3")},
		{"requests does not", "app\nerror ConnectionError\nlaptop\n",
			run("/usr/bin/python3", "-c", python, "HOST", "requests")},
		{"Go does not", "app\nerror\nlaptop\n", postGo(func(r *http.Request) {})},
		{"Go does if there is a key", "app\nlaptop\nlaptop\n",
			postGo(func(r *http.Request) { r.Header.Set("Idempotency-Key", "1") })},
		{"nginx does not", "app\n502\nlaptop\n", postNginx},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			assert.Equal(t, c.want, c.run(t, w))
			assert.Zero(t, w.app.marked.Load(), "the app has not seen it")
		})
	}
}

// postGo asks with net/http.
func postGo(prepare func(*http.Request)) func(*testing.T, *world) string {
	return func(t *testing.T, w *world) string {
		c := newPooled(w.node.Namespace, w.pod.IP4)
		who, err := c.ask(t.Context(), false)
		require.NoError(t, err)
		w.watch(t, nil, rule(t, takeover.Auto))
		w.steer(t)
		return who + "\n" + c.post(t, prepare) + c.post(t, prepare)
	}
}

func postNginx(t *testing.T, w *world) string {
	w.startNginx(t, need(t, "nginx"))
	c := newPooled(w.node.Namespace, w.pod.IP4)
	c.url = "http://127.0.0.1:8000/"
	who, err := c.ask(t.Context(), false)
	require.NoError(t, err)
	w.watch(t, nil, rule(t, takeover.Auto))
	w.steer(t)
	said := who + "\n" + c.post(t, func(*http.Request) {})
	for range 10 { // as many as nginx has connections to the app
		next := c.post(t, func(*http.Request) {})
		if next != "502\n" {
			return said + next
		}
	}
	return said
}

func (p *pooled) post(t *testing.T, prepare func(*http.Request)) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url, strings.NewReader("x"))
	require.NoError(t, err)
	req.Header.Set("X-User", "ann")
	prepare(req)
	res, err := p.Do(req)
	if err != nil {
		t.Log(err)
		return "error\n"
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Sprintln(res.StatusCode)
	}
	return res.Header.Get("Served-By") + "\n"
}
