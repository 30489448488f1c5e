// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"strings"
)

// mutant is a file with one change.
type mutant struct {
	file   string
	line   int
	what   string
	source []byte
}

func (m mutant) String() string { return fmt.Sprintf("%s:%d: %s", m.file, m.line, m.what) }

// block is a range of lines, both included.
type block struct{ from, to int }

// readProfile returns the ranges of lines that the tests ran, by file as the profile names it.
func readProfile(path string) (map[string][]block, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	covered := map[string][]block{}
	for line := range strings.Lines(string(content)) {
		colon := strings.LastIndexByte(line, ':')
		var b block
		var col1, col2, statements, count int
		if _, err := fmt.Sscanf(line[colon+1:], "%d.%d,%d.%d %d %d", &b.from, &col1, &b.to, &col2,
			&statements, &count); err == nil && count > 0 {
			covered[line[:colon]] = append(covered[line[:colon]], b)
		}
	}
	return covered, nil
}

// opposites are operators, each with the one that a mutant has instead.
var opposites = map[token.Token]token.Token{
	token.EQL: token.NEQ, token.NEQ: token.EQL, token.LSS: token.GEQ, token.GEQ: token.LSS,
	token.GTR: token.LEQ, token.LEQ: token.GTR, token.LAND: token.LOR, token.LOR: token.LAND,
	token.ADD: token.SUB, token.SUB: token.ADD,
}

// mutantsOf returns all mutants of a file at lines that tests run.
func mutantsOf(file string, covered []block) ([]mutant, error) {
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, file, nil, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	var all []mutant
	runs := func(at token.Pos) bool {
		line := fset.Position(at).Line
		return slices.ContainsFunc(covered, func(b block) bool { return b.from <= line && line <= b.to })
	}
	add := func(at token.Pos, what string) {
		var source bytes.Buffer
		if runs(at) && format.Node(&source, fset, tree) == nil {
			all = append(all, mutant{file, fset.Position(at).Line, what, source.Bytes()})
		}
	}
	ast.Inspect(tree, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BinaryExpr:
			if to, ok := opposites[n.Op]; ok && !isText(n) {
				was := n.Op
				n.Op = to
				add(n.OpPos, fmt.Sprintf("%s instead of %s", to, was))
				n.Op = was
			}
		case *ast.IfStmt:
			if len(n.Body.List) == 0 || !runs(n.Body.List[0].Pos()) {
				break // it is never true in tests, as coverage shows already
			}
			was := n.Cond
			n.Cond = &ast.BinaryExpr{X: &ast.ParenExpr{X: was}, Op: token.LAND, Y: ast.NewIdent("false")}
			add(n.If, "the condition is never true")
			n.Cond = was
		case *ast.BlockStmt:
			withoutStatements(&n.List, add)
		case *ast.CaseClause:
			withoutStatements(&n.Body, add)
		case *ast.CommClause:
			withoutStatements(&n.Body, add)
		case *ast.BasicLit:
			if v, err := strconv.Atoi(n.Value); err == nil && n.Kind == token.INT {
				was := n.Value
				n.Value = strconv.Itoa(v + 1)
				add(n.ValuePos, n.Value+" instead of "+was)
				n.Value = was
			}
		}
		return true
	})
	return all, nil
}

// isText reports whether an expression joins strings.
func isText(n ast.Expr) bool {
	switch n := n.(type) {
	case *ast.BinaryExpr:
		return isText(n.X) || isText(n.Y)
	case *ast.BasicLit:
		return n.Kind == token.STRING
	}
	return false
}

// withoutStatements leaves out one statement after the other.
func withoutStatements(list *[]ast.Stmt, add func(token.Pos, string)) {
	was := *list
	for i, s := range was {
		if !matters(s) {
			continue
		}
		without := append([]ast.Stmt{}, was[:i]...)
		*list = append(without, was[i+1:]...)
		add(s.Pos(), "without the statement")
	}
	*list = was
}

// matters reports whether a statement can be left out, and changes what the program does beyond its log.
func matters(s ast.Stmt) bool {
	var call ast.Expr
	switch s := s.(type) {
	case *ast.IncDecStmt:
		return true
	case *ast.AssignStmt:
		return s.Tok != token.DEFINE
	case *ast.DeferStmt:
		call = s.Call
	case *ast.ExprStmt:
		call = s.X
	default:
		return false
	}
	c, ok := call.(*ast.CallExpr)
	if !ok {
		return true // a receive
	}
	f, ok := c.Fun.(*ast.SelectorExpr)
	if !ok {
		return true
	}
	switch f.Sel.Name {
	case "Debug", "Info", "Warn", "Error", "Log", "MustRegister":
		return false
	}
	return true
}
