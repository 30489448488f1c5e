// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sidestep.dev/sidestep/nodeagent/http1/corpus"
)

// message is what a reader makes of one message in the input.
type message struct {
	end     int    // where it ends
	content string // of its body, without framing
	start   string // "GET /path" or "200"
	close   bool   // no more messages are meant to follow
	values  func(name string) []string
	path    string // "?" if the reader has no opinion
}

func oursValues(h *head) func(string) []string {
	return func(name string) (all []string) {
		h.values(strings.ToLower(name), func(v []byte) bool {
			all = append(all, string(v))
			return true
		})
		return all
	}
}

// ours frames the requests in data, which arrive in pieces of that size, up to the first doubt or
// incomplete one.
func ours(data []byte, piece int) (all []message) {
	at := 0
	for {
		var r Request
		r.Reset()
		n := 0
		for have := at; n == 0; {
			if have == len(data) {
				return all
			}
			have = min(have+piece, len(data))
			var err error
			if n, err = r.Parse(data[at:have]); err != nil {
				return all
			}
		}
		end, content, ok := oursBody(data, at+n, piece, r.Body())
		if !ok {
			return all
		}
		all = append(all, message{
			end: end, content: content, start: string(r.Method()) + " " + string(r.Target()),
			close:  !r.Persists(),
			values: oursValues(&r.head), path: string(r.Path()),
		})
		at = end
		if !r.Persists() || r.Switches() {
			return all
		}
	}
}

// oursBody follows a body to its end. With pieces of 1 it takes the content out of it.
func oursBody(data []byte, at, piece int, body Body) (end int, content string, ok bool) {
	var bytewise []byte
	for rest, i := body.Start(), at; !rest.Done() && i < len(data); i++ {
		if rest.Data() > 0 {
			bytewise = append(bytewise, data[i])
		}
		if _, _, err := rest.Scan(data[i : i+1]); err != nil {
			break
		}
	}
	rest := body.Start()
	for !rest.Done() {
		if at == len(data) {
			return 0, "", false
		}
		n, _, err := rest.Scan(data[at:min(at+piece, len(data))])
		if err != nil {
			return 0, "", false
		}
		at += n
	}
	return at, string(bytewise), true
}

// theirs frames one message after another as net/http does.
func theirs(data []byte, read func(*bufio.Reader) (message, io.ReadCloser, error)) (all []message) {
	src := bytes.NewReader(data)
	br := bufio.NewReader(src)
	for {
		m, body, err := read(br)
		if err != nil {
			return all
		}
		content, err := io.ReadAll(body)
		if err != nil {
			return all
		}
		m.content, m.end = string(content), len(data)-src.Len()-br.Buffered()
		all = append(all, m)
	}
}

func theirRequest(br *bufio.Reader) (message, io.ReadCloser, error) {
	r, err := http.ReadRequest(br)
	if err != nil {
		return message{}, nil, err
	}
	m := message{start: r.Method + " " + r.RequestURI, close: r.Close, values: theirValues(r.Header), path: "?"}
	if r.Method != "CONNECT" &&
		(r.RequestURI[0] == '/' || strings.HasPrefix(strings.ToLower(r.RequestURI), r.URL.Scheme+"://")) {
		m.path = r.URL.Path
		if m.path == "" {
			m.path = "/"
		}
	}
	return m, r.Body, nil
}

// theirValues leaves out what net/http takes out of its headers or adds to them.
func theirValues(h http.Header) func(string) []string {
	for _, name := range []string{"Cache-Control", "Content-Length"} {
		h.Del(name)
	}
	return func(name string) []string {
		if name == "" {
			var names []string
			for name := range h {
				names = append(names, name)
			}
			return names
		}
		return h.Values(name)
	}
}

func compare(t *testing.T, data []byte, ours, theirs []message) {
	for i := range min(len(ours), len(theirs)) {
		our, their := ours[i], theirs[i]
		if our.end != their.end || our.content != their.content || our.start != their.start ||
			our.close != their.close {
			t.Fatalf("message %d of %q:\n        we say %+v\nnet/http says %+v", i, data, our, their)
		}
		if path, err := url.PathUnescape(our.path); their.path != "?" && err == nil && path != their.path {
			t.Fatalf("message %d of %q: our path is %q, that of net/http %q", i, data, our.path, their.path)
		}
		for _, name := range their.values("") {
			if !slices.Equal(our.values(name), their.values(name)) {
				t.Fatalf("message %d of %q: our values of %s are %q, those of net/http %q", i, data,
					name, our.values(name), their.values(name))
			}
		}
	}
}

func comparePieces(t *testing.T, data []byte, piece int, whole, pieces []message) {
	if len(whole) != len(pieces) {
		t.Fatalf("%q: %d messages at once, %d in pieces of %d", data, len(whole), len(pieces), piece)
	}
	for i := range whole {
		if whole[i].end != pieces[i].end {
			t.Fatalf("message %d of %q ends at %d at once, at %d in pieces of %d", i, data,
				whole[i].end, pieces[i].end, piece)
		}
	}
}

func FuzzRequestFraming(f *testing.F) {
	const next = "GET http://a/b?c HTTP/1.1\r\nHost: a\r\nConnection: x, close\r\n\r\n"
	for _, m := range corpus.Ambiguous {
		if len(m) < 2000 { // long ones teach the fuzzer nothing and slow it down
			f.Add([]byte(m+next), byte(7))
		}
	}
	for _, m := range corpus.Clear {
		if len(m) < 2000 {
			f.Add([]byte(m+m+next), byte(7))
		}
	}
	f.Add([]byte("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nbytes"), byte(0))
	f.Fuzz(func(t *testing.T, data []byte, size byte) {
		whole := ours(data, 1<<20)
		piece := int(size%64) + 1
		pieces := ours(data, piece)
		comparePieces(t, data, piece, whole, pieces)
		compare(t, data, whole, theirs(data, theirRequest))
	})
}

func FuzzResponseFraming(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nT: u\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\n\r\nto the end",
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 304 No\r\nContent-Length: 100\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\nbytes",
		"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
		"HTTP/1.1 0200 OK\r\n\r\n",
	} {
		for kind := range 3 {
			f.Add([]byte(seed), byte(kind), byte(5*kind))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, k, size byte) {
		kind := RequestKind(k % 3)
		method := [...]string{"GET", "HEAD", "CONNECT"}[kind]
		whole := oursResponses(data, 1<<20, kind)
		piece := int(size%64) + 1
		comparePieces(t, data, piece, whole, oursResponses(data, piece, kind))
		compare(t, data, whole, theirs(data, func(br *bufio.Reader) (message, io.ReadCloser, error) {
			r, err := http.ReadResponse(br, &http.Request{Method: method})
			if err != nil {
				return message{}, nil, err
			}
			return message{start: r.Status[:3], close: r.Close, values: theirValues(r.Header),
				path: "?"}, r.Body, nil
		}))
	})
}

// oursResponses frames the responses in data, all to requests of that kind, up to the first doubt
// or incomplete one.
func oursResponses(data []byte, piece int, kind RequestKind) (all []message) {
	at := 0
	for {
		var r Response
		r.Reset()
		n := 0
		for have := at; n == 0; {
			if have == len(data) {
				return all
			}
			have = min(have+piece, len(data))
			var err error
			if n, err = r.Parse(data[at:have]); err != nil {
				return all
			}
		}
		body, err := r.Body(kind)
		if err != nil || body.Kind == Tunnelled {
			return all
		}
		m := message{start: strconv.Itoa(r.Status()), close: !r.Persists() || body.Kind == UntilClose,
			values: oursValues(&r.head)}
		if body.Kind == UntilClose {
			m.end, m.content = len(data), string(data[at+n:])
			return append(all, m)
		}
		var ok bool
		if m.end, m.content, ok = oursBody(data, at+n, piece, body); !ok {
			return all
		}
		all = append(all, m)
		at = m.end
	}
}
