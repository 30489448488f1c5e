// SPDX-License-Identifier: Apache-2.0

package envfile

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Syntax names the program that reads an environment.
type Syntax string

// The syntaxes.
const (
	Docker    Syntax = "docker" // docker run --env-file
	Compose   Syntax = "compose"
	Sh        Syntax = "sh"
	ShExport  Syntax = "sh:export"
	Csh       Syntax = "csh"
	CshExport Syntax = "csh:export"
	PS        Syntax = "ps" // PowerShell
	PSExport  Syntax = "ps:export"
	Cmd       Syntax = "cmd" // Windows batch files
	JSON      Syntax = "json"
)

// Syntaxes are all of them.
var Syntaxes = []string{
	string(Docker), string(Compose), string(Sh), string(ShExport), string(Csh), string(CshExport),
	string(PS), string(PSExport), string(Cmd), string(JSON),
}

// writers write a line, with its end, or return why they cannot.
var writers = map[Syntax]func(name, value string) (line, why string){
	Docker:    docker,
	Compose:   compose,
	Sh:        sh(""),
	ShExport:  sh("export "),
	Csh:       csh("set ", "="),
	CshExport: csh("setenv ", " "),
	PS:        powershell(func(name, value string) string { return "${Env:" + name + "}=" + value }),
	PSExport: powershell(func(name, value string) string {
		return "[Environment]::SetEnvironmentVariable('" + name + "', " + value + ", 'User')"
	}),
	Cmd: cmd,
}

// Why a variable is left out.
const (
	whyName    = "the syntax does not allow the name"
	whyNewline = "the syntax does not allow values of several lines"
	whyUTF8    = "the syntax wants UTF-8"
	whyEnd     = "the syntax takes a character of the value for the end of the file"
	whyLong    = "the syntax does not allow values of that length"
	whyShell   = "shells have a variable of their own by that name"
)

var (
	identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	// dotted names are what Kubernetes allows, for instance as keys of ConfigMaps.
	dotted = regexp.MustCompile(`^[A-Za-z_.-][A-Za-z0-9_.-]*$`)
	plain  = regexp.MustCompile(`^[A-Za-z0-9_@%+:,./-]+$`)
)

// docker follows the rules in github.com/docker/cli/pkg/kvfile: a line is taken as it is, from its
// first character that is not a space.
func docker(name, value string) (string, string) {
	const longest = 64<<10 - 2
	line := name + "=" + value
	switch {
	case name[0] == '#' || strings.ContainsFunc(name, unicode.IsSpace) || strings.HasPrefix(name, "\ufeff"):
		return "", whyName
	case strings.Contains(value, "\n") || strings.HasSuffix(value, "\r"):
		return "", whyNewline
	case !utf8.ValidString(line):
		return "", whyUTF8
	case len(line) > longest:
		return "", whyLong
	}
	return line + "\n", ""
}

// compose follows the rules in github.com/compose-spec/compose-go: in single quotes everything is
// literal but quotes and backslashes before them; in double quotes backslashes escape, and $ has to
// be escaped. Older releases read the first two ways alike.
func compose(name, value string) (string, string) {
	switch {
	case !dotted.MatchString(name) || name[0] == '.' || name[0] == '-':
		return "", whyName
	case !utf8.ValidString(value):
		return "", whyUTF8
	case value == "" || plain.MatchString(value):
		return name + "=" + value + "\n", ""
	case strings.ContainsAny(value, "\\\n\r\t"):
		return name + `="` + composeEscapes.Replace(value) + "\"\n", ""
	}
	return name + "='" + strings.ReplaceAll(value, "'", `\'`) + "'\n", ""
}

var composeEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "\n", `\n`, "\r", `\r`, "\t", `\t`)

// taken are names that shells do not let users set, or that have a meaning for them: in zsh, UID=0
// tries to become root.
var taken = map[string]bool{
	"UID": true, "EUID": true, "GID": true, "EGID": true, "PPID": true, "BASHOPTS": true,
	"SHELLOPTS": true, "BASH_VERSINFO": true,
}

func sh(before string) func(name, value string) (string, string) {
	return func(name, value string) (string, string) {
		switch {
		case !identifier.MatchString(name):
			return "", whyName
		case taken[name]:
			return "", whyShell
		}
		return before + name + "='" + strings.ReplaceAll(value, "'", `'\''`) + "'\n", ""
	}
}

// csh expands history in quotes too, and wants newlines in quotes escaped.
var cshEscapes = strings.NewReplacer("'", `'\''`, "!", `\!`, "\n", "\\\n")

func csh(before, between string) func(name, value string) (string, string) {
	return func(name, value string) (string, string) {
		if !identifier.MatchString(name) {
			return "", whyName
		}
		return before + name + between + "'" + cshEscapes.Replace(value) + "'\n", ""
	}
}

// PowerShell also takes typographic quotes for quotes.
var psEscapes = strings.NewReplacer("'", "''", "\u2018", "\u2018\u2018", "\u2019", "\u2019\u2019",
	"\u201a", "\u201a\u201a", "\u201b", "\u201b\u201b")

func powershell(statement func(name, value string) string) func(name, value string) (string, string) {
	return func(name, value string) (string, string) {
		switch {
		case !dotted.MatchString(name):
			return "", whyName
		case !utf8.ValidString(value):
			return "", whyUTF8
		}
		return statement(name, "'"+psEscapes.Replace(value)+"'") + "\n", ""
	}
}

var (
	cmdPercent = strings.NewReplacer("%", "%%")
	cmdEscapes = strings.NewReplacer("%", "%%", "^", "^^", "&", "^&", "|", "^|", "<", "^<", ">", "^>",
		"(", "^(", ")", "^)", `"`, `^"`)
)

// cmd writes set "NAME=VALUE": quotes reach to the last one of the line, and protect everything
// between but %. Inside quotes in the value, carets protect. There are no empty variables: setting
// one to nothing removes it.
func cmd(name, value string) (string, string) {
	const longest = 8191
	line := `set "` + name + "=" + cmdPercent.Replace(value) + `"`
	if strings.Contains(value, `"`) {
		line = "set " + name + "=" + cmdEscapes.Replace(value)
	}
	switch {
	case !dotted.MatchString(name):
		return "", whyName
	case strings.ContainsAny(value, "\n\r"):
		return "", whyNewline
	case strings.Contains(value, "\x1a"):
		return "", whyEnd
	case !utf8.ValidString(value):
		return "", whyUTF8
	case len(line) > longest:
		return "", whyLong
	}
	return "@" + line + "\r\n", ""
}

func formatJSON(all []Variable) (text []byte, left []Left) {
	object := map[string]string{}
	for _, v := range all {
		if !utf8.ValidString(v.Name + v.Value) {
			left = append(left, Left{v, whyUTF8})
			continue
		}
		object[v.Name] = v.Value
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(object) // a map of strings can always be encoded
	return out.Bytes(), left
}
