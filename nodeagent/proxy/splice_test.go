// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// readBytes is how many bytes this process has read by read(2) and the like, from /proc/self/io.
// splice(2) does not count.
func readBytes(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/io")
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, "rchar: "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
			require.NoError(t, err)
			return n
		}
	}
	require.Fail(t, "the kernel does not count")
	return 0
}

func TestLargeBodiesPassUnread(t *testing.T) {
	const size = 32 << 20
	body := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	app := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		assert.NoError(t, err)
		if r.URL.Path == "/down" {
			rw.Header().Set("Content-Length", strconv.Itoa(size))
			rw.Write(body)
			return
		}
		fmt.Fprint(rw, n)
	}))
	defer app.Close()
	w := newWorld(t, app.Listener.Addr().String(), says(t, "laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	for path, request := range map[string][]byte{
		"/down": nil,
		"/up":   body,
	} {
		t.Run(path[1:], func(t *testing.T) {
			before := readBytes(t)
			resp, err := http.Post("http://"+w.addr+path, "", bytes.NewReader(request))
			require.NoError(t, err)
			n, err := io.Copy(io.Discard, resp.Body)
			require.NoError(t, err)
			resp.Body.Close()
			assert.Positive(t, n)
			assert.Less(t, readBytes(t)-before, int64(size*3/2),
				"bytes read, which are the client's and the app's")
		})
	}
}
