// SPDX-License-Identifier: Apache-2.0

// Command gen runs protoc on every .proto of the API, with the plugins that go.mod pins.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run() error {
	if err := os.Chdir(".."); err != nil { // go generate starts in api; protoc wants the module's root
		return err
	}
	protos, err := filepath.Glob("api/*/*.proto")
	if err != nil {
		return err
	}
	args := []string{"-I", "."}
	for _, plugin := range []string{"protoc-gen-go", "protoc-gen-go-grpc"} {
		path, err := exec.Command("go", "tool", "-n", plugin).Output()
		if err != nil {
			return fmt.Errorf("find %s: %w", plugin, err)
		}
		args = append(args, "--plugin="+plugin+"="+strings.TrimSpace(string(path)))
	}
	args = append(args, "--go_out=.", "--go_opt=paths=source_relative", "--go-grpc_out=.",
		"--go-grpc_opt=paths=source_relative")
	protoc := exec.Command("protoc", append(args, protos...)...)
	protoc.Stdout, protoc.Stderr = os.Stdout, os.Stderr
	if err := protoc.Run(); err != nil {
		return fmt.Errorf("protoc: %w (Debian: apt-get install protobuf-compiler)", err)
	}
	return dropProtocVersion()
}

var protocVersion = regexp.MustCompile(`(?m)^// [-\t ]*protoc +v.*\n`)

// dropProtocVersion removes protoc's own version from the headers of the generated files: it does
// not shape the code (the pinned plugins do), and would make a file look stale on a distribution
// with another protoc.
func dropProtocVersion() error {
	generated, err := filepath.Glob("api/*/*.pb.go")
	if err != nil {
		return err
	}
	for _, path := range generated {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, protocVersion.ReplaceAll(text, nil), 0o644); err != nil {
			return err
		}
	}
	return nil
}
