// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/mod/modfile"
)

// moduleFile writes the go.mod of a module whose only purpose is to build programs of another one,
// at exactly the versions of dependencies that the other one was released with.
//
// A module's replace directives are ignored by whoever requires it, and Kubernetes and etcd replace
// their sibling modules by directories of their repositories. Those directories are published as
// modules too. Kubernetes names no version for them: then they get siblings, the version that
// belongs to the release.
func moduleFile(upstream []byte, path, version, siblings string) ([]byte, error) {
	theirs, err := modfile.Parse(path+"/go.mod", upstream, nil)
	if err != nil {
		return nil, fmt.Errorf("read the go.mod of %s: %w", path, err)
	}
	ours := new(modfile.File)
	if err := ours.AddModuleStmt("sidestep.dev/sidestep/tests/cluster/build"); err != nil {
		return nil, err
	}
	if theirs.Go != nil {
		if err := ours.AddGoStmt(theirs.Go.Version); err != nil {
			return nil, err
		}
	}
	for _, debug := range theirs.Godebug { // defaults of run-time behaviour that the release was tested with
		if err := ours.AddGodebug(debug.Key, debug.Value); err != nil {
			return nil, err
		}
	}
	if err := ours.AddRequire(path, version); err != nil {
		return nil, err
	}
	inRepository := map[string]bool{}
	for _, replace := range theirs.Replace {
		old, replacement := replace.Old, replace.New
		if replacement.Version == "" { // a directory
			inRepository[old.Path] = true
			if siblings == "" {
				continue
			}
			replacement.Path, replacement.Version = old.Path, siblings
		}
		if err := ours.AddReplace(old.Path, old.Version, replacement.Path, replacement.Version); err != nil {
			return nil, err
		}
	}
	for _, require := range theirs.Require {
		wanted := require.Mod.Version
		if siblings != "" && inRepository[require.Mod.Path] {
			wanted = siblings
		}
		ours.AddNewRequire(require.Mod.Path, wanted, require.Indirect)
	}
	return ours.Format()
}

// download fetches a module into the module cache and returns its directory there.
func download(ctx context.Context, path, version string) (string, error) {
	var out, complaint bytes.Buffer
	command := exec.CommandContext(ctx, "go", "mod", "download", "-json", path+"@"+version)
	command.Dir = os.TempDir() // outside of any module
	command.Env = buildEnv()
	command.Stdout, command.Stderr = &out, &complaint
	runErr := command.Run()
	var module struct{ Dir, Error string }
	if err := json.Unmarshal(out.Bytes(), &module); err != nil || runErr != nil || module.Error != "" {
		return "", fmt.Errorf("download %s@%s: %s", path, version,
			reason(module.Error, complaint.String(), runErr))
	}
	return module.Dir, nil
}

func reason(told, complaint string, err error) string {
	switch {
	case told != "":
		return told
	case strings.TrimSpace(complaint) != "":
		return strings.TrimSpace(complaint)
	case err != nil:
		return err.Error()
	default:
		return "no answer that makes sense"
	}
}

// prepare lays the module for a build into dir.
func prepare(ctx context.Context, dir string, source Source) error {
	upstream, err := download(ctx, source.Module, source.Version)
	if err != nil {
		return err
	}
	theirs, err := os.ReadFile(filepath.Join(upstream, "go.mod"))
	if err != nil {
		return fmt.Errorf("read the go.mod of %s: %w", source.Module, err)
	}
	ours, err := moduleFile(theirs, source.Module, source.Version, source.Siblings)
	if err != nil {
		return err
	}
	sums, err := os.ReadFile(filepath.Join(upstream, "go.sum"))
	if err != nil {
		return fmt.Errorf("read the go.sum of %s: %w", source.Module, err)
	}
	files := map[string][]byte{"go.mod": ours, "go.sum": sums}
	for name, content := range source.Files {
		files[name] = content
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return fmt.Errorf("lay out the build of %s: %w", source.Module, err)
		}
	}
	return nil
}
