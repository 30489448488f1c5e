// SPDX-License-Identifier: Apache-2.0

// Package debian gets kernels from Debian's archives, without root and without a change to the
// machine's own package lists.
package debian

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Mirror is where a machine gets Debian from.
type Mirror struct {
	Archive  string // URI of the main archive
	Security string // URI of the archive of security updates
}

// source is one line of a sources.list, or one stanza of a .sources file.
type source struct {
	uris, suites []string
}

// FindMirror reads the configuration of apt in etc, which is /etc.
func FindMirror(etc fs.FS) (Mirror, error) {
	release, err := fs.ReadFile(etc, "os-release")
	if err != nil {
		return Mirror{}, fmt.Errorf("find out which Debian this is: %w", err)
	}
	codename := codenameOf(string(release))
	sources, err := readSources(etc)
	if err != nil {
		return Mirror{}, err
	}
	m := Mirror{
		Archive: find(sources, codename, "stable", "testing", "sid", "unstable"),
		Security: find(sources, codename+"-security", "stable-security", "testing-security", codename+
			"/updates"),
	}
	if m.Archive == "" {
		return Mirror{}, fmt.Errorf(
			"apt's sources name no mirror of Debian %s: the kernels are Debian's packages", codename)
	}
	if m.Security == "" {
		m.Security = strings.TrimSuffix(m.Archive, "/") + "-security"
	}
	return m, nil
}

func codenameOf(release string) string {
	for line := range strings.Lines(release) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(value, `"'`)
		}
	}
	return ""
}

func find(sources []source, suites ...string) string {
	for _, s := range sources {
		if len(s.uris) > 0 && slices.ContainsFunc(s.suites,
			func(has string) bool { return slices.Contains(suites, has) }) {
			return s.uris[0]
		}
	}
	return ""
}

func readSources(etc fs.FS) (all []source, err error) {
	names := []string{"apt/sources.list"}
	for _, pattern := range []string{"apt/sources.list.d/*.list", "apt/sources.list.d/*.sources"} {
		found, err := fs.Glob(etc, pattern)
		if err != nil {
			return nil, err
		}
		names = append(names, found...)
	}
	for _, name := range names {
		text, err := fs.ReadFile(etc, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read apt's sources: %w", err)
		}
		if path.Ext(name) == ".sources" {
			for _, s := range stanzas(string(text)) {
				if strings.Contains(s["types"], "deb") && s["enabled"] != "no" {
					all = append(all, source{strings.Fields(s["uris"]), strings.Fields(s["suites"])})
				}
			}
			continue
		}
		all = append(all, oneLine(string(text))...)
	}
	return all, nil
}

// oneLine parses lines such as "deb [signed-by=x] http://mirror/debian bookworm main".
func oneLine(text string) (all []source) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			_, rest, _ = strings.Cut(rest, "]")
		}
		if fields := strings.Fields(rest); kind == "deb" && len(fields) >= 2 {
			all = append(all, source{fields[:1], fields[1:2]})
		}
	}
	return all
}

// stanzas parses what Debian calls deb822: "Key: value" lines, with indented lines that go on, in
// groups between empty lines. Keys are given in lower case.
func stanzas(text string) (all []map[string]string) {
	var current map[string]string
	var key string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			current = nil
		case line[0] == ' ' || line[0] == '\t':
			if current != nil {
				current[key] += "\n" + strings.TrimSpace(line)
			}
		default:
			name, value, _ := strings.Cut(line, ":")
			if current == nil {
				current = map[string]string{}
				all = append(all, current)
			}
			key = strings.ToLower(strings.TrimSpace(name))
			current[key] = strings.TrimSpace(value)
		}
	}
	return all
}
