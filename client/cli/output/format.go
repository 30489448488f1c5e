// SPDX-License-Identifier: Apache-2.0

package output

import (
	"encoding/json"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// The formats of --output.
const (
	FormatText = "default"
	formatJSON = "json"
	FormatYAML = "yaml"
	// FormatStream is JSON with one record on each line. A command that follows something writes a
	// record whenever that changes.
	FormatStream = "json-stream"
)

// Write writes a record for programs.
func Write(w io.Writer, format string, record any) error {
	if format == FormatYAML {
		text, err := yaml.Marshal(record)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	if format != FormatStream {
		encoder.SetIndent("", "  ")
	}
	return encoder.Encode(record)
}

// Formats are the values of --output.
var Formats = []string{FormatText, formatJSON, FormatYAML, FormatStream}

// WantedFormat returns the format that the arguments ask for, whatever else is wrong with them.
func WantedFormat(args []string) string {
	for i, arg := range args {
		if arg == "--" {
			break
		}
		name, value, ok := strings.Cut(arg, "=")
		if name != "--output" && name != "--format" {
			continue
		}
		if !ok && i+1 < len(args) {
			value = args[i+1]
		}
		if slices.Contains(Formats, value) {
			return value
		}
	}
	return FormatText
}

// OutputOf returns the format that was asked for. After a parse error cmd's flags may be half
// parsed.
func OutputOf(cmd *cobra.Command) string {
	for _, name := range []string{"output", "format"} {
		if f := cmd.Flags().Lookup(name); f != nil && f.Changed {
			if v := f.Value.String(); slices.Contains(Formats, v) {
				return v
			}
		}
	}
	for _, name := range []string{"json"} {
		if f := cmd.Flags().Lookup(name); f != nil && f.Changed && f.Value.String() == "true" {
			return formatJSON
		}
	}
	return FormatText
}
