// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/spf13/cobra"
)

func newDatagramsCommand(e env) *cobra.Command {
	var who identity
	var listen string
	command := &cobra.Command{
		Use:   "datagrams",
		Short: "A UDP service that answers each datagram with its name and the datagram",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			socket, err := new(net.ListenConfig).ListenPacket(command.Context(), "udp", listen)
			if err != nil {
				return fmt.Errorf("%s: %w", who.name, err)
			}
			fmt.Fprintf(e.stderr, "%s listens on %s\n", who.name, socket.LocalAddr())
			return answerDatagrams(command.Context(), socket, who.name)
		},
	}
	who.addFlags(command, e, "laptop")
	command.Flags().StringVar(&listen, "listen", ":5353", "address to listen on")
	return command
}

// answerDatagrams goes on until the context ends.
func answerDatagrams(ctx context.Context, socket net.PacketConn, name string) error {
	defer context.AfterFunc(ctx, func() { socket.Close() })()
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := socket.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return nil
		} else if err != nil {
			return fmt.Errorf("receive a datagram: %w", err)
		}
		// a client without an answer asks again
		_, _ = socket.WriteTo(append([]byte(name+": "), buffer[:n]...), from)
	}
}

func newAskCommand(e env) *cobra.Command {
	var wait time.Duration
	command := &cobra.Command{
		Use:   "ask ADDRESS TEXT",
		Short: "Send one datagram and print the answer, which must come from the address that was asked",
		Args:  cobra.ExactArgs(2),
		RunE: func(command *cobra.Command, args []string) error {
			socket, err := new(net.Dialer).DialContext(command.Context(), "udp", args[0])
			if err != nil {
				return err
			}
			defer socket.Close()
			if _, err := socket.Write([]byte(args[1])); err != nil {
				return fmt.Errorf("ask: %w", err)
			}
			_ = socket.SetReadDeadline(time.Now().Add(wait))
			buffer := make([]byte, 1<<16)
			n, err := socket.Read(buffer)
			if err != nil {
				return fmt.Errorf("wait for an answer: %w", err)
			}
			_, err = fmt.Fprintf(e.stdout, "%s\n", buffer[:n])
			return err
		},
	}
	command.Flags().DurationVar(&wait, "timeout", 5*time.Second, "how long to wait for the answer")
	return command
}
