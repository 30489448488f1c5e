// SPDX-License-Identifier: Apache-2.0

// Package house reads the source of the tree. Its tests check the rules of CONTRIBUTING.md: who
// imports whom, what is documented, and how long files and functions are.
package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const module = "sidestep.dev/sidestep/"

// File is a Go file of the tree.
type File struct {
	Path      string // below the root, with slashes
	Lines     int
	Generated bool
	Test      bool
	Syntax    *ast.File
	Set       *token.FileSet
}

// Dir returns the directory of the file, below the root.
func (f *File) Dir() string { return path.Dir(f.Path) }

// Imports returns the packages of this module that the file imports, as directories below the root.
func (f *File) Imports() []string {
	var all []string
	for _, spec := range f.Syntax.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the parser has checked it
		}
		if dir, ok := strings.CutPrefix(name, module); ok {
			all = append(all, dir)
		}
	}
	return all
}

// Long is a declaration of more lines than it should have.
type Long struct {
	Name  string
	Lines int
}

// LongFunctions returns the functions of more than limit lines whose doc comment has no line
// "Long: <reason>".
func (f *File) LongFunctions(limit int) []Long {
	var all []Long
	for _, d := range f.Syntax.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || hasReason(fn.Doc) {
			continue
		}
		lines := f.Set.Position(fn.End()).Line - f.Set.Position(fn.Pos()).Line + 1
		if lines > limit {
			all = append(all, Long{fn.Name.Name, lines})
		}
	}
	return all
}

func hasReason(doc *ast.CommentGroup) bool {
	for line := range strings.Lines(doc.Text()) {
		if reason, ok := strings.CutPrefix(line, "Long: "); ok && strings.TrimSpace(reason) != "" {
			return true
		}
	}
	return false
}

// Undocumented returns the exported names of the file without a doc comment that begins with the
// name. A comment on a group of constants or variables is for all of them. The methods of types that
// are not exported need none: their interface has it.
func (f *File) Undocumented() []string {
	var all []string
	for _, d := range f.Syntax.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && exportedReceiver(d) && !begins(d.Doc, d.Name.Name) {
				all = append(all, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				all = append(all, undocumentedIn(d, spec)...)
			}
		}
	}
	return all
}

func undocumentedIn(group *ast.GenDecl, spec ast.Spec) []string {
	switch s := spec.(type) {
	case *ast.TypeSpec:
		doc := s.Doc
		if doc == nil {
			doc = group.Doc
		}
		if s.Name.IsExported() && !begins(doc, s.Name.Name) {
			return []string{s.Name.Name}
		}
	case *ast.ValueSpec:
		// One comment may be for several values, so it need not begin with the name of each.
		documented := s.Doc.Text() != "" || s.Comment.Text() != "" || group.Doc.Text() != ""
		for _, name := range s.Names {
			if name.IsExported() && !documented {
				return []string{name.Name}
			}
		}
	}
	return nil
}

// begins reports whether the comment begins with the name, or with an article and the name.
func begins(doc *ast.CommentGroup, name string) bool {
	words := strings.Fields(doc.Text())
	if len(words) > 1 && slices.Contains([]string{"A", "An", "The"}, words[0]) {
		words = words[1:]
	}
	return len(words) > 0 && strings.TrimRight(words[0], ",:;.") == name
}

func exportedReceiver(fn *ast.FuncDecl) bool {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return true
	}
	receiver := fn.Recv.List[0].Type
	for {
		switch r := receiver.(type) {
		case *ast.StarExpr:
			receiver = r.X
		case *ast.IndexExpr:
			receiver = r.X
		case *ast.IndexListExpr:
			receiver = r.X
		case *ast.Ident:
			return r.IsExported()
		default:
			return false
		}
	}
}

// Read parses the Go files below root.
func Read(root string) ([]*File, error) {
	var all []*File
	set := token.NewFileSet()
	err := Walk(root, func(below string) error {
		if !strings.HasSuffix(below, ".go") {
			return nil
		}
		text, err := os.ReadFile(filepath.Join(root, below))
		if err != nil {
			return err
		}
		syntax, err := parser.ParseFile(set, below, text, parser.ParseComments)
		if err != nil {
			return err
		}
		all = append(all, &File{
			Path: below, Lines: strings.Count(string(text), "\n"), Generated: ast.IsGenerated(syntax),
			Test: strings.HasSuffix(below, "_test.go"), Syntax: syntax, Set: set,
		})
		return nil
	})
	return all, err
}

// Walk calls visit with the path below root of each file, without what git and builds keep there.
func Walk(root string, visit func(below string) error) error {
	return filepath.WalkDir(root, func(at string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if at != root && slices.Contains([]string{".git", "bin", "build"}, entry.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		below, err := filepath.Rel(root, at)
		if err != nil {
			return err
		}
		return visit(filepath.ToSlash(below))
	})
}
