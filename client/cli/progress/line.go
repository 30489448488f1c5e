// SPDX-License-Identifier: Apache-2.0

// Package progress shows what the command waits for, in one line of a terminal that is wiped
// afterwards.
package progress

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"sidestep.dev/sidestep/client/cli/layout"
)

// Style says how progress is shown.
type Style int

const (
	// None shows nothing: pipes, files, --quiet.
	None Style = iota
	// Plain writes each new step on a line of its own.
	Plain
	// Spinner redraws one line, which must be on a terminal.
	Spinner
)

const frame = 100 * time.Millisecond

var frames = []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")

// Line is one line of progress. Its own goroutine draws it between the first Set and Close.
type Line struct {
	w     io.Writer
	style Style
	width func() int // columns of the terminal, asked at each drawing because windows are resized

	mu    sync.Mutex
	text  string
	frame int
	stop  chan struct{}
	done  sync.WaitGroup
}

// New returns a line on which nothing has been drawn.
func New(w io.Writer, style Style, width func() int) *Line {
	return &Line{w: w, style: style, width: width}
}

// Set shows a step. The same step again changes nothing.
func (l *Line) Set(text string) {
	text = layout.Safe(strings.TrimSpace(text))
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.style == None || text == "" || text == l.text {
		return
	}
	l.text = text
	if l.style == Plain {
		_, _ = fmt.Fprintln(l.w, text)
		return
	}
	if l.stop == nil {
		l.stop = make(chan struct{})
		stop := l.stop
		l.done.Go(func() { l.spin(stop) })
	}
	l.draw()
}

func (l *Line) spin(stop <-chan struct{}) {
	tick := time.NewTicker(frame)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			l.mu.Lock()
			l.frame++
			l.draw()
			l.mu.Unlock()
		}
	}
}

// draw is called with the lock held.
func (l *Line) draw() {
	line := []rune(fmt.Sprintf("%c %s", frames[l.frame%len(frames)], l.text))
	// The last column stays free. A character there makes some terminals wrap, and a wrapped line
	// cannot be wiped.
	if width := l.width(); width > 0 && len(line) >= width {
		line = append(line[:max(width-2, 0)], '…')
	}
	_, _ = fmt.Fprintf(l.w, "\r\x1b[K%s", string(line))
}

// Close wipes the line. The line may be used again afterwards.
func (l *Line) Close() {
	l.mu.Lock()
	stop := l.stop
	l.stop = nil
	l.mu.Unlock()
	if stop == nil {
		return
	}
	close(stop)
	l.done.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = ""
	_, _ = io.WriteString(l.w, "\r\x1b[K")
}
