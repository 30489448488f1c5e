// SPDX-License-Identifier: Apache-2.0

package match

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"runtime"
	"strings"
	"sync"
	"unicode/utf8"
	"weak"
)

// Bounds of what one rule may cost those who obey it: the manager, and the node agent that all pods
// of a node share. Go's own bounds allow an expression of 20 bytes to become millions of
// instructions.
const (
	// MaxHeaders is how many headers a rule may name, as the CRD has it.
	MaxHeaders = 16
	// MaxExpression is the length of an expression in bytes.
	MaxExpression = 512
	// MaxProgram bounds the instructions of one compiled expression, and MaxRuleProgram those of all
	// expressions of a rule. Repeat counts multiply; a character class counts by its ranges.
	MaxProgram     = 2000
	MaxRuleProgram = 4000
	// MaxValue is the longest value, or path, that is compared with an expression. A longer one does
	// not match.
	MaxValue = 8 << 10

	// maxEffort bounds instructions × bytes for one value, as the time that matching takes grows
	// with both, and maxRequestEffort bounds their sum over all values of a request. What is beyond
	// does not match. An expression of 256 instructions, which is long, is compared with all of
	// MaxValue.
	maxEffort        = 2 << 20
	maxRequestEffort = 8 << 20
	// maxOverlapEffort is the same for the comparison of two rules, which the manager makes for
	// every pair of rules on a port. What is beyond overlaps.
	maxOverlapEffort = 256 << 10
)

// expression is a regular expression that matches whole values. It is shared by all rules of the
// process that have the same text.
type expression struct {
	whole   *regexp.Regexp
	program int // instructions, an upper bound
	// prefix is what every match begins with, byte for byte; literal says that there is no more to
	// it.
	prefix  string
	literal bool
}

// match reports whether value matches as a whole, and takes the effort from what is left of it. A
// value for which too little is left does not match.
func (e *expression) match(value []byte, left *int) bool {
	effort := e.program * (len(value) + 1)
	if len(value) > MaxValue || effort > maxEffort || effort > *left {
		return false
	}
	*left -= effort
	return e.whole.Match(value)
}

// mayMatch is match for comparing rules: a value for which too little is left may match.
func (e *expression) mayMatch(value string, left *int) bool {
	if len(value) > MaxValue {
		return false
	}
	effort := e.program * (len(value) + 1)
	if effort > *left {
		return true
	}
	*left -= effort
	return e.whole.MatchString(value)
}

// expressions are those in use, so that an expression is compiled once and kept once, however many
// pods and rules have it.
var expressions = struct {
	sync.Mutex
	byText map[string]weak.Pointer[expression]
}{byText: map[string]weak.Pointer[expression]{}}

// compile returns the expression with this text. It refuses one that is larger than the bounds
// before it spends time or memory on it.
func compile(text string) (*expression, error) {
	expressions.Lock()
	known := expressions.byText[text].Value()
	expressions.Unlock()
	if known != nil {
		return known, nil
	}
	e, err := newExpression(text)
	if err != nil {
		return nil, err
	}
	expressions.Lock()
	defer expressions.Unlock()
	if known := expressions.byText[text].Value(); known != nil {
		return known, nil
	}
	expressions.byText[text] = weak.Make(e)
	runtime.AddCleanup(e, forget, text)
	return e, nil
}

// forget removes an expression that is no longer used, unless it has been compiled anew since.
func forget(text string) {
	expressions.Lock()
	defer expressions.Unlock()
	if expressions.byText[text].Value() == nil {
		delete(expressions.byText, text)
	}
}

func newExpression(text string) (*expression, error) {
	if len(text) > MaxExpression {
		return nil, fmt.Errorf("the regular expression %q... has %d bytes, and %d are allowed: "+
			"shorten it, or compare by an exact value or a path prefix", text[:40], len(text), MaxExpression)
	}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, badRegex(text, err)
	}
	e := &expression{program: programSize(tree) + 4} // ^, $, match and fail
	if e.program > MaxProgram {
		return nil, fmt.Errorf("the regular expression %q compiles to more than %d instructions: "+
			"repeat counts multiply, so use smaller ones, or * and +", text, MaxProgram)
	}
	whole := text
	if strings.Contains(text, `\Q`) { // an open quotation would swallow the closing parenthesis
		whole = tree.String()
	}
	if e.whole, err = regexp.Compile(`^(?:` + whole + `)$`); err != nil {
		return nil, badRegex(text, err)
	}
	var prefix strings.Builder
	e.literal = certainPrefix(tree.Simplify(), &prefix)
	e.prefix = prefix.String()
	return e, nil
}

// certainPrefix writes what every whole match of an expression begins with, and reports whether
// there is no more to it.
func certainPrefix(re *syntax.Regexp, prefix *strings.Builder) bool {
	switch {
	case re.Op == syntax.OpBeginText, re.Op == syntax.OpEmptyMatch:
	case re.Op == syntax.OpCapture, re.Op == syntax.OpConcat:
		for _, part := range re.Sub {
			if !certainPrefix(part, prefix) {
				return false
			}
		}
	case re.Op == syntax.OpLiteral && re.Flags&syntax.FoldCase == 0:
		for _, r := range re.Rune {
			if r == utf8.RuneError { // it also matches bytes that are not UTF-8
				return false
			}
			prefix.WriteRune(r)
		}
	default:
		return false
	}
	return true
}

// programSize returns at least as many instructions as a parsed expression compiles to, without
// compiling it. It stops counting beyond MaxProgram.
func programSize(re *syntax.Regexp) int {
	size := 1
	switch re.Op {
	case syntax.OpLiteral:
		size = max(1, len(re.Rune))
	case syntax.OpCharClass:
		size += len(re.Rune) / 8 // as much memory as an instruction
	case syntax.OpRepeat:
		return repeatSize(programSize(re.Sub[0]), re.Min, re.Max)
	case syntax.OpCapture:
		size = 2
	case syntax.OpConcat:
		size = 0
	case syntax.OpAlternate:
		size = len(re.Sub) - 1
	}
	for _, sub := range re.Sub {
		if size += programSize(sub); size > MaxProgram {
			break
		}
	}
	return size
}

// repeatSize returns the size of x{least,most} for an x of the given size: x as often as it has to
// be there, then x+, or nested x?. The parser allows no count over 1,000.
func repeatSize(x, least, most int) int {
	if most < 0 {
		return max(least, 1)*x + 1
	}
	return max(1, least*x+(most-least)*(x+1))
}

func badRegex(expr string, err error) error {
	if bad, ok := errors.AsType[*syntax.Error](err); ok {
		return fmt.Errorf("%q is not a regular expression (RE2): %s: %q; "+
			"put \\ before a character that stands for itself", expr, bad.Code, bad.Expr)
	}
	return fmt.Errorf("%q is not a regular expression (RE2): %w", expr, err)
}
