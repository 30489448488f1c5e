package main

import (
	"fmt"
	"html"
	"strings"
)

// Measures of the picture, in pixels.
const (
	labelWidth = 330
	barsWidth  = 480 // of direct
	barHeight  = 14
	rowGap     = 12
	headHeight = 56
)

// colours of the ways: ours stands out.
var colours = map[string]string{
	direct: "#9aa5b1", intercepted: "#0b7285", reverseProxy: "#e8590c", byteProxy: "#f4a261", haproxy: "#b197fc", nginxProxy: "#74b816",
}

// draw gives a picture (SVG 1.1) of each row's ways as bars, as long as their rates are compared with direct. Rows without direct are left out.
func draw(r *results) string {
	var body strings.Builder
	y := headHeight
	row, compared := "", false
	for _, f := range r.Figures {
		if f.Row != row {
			row, compared = f.Row, f.Way == direct
		}
		if !compared {
			continue
		}
		if f.Way == direct {
			y += rowGap
			text(&body, labelWidth-10, y+barHeight-3, "end", "#212529", row)
		}
		ratio := median(f.Ratios)
		width := ratio * barsWidth
		fmt.Fprintf(&body, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"><title>%s: %s</title></rect>`+"\n", labelWidth, y, width, barHeight-2, colours[f.Way],
			html.EscapeString(f.Row), html.EscapeString(f.Way))
		text(&body, labelWidth+int(width)+6, y+barHeight-3, "start", "#495057", fmt.Sprintf("%.2f", ratio))
		y += barHeight
	}
	y += rowGap
	var all strings.Builder
	fmt.Fprintf(&all, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", labelWidth+barsWidth+180, y)
	all.WriteString(`<rect width="100%" height="100%" fill="#ffffff"/>` + "\n")
	text(&all, 12, 20, "start", "#212529", "Unmatched traffic, compared with direct; longer is better")
	x := 12
	for _, name := range []string{direct, intercepted, reverseProxy, byteProxy, haproxy, nginxProxy} {
		fmt.Fprintf(&all, `<rect x="%d" y="32" width="12" height="12" fill="%s"/>`+"\n", x, colours[name])
		text(&all, x+17, 43, "start", "#212529", name)
		x += 34 + 7*len(name)
	}
	fmt.Fprintf(&all, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#ced4da"/>`+"\n", labelWidth+barsWidth, headHeight, labelWidth+barsWidth, y)
	all.WriteString(body.String())
	all.WriteString("</svg>\n")
	return all.String()
}

func text(out *strings.Builder, x, y int, anchor, colour, s string) {
	fmt.Fprintf(out, `<text x="%d" y="%d" text-anchor="%s" fill="%s">%s</text>`+"\n", x, y, anchor, colour, html.EscapeString(s))
}
