// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Safe returns text by another party (a holder, a message, a name) as a terminal can show it.
// Control characters move the cursor, change what was printed or make the terminal answer in the
// user's name. They, and characters that reorder or hide text, are escaped as in Go's strings.
func Safe(text string) string { return safe(text, false) }

// SafeLines is Safe for text of several lines, such as an error.
func SafeLines(text string) string { return safe(text, true) }

func safe(text string, lines bool) string {
	if !strings.ContainsFunc(text, func(r rune) bool { return harmful(r, lines) }) && utf8.ValidString(text) {
		return text
	}
	var out strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		if r == utf8.RuneError && size == 1 || harmful(r, lines) {
			quoted := strconv.QuoteToASCII(text[:size])
			out.WriteString(quoted[1 : len(quoted)-1])
		} else {
			out.WriteString(text[:size])
		}
		text = text[size:]
	}
	return out.String()
}

// harmful reports whether a terminal does anything with r but show it.
func harmful(r rune, lines bool) bool {
	if lines && (r == '\n' || r == '\t') {
		return false
	}
	return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029'
}

// safely returns a copy of an answer of the daemon in which every text is safe. Other people wrote
// much of it: whoever may create an Intercept or a pod chooses its names and messages.
func safely[M proto.Message](answer M) M {
	if !answer.ProtoReflect().IsValid() {
		return answer
	}
	copied := proto.Clone(answer).(M)
	makeSafe(copied.ProtoReflect())
	return copied
}

func makeSafe(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		text := field.Kind() == protoreflect.StringKind
		nested := field.Kind() == protoreflect.MessageKind
		switch {
		case field.IsMap():
		case field.IsList():
			for i := range value.List().Len() {
				if text {
					value.List().Set(i, protoreflect.ValueOfString(Safe(value.List().Get(i).String())))
				} else if nested {
					makeSafe(value.List().Get(i).Message())
				}
			}
		case text:
			m.Set(field, protoreflect.ValueOfString(Safe(value.String())))
		case nested:
			makeSafe(value.Message())
		}
		return true
	})
}
