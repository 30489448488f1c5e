// SPDX-License-Identifier: Apache-2.0

// Package lines is a TCP service that answers each line with its own name and the line: "echo:
// hello". It can speak first, as mail and database servers do.
package lines

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
)

// Server is the service.
type Server struct {
	Name string
	// Greeting is sent to every client before it says anything; empty for none.
	Greeting string
}

// Serve answers until the context ends, and then closes all connections.
func (s Server) Serve(ctx context.Context, listener net.Listener) error {
	var connections sync.WaitGroup
	defer connections.Wait()
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("accept a connection: %w", err)
		}
		connections.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			s.serve(conn)
		})
	}
}

// serve returns when the client has sent FIN and all its lines are answered, or is gone.
func (s Server) serve(conn net.Conn) {
	if s.Greeting != "" {
		if _, err := fmt.Fprintln(conn, s.Greeting); err != nil {
			return
		}
	}
	scanner := bufio.NewScanner(conn)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		if _, err := fmt.Fprintf(conn, "%s: %s\n", s.Name, scanner.Text()); err != nil {
			return
		}
	}
}

// Ask sends one line on a new connection and returns who answered it. A greeting is passed over
// when the answer to the line follows it.
func Ask(ctx context.Context, address, line string) (name string, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	scanner := bufio.NewScanner(conn)
	for scanner.Scan() {
		if name, found := strings.CutSuffix(scanner.Text(), ": "+line); found {
			return name, nil
		}
	}
	if err := errors.Join(ctx.Err(), scanner.Err()); err != nil {
		return "", err
	}
	return "", errors.New("closed without an answer")
}
