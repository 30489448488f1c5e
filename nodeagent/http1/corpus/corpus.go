// SPDX-License-Identifier: Apache-2.0

// Package corpus holds messages for tests of whatever frames HTTP/1: the tricks of request
// smuggling, and everything else that two readers have been seen to understand differently.
package corpus

import "strings"

const post = "POST / HTTP/1.1\r\nHost: o\r\n"

// Ambiguous are beginnings of connections after which it is not certain for every reader where the
// next request starts. Each that has a "Host: o" line takes more lines behind it.
var Ambiguous = map[string]string{
	"both lengths":              post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"two lengths":               post + "Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
	"the same length twice":     post + "Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
	"list of lengths":           post + "Content-Length: 0, 0\r\n\r\n",
	"signed length":             post + "Content-Length: +0\r\n\r\n",
	"negative length":           post + "Content-Length: -1\r\n\r\n",
	"length in hex":             post + "Content-Length: 0x0\r\n\r\n",
	"length with leading zeros": post + "Content-Length: 00\r\n\r\n",
	"length too large":          post + "Content-Length: 99999999999999999999\r\n\r\n",
	"empty length":              post + "Content-Length: \r\n\r\n",
	"length with underscore":    post + "Content_Length: 0\r\n\r\n",
	"space before the colon":    post + "Content-Length : 0\r\n\r\n",
	"space before the name":     post + " Content-Length: 0\r\n\r\n",
	"folded field":              post + "X: a\r\n b\r\n\r\n",
	"folded coding":             post + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
	"unknown coding":            post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
	"coding list":               post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
	"chunked not last":          post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
	"coding twice": post +
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"coding with vertical tab":   post + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
	"coding in quotes":           post + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
	"coding in HTTP/1.0":         "POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"bare LF":                    "GET / HTTP/1.1\nHost: o\n\n",
	"one bare LF":                "GET / HTTP/1.1\r\nHost: o\nX: y\r\n\r\n",
	"bare CR":                    "GET / HTTP/1.1\r\nHost: o\rX: y\r\n\r\n",
	"NUL":                        "GET / HTTP/1.1\r\nHost: o\x00\r\n\r\n",
	"no colon":                   "GET / HTTP/1.1\r\nHost\r\n\r\n",
	"empty name":                 "GET / HTTP/1.1\r\n: o\r\n\r\n",
	"name with a space":          "GET / HTTP/1.1\r\nHo st: o\r\n\r\n",
	"empty line in front":        "\r\nGET / HTTP/1.1\r\nHost: o\r\n\r\n",
	"two spaces":                 "GET  / HTTP/1.1\r\nHost: o\r\n\r\n",
	"space in the target":        "GET /a b HTTP/1.1\r\nHost: o\r\n\r\n",
	"tab in the target":          "GET /a\tb HTTP/1.1\r\nHost: o\r\n\r\n",
	"lower-case head":            "head / HTTP/1.1\r\nHost: o\r\n\r\n",
	"HTTP/0.9":                   "GET /\r\n",
	"HTTP/1.2":                   "GET / HTTP/1.2\r\nHost: o\r\n\r\n",
	"HTTP/2 preface":             "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"lower-case version":         "GET / http/1.1\r\nHost: o\r\n\r\n",
	"CONNECT with a body":        "CONNECT o:1 HTTP/1.1\r\nHost: o\r\nContent-Length: 1\r\n\r\nx",
	"chunk size with a sign":     post + "Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n",
	"chunk size with 0x":         post + "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
	"chunk size with a space":    post + "Transfer-Encoding: chunked\r\n\r\n0 \r\n\r\n",
	"chunk size overflow":        post + "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n",
	"chunk size missing":         post + "Transfer-Encoding: chunked\r\n\r\n;x\r\n\r\n",
	"chunk line with LF":         post + "Transfer-Encoding: chunked\r\n\r\n0\n\r\n",
	"chunk extension with LF":    post + "Transfer-Encoding: chunked\r\n\r\n1;x\nx\r\n0\r\n\r\n",
	"chunk longer than its size": post + "Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
	"trailer with LF":            post + "Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\n\r\n",
	"trailer that is folded":     post + "Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n c\r\n\r\n",
	"trailer without a colon":    post + "Transfer-Encoding: chunked\r\n\r\n0\r\nA\r\n\r\n",
	"head of 70 KiB":             "GET / HTTP/1.1\r\nHost: o\r\nX: " + strings.Repeat("x", 70<<10) + "\r\n\r\n",
	"TLS":                        "\x16\x03\x01\x00\xee\x01\x00",
	"redis":                      "*1\r\n$4\r\nPING\r\n",
	"binary":                     "\x00\x01\x02\x03",

	// Codings that one reader takes for chunked and another does not.
	"coding in mixed company": post +
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
	"unknown coding, then chunked": post +
		"Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"coding and a space":               post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
	"coding and a tab":                 post + "Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
	"coding on a line of its own":      post + "Transfer-Encoding\r\n: chunked\r\n\r\n0\r\n\r\n",
	"coding behind a bare LF":          post + "X: x\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"coding behind a bare CR":          post + "X: x\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"coding with NUL":                  post + "Transfer-Encoding: chunked\x00\r\n\r\n0\r\n\r\n",
	"coding behind NUL":                post + "\x00Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"coding with form feed":            post + "Transfer-Encoding: chunked\x0c\r\n\r\n0\r\n\r\n",
	"coding with no-break space":       post + "Transfer-Encoding: \xa0chunked\r\n\r\n0\r\n\r\n",
	"coding with next line":            post + "Transfer-Encoding: chunked\x85\r\n\r\n0\r\n\r\n",
	"coding in single quotes":          post + "Transfer-Encoding: 'chunked'\r\n\r\n0\r\n\r\n",
	"coding with a parameter":          post + "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
	"coding with underscore":           post + "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
	"coding behind a comma":            post + "Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
	"coding before a comma":            post + "Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n",
	"coding twice in a list":           post + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
	"coding cut short":                 post + "Transfer-Encoding: chunk\r\n\r\n0\r\n\r\n",
	"coding with a dash too many":      post + "Transfer-Encoding: -chunked\r\n\r\n0\r\n\r\n",
	"empty coding":                     post + "Transfer-Encoding:\r\n\r\n",
	"coding identity":                  post + "Transfer-Encoding: identity\r\n\r\n",
	"coding folded after its name":     post + "Transfer-Encoding:\r\n\tchunked\r\n\r\n0\r\n\r\n",
	"coding folded into another field": post + "X: x\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"coding in HTTP/1.0 that closes":   "POST / HTTP/1.0\r\nHost: o\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"coding, then a length": post +
		"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
	"length, then an unknown coding": post + "Content-Length: 0\r\nTransfer-Encoding: x\r\n\r\n",
	"length in CONNECT with chunks":  "CONNECT o:1 HTTP/1.1\r\nHost: o\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",

	// Lengths that one reader takes for a number and another does not.
	"length with a fraction":     post + "Content-Length: 0.0\r\n\r\n",
	"length with an exponent":    post + "Content-Length: 0e1\r\n\r\n",
	"length with digit groups":   post + "Content-Length: 0_0\r\n\r\n",
	"length with something else": post + "Content-Length: 0 bytes\r\n\r\n",
	"length with NUL":            post + "Content-Length: 0\x00\r\n\r\n",
	"length with a parameter":    post + "Content-Length: 0;x\r\n\r\n",
	"length with vertical tab":   post + "Content-Length: \x0b0\r\n\r\n",
	"length in other digits":     post + "Content-Length: \u0660\r\n\r\n",
	"length in quotes":           post + "Content-Length: \"0\"\r\n\r\n",
	"length minus zero":          post + "Content-Length: -0\r\n\r\n",
	"length behind a comma":      post + "Content-Length: ,0\r\n\r\n",
	"length behind a bare CR":    post + "X: x\rContent-Length: 0\r\n\r\n",
	"length of 2^64":             post + "Content-Length: 18446744073709551616\r\n\r\n",
	"length folded":              post + "Content-Length:\r\n 0\r\n\r\n",
	"length with a tab":          post + "Content-Length\t: 0\r\n\r\n",
	"name in other letters":      post + "C\u043entent-Length: 0\r\n\r\n",

	// Lines.
	"bare LF at the end of the head": "GET / HTTP/1.1\r\nHost: o\r\n\n",
	"CR CR LF":                       "GET / HTTP/1.1\r\nHost: o\r\r\n\r\n",
	"CR before the empty line":       "GET / HTTP/1.1\r\nHost: o\r\n\r\r\n",
	"first field is folded":          "GET / HTTP/1.1\r\n Host: o\r\n\r\n",
	"line of white space":            "GET / HTTP/1.1\r\nHost: o\r\n \r\n\r\n",
	"tab for a space":                "GET\t/\tHTTP/1.1\r\nHost: o\r\n\r\n",
	"method with a colon":            "GET: / HTTP/1.1\r\nHost: o\r\n\r\n",
	"space behind the version":       "GET / HTTP/1.1 \r\nHost: o\r\n\r\n",
	"version with zeros":             "GET / HTTP/01.1\r\nHost: o\r\n\r\n",
	"version 1.10":                   "GET / HTTP/1.10\r\nHost: o\r\n\r\n",
	"no version":                     "GET / \r\nHost: o\r\n\r\n",
	"NUL in the target":              "GET /\x00 HTTP/1.1\r\nHost: o\r\n\r\n",
	"DEL in a value":                 "GET / HTTP/1.1\r\nHost: o\r\nX: \x7f\r\n\r\n",
	"escape in a value":              "GET / HTTP/1.1\r\nHost: o\r\nX: \x1b[0m\r\n\r\n",
	"byte order mark":                "\xef\xbb\xbfGET / HTTP/1.1\r\nHost: o\r\n\r\n",

	// Chunks.
	"chunk size with a leading space": post + "Transfer-Encoding: chunked\r\n\r\n 0\r\n\r\n",
	"chunk size with a tab":           post + "Transfer-Encoding: chunked\r\n\r\n0\t\r\n\r\n",
	"chunk size with an underscore":   post + "Transfer-Encoding: chunked\r\n\r\n0_0\r\n\r\n",
	"chunk size with a minus":         post + "Transfer-Encoding: chunked\r\n\r\n-0\r\n\r\n",
	"chunk size of many zeros": post +
		"Transfer-Encoding: chunked\r\n\r\n0000000000000000000000\r\n\r\n",
	"chunk size with NUL":                      post + "Transfer-Encoding: chunked\r\n\r\n0\x00\r\n\r\n",
	"chunk size with a space and an extension": post + "Transfer-Encoding: chunked\r\n\r\n0 ;x\r\n\r\n",
	"chunk size line with CR":                  post + "Transfer-Encoding: chunked\r\n\r\n1\rx\r\n0\r\n\r\n",
	"chunk extension with CR":                  post + "Transfer-Encoding: chunked\r\n\r\n1;\rx\r\n0\r\n\r\n",
	"chunk extension of 5 KiB": post + "Transfer-Encoding: chunked\r\n\r\n1;" +
		strings.Repeat("x", 5<<10) + "\r\nx\r\n0\r\n\r\n",
	"chunk that ends in LF":      post + "Transfer-Encoding: chunked\r\n\r\n1\r\na\n0\r\n\r\n",
	"chunk that ends in CR":      post + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r0\r\n\r\n",
	"chunk that does not end":    post + "Transfer-Encoding: chunked\r\n\r\n1\r\na0\r\n\r\n",
	"chunk list that ends in LF": post + "Transfer-Encoding: chunked\r\n\r\n0\r\n\n",
	"trailer with a space":       post + "Transfer-Encoding: chunked\r\n\r\n0\r\nA : b\r\n\r\n",
	"trailer with NUL":           post + "Transfer-Encoding: chunked\r\n\r\n0\r\nA: \x00\r\n\r\n",
}

// Clear are requests that all servers frame alike, however they look. Each takes more lines behind
// its "Host: o", and leaves the connection open.
var Clear = map[string]string{
	"no body":                     "GET / HTTP/1.1\r\nHost: o\r\n\r\n",
	"length":                      post + "Content-Length: 5\r\n\r\nhello",
	"length without a space":      post + "Content-Length:5\r\n\r\nhello",
	"length between tabs":         post + "Content-Length:\t5\t\r\n\r\nhello",
	"length in capitals":          post + "CONTENT-LENGTH: 5\r\n\r\nhello",
	"length that hides a request": post + "Content-Length: 30\r\n\r\nGET /hidden HTTP/1.1\r\nX: y\r\n\r\n",
	"GET with a body":             "GET / HTTP/1.1\r\nHost: o\r\nContent-Length: 5\r\n\r\nhello",
	"DELETE with chunks":          "DELETE / HTTP/1.1\r\nHost: o\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"chunks":                      post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"chunks between tabs":         post + "Transfer-Encoding:\tchunked\t\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"chunks in capitals":          post + "TRANSFER-ENCODING: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"chunks that hide a request": post +
		"Transfer-Encoding: chunked\r\n\r\n1e\r\nGET /hidden HTTP/1.1\r\nX: y\r\n\r\n\r\n0\r\n\r\n",
	"chunks with leading zeros": post + "Transfer-Encoding: chunked\r\n\r\n005\r\nhello\r\n000\r\n\r\n",
	"chunks with extensions": post +
		"Transfer-Encoding: chunked\r\n\r\n5;a;b=c;d=\"e\"\r\nhello\r\n0;f\r\n\r\n",
	"chunks with trailers": post +
		"Transfer-Encoding: chunked\r\nTrailer: T\r\n\r\n5\r\nhello\r\n0\r\nT: u\r\nV:\r\n\r\n",
	"chunks of single bytes": post +
		"Transfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n",
	"content coding named chunked": post + "Content-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello",
	"framing named in Connection":  post + "Connection: Content-Length\r\nContent-Length: 5\r\n\r\nhello",
	"a name that begins alike": post +
		"Content-Length-X: 7\r\nX-Content-Length: 9\r\nContent-Length: 5\r\n\r\nhello",
	"fields without values":      "GET / HTTP/1.1\r\nHost: o\r\nX:\r\nY: \r\n\r\n",
	"obs-text in a value":        "GET / HTTP/1.1\r\nHost: o\r\nX: caf\xe9\r\n\r\n",
	"query with a request in it": "GET /?q=%0d%0aGET%20/ HTTP/1.1\r\nHost: o\r\n\r\n",
	"HTTP/1.0 that is kept":      "GET / HTTP/1.0\r\nHost: o\r\nConnection: keep-alive\r\n\r\n",
	"a head of 8 KiB": "GET / HTTP/1.1\r\nHost: o\r\nX: " +
		strings.Repeat("x", 8<<10-100) + "\r\n\r\n",
	"a hundred fields": "GET / HTTP/1.1\r\nHost: o\r\n" + strings.Repeat("X: y\r\n", 90) + "\r\n",
}
