// SPDX-License-Identifier: Apache-2.0

package envfile

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/docker/cli/pkg/kvfile"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// awkward are values that some syntax or other gets wrong.
var awkward = []string{
	"", " ", "plain", "a b", " leading", "trailing ", "a=b=c", "=", "'", "''", `"`, `""`,
	`it's "quoted"`, `'"'"'`, "$HOME", "${HOME}", "$(id)", "`id`", "$$", "$", "a$",
	`\`, `\\`, `a\`, `a\\`, `\n`, `\'`, `\\'`, `\"`, `\\"`, `\$x`, `\!`, "!", "!!", "!$", "!x y!", "a!",
	"#", "# no comment", "a #b", "a#b", ";", "a;b", "&", "a&b|c<d>e", "(a)", "^", "^^a",
	"%", "%PATH%", "%%", "~", "*", "?", "[a]", "{a,b}", "a\nb", "\n", "\na", "a\n", "a\n\n", "a\\\nb",
	"a\\\\\nb", "'\n'", "\"\n\"", "a\r\nb", "a\r", "\r", "a\tb", "\t", "\x01\x1b[0m",
	"é", "日本", "\u2018typographic\u2019 \u201aquotes\u201b", "\ufeffbom", "\xff\xfe", "a\xffb", "-n",
	"-e", "--", `{"json": ["x", 1, {"a": "b's"}]}`,
	"postgres://u:p@ss#w?x=1&y=%20@host:5432/db", strings.Repeat("long ", 3000),
	"-----BEGIN KEY-----\nMIIB+/=\n-----END KEY-----\n",
}

func variables() []Variable {
	all := make([]Variable, len(awkward))
	for i, v := range awkward {
		all[i] = Variable{fmt.Sprintf("SST_%03d", i), v}
	}
	return all
}

func values(all []Variable) map[string]string {
	m := map[string]string{}
	for _, v := range all {
		m[v.Name] = v.Value
	}
	return m
}

// expressed returns what a syntax does not leave out.
func expressed(t *testing.T, s Syntax, all []Variable) (text []byte, want map[string]string) {
	t.Helper()
	text, left := Format(s, all)
	want = values(all)
	for _, l := range left {
		delete(want, l.Name)
	}
	return text, want
}

// ours are the variables of these tests, of an environment as env -0 prints it.
func ours(text []byte) map[string]string {
	got := map[string]string{}
	for _, entry := range strings.Split(string(text), "\x00") {
		if name, value, ok := strings.Cut(entry, "="); ok && strings.HasPrefix(name, "SST_") {
			got[name] = value
		}
	}
	return got
}

func TestShellsReadWhatIsWrittenForThem(t *testing.T) {
	// what "env -0" prints, of variables that are not exported
	print := func(names []string, quote string) string {
		var script strings.Builder
		for _, n := range names {
			fmt.Fprintf(&script, "printf '%%s=%%s\\0' %s %s$%s%s\n", n, quote, n, quote)
		}
		return script.String()
	}
	for _, c := range []struct {
		shell  []string
		syntax Syntax
	}{
		{[]string{"sh"}, Sh}, {[]string{"sh"}, ShExport}, {[]string{"dash"}, Sh},
		{[]string{"dash"}, ShExport}, {[]string{"bash"}, Sh}, {[]string{"bash"}, ShExport},
		{[]string{"bash", "--posix"}, ShExport}, {[]string{"tcsh", "-f"}, CshExport},
		{[]string{"tcsh", "-f"}, Csh}, {[]string{"zsh"}, Sh}, {[]string{"zsh"}, ShExport},
	} {
		for _, locale := range []string{"C", "C.UTF-8"} {
			t.Run(fmt.Sprint(c.syntax, " for ", c.shell, " in ", locale), func(t *testing.T) {
				path, err := exec.LookPath(c.shell[0])
				require.NoError(t, err, "tests/deps.sh run installs it")
				text, want := expressed(t, c.syntax, variables())
				assert.Len(t, want, len(awkward), "shells can have any value")
				file := filepath.Join(t.TempDir(), "env")
				require.NoError(t, os.WriteFile(file, text, 0o600))
				source, tail := ". "+file+"\n", "env -0"
				if strings.HasSuffix(c.shell[0], "csh") {
					source = "source " + file + "\n"
				}
				if c.syntax == Sh {
					names := make([]string, 0, len(want))
					for n := range want {
						names = append(names, n)
					}
					tail = print(names, `"`)
				}
				if c.syntax == Csh { // csh's own variables: each goes into the environment unchanged by :q
					var script strings.Builder
					for n := range want {
						fmt.Fprintf(&script, "setenv %s $%s:q\n", n, n)
					}
					tail = script.String() + "env -0"
				}
				script := filepath.Join(t.TempDir(), "script")
				require.NoError(t, os.WriteFile(script, []byte(source+tail+"\n"), 0o600))
				cmd := exec.Command(path, append(c.shell[1:], script)...)
				cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=" + locale}
				var errs strings.Builder
				cmd.Stderr = &errs
				out, err := cmd.Output()
				require.NoError(t, err, errs.String())
				assert.Empty(t, errs.String())
				assert.Equal(t, want, ours(out))
			})
		}
	}
}

func TestDockerReadsWhatIsWrittenForIt(t *testing.T) {
	all := append(variables(), Variable{"my.key-1", "x"},
		Variable{"SST_LONG", strings.Repeat("x", 70_000)},
		Variable{"SST_LIMIT", strings.Repeat("x", 64<<10-13)})
	text, want := expressed(t, Docker, all)
	assert.Contains(t, want, "my.key-1")
	assert.Contains(t, want, "SST_LIMIT")
	lines, err := kvfile.ParseFromReader(strings.NewReader(string(text)), nil)
	require.NoError(t, err)
	got := map[string]string{}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, "=")
		got[name] = value
	}
	assert.Equal(t, want, got)
	for i, v := range awkward {
		_, ok := want[fmt.Sprintf("SST_%03d", i)]
		assert.Equal(t, !strings.Contains(v, "\n") && !strings.HasSuffix(v, "\r") &&
			!strings.Contains(v, "\xff"), ok, "%q", v)
	}
	_, left := Format(Docker,
		[]Variable{{"#x", ""}, {"a b", ""}, {"N", "a\nb"}, {"U", "\xff"}, {"L", strings.Repeat("x", 70_000)}})
	var why []string
	for _, l := range left {
		why = append(why, l.Why)
	}
	assert.Equal(t, []string{whyName, whyName, whyNewline, whyUTF8, whyLong}, why)
}

func TestComposeReadsWhatIsWrittenForIt(t *testing.T) {
	text, want := expressed(t, Compose, append(variables(), Variable{"my.key-1", "x"}, Variable{"export", "y"}))
	got, err := dotenv.ParseWithLookup(strings.NewReader(string(text)),
		func(string) (string, bool) { return "WRONG", true })
	require.NoError(t, err)
	assert.Equal(t, want, got)
	assert.Len(t, got, len(awkward)+2-2, "all but those that are not UTF-8")
}

func TestJSONHoldsWhatIsUTF8(t *testing.T) {
	text, want := expressed(t, JSON, append(variables(), Variable{"my key", "<&>"}))
	assert.Contains(t, string(text), `"my key": "<&>"`)
	got := map[string]string{}
	require.NoError(t, json.Unmarshal(text, &got))
	assert.Equal(t, want, got)
	assert.Len(t, got, len(awkward)+1-2)
	text, _ = Format(JSON, []Variable{{"A", "1"}, {"B", "x\ny"}})
	assert.Equal(t, "{\n  \"A\": \"1\",\n  \"B\": \"x\\ny\"\n}\n", string(text))
}

// There is no PowerShell and no cmd here, so their files are compared with what their documentation
// asks for.
func TestWindows(t *testing.T) {
	for _, c := range []struct {
		syntax            Syntax
		name, value, want string
	}{
		{PS, "A", "it's $x `y` \"z\"\nb", "${Env:A}='it''s $x `y` \"z\"\nb'\n"},
		{PS, "my.key", "\u2018a\u2019", "${Env:my.key}='\u2018\u2018a\u2019\u2019'\n"},
		{PS, "A", "", "${Env:A}=''\n"},
		{PS, "a}b", "", ""},
		{PS, "A", "\xff", ""},
		{PSExport, "A", "it's", "[Environment]::SetEnvironmentVariable('A', 'it''s', 'User')\n"},
		{Cmd, "A", "", "@set \"A=\"\r\n"},
		{Cmd, "A", "a & b | %PATH% ^ <x>", "@set \"A=a & b | %%PATH%% ^ <x>\"\r\n"},
		{Cmd, "A", `{"a": "b & %c%"}`, "@set A={^\"a^\": ^\"b ^& %%c%%^\"}\r\n"},
		{Cmd, "my.key", " x ", "@set \"my.key= x \"\r\n"},
		{Cmd, "A", "a\nb", ""},
		{Cmd, "A", "a\rb", ""},
		{Cmd, "A", "a\x1ab", ""},
		{Cmd, "A", strings.Repeat("x", 9000), ""},
	} {
		text, left := Format(c.syntax, []Variable{{c.name, c.value}})
		assert.Equal(t, c.want, string(text), "%s %q", c.syntax, c.value)
		assert.Equal(t, c.want == "", len(left) == 1)
	}
}

// readCmd reads a line of a batch file as cmd does: percent signs first, then quotes and carets.
// Then set takes what is between its first quote and the last one of the line, or else everything.
func readCmd(t *testing.T, line string) string {
	t.Helper()
	line, ok := strings.CutSuffix(line, "\r\n")
	require.True(t, ok)
	require.NotContains(t, strings.ReplaceAll(line, "%%", ""), "%", "a variable would be looked up")
	line, ok = strings.CutPrefix(strings.ReplaceAll(line, "%%", "%"), "@set ")
	require.True(t, ok)
	var read strings.Builder
	quoted, escaped := false, false
	for _, c := range line {
		switch {
		case escaped:
			escaped = false
		case c == '"':
			quoted = !quoted
		case c == '^' && !quoted:
			escaped = true
			continue
		case !quoted:
			require.NotContains(t, "&|<>", string(c), "another command would begin: %s", line)
		}
		read.WriteRune(c)
	}
	require.False(t, escaped)
	text := read.String()
	if strings.HasPrefix(text, `"`) {
		text = text[1:strings.LastIndex(text, `"`)]
	}
	return text
}

// readPowerShell reads an assignment of a verbatim string, in which two quotes, of whichever form,
// are the second of them.
func readPowerShell(t *testing.T, line string) string {
	t.Helper()
	name, literal, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
	name, ok := strings.CutPrefix(name, "${Env:")
	require.True(t, ok)
	isQuote := func(r rune) bool { return strings.ContainsRune("'\u2018\u2019\u201a\u201b", r) }
	runes := []rune(literal)
	require.True(t, isQuote(runes[0]))
	var read strings.Builder
	for i := 1; ; i++ {
		if isQuote(runes[i]) {
			if i+1 == len(runes) {
				return strings.TrimSuffix(name, "}") + "=" + read.String()
			}
			i++
			require.True(t, isQuote(runes[i]), "the string would end early: %s", line)
		}
		read.WriteRune(runes[i])
	}
}

func TestWhatWindowsReadsIsWhatWasThere(t *testing.T) {
	const alphabet = "ab \t%^&|<>()\"'`$!{}=,;@#\\/\u2018\u2019\u201a\u201bé"
	random, letters := rand.New(rand.NewPCG(1, 2)), []rune(alphabet)
	for range 20_000 {
		value := make([]rune, random.IntN(12))
		for i := range value {
			value[i] = letters[random.IntN(len(letters))]
		}
		v := Variable{"A", string(value)}
		text, left := Format(Cmd, []Variable{v})
		require.Empty(t, left)
		require.Equal(t, "A="+v.Value, readCmd(t, string(text)), "%q", text)
		text, left = Format(PS, []Variable{v})
		require.Empty(t, left)
		require.Equal(t, "A="+v.Value, readPowerShell(t, string(text)), "%q", text)
	}
}

func TestNamesThatShellsCannotHave(t *testing.T) {
	for _, s := range []Syntax{Sh, ShExport, Csh, CshExport} {
		_, left := Format(s, []Variable{{"my.key", ""}, {"1A", ""}, {"A-B", ""}, {"a b", ""}, {"é", ""},
			{"x$(id)", ""}, {"ok_1", ""}})
		assert.Len(t, left, 6, s)
	}
	_, left := Format(ShExport, []Variable{{"UID", "0"}, {"PPID", "1"}})
	assert.Equal(t, []Left{{Variable{"UID", "0"}, whyShell}, {Variable{"PPID", "1"}, whyShell}}, left)
}

func TestEverySyntaxHasItsWriter(t *testing.T) {
	for _, s := range Syntaxes {
		text, left := Format(Syntax(s), []Variable{{"A", "b"}})
		assert.NotEmpty(t, text, s)
		assert.Empty(t, left, s)
	}
}

func TestParse(t *testing.T) {
	all := Parse([][]byte{[]byte("B=2=3"), []byte("A="), []byte("B=4"), []byte("=x"),
		[]byte("nonsense"), []byte("my.key=\xff")})
	assert.Equal(t, []Variable{{"A", ""}, {"B", "2=3"}, {"my.key", "\xff"}}, all)
	all = Parse([][]byte{[]byte("PATH=/usr/bin"), []byte("HOME=/root"), []byte("DB=x"),
		[]byte("JAVA_HOME=/opt/java")})
	kept, left := Elsewhere(all, nil, nil)
	assert.Equal(t, []Variable{{"DB", "x"}}, kept)
	assert.Empty(t, left)
	assert.Equal(t, []Variable{{"C", "3"}, {"DB", "y"}},
		With([]Variable{{"DB", "x"}}, Variable{"DB", "y"}, Variable{"C", "3"}))
}

func FuzzShell(f *testing.F) {
	for _, v := range awkward {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if strings.Contains(value, "\x00") {
			t.Skip()
		}
		for shell, s := range map[string]Syntax{"sh": ShExport, "tcsh": CshExport} {
			text, _ := Format(s, []Variable{{"SST_X", value}})
			script := filepath.Join(t.TempDir(), "script")
			require.NoError(t, os.WriteFile(script, append(text, "env -0\n"...), 0o600))
			args := []string{script}
			if shell == "tcsh" {
				args = []string{"-f", script}
			}
			cmd := exec.Command(shell, args...)
			cmd.Env = []string{"PATH=/usr/bin:/bin"}
			out, err := cmd.Output()
			require.NoError(t, err)
			assert.Equal(t, map[string]string{"SST_X": value}, ours(out), "%s %q", shell, text)
		}
	})
}

func FuzzCompose(f *testing.F) {
	for _, v := range awkward {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, value string) {
		text, want := expressed(t, Compose, []Variable{{"X", value}, {"Y", "after"}})
		got, err := dotenv.ParseWithLookup(strings.NewReader(string(text)),
			func(string) (string, bool) { return "WRONG", true })
		require.NoError(t, err)
		assert.Equal(t, want, got, "%q", text)
	})
}

func FuzzDocker(f *testing.F) {
	for _, v := range awkward {
		f.Add("N", v)
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			t.Skip()
		}
		text, want := expressed(t, Docker, []Variable{{name, value}, {"LAST", "after"}})
		lines, err := kvfile.ParseFromReader(strings.NewReader(string(text)), nil)
		require.NoError(t, err)
		got := map[string]string{}
		for _, l := range lines {
			n, v, _ := strings.Cut(l, "=")
			got[n] = v
		}
		assert.Equal(t, want, got, "%q", text)
	})
}
