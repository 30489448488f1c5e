package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestReportsOfToolsAreRead(t *testing.T) {
	s, err := readWrk("  Latency Distribution\n     50%  602.00us\n     99%    6.25ms\n  9 requests in 1.00s, 3.00MB read\nRequests/sec:  41276.11\n")
	require.NoError(t, err)
	assert.Equal(t, sample{rate: 41276.11, p50: 602, p99: 6250, done: 9}, s)
	_, err = readWrk("  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec: 5\n")
	assert.ErrorContains(t, err, "Socket errors", "a rate with errors is none")

	s, err = readH2load("finished in 3.00s, 51234.5 req/s, 12.3MB/s\nrequests: 100 total, 100 done, 100 succeeded, 0 failed, 0 errored, 0 timeout\n")
	require.NoError(t, err)
	assert.Equal(t, sample{rate: 51234.5, done: 100}, s)
	_, err = readH2load("finished in 3.00s, 51234.5 req/s, 12.3MB/s\nrequests: 100 total, 99 succeeded, 1 failed, 1 errored, 0 timeout\n")
	assert.Error(t, err)
}

func TestQuantile(t *testing.T) {
	values := []float64{3, 1, 2}
	assert.Equal(t, 2.0, quantile(values, .5))
	assert.Equal(t, 3.0, quantile(values, .99))
	assert.Equal(t, []float64{3, 1, 2}, values)
}
