// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/apps/load"
	"sidestep.dev/sidestep/tests/apps/shop"
)

func surroundings(vars map[string]string) (e env, stdout *bytes.Buffer) {
	stdout = new(bytes.Buffer)
	return env{
		stdout:   stdout,
		stderr:   io.Discard,
		getenv:   func(name string) string { return vars[name] },
		hostname: func() (string, error) { return "desk", nil },
	}, stdout
}

func execute(t *testing.T, args ...string) (string, error) {
	t.Helper()
	e, stdout := surroundings(nil)
	command := newCommand(e)
	command.SetArgs(args)
	err := command.ExecuteContext(t.Context())
	return stdout.String(), err
}

// background runs a service until the test ends and returns the addresses that it said it listens
// on.
func background(t *testing.T, vars map[string]string, listeners int, args ...string) []string {
	t.Helper()
	e, _ := surroundings(vars)
	read, write := io.Pipe()
	e.stderr = write
	command := newCommand(e)
	command.SetArgs(args)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		err := command.ExecuteContext(ctx)
		write.CloseWithError(io.EOF)
		done <- err
	}()
	t.Cleanup(func() {
		stop()
		assert.NoError(t, <-done)
	})
	var addresses []string
	for scanner := bufio.NewScanner(read); len(addresses) < listeners && scanner.Scan(); {
		addresses = append(addresses, scanner.Text()[strings.LastIndex(scanner.Text(), " ")+1:])
	}
	require.Len(t, addresses, listeners)
	return addresses
}

func TestTheStandInOnALaptopAnswersAsLaptop(t *testing.T) {
	address := background(t, nil, 1, "serve", "--listen", "127.0.0.1:0")[0]
	body, err := execute(t, "call", "http://"+address+"/cart", "-H", "x-user: ada")
	require.NoError(t, err)
	var answer shop.Answer
	require.NoError(t, json.Unmarshal([]byte(body), &answer))
	assert.Equal(t, "laptop", answer.Service)
	assert.Equal(t, "desk", answer.Pod)
	assert.Equal(t, "/cart", answer.Path)
	assert.Equal(t, []string{"ada"}, answer.Headers["X-User"])
}

func TestAServiceTakesItsPlaceInTheChainFromItsEnvironment(t *testing.T) {
	stock := background(t, map[string]string{"POD_NAME": "stock-0"}, 1, "serve", "--name", "stock",
		"--listen", "127.0.0.1:0")[0]
	both := background(t, map[string]string{"UPSTREAM": "http://" + stock,
		"FORWARD_HEADERS": "x-user,x-team"}, 2,
		"serve", "--name", "orders", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	body, err := execute(t, "call", "http://"+both[0], "-H", "X-Team: red")
	require.NoError(t, err)
	var answer shop.Answer
	require.NoError(t, json.Unmarshal([]byte(body), &answer))
	assert.Equal(t, []string{"orders", "stock"}, answer.Chain())
	assert.Equal(t, "stock-0", answer.Upstream.Pod)
	assert.Equal(t, []string{"red"}, answer.Upstream.Headers["X-Team"])

	body, err = execute(t, "call", "http://"+both[1])
	require.NoError(t, err)
	assert.Contains(t, body, `"service":"orders-admin"`)
}

func TestLoadPrintsItsSummaryAsJSON(t *testing.T) {
	addresses := map[string]string{
		"http": background(t, nil, 1, "serve", "--listen", "127.0.0.1:0")[0],
		"tcp":  background(t, nil, 1, "lines", "--listen", "127.0.0.1:0")[0],
		"grpc": background(t, nil, 1, "greeter", "--listen", "127.0.0.1:0")[0],
	}
	for scheme, address := range addresses {
		printed, err := execute(t, "load", scheme+"://"+address, "-n", "10", "-c", "2", "--matched",
			"1", "-H", "x-user: ada")
		require.NoError(t, err)
		var summary load.Summary
		require.NoError(t, json.Unmarshal([]byte(printed), &summary))
		assert.Equal(t, 10, summary.MatchedToLaptop, scheme)
	}
}

func TestErrorsSayWhatIsWrong(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		says string
	}{
		"an address in use elsewhere": {[]string{"serve", "--listen", "203.0.113.1:1"}, "laptop: listen"},
		"a header without a value":    {[]string{"call", "http://127.0.0.1:1", "-H", "x"}, `"name: value"`},
		"an answer that is an error": {[]string{"call", "http://" +
			background(t, nil, 1, "serve", "--listen", "127.0.0.1:0")[0] + "/slow"}, "400"},
		"a load without an end":        {[]string{"load", "http://127.0.0.1:1"}, "duration"},
		"manifests without an image":   {[]string{"manifests", "--image", ""}, "no image"},
		"a command that is not there":  {[]string{"eat"}, "unknown command"},
		"a service with too many args": {[]string{"serve", "orders"}, "unknown command"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := execute(t, test.args...)
			assert.ErrorContains(t, err, test.says)
		})
	}
}

func TestManifestsNameTheImage(t *testing.T) {
	printed, err := execute(t, "manifests", "--image", "apps:v7")
	require.NoError(t, err)
	assert.Contains(t, printed, "image: apps:v7")
}

func TestDatagramsAreAnsweredWithTheServicesName(t *testing.T) {
	addresses := background(t, nil, 1, "datagrams", "--name", "resolver", "--listen", "127.0.0.1:0")
	out, err := execute(t, "ask", addresses[0], "who are you?", "--timeout", "20s")
	require.NoError(t, err)
	assert.Equal(t, "resolver: who are you?\n", out)
}
