// SPDX-License-Identifier: Apache-2.0

package certificate

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"sidestep.dev/sidestep/internal/names"
)

// Keys of the Secret, besides tls.crt and tls.key. The chart, and releases without rotation, put
// the authority's certificate under ca.crt. Only since then is its key kept.
const (
	authorityCert = names.CACert
	authorityKey  = "ca.key"
	nextCert      = "next.crt"
	nextKey       = "next.key"
	previousCerts = "previous.crt"
)

// Annotations of the Secret.
const (
	// RotateAnnotation asks for a new authority. Each change of its value starts a rotation.
	RotateAnnotation = "sidestep.dev/rotate"

	rotatedAnnotation   = "sidestep.dev/rotated" // the value of RotateAnnotation that was last acted on
	announcedAnnotation = "sidestep.dev/announced"
	switchedAnnotation  = "sidestep.dev/switched"
)

// Timing of certificates.
type Timing struct {
	Authority time.Duration // an authority's lifetime; its successor is created when a third is left
	Server    time.Duration // the server's certificate's lifetime; renewed when a third is left
	// Announce is how long a new authority is trusted before its certificates are used. The kubelet
	// takes a minute or two to update a ConfigMap that node agents mount.
	Announce time.Duration
	// Overlap is how long the previous authority stays trusted at least.
	Overlap time.Duration
	// Forget is when the previous authority is dropped even if connections from its time remain.
	Forget time.Duration
	Check  time.Duration // between checks of the Secret and the ConfigMap
}

// DefaultTiming returns the timing of installations.
func DefaultTiming() Timing {
	const day = 24 * time.Hour
	return Timing{Authority: 730 * day, Server: 90 * day, Announce: 5 * time.Minute, Overlap: time.Hour,
		Forget: 7 * day, Check: 10 * time.Second}
}

// state is what is known of the authorities. In a rotation an authority is created (next),
// published, announced for a while, and used (signing). The one before it (previous) stays trusted
// until all peers have reconnected.
type state struct {
	signing, next *authority
	previous      []*x509.Certificate
	announced     time.Time // since when next is published; zero: it is not yet
	switched      time.Time // when signing began to sign
	requested     string
	rotated       string
	server        *tls.Certificate
}

// readState reads the Secret. adopted is what must stay trusted of an authority without a key.
func readState(secret *corev1.Secret) (s state, adopted []*x509.Certificate, err error) {
	data, notes := secret.Data, secret.Annotations
	if s.signing, err = parseAuthority(data[authorityCert], data[authorityKey]); err != nil {
		return s, nil, err
	}
	if s.next, err = parseAuthority(data[nextCert], data[nextKey]); err != nil {
		return s, nil, err
	}
	if s.signing == nil {
		adopted = parseCerts(data[authorityCert])
	}
	s.previous = parseCerts(data[previousCerts])
	s.announced, _ = time.Parse(time.RFC3339, notes[announcedAnnotation]) // zero if it is not there
	s.switched, _ = time.Parse(time.RFC3339, notes[switchedAnnotation])
	s.requested, s.rotated = notes[RotateAnnotation], notes[rotatedAnnotation]
	if pair, err := tls.X509KeyPair(data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey]); err == nil {
		s.server = &pair
	}
	return s, adopted, nil
}

// write writes the state to the Secret.
func (s *state) write(secret *corev1.Secret) error {
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	for _, a := range []struct {
		authority *authority
		cert, key string
	}{{s.signing, authorityCert, authorityKey}, {s.next, nextCert, nextKey}} {
		if a.authority == nil {
			if a.cert == nextCert {
				delete(secret.Data, a.cert)
			}
			delete(secret.Data, a.key)
			continue
		}
		key, err := encodeKey(a.authority.key)
		if err != nil {
			return err
		}
		secret.Data[a.cert] = encodeCerts([]*x509.Certificate{a.authority.cert})
		secret.Data[a.key] = key
	}
	if secret.Data[previousCerts] = encodeCerts(s.previous); len(s.previous) == 0 {
		delete(secret.Data, previousCerts)
	}
	if s.server != nil {
		key, err := encodeKey(s.server.PrivateKey)
		if err != nil {
			return err
		}
		secret.Data[corev1.TLSCertKey] = encodeCerts([]*x509.Certificate{s.server.Leaf})
		secret.Data[corev1.TLSPrivateKeyKey] = key
	}
	if secret.Annotations == nil {
		secret.Annotations = map[string]string{}
	}
	note := func(name, value string, there bool) {
		if secret.Annotations[name] = value; !there {
			delete(secret.Annotations, name)
		}
	}
	note(announcedAnnotation, s.announced.UTC().Format(time.RFC3339Nano), !s.announced.IsZero())
	note(switchedAnnotation, s.switched.UTC().Format(time.RFC3339Nano), !s.switched.IsZero())
	note(rotatedAnnotation, s.rotated, s.rotated != "")
	return nil
}

// bundle returns the certificates that have to be trusted.
func (s *state) bundle(adopted []*x509.Certificate) []*x509.Certificate {
	var all []*x509.Certificate
	add := func(c *x509.Certificate) {
		if !slices.ContainsFunc(all, c.Equal) {
			all = append(all, c)
		}
	}
	for _, a := range []*authority{s.signing, s.next} {
		if a != nil {
			add(a.cert)
		}
	}
	for _, c := range slices.Concat(adopted, s.previous) {
		add(c)
	}
	return all
}

// circumstances are what a step depends on besides the state.
type circumstances struct {
	now       time.Time
	adopted   []*x509.Certificate
	published []*x509.Certificate // in the ConfigMap
	// reconnected reports whether no connection is left from before that time.
	reconnected func(time.Time) bool
	names       []string // of the server's certificate
}

// step takes the steps that are due, and returns what it did, for the log.
func (s *state) step(c circumstances, t Timing) (did []string, err error) {
	say := func(format string, args ...any) { did = append(did, fmt.Sprintf(format, args...)) }
	usable := s.server != nil && c.now.Before(s.server.Leaf.NotAfter)
	switch {
	case s.signing == nil && s.next == nil:
		made, err := newAuthority(c.now, t.Authority)
		if err != nil {
			return nil, err
		}
		if len(c.adopted) > 0 && usable {
			s.next, s.rotated = made, s.requested
			say("new authority: the key of the present one was not kept")
		} else {
			s.signing, s.previous = made, c.adopted
			s.switched, s.rotated = c.now, s.requested
			say("first authority")
		}
	case s.next == nil && (s.requested != s.rotated || thirdLeft(c.now, s.signing.cert)):
		if s.next, err = newAuthority(c.now, t.Authority); err != nil {
			return nil, err
		}
		if s.requested != s.rotated {
			say("new authority: asked for by annotation")
		} else {
			say("new authority: the present one ends soon")
		}
		s.rotated = s.requested
	}
	if s.next != nil {
		s.announce(c, t, usable, say)
	}
	if len(s.previous) > 0 && s.next == nil && c.now.Sub(s.switched) >= t.Overlap &&
		(c.reconnected(s.switched) || c.now.Sub(s.switched) >= t.Forget) {
		s.previous = nil
		say("previous authority no longer trusted")
	}
	if s.signing != nil && (!usable || !s.signing.signed(s.server.Leaf) ||
		thirdLeft(c.now, s.server.Leaf) && s.server.Leaf.NotAfter.Before(s.signing.cert.NotAfter)) {
		if s.server, err = s.signing.issue(c.now, t.Server, c.names); err != nil {
			return nil, err
		}
		say("server certificate issued")
	}
	return did, nil
}

// announce starts using the next authority once it has been published for long enough.
func (s *state) announce(c circumstances, t Timing, usable bool, say func(string, ...any)) {
	published := slices.ContainsFunc(c.published, s.next.cert.Equal)
	switch {
	case !published:
		// It is published after this step. If another party has removed it from the ConfigMap, the
		// time starts again.
		s.announced = time.Time{}
	case s.announced.IsZero():
		s.announced = c.now
		say("next authority announced")
	}
	if usable && (!published || c.now.Sub(s.announced) < t.Announce) {
		return
	}
	s.previous = append(s.previous, c.adopted...)
	if s.signing != nil {
		s.previous = append(s.previous, s.signing.cert)
	}
	s.signing, s.next, s.announced, s.switched = s.next, nil, time.Time{}, c.now
	say("next authority in use")
}

// thirdLeft reports whether less than a third of a certificate's lifetime is left.
func thirdLeft(now time.Time, c *x509.Certificate) bool {
	return c.NotAfter.Sub(now) < c.NotAfter.Sub(c.NotBefore)/3
}
