// SPDX-License-Identifier: Apache-2.0

package stream

// Copier gets a copy of what is written. It never makes anybody wait.
type Copier interface {
	Write(p []byte)
	End()       // no more is written
	Cut()       // nor was it complete
	Over() bool // no more is wanted
}

// Tee is a TCP of whose written bytes somebody gets a copy.
type Tee struct {
	*TCP
	Copy Copier
}

// Write implements io.Writer, and copies what was written.
func (t *Tee) Write(p []byte) (int, error) {
	n, err := t.TCP.Write(p)
	t.Copy.Write(p[:n])
	return n, err
}

// CloseWrite implements Duplex.
func (t *Tee) CloseWrite() error {
	t.Copy.End()
	return t.TCP.CloseWrite()
}

// Close implements Duplex.
func (t *Tee) Close() error {
	t.Copy.End()
	return t.TCP.Close()
}

// Reset implements Duplex.
func (t *Tee) Reset() {
	t.Copy.Cut()
	t.TCP.Reset()
}
