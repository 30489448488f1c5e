// SPDX-License-Identifier: Apache-2.0

// Command provenance writes an in-toto statement with SLSA's predicate, version 1, about files of a release:
// what they are made from, and how. It is not signed: whoever releases attests to it, such as with cosign.
//
//	go run ./deploy/provenance --repository https://… --commit … --version v1.2.3 FILE...
//
// See https://slsa.dev/spec/v1.0/provenance.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

func main() {
	var r release
	flag.StringVar(&r.repository, "repository", "", "URL of the repository")
	flag.StringVar(&r.commit, "commit", "", "commit, 40 hexadecimal digits")
	flag.StringVar(&r.version, "version", "", "version of the release")
	flag.StringVar(&r.builder, "builder", "", "URI of whatever runs the build")
	flag.Parse()
	if err := r.write(os.Stdout, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "provenance: error:", err)
		os.Exit(1)
	}
}

// buildType says that a release is what `make release` gives.
const buildType = "https://sidestep.dev/build/make-release/v1"

// release is what all files of a release have in common.
type release struct{ repository, commit, version, builder string }

// descriptor is an in-toto ResourceDescriptor.
type descriptor struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest,omitempty"`
}

type statement struct {
	Type          string       `json:"_type"`
	Subject       []descriptor `json:"subject"`
	PredicateType string       `json:"predicateType"`
	Predicate     predicate    `json:"predicate"`
}

type predicate struct {
	BuildDefinition struct {
		BuildType            string            `json:"buildType"`
		ExternalParameters   map[string]string `json:"externalParameters"`
		InternalParameters   map[string]string `json:"internalParameters"`
		ResolvedDependencies []descriptor      `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder struct {
			ID string `json:"id"`
		} `json:"builder"`
	} `json:"runDetails"`
}

// write writes the statement about files, as JSON.
func (r *release) write(w io.Writer, files []string) error {
	if r.repository == "" || len(r.commit) != 40 || r.version == "" || r.builder == "" || len(files) == 0 {
		return errors.New("--repository, --commit, --version, --builder and files are needed")
	}
	s := statement{Type: "https://in-toto.io/Statement/v1", PredicateType: "https://slsa.dev/provenance/v1"}
	modules := map[string]descriptor{}
	for _, file := range files {
		digest, err := digestOf(file)
		if err != nil {
			return err
		}
		s.Subject = append(s.Subject, descriptor{Name: filepath.Base(file), Digest: map[string]string{"sha256": digest}})
		if err := modulesOf(file, modules); err != nil {
			return err
		}
	}
	d := &s.Predicate.BuildDefinition
	d.BuildType = buildType
	d.ExternalParameters = map[string]string{"repository": r.repository, "version": r.version}
	d.InternalParameters = map[string]string{"go": runtime.Version()}
	d.ResolvedDependencies = []descriptor{{URI: "git+" + r.repository, Digest: map[string]string{"gitCommit": r.commit}}}
	for _, m := range modules {
		d.ResolvedDependencies = append(d.ResolvedDependencies, m)
	}
	slices.SortFunc(d.ResolvedDependencies[1:], func(a, b descriptor) int { return strings.Compare(a.URI, b.URI) })
	s.Predicate.RunDetails.Builder.ID = r.builder
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	return out.Encode(s)
}

func digestOf(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// modulesOf adds the modules that a Go program was linked from, by their package URLs. Other files have none.
func modulesOf(file string, modules map[string]descriptor) error {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return nil
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		// A module's h1 hash is the SHA-256 of a list of its files' hashes, which go.sum has, too.
		sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:"))
		if err != nil || len(sum) != sha256.Size {
			return fmt.Errorf("%s: module %s has no checksum", file, m.Path)
		}
		uri := "pkg:golang/" + m.Path + "@" + m.Version
		modules[uri] = descriptor{URI: uri, Digest: map[string]string{"dirHash1": hex.EncodeToString(sum)}}
	}
	return nil
}
