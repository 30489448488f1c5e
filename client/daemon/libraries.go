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

// adoptLibraries sends the logs of libraries to the daemon's log. Without it, controller-runtime
// writes a stack trace to stderr because it has no logger, and client-go writes there in its own
// format.
func adoptLibraries(log *slog.Logger) {
	libraryLog.Store(log)
	tellLibraries()
}

// The libraries' loggers belong to the process, and may be set only while no library runs. A
// process that has had a daemon before, as in tests, cannot know that: calls that were given up may
// not have returned.
var (
	libraryLog    atomic.Pointer[slog.Logger]
	tellLibraries = sync.OnceFunc(func() {
		klog.SetSlogLogger(slog.New(library("client-go")))
		ctrl.SetLogger(logr.FromSlogHandler(library("controller-runtime")))
	})
)

// library logs for one library to the log of the running daemon.
type library string

func (l library) handler() slog.Handler { return libraryLog.Load().With("from", string(l)).Handler() }

func (l library) Enabled(ctx context.Context, level slog.Level) bool {
	return libraryLog.Load().Enabled(ctx, level)
}

func (l library) Handle(ctx context.Context, r slog.Record) error { return l.handler().Handle(ctx, r) }

func (l library) WithAttrs(attrs []slog.Attr) slog.Handler { return l.handler().WithAttrs(attrs) }

func (l library) WithGroup(name string) slog.Handler { return l.handler().WithGroup(name) }
