// SPDX-License-Identifier: Apache-2.0

// Package session combines what makes a session with a cluster: its record on disk, its link to the
// manager and its intercepts.
package session

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"

	"github.com/google/uuid"

	"sidestep.dev/sidestep/client/intercept"
	"sidestep.dev/sidestep/client/kube"
)

// recordVersion is increased when older daemons cannot read a record.
const recordVersion = 1

// Record is what is on disk about a session, so that a new daemon can resume it. It has the session
// key, and a token if one was given as a flag.
type Record struct {
	Version   int         `json:"version"`
	ID        string      `json:"session"`
	Key       string      `json:"key"` // hex
	Holder    string      `json:"holder"`
	Access    kube.Access `json:"access"`
	Server    string      `json:"server"`
	Context   string      `json:"context,omitempty"`
	Namespace string      `json:"namespace"`
	// by a flag; otherwise it follows the kubeconfig
	NamespaceChosen  bool     `json:"namespaceChosen,omitempty"`
	ManagerNamespace string   `json:"managerNamespace"`
	Namespaces       []string `json:"interceptNamespaces,omitempty"` // where there may be intercepts

	Intercepts []intercept.Known `json:"intercepts,omitempty"`
	// Login proves to the manager who the user is. Nil means that there is none.
	Login *Login `json:"login,omitempty"`
	// Process is the command that holds the session. 0: none.
	Process int `json:"process,omitempty"`
}

// NewRecord returns the record of a new session.
func NewRecord() (*Record, error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make a session key: %w", err)
	}
	return &Record{Version: recordVersion, ID: uuid.NewString(), Key: hex.EncodeToString(key),
		Holder: holder()}, nil
}

// holder returns user@host.
func holder() string {
	name, host := "unknown", "unknown"
	// $USER comes before the account's name, because accounts are shared.
	if n := os.Getenv("USER"); n != "" {
		name = n
	} else if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil && h != "" {
		host = h
	}
	who := name + "@" + host
	return who[:min(len(who), 320)]
}

// client returns the identity in the record.
func (r *Record) client() (intercept.Client, []byte, error) {
	key, err := hex.DecodeString(r.Key)
	if err != nil || len(key) != 32 || r.ID == "" {
		return intercept.Client{}, nil, errors.New("the session's key is damaged")
	}
	hash := sha256.Sum256(key)
	return intercept.Client{Session: r.ID, Holder: r.Holder, KeyHash: hex.EncodeToString(hash[:])}, key, nil
}

// Store stores the one Record.
type Store struct {
	Path string
}

// Load reads the record. It returns nil if there is none. A record that cannot be read is moved
// aside, so that it does not block the next session, and reported.
func (s Store) Load() (*Record, error) {
	data, err := os.ReadFile(s.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the session: %w", err)
	}
	r := new(Record)
	err = json.Unmarshal(data, r)
	if err == nil && r.Version != recordVersion {
		err = fmt.Errorf("it was written by another version (%d)", r.Version)
	}
	if err == nil {
		_, _, err = r.client()
	}
	if err != nil {
		aside := s.Path + ".broken"
		return nil, errors.Join(fmt.Errorf("the session in %s cannot be resumed, and is kept as %s: %w",
			s.Path, aside, err), os.Rename(s.Path, aside))
	}
	return r, nil
}

// Save writes the record atomically: at any moment the old one or the new one is there as a whole.
func (s Store) Save(r *Record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("save the session: %w", err)
	}
	dir := filepath.Dir(s.Path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save the session: %w", err)
	}
	f, err := os.CreateTemp(dir, ".session-*") // 0600
	if err != nil {
		return fmt.Errorf("save the session: %w", err)
	}
	_, err = f.Write(append(data, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), s.Path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("save the session: %w", err), os.Remove(f.Name()))
	}
	return syncDir(dir)
}

// syncDir makes the rename durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("save the session: %w", err)
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// Remove deletes the record.
func (s Store) Remove() error {
	if err := os.Remove(s.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the session: %w", err)
	}
	return nil
}
