// SPDX-License-Identifier: Apache-2.0

package api

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/reflect/protoreflect"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/tunnelpb"
)

var update = flag.Bool("update", false,
	"add what is new on the wire to testdata/wire.txt; what was there stays")

const frozen = "testdata/wire.txt"

// wire lists what is on the wire, one fact a line: the number of a field first, so that lines about
// one number look alike whatever became of it.
func wire(files ...protoreflect.FileDescriptor) []string {
	var lines []string
	for _, f := range files {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				lines = append(lines, fmt.Sprintf("rpc /%s/%s: %s -> %s", s.FullName(), m.Name(),
					side(m.IsStreamingClient(), m.Input()), side(m.IsStreamingServer(), m.Output())))
			}
		}
		lines = append(lines, enums(f.Enums())...)
		lines = append(lines, messages(f.Messages())...)
	}
	slices.Sort(lines)
	return lines
}

func side(stream bool, m protoreflect.MessageDescriptor) string {
	if stream {
		return "stream " + string(m.FullName())
	}
	return string(m.FullName())
}

func enums(all protoreflect.EnumDescriptors) []string {
	var lines []string
	for i := range all.Len() {
		for j := range all.Get(i).Values().Len() {
			v := all.Get(i).Values().Get(j)
			lines = append(lines, fmt.Sprintf("enum %s %d: %s", all.Get(i).FullName(), v.Number(), v.Name()))
		}
	}
	return lines
}

func messages(all protoreflect.MessageDescriptors) []string {
	var lines []string
	for i := range all.Len() {
		m := all.Get(i)
		lines = append(lines, enums(m.Enums())...)
		lines = append(lines, messages(m.Messages())...)
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			kind := f.Kind().String()
			if f.Message() != nil {
				kind = string(f.Message().FullName())
			} else if f.Enum() != nil {
				kind = string(f.Enum().FullName())
			}
			oneof := ""
			if o := f.ContainingOneof(); o != nil {
				oneof = " of " + string(o.Name())
			}
			lines = append(lines, fmt.Sprintf("field %s %d: %s %s %s%s", m.FullName(), f.Number(),
				f.Cardinality(), kind, f.Name(), oneof))
		}
	}
	return lines
}

// missing lists the facts that were once on the wire and are no more.
func missing(was, is []string) []string {
	return slices.DeleteFunc(slices.Clone(was), func(line string) bool { return slices.Contains(is, line) })
}

// TestWhatWasOnceOnTheWireStays compares the protocols with all that was ever in them: a program of
// another version may send or expect it. A field is never taken away, and its number never given to
// another; what nobody needs any more stays, and is not looked at.
func TestWhatWasOnceOnTheWireStays(t *testing.T) {
	is := wire(agentpb.File_api_agentpb_agent_proto, clientpb.File_api_clientpb_client_proto,
		daemonpb.File_api_daemonpb_daemon_proto, tunnelpb.File_api_tunnelpb_tunnel_proto)
	content, err := os.ReadFile(frozen)
	if *update {
		all := append(strings.Split(strings.TrimSpace(string(content)), "\n"), is...)
		slices.Sort(all)
		content = []byte(strings.TrimSpace(strings.Join(slices.Compact(all), "\n")) + "\n")
		require.NoError(t, os.WriteFile(frozen, content, 0o644))
	} else {
		require.NoError(t, err)
	}
	was := strings.Split(strings.TrimSpace(string(content)), "\n")
	assert.Empty(t, missing(was, is), "programs of other versions still know this")
	assert.Empty(t, missing(is, was), "this is new: if it is meant to stay, run `go test ./api -update`")
	numbers := map[string]string{}
	for _, line := range was {
		number, _, _ := strings.Cut(line, ": ")
		assert.NotContains(t, numbers, number, "one number, two meanings: %s and %s", numbers[number], line)
		numbers[number] = line
	}
}
