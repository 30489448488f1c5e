// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func parseRequest(t *testing.T, head string) *Request {
	var r Request
	r.Reset()
	n, err := r.Parse([]byte(head))
	require.NoError(t, err)
	require.Equal(t, len(head), n)
	return &r
}

func TestRequestHeads(t *testing.T) {
	tests := []struct {
		head, path string
		body       Body
		kind       RequestKind
		persists   bool
		switches   bool
	}{
		{"GET / HTTP/1.1\r\n\r\n", "/", Body{}, Plain, true, false},
		{"GET /a%2Fb//c?d=/e HTTP/1.1\r\nHost: h\r\n\r\n", "/a%2Fb//c", Body{}, Plain, true, false},
		{"GET http://h:1/p?q HTTP/1.1\r\n\r\n", "/p", Body{}, Plain, true, false},
		{"GET http://h?q=/ HTTP/1.1\r\n\r\n", "/", Body{}, Plain, true, false},
		{"GET http://h HTTP/1.1\r\n\r\n", "/", Body{}, Plain, true, false},
		{"OPTIONS * HTTP/1.1\r\n\r\n", "*", Body{}, Plain, true, false},
		{"CONNECT h:443 HTTP/1.1\r\n\r\n", "", Body{}, Connect, true, true},
		{"HEAD /x HTTP/1.1\r\n\r\n", "/x", Body{}, Head, true, false},
		{"GET / HTTP/1.0\r\n\r\n", "/", Body{}, Plain, false, false},
		{"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "/", Body{}, Plain, true, false},
		{"GET / HTTP/1.1\r\nConnection: x, CLOSE ,y\r\n\r\n", "/", Body{}, Plain, false, false},
		{"GET / HTTP/1.1\r\nConnection: keep-alive\r\nconnection: close\r\n\r\n", "/", Body{}, Plain,
			false, false},
		{"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "/", Body{}, Plain, true, true},
		{"POST / HTTP/1.1\r\nCONTENT-length:  123456789012345678\t\r\n\r\n", "/",
			Body{Length: 123456789012345678}, Plain, true, false},
		{"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "/", Body{}, Plain, true, false},
		{"POST / HTTP/1.1\r\nTransfer-ENCODING: Chunked \r\n\r\n", "/", Body{Kind: InChunks}, Plain,
			true, false},
	}
	for _, test := range tests {
		t.Run(strings.ReplaceAll(test.head, "\r\n", "|"), func(t *testing.T) {
			r := parseRequest(t, test.head)
			assert.Equal(t, test.path, string(r.Path()))
			assert.Equal(t, test.body, r.Body())
			assert.Equal(t, test.kind, r.Kind())
			assert.Equal(t, test.persists, r.Persists())
			assert.Equal(t, test.switches, r.Switches())
		})
	}
}

func TestValuesOfAField(t *testing.T) {
	r := parseRequest(t, "GET / HTTP/1.1\r\nX-A: 1\r\nx-ab: no\r\nX-a:\t 2 \t\r\nX: no\r\nx-A:\r\n\r\n")
	values := func(name string, most int) (all []string) {
		r.Values(name, func(v []byte) bool {
			all = append(all, string(v))
			return len(all) < most
		})
		return all
	}
	assert.Equal(t, []string{"1", "2", ""}, values("x-a", 10))
	assert.Equal(t, []string{"1", "2"}, values("x-a", 2))
	assert.Empty(t, values("x-b", 10))
	assert.Empty(t, values("get / http/1.1", 10))
}

func TestResponseHeads(t *testing.T) {
	tests := []struct {
		head    string
		to      RequestKind
		body    Body
		doubt   error
		interim bool
	}{
		{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Plain, Body{Length: 3}, nil, false},
		{"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\n", Head, Body{}, nil, false},
		{"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n", Plain, Body{Kind: InChunks}, nil, false},
		{"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n", Head, Body{}, nil, false},
		{"HTTP/1.0 200 OK\r\n\r\n", Plain, Body{Kind: UntilClose}, nil, false},
		{"HTTP/1.0 200 OK\r\n\r\n", Head, Body{}, nil, false},
		{"HTTP/1.1 200 OK\r\n\r\n", Connect, Body{Kind: Tunnelled}, nil, false},
		{"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", Connect, Body{}, DoubtBodiless, false},
		{"HTTP/1.1 407 No\r\nContent-Length: 1\r\n\r\n", Connect, Body{Length: 1}, nil, false},
		{"HTTP/1.1 101 Switching\r\n\r\n", Plain, Body{Kind: Tunnelled}, nil, false},
		{"HTTP/1.1 100 Continue\r\n\r\n", Plain, Body{}, nil, true},
		{"HTTP/1.1 103 Hints\r\nContent-Length: 1\r\n\r\n", Plain, Body{}, DoubtBodiless, true},
		{"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n", Plain, Body{}, nil, false},
		{"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n", Plain, Body{}, DoubtBodiless, false},
		{"HTTP/1.1 304 No\r\nContent-Length: 10\r\n\r\n", Plain, Body{}, nil, false},
	}
	for _, test := range tests {
		t.Run(strings.ReplaceAll(test.head, "\r\n", "|")+fmt.Sprint(" to ", test.to), func(t *testing.T) {
			var r Response
			r.Reset()
			n, err := r.Parse([]byte(test.head))
			require.NoError(t, err)
			assert.Equal(t, len(test.head), n)
			body, doubt := r.Body(test.to)
			assert.Equal(t, test.doubt, doubt)
			assert.Equal(t, test.body, body)
			assert.Equal(t, test.interim, r.Interim())
		})
	}
}

func TestDoubtsAboutRequests(t *testing.T) {
	for head, want := range map[string]error{
		"GET / HTTP/1.1\r\nA: b\r\n c\r\n":        DoubtFold,
		"GET / HTTP/1.1\r\n A: b\r\n":             DoubtFold,
		"GET / HTTP/1.1\r\nA : b\r\n":             DoubtField,
		"GET / HTTP/1.1\r\nA\r\n":                 DoubtField,
		"GET / HTTP/1.1\r\n: b\r\n":               DoubtField,
		"GET / HTTP/1.1\r\nContent_Length: 1\r\n": DoubtField,
		"GET / HTTP/1.1\nA: b":                    DoubtLineEnd,
		"\n":                                      DoubtLineEnd,
		"GET / HTTP/1.1\r\nA: b\rC":               DoubtLineEnd,
		"GET / HTTP/1.1\r\nA: b\rC: d\r\n":        DoubtLineEnd,
		"GET / HTTP/1.1\r\nA: b\x00":              DoubtControl,
		"GET / HTTP/1.1\r\nA: b\x7f\r\n":          DoubtControl,
		"\r\n":                                    DoubtRequestLine,
		"GET\r\n":                                 DoubtRequestLine,
		"GET /\r\n":                               DoubtRequestLine,
		"GET  / HTTP/1.1\r\n":                     DoubtRequestLine,
		"GET /\tx HTTP/1.1\r\n":                   DoubtRequestLine,
		" GET / HTTP/1.1\r\n":                     DoubtRequestLine,
		"G\xc3\xa9T / HTTP/1.1\r\n":               DoubtRequestLine,
		"GET / HTTP/1.1 \r\n":                     DoubtVersion,
		"GET / x HTTP/1.1\r\n":                    DoubtVersion,
		"GET / HTTP/2.0\r\n":                      DoubtVersion,
		"Head / HTTP/1.1\r\n":                     DoubtMethod,
		"connect / HTTP/1.1\r\n":                  DoubtMethod,
		"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n":              DoubtLength,
		"GET / HTTP/1.1\r\nContent-Length: 01\r\n":                                  DoubtLength,
		"GET / HTTP/1.1\r\nContent-Length: 1 1\r\n":                                 DoubtLength,
		"GET / HTTP/1.1\r\nContent-Length: 1234567890123456789\r\n":                 DoubtLength,
		"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n":                             DoubtCoding,
		"GET / HTTP/1.1\r\nTransfer-Encoding: chunked;q=1\r\n":                      DoubtCoding,
		"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n":                      DoubtOldCoding,
		"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n": DoubtBoth,
		"CONNECT a:1 HTTP/1.1\r\nContent-Length: 1\r\n\r\n":                         DoubtConnectBody,
		"GET / HTTP/1.1\r\nA: " + strings.Repeat("b", MaxHead):                      DoubtHeadTooLong,
		"GET / HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", MaxHead/6):                DoubtHeadTooLong,
	} {
		t.Run(strings.ReplaceAll(head[:min(len(head), 60)], "\r\n", "|"), func(t *testing.T) {
			var whole Request
			whole.Reset()
			_, err := whole.Parse([]byte(head))
			assert.Equal(t, want, err)
			// Byte by byte the doubt may show earlier, and be named differently.
			var bytewise Request
			bytewise.Reset()
			for i := 1; err == nil && i <= len(head); i++ {
				_, err = bytewise.Parse([]byte(head[:i]))
			}
			assert.Error(t, err)
		})
	}
}

func TestChunkedBodies(t *testing.T) {
	for body, want := range map[string]error{
		"0\r\n\r\n":               nil,
		"5\r\nhello\r\n0\r\n\r\n": nil,
		"05;a=\"b;c\" ; d\r\nhello\r\n000\r\nA: b\r\nC:\r\n\r\n": nil,
		"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n":        nil,
		"\r\n":                           DoubtChunkSize,
		" 5\r\n":                         DoubtChunkSize,
		"5 \r\n":                         DoubtChunkSize,
		"5\n":                            DoubtChunkSize,
		"5\rx":                           DoubtChunkSize,
		"-1\r\n":                         DoubtChunkSize,
		"g\r\n":                          DoubtChunkSize,
		"1000000000000000\r\n":           DoubtChunkSize,
		"5;\n":                           DoubtChunkExt,
		"5;\x00":                         DoubtChunkExt,
		"5;" + strings.Repeat("x", 5000): DoubtChunkExt,
		"1\r\nab":                        DoubtChunkEnd,
		"1\r\na\n":                       DoubtChunkEnd,
		"1\r\na\rb":                      DoubtChunkEnd,
		"0\r\n A: b\r\n\r\n":             DoubtTrailer,
		"0\r\nA b\r\n\r\n":               DoubtTrailer,
		"0\r\nA: b\n":                    DoubtTrailer,
		"0\r\nA: b\rc":                   DoubtTrailer,
		"0\r\n\rx":                       DoubtTrailer,
		"0\r\nA: " + strings.Repeat("b", MaxHead): DoubtTrailerLength,
	} {
		t.Run(strings.ReplaceAll(body[:min(len(body), 60)], "\r\n", "|"), func(t *testing.T) {
			var whole Chunked
			n, done, err := whole.Scan([]byte(body + "more"))
			assert.Equal(t, want, err)
			assert.Equal(t, want == nil, done)
			if want == nil {
				assert.Equal(t, len(body), n)
			}
			var bytewise Chunked
			total := 0
			for i := range len(body) {
				var k int
				k, done, err = bytewise.Scan([]byte(body[i : i+1]))
				total += k
				if err != nil {
					break
				}
			}
			assert.Equal(t, want, err)
			assert.Equal(t, n, total)
			assert.Equal(t, want == nil, done)
		})
	}
}

func TestChunkDataMayPassUnseen(t *testing.T) {
	rest := Body{Kind: InChunks}.Start()
	n, done, err := rest.Scan([]byte("64\r\n"))
	require.NoError(t, err)
	assert.Equal(t, 4, n)
	assert.False(t, done)
	assert.EqualValues(t, 100, rest.Data())
	rest.Skip(99)
	n, done, err = rest.Scan([]byte("x\r\n0\r\n\r\n"))
	require.NoError(t, err)
	assert.Equal(t, 8, n)
	assert.True(t, done)
	assert.True(t, rest.Done())
}

func TestTextHasNoControls(t *testing.T) {
	for c := range 256 {
		want := c >= ' ' && c != 0x7f || c == '\t'
		for at := range 17 {
			p := bytes.Repeat([]byte{'a'}, 17)
			p[at] = byte(c)
			assert.Equal(t, want, isText(p), "%d at %d", c, at)
		}
	}
}

func TestWhatMayBeARequest(t *testing.T) {
	for p, want := range map[string]bool{
		"G": true, "GET ": true, "GET /long": true, "P": true, "PROP": true, "": true,
		"FOO / HTTP/1.1\r\n": true,
		"HELLO":              false, "get /": false, "GETX": false, "PRI * HTTP/2.0": false, "\x16\x03": false, "\r": false,
	} {
		assert.Equal(t, want, MayBeRequest([]byte(p)), "%q", p)
	}
}

var realistic = []byte("GET /api/v1/orders?limit=20&offset=40 HTTP/1.1\r\nHost: orders.shop.svc.cluster.local\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\nAccept: text/html,application/xhtml+xml\r\n" +
	"Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nX-Request-Id: 2c9f0d8e-5a2e-4f0c-9d0c-1f0a6c0f3b7e\r\n" +
	"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nCookie: session=abcdef0123456789; theme=dark\r\nConnection: keep-alive\r\n\r\n")

func BenchmarkRequestHead(b *testing.B) {
	var r Request
	b.SetBytes(int64(len(realistic)))
	b.ReportAllocs()
	for b.Loop() {
		r.Reset()
		if n, err := r.Parse(realistic); n != len(realistic) || err != nil {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkValues(b *testing.B) {
	var r Request
	r.Reset()
	r.Parse(realistic)
	b.ReportAllocs()
	for b.Loop() {
		r.Values("x-telepresence-intercept-id", func([]byte) bool { return true })
	}
}
