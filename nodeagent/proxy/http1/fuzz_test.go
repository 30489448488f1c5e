package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"
)

// message is where one message ends in the input, and how many bytes of content it has.
type message struct {
	end     int
	content int64 // -1: not known
}

// ours frames the requests in data, which arrive in pieces of that size, up to the first doubt or incomplete one.
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
		all = append(all, message{end, content})
		at = end
		if !r.Persists() || r.Switches() {
			return all
		}
	}
}

func oursBody(data []byte, at, piece int, body Body) (end int, content int64, ok bool) {
	rest := body.Start()
	for !rest.Done() {
		if at == len(data) {
			return 0, 0, false
		}
		n, _, err := rest.Scan(data[at:min(at+piece, len(data))])
		if err != nil {
			return 0, 0, false
		}
		at += n
	}
	content = body.Length
	if body.Kind == InChunks {
		content = -1
	}
	return at, content, true
}

// theirs frames one message after another as net/http does.
func theirs(data []byte, read func(*bufio.Reader) (io.ReadCloser, error)) (all []message) {
	src := bytes.NewReader(data)
	br := bufio.NewReader(src)
	for {
		body, err := read(br)
		if err != nil {
			return all
		}
		content, err := io.Copy(io.Discard, body)
		if err != nil {
			return all
		}
		all = append(all, message{len(data) - src.Len() - br.Buffered(), content})
	}
}

func compare(t *testing.T, data []byte, ours, theirs []message) {
	for i := range min(len(ours), len(theirs)) {
		if ours[i].end != theirs[i].end || ours[i].content >= 0 && ours[i].content != theirs[i].content {
			t.Fatalf("message %d of %q: we say %+v, net/http says %+v", i, data, ours[i], theirs[i])
		}
	}
}

func FuzzRequestFraming(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=\"y\"\r\nhello\r\n0\r\nT: u\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.1\nHost: a\n\n",
		"GET / HTTP/1.1\r\nHost: a\r\nX: y\rZ: z\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nbytes",
		"GET http://a/b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFF\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n",
	} {
		f.Add([]byte(seed), byte(7))
	}
	f.Fuzz(func(t *testing.T, data []byte, size byte) {
		whole := ours(data, 1<<20)
		piece := int(size%64) + 1
		pieces := ours(data, piece)
		if len(whole) != len(pieces) {
			t.Fatalf("%q: %d messages at once, %d in pieces of %d", data, len(whole), len(pieces), piece)
		}
		compare(t, data, whole, pieces)
		compare(t, data, whole, theirs(data, func(br *bufio.Reader) (io.ReadCloser, error) {
			r, err := http.ReadRequest(br)
			if err != nil {
				return nil, err
			}
			return r.Body, nil
		}))
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
			f.Add([]byte(seed), byte(kind))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, k byte) {
		kind := RequestKind(k % 3)
		method := [...]string{"GET", "HEAD", "CONNECT"}[kind]
		var all []message
		for at := 0; ; {
			var r Response
			r.Reset()
			n, err := r.Parse(data[at:])
			if n == 0 || err != nil {
				break
			}
			body, err := r.Body(kind)
			if err != nil || body.Kind == Tunnelled {
				break
			}
			if body.Kind == UntilClose {
				all = append(all, message{len(data), int64(len(data) - at - n)})
				break
			}
			end, content, ok := oursBody(data, at+n, 1<<20, body)
			if !ok {
				break
			}
			all = append(all, message{end, content})
			at = end
		}
		compare(t, data, all, theirs(data, func(br *bufio.Reader) (io.ReadCloser, error) {
			r, err := http.ReadResponse(br, &http.Request{Method: method})
			if err != nil {
				return nil, err
			}
			return r.Body, nil
		}))
	})
}
