// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/home"
	"sidestep.dev/sidestep/internal/reason"
)

// logLevel is the level at which the daemon logs. It can be changed for a while.
type logLevel struct {
	slog.LevelVar
	first slog.Level

	mu      sync.Mutex
	revert  *time.Timer
	reverts time.Time
}

func newLogLevel(first slog.Level) *logLevel {
	l := &logLevel{first: first}
	l.Set(first)
	return l
}

// change sets the level for d, or for good if d is 0.
func (l *logLevel) change(level slog.Level, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.revert != nil {
		l.revert.Stop()
	}
	l.revert, l.reverts = nil, time.Time{}
	l.Set(level)
	if d <= 0 {
		return
	}
	l.reverts = time.Now().Add(d)
	var timer *time.Timer
	timer = time.AfterFunc(d, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.revert == timer { // no later change replaced this one
			l.revert, l.reverts = nil, time.Time{}
			l.Set(l.first)
		}
	})
	l.revert = timer
}

// left returns how long the level stays. 0 means for good.
func (l *logLevel) left() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reverts.IsZero() {
		return 0
	}
	return max(time.Until(l.reverts), time.Millisecond)
}

func (s *service) SetLogLevel(_ context.Context, req *daemonpb.LogLevelRequest) (*daemonpb.Empty, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(req.GetLevel())); err != nil {
		return nil, reason.New(codes.InvalidArgument, reason.Invalid, "there is no log level %q",
			req.GetLevel()).
			Advise("use debug, info, warn or error")
	}
	s.level.change(level, time.Duration(req.GetDurationMs())*time.Millisecond)
	s.log.Log(context.Background(), level, "log level changed", "level", level, "for",
		time.Duration(req.GetDurationMs())*time.Millisecond)
	return &daemonpb.Empty{}, nil
}

func (s *service) Config(context.Context, *daemonpb.Empty) (*daemonpb.ConfigInfo, error) {
	info := &daemonpb.ConfigInfo{
		LogLevel: levelName(s.level.Level()), LogLevelRevertsMs: s.level.left().Milliseconds(),
		Socket: s.place.Socket, LogFile: s.place.LogFile, SessionFile: home.Session(s.place.CacheDir),
	}
	s.mu.Lock()
	current := s.current
	s.mu.Unlock()
	if current != nil {
		state, _ := current.Link.State()
		info.SessionGraceMs = state.Grace.Milliseconds()
	}
	return info, nil
}

func levelName(level slog.Level) string {
	switch level {
	case slog.LevelDebug:
		return "debug"
	case slog.LevelInfo:
		return "info"
	case slog.LevelWarn:
		return "warn"
	case slog.LevelError:
		return "error"
	default:
		return level.String()
	}
}
