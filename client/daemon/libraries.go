// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime/pkg/log"
)

// adoptLibraries sends what the libraries log to where the daemon logs. Without it,
// controller-runtime writes a stack trace to stderr to complain that nobody has told it where to
// log, and client-go writes there in a format of its own.
func adoptLibraries(log *slog.Logger) {
	libraryLog.Store(log)
	tellLibraries()
}

// What the libraries know is the process's, and may be set only while none of them runs. A process
// that has had a daemon before, as tests have, cannot know that: calls that were given up may not
// have ended.
var (
	libraryLog    atomic.Pointer[slog.Logger]
	tellLibraries = sync.OnceFunc(func() {
		klog.SetSlogLogger(slog.New(library("client-go")))
		ctrl.SetLogger(logr.FromSlogHandler(library("controller-runtime")))
	})
)

// library logs for one of them, to where the daemon that there is logs.
type library string

func (l library) handler() slog.Handler { return libraryLog.Load().With("from", string(l)).Handler() }

func (l library) Enabled(ctx context.Context, level slog.Level) bool {
	return libraryLog.Load().Enabled(ctx, level)
}

func (l library) Handle(ctx context.Context, r slog.Record) error { return l.handler().Handle(ctx, r) }

func (l library) WithAttrs(attrs []slog.Attr) slog.Handler { return l.handler().WithAttrs(attrs) }

func (l library) WithGroup(name string) slog.Handler { return l.handler().WithGroup(name) }
