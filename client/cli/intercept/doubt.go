// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/output"
)

// impossible reports whether no text can match the expression as a whole, as a$b: its anchors
// contradict their surroundings. Values and paths are one line, so anchors of lines are anchors of
// the text.
func impossible(expr string) bool {
	parsed, err := syntax.Parse("^(?:"+expr+")$", syntax.Perl)
	if err != nil {
		return false
	}
	prog, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return false
	}
	w := walk{prog: prog, seen: map[place]bool{}}
	return !w.reaches(place{pc: uint32(prog.Start), before: none})
}

// kind is the class of what stands on one side of a position in the text, as far as assertions
// care.
type kind int

const (
	none  kind = iota // nothing: the beginning or the end
	word              // a character of \w
	other             // any other character
)

// place is a state of the walk through a program.
type place struct {
	pc     uint32
	before kind
	// what may not follow: assertions since the last character exclude it
	barred [3]bool
}

type walk struct {
	prog *syntax.Prog
	seen map[place]bool
}

// reaches reports whether the program can match from that state.
func (w *walk) reaches(at place) bool {
	if w.seen[at] {
		return false
	}
	w.seen[at] = true
	inst := w.prog.Inst[at.pc]
	next := at
	next.pc = inst.Out
	switch inst.Op {
	case syntax.InstMatch:
		return !at.barred[none]
	case syntax.InstFail:
		return false
	case syntax.InstAlt, syntax.InstAltMatch:
		right := at
		right.pc = inst.Arg
		return w.reaches(next) || w.reaches(right)
	case syntax.InstCapture, syntax.InstNop:
		return w.reaches(next)
	case syntax.InstEmptyWidth:
		next.barred = bar(at, syntax.EmptyOp(inst.Arg))
		return next.barred != [3]bool{true, true, true} && w.reaches(next)
	}
	for _, is := range []kind{word, other} {
		if !at.barred[is] && takes(inst, is) && w.reaches(place{pc: inst.Out, before: is}) {
			return true
		}
	}
	return false
}

// bar adds what an assertion excludes.
func bar(at place, op syntax.EmptyOp) [3]bool {
	barred := at.barred
	if op&(syntax.EmptyBeginLine|syntax.EmptyBeginText) != 0 && at.before != none {
		return [3]bool{true, true, true}
	}
	if op&(syntax.EmptyEndLine|syntax.EmptyEndText) != 0 {
		barred[word], barred[other] = true, true
	}
	for _, b := range []struct {
		op       syntax.EmptyOp
		boundary bool
	}{{syntax.EmptyWordBoundary, true}, {syntax.EmptyNoWordBoundary, false}} {
		if op&b.op == 0 {
			continue
		}
		for _, after := range []kind{none, word, other} {
			if (at.before == word) != (after == word) != b.boundary {
				barred[after] = true
			}
		}
	}
	return barred
}

// takes reports whether an instruction that consumes a character accepts one of that kind.
func takes(inst syntax.Inst, is kind) bool {
	if inst.Op == syntax.InstRuneAny || inst.Op == syntax.InstRuneAnyNotNL {
		return true
	}
	for r := rune(' '); r < 0x7f; r++ { // the characters of headers and paths
		if syntax.IsWordChar(r) == (is == word) && inst.MatchRune(r) {
			return true
		}
	}
	return is == other && inst.MatchRune('é')
}

// looksLiteral reports whether an expression was probably meant as text: it does not match itself,
// and has nothing that is useful only in an expression.
func looksLiteral(expr string) bool {
	for _, meant := range []string{`\`, "|", "[", "(?", ".*", ".+", ".?", ".{"} {
		if strings.Contains(expr, meant) {
			return false
		}
	}
	if strings.HasPrefix(expr, "^") || strings.HasSuffix(expr, "$") && !strings.Contains(strings.TrimSuffix(expr, "$"), "$") {
		return false
	}
	whole, err := regexp.Compile("^(?:" + expr + ")$")
	return err == nil && !whole.MatchString(expr)
}

// doubts returns what makes it unlikely that requests match, as warnings. It returns an error if
// none ever can.
func doubts(r *daemonpb.InterceptRequest) (warnings []string, err error) {
	rule := conditions(r)
	for _, h := range rule.Headers {
		value, isRegex := "", h.Regex != nil
		switch {
		case isRegex:
			value = *h.Regex
		case h.Value != nil:
			value = *h.Value
		}
		flag := fmt.Sprintf("--http-header %s=%s", h.Name, value)
		switch {
		case isRegex && impossible(value):
			return nil, output.Usagef("%s can never match: its anchors (^, $, \\b) contradict what stands beside them", flag).
				Advise("write %s if the value is that text", regexp.QuoteMeta(value))
		case isRegex && looksLiteral(value):
			warnings = append(warnings, fmt.Sprintf("%s is a regular expression, which does not match the text %s: "+
				"write %s for the text",
				flag, value, regexp.QuoteMeta(value)))
		case strings.EqualFold(h.Name, "cookie") && !isRegex && !strings.Contains(value, ";"):
			warnings = append(warnings, fmt.Sprintf("%s matches no request that has another cookie too: write "+
				"'Cookie=(.*; ?)?%s(;.*)?'",
				flag, regexp.QuoteMeta(value)))
		}
	}
	if rule.Path != nil && rule.Path.Regex != nil {
		expr := *rule.Path.Regex
		switch {
		case impossible(expr):
			return nil, output.Usagef("--http-path-regex %s can never match: its anchors (^, $, \\b) contradict "+
				"what stands beside them", expr).
				Advise("write %s if the path is that text", regexp.QuoteMeta(expr))
		case onlyWithoutSlash(expr):
			return nil, output.Usagef("--http-path-regex %s can never match: a path begins with /", expr).
				Advise("did you mean /%s?", expr)
		}
	}
	return warnings, nil
}

// onlyWithoutSlash reports whether nothing that the expression matches begins with a slash, as
// paths do.
func onlyWithoutSlash(expr string) bool {
	compiled, err := regexp.Compile(strings.TrimPrefix(expr, "^"))
	if err != nil {
		return false
	}
	prefix, _ := compiled.LiteralPrefix()
	return prefix != "" && !strings.HasPrefix(prefix, "/") && prefix != "*"
}
