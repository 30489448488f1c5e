// SPDX-License-Identifier: Apache-2.0

// Package docs holds no code: its tests keep what the documents say about the tree true.
package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const root = ".."

// documents returns the text of every Markdown file of the tree by its path below the root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	walk(t, func(path string) {
		if strings.HasSuffix(path, ".md") {
			texts[path] = read(t, path)
		}
	})
	require.NotEmpty(t, texts)
	return texts
}

// walk calls visit with the path of every file of the tree, without what git and builds keep there.
func walk(t *testing.T, visit func(path string)) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && path != root {
			switch entry.Name() {
			case ".git", "bin", "build", "testdata":
				return filepath.SkipDir
			}
		}
		if !entry.IsDir() {
			below, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			visit(filepath.ToSlash(below))
		}
		return nil
	}))
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	require.NoError(t, err)
	return string(text)
}

func exists(path string) bool {
	_, err := os.Stat(filepath.Join(root, filepath.FromSlash(path)))
	return err == nil
}

var (
	fence   = regexp.MustCompile("(?ms)^```.*?^```$")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	code    = regexp.MustCompile("`([^`\n]+)`")
)

// anchors returns the names by which GitHub and its like link to the headings of a text.
func anchors(text string) map[string]bool {
	names := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		var name strings.Builder
		for _, r := range strings.ToLower(h[1]) {
			switch {
			case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_':
				name.WriteRune(r)
			case r == ' ':
				name.WriteByte('-')
			}
		}
		names[name.String()] = true
	}
	return names
}

func TestLinksBetweenDocumentsResolve(t *testing.T) {
	texts := documents(t)
	checked := 0
	for path, text := range texts {
		for _, found := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			target := found[1]
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			checked++
			file, anchor, _ := strings.Cut(target, "#")
			where := path
			if file != "" {
				where = filepath.ToSlash(filepath.Join(filepath.Dir(path), file))
				if !assert.Truef(t, exists(where), "%s links to %s, which does not exist", path, target) {
					continue
				}
			}
			if anchor != "" {
				assert.Truef(t, anchors(texts[where])[anchor], "%s links to %s: no such heading", path, target)
			}
		}
	}
	assert.Greater(t, checked, 50)
}

// A path in backquotes that begins with a directory of the tree must exist. Wildcards and
// placeholders are left alone, and so is what bin/ and build/ get from make.
func TestPathsThatDocumentsNameExist(t *testing.T) {
	directories, err := os.ReadDir(root)
	require.NoError(t, err)
	tops := map[string]bool{}
	for _, d := range directories {
		tops[d.Name()] = d.IsDir() && d.Name() != "bin" && d.Name() != "build" && d.Name() != ".git"
	}
	path := regexp.MustCompile(`^(?:\./)?([a-z0-9_.]+)(/[A-Za-z0-9_.-]+)*/?$`)
	checked := 0
	for name, text := range documents(t) {
		if name == "CHANGELOG.md" { // tells of older trees
			continue
		}
		for _, found := range code.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			parts := path.FindStringSubmatch(found[1])
			if parts == nil || !tops[parts[1]] || !strings.Contains(found[1], "/") {
				continue
			}
			checked++
			beside := filepath.ToSlash(filepath.Join(filepath.Dir(name), found[1]))
			assert.Truef(t, exists(found[1]) || exists(beside), "%s names %s, which does not exist", name, found[1])
		}
	}
	assert.Greater(t, checked, 30)
}

func TestArchitectureIsOnePage(t *testing.T) {
	words := len(strings.Fields(read(t, "docs/architecture.md")))
	assert.LessOrEqual(t, words, 1500, "docs/architecture.md has %d words; details go to docs/design", words)
	assert.LessOrEqual(t, strings.Count(read(t, "README.md"), "\n"), 130, "lines of README.md")
}

// testFunctions returns the directories of each test function, and the text of the end-to-end tests.
func testFunctions(t *testing.T) (where map[string][]string, endToEnd string) {
	t.Helper()
	where = map[string][]string{}
	var e2e strings.Builder
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	walk(t, func(path string) {
		if !strings.HasSuffix(path, "_test.go") {
			return
		}
		text := read(t, path)
		for _, found := range function.FindAllStringSubmatch(text, -1) {
			where[found[1]] = append(where[found[1]], filepath.ToSlash(filepath.Dir(path)))
		}
		if strings.HasPrefix(path, "tests/e2e/") {
			e2e.WriteString(text)
		}
	})
	return where, e2e.String()
}

func TestTheTestsThatDocumentsNameExist(t *testing.T) {
	where, endToEnd := testFunctions(t)
	named := 0
	for path, text := range documents(t) {
		for _, name := range regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(text, -1) {
			named++
			assert.Truef(t, where[name[1]] != nil, "%s names %s, which does not exist", path, name[1])
		}
	}
	assert.Greater(t, named, 100)
	for _, path := range []string{"docs/compatibility.md", "docs/security.md"} {
		rows := regexp.MustCompile(`(?m)^\|.*\|([^|]*)\|$`).FindAllStringSubmatch(read(t, path), -1)
		assert.NotEmpty(t, rows)
		for _, row := range rows {
			for _, name := range regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(row[1], -1) {
				has := strings.Contains(endToEnd, `"`+name[1]+`"`)
				assert.Truef(t, has, "%s names the end-to-end test %q, which does not exist", path, name[1])
			}
		}
	}
}

// docs/compatibility.md writes a package, or the end of its path, before the names of its tests.
func TestNamedTestsAreInThePackageThatIsNamed(t *testing.T) {
	where, _ := testFunctions(t)
	group := regexp.MustCompile("(?:^|[;|,:] |\\| )(?:the same; )?([a-z0-9/]+) ((?:`Test\\w+`(?:, )?)+)")
	name := regexp.MustCompile("`(Test\\w+)`")
	checked := 0
	for _, found := range group.FindAllStringSubmatch(read(t, "docs/compatibility.md"), -1) {
		for _, test := range name.FindAllStringSubmatch(found[2], -1) {
			checked++
			inside := false
			for _, directory := range where[test[1]] {
				inside = inside || strings.Contains("/"+directory+"/", "/"+found[1]+"/")
			}
			assert.Truef(t, inside, "%s is said to be in %s, and is in %v", test[1], found[1], where[test[1]])
		}
	}
	assert.Greater(t, checked, 50)
}

// Every attempt of the threat model has a state, and whatever holds has a test that proves it.
func TestEveryAttemptHasAStateAndATest(t *testing.T) {
	rows := regexp.MustCompile(`(?m)^\| (\d+) \|[^|]*\|[^|]*\| ([^|]*) \| ([^|]*) \|$`).
		FindAllStringSubmatch(read(t, "docs/security.md"), -1)
	assert.GreaterOrEqual(t, len(rows), 60)
	for _, row := range rows {
		number, state, test := row[1], row[2], row[3]
		assert.Containsf(t, []string{"holds", "bounded", "accepted risk", "open"}, state, "state of attempt %s", number)
		proved := strings.Contains(test, "`Test") || strings.Contains(test, "`Fuzz") || strings.Contains(test, `"`)
		assert.Truef(t, proved || strings.Contains(test, "not yet") || state == "accepted risk",
			"attempt %s names neither a test nor that there is none yet", number)
	}
}

// Flags and commands of sidestep that documents show are those that --help shows. The help texts
// are the golden ones of client/cli, which its own tests compare with the program.
func TestCommandsThatDocumentsShowExist(t *testing.T) {
	help := map[string]string{} // by command, as in "helm install"
	require.NoError(t, filepath.WalkDir(filepath.Join(root, "client/cli"),
		func(path string, entry fs.DirEntry, err error) error {
			name := entry.Name()
			if err != nil || !strings.HasPrefix(name, "help") || !strings.HasSuffix(name, ".golden") {
				return err
			}
			text, err := os.ReadFile(path)
			name = strings.TrimPrefix(strings.TrimSuffix(strings.TrimPrefix(name, "help"), ".golden"), "-")
			help[strings.ReplaceAll(name, "helm-", "helm ")] = string(text)
			return err
		}))
	require.NotEmpty(t, help)
	makefile := read(t, "Makefile")
	line := regexp.MustCompile(`(?m)^(?:    |\$ |.*\$ )(?:bin/)?sidestep ([a-z-]+)(.*(?:\\\n.*)*)$`)
	flag := regexp.MustCompile(`(?:^|\s)(--[a-z][a-z0-9-]*)`)
	checked := 0
	for path, text := range documents(t) {
		for _, found := range line.FindAllStringSubmatch(text, -1) {
			checked++
			command := found[1]
			if command == "helm" || command == "config" {
				command += " " + strings.Fields(found[2] + " ?")[0]
			}
			text, ok := help[strings.ReplaceAll(command, "config ", "config-")]
			if !assert.Truef(t, ok, "%s shows sidestep %s%s", path, found[1], found[2]) {
				continue
			}
			own, _, _ := strings.Cut(found[2], " -- ")
			own, _, _ = strings.Cut(own, " | ")
			own, _, _ = strings.Cut(own, "#")
			for _, f := range flag.FindAllStringSubmatch(own, -1) {
				known := strings.Contains(text+help[""], f[1])
				assert.Truef(t, known, "%s shows sidestep %s%s: there is no %s", path, found[1], found[2], f[1])
			}
		}
		for _, found := range regexp.MustCompile("(?m)(?:^    |`)make ([a-z0-9-]+)").FindAllStringSubmatch(text, -1) {
			checked++
			assert.Truef(t, strings.Contains(makefile, "\n"+found[1]+":"), "%s shows make %s", path, found[1])
		}
	}
	assert.Greater(t, checked, 40)
}
