// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"html"
	"slices"
	"strings"
)

// Measures of the picture, in pixels.
const (
	labelWidth = 330
	barsWidth  = 480 // of direct, of three times a port-forward, and of the longest wait
	barHeight  = 14
	rowGap     = 12
	headHeight = 56
)

const forwards = 3 // how many times a port-forward's rate the width is

// colours of the ways: ours stands out.
var colours = map[string]string{
	direct: "#9aa5b1", intercepted: "#0b7285", reverseProxy: "#e8590c", byteProxy: "#f4a261",
	haproxy: "#b197fc", nginxProxy: "#74b816",
	byTunnel: "#0b7285", portForward: "#9aa5b1",
}

// picture is drawn from top to bottom.
type picture struct {
	body strings.Builder
	y    int
}

// draw returns a picture (SVG 1.1) with a bar for each way of each row. Unmatched traffic is
// compared with direct connections, and tunnels with a port-forward. It leaves out rows that have
// neither. Waits are shown as they are.
func draw(r *results) string {
	p := &picture{}
	for _, draw := range []func(*results){p.unmatched, p.tunnelled, p.waits} {
		draw(r)
	}
	p.y += rowGap
	var all strings.Builder
	fmt.Fprintf(&all, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", labelWidth+barsWidth+180, p.y)
	all.WriteString(`<rect width="100%" height="100%" fill="#ffffff"/>` + "\n")
	all.WriteString(p.body.String())
	all.WriteString("</svg>\n")
	return all.String()
}

// head begins a part of the picture, with the colours of its ways.
func (p *picture) head(title string, ways ...string) {
	if p.y > 0 {
		p.y += 2 * rowGap
	}
	p.text(12, p.y+20, "start", "#212529", title)
	x := 12
	for _, name := range ways {
		fmt.Fprintf(&p.body, `<rect x="%d" y="%d" width="12" height="12" fill="%s"/>`+"\n", x, p.y+32,
			colours[name])
		p.text(x+17, p.y+43, "start", "#212529", name)
		x += 34 + 7*len(name)
	}
	p.y += headHeight
}

func (p *picture) unmatched(r *results) {
	if !slices.ContainsFunc(r.Figures, func(f figure) bool { return f.Way == direct }) {
		return
	}
	p.head("Unmatched traffic, compared with direct; longer is better", direct, intercepted,
		reverseProxy, byteProxy, haproxy, nginxProxy)
	top := p.y
	row, compared := "", false
	for _, f := range r.Figures {
		if f.Row != row {
			row, compared = f.Row, f.Way == direct
		}
		if !compared {
			continue
		}
		label := ""
		if f.Way == direct {
			label = row
		}
		ratio := median(f.Ratios)
		p.bar(label, f.Row+": "+f.Way, f.Way, ratio*barsWidth, fmt.Sprintf("%.2f", ratio))
	}
	p.line(barsWidth, top)
}

func (p *picture) tunnelled(r *results) {
	const scale = barsWidth / forwards
	begun, top := false, 0
	for _, theirs := range r.Figures {
		at := slices.IndexFunc(r.Figures,
			func(f figure) bool { return f.Row == theirs.Row && f.Way == byTunnel })
		if theirs.Way != portForward || at < 0 {
			continue
		}
		if !begun {
			p.head("Through an intercept to the laptop, compared with kubectl port-forward; longer is better", portForward, byTunnel)
			begun, top = true, p.y
		}
		var ratios []float64
		for i, v := range r.Figures[at].Values[:min(len(r.Figures[at].Values), len(theirs.Values))] {
			ratios = append(ratios, v/theirs.Values[i])
		}
		ratio := median(ratios)
		p.bar(theirs.Row, portForward, portForward, scale, "1.00")
		p.bar("", byTunnel, byTunnel, min(ratio, 1.1*forwards)*scale, fmt.Sprintf("%.2f", ratio))
	}
	if begun {
		p.line(scale, top)
	}
}

func (p *picture) waits(r *results) {
	longest := 0.0
	for _, w := range r.Waits {
		longest = max(longest, quantile(w.Values, .95))
	}
	if longest == 0 {
		return
	}
	p.head("How long a person waits, half of the times and nearly always (p50, p95); shorter is better")
	for _, w := range r.Waits {
		label := fmt.Sprintf("%s, pods: %d", strings.ReplaceAll(w.What, "`", ""), w.Pods)
		if i := strings.Index(label, " then has"); i > 0 {
			label = fmt.Sprintf("a curl has its answer, pods: %d", w.Pods)
		}
		p50, p95 := median(w.Values), quantile(w.Values, .95)
		p.bar(label, "p50", intercepted, p50/longest*barsWidth, fmt.Sprintf("%.0f ms", p50))
		p.bar("", "p95", direct, p95/longest*barsWidth, fmt.Sprintf("%.0f ms", p95))
	}
}

// bar draws one bar, which begins a row if it has a label.
func (p *picture) bar(label, title, way string, width float64, value string) {
	if label != "" {
		p.y += rowGap
		p.text(labelWidth-10, p.y+barHeight-3, "end", "#212529", label)
	}
	fmt.Fprintf(&p.body, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"><title>%s</title></rect>`+"\n", labelWidth, p.y, width, barHeight-2,
		colours[way], html.EscapeString(title))
	p.text(labelWidth+int(width)+6, p.y+barHeight-3, "start", "#495057", value)
	p.y += barHeight
}

// line marks a width from a height down to here.
func (p *picture) line(width, top int) {
	fmt.Fprintf(&p.body, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#ced4da"/>`+"\n", labelWidth+
		width, top, labelWidth+width, p.y)
}

func (p *picture) text(x, y int, anchor, colour, s string) {
	fmt.Fprintf(&p.body, `<text x="%d" y="%d" text-anchor="%s" fill="%s">%s</text>`+"\n", x, y, anchor,
		colour, html.EscapeString(s))
}
