// SPDX-License-Identifier: Apache-2.0

package stream

// Worth is how many bytes CopyN pays for. Fewer are better read and written.
const Worth = 64 << 10

// CopyN passes n bytes from src to dst. Either error may be set, and tells whose it is; both are
// nil only when all n were passed. b is for the bytes on their way; it must be empty, and may
// afterwards hold bytes that came behind the n.
func CopyN(dst, src Duplex, b *Buffer, n int64) (srcErr, dstErr error) {
	for n > 0 {
		if s := spliceable(dst, src); s != nil {
			return s.exactly(n)
		}
		if srcErr = src.Fill(b); srcErr != nil {
			return srcErr, nil
		}
		p := b.Bytes()
		if int64(len(p)) > n {
			p = p[:n]
		}
		if _, dstErr = dst.Write(p); dstErr != nil {
			return nil, dstErr
		}
		n -= int64(len(p))
		b.Drop(len(p))
	}
	return nil, nil
}

// Copy passes what is in b, and then all that comes from src, to dst. It ends with an error, srcErr
// being io.EOF when src ended in order. It neither closes nor resets.
func Copy(dst, src Duplex, b *Buffer) (srcErr, dstErr error) {
	defer b.Free()
	var s *splicer
	for {
		if n := b.Len(); n > 0 {
			_, dstErr = dst.Write(b.Bytes())
			b.Free()
			if dstErr != nil {
				return nil, dstErr
			}
			if n >= Size { // there is more where this came from
				if s == nil {
					s = spliceable(dst, src)
				}
				if s != nil {
					if srcErr, dstErr = s.burst(); srcErr != nil || dstErr != nil {
						return srcErr, dstErr
					}
				}
			}
		}
		if srcErr = src.Fill(b); srcErr != nil {
			return srcErr, nil
		}
	}
}

func spliceable(dst, src Duplex) *splicer {
	var d, s *TCP
	switch dst := dst.(type) {
	case *TCP:
		d = dst
	case *Tee:
		if !dst.Copy.Over() {
			return nil
		}
		d = dst.TCP
	}
	switch src := src.(type) {
	case *TCP:
		s = src
	case *Tee:
		s = src.TCP
	}
	if d == nil || s == nil {
		return nil
	}
	return newSplicer(d, s)
}

func (s *splicer) exactly(n int64) (srcErr, dstErr error) {
	for n > 0 {
		moved, srcErr, dstErr := s.some(n)
		if srcErr != nil || dstErr != nil {
			return srcErr, dstErr
		}
		n -= moved
	}
	return nil, nil
}

// burst goes on as long as bytes come in numbers.
func (s *splicer) burst() (srcErr, dstErr error) {
	for {
		moved, srcErr, dstErr := s.some(-1)
		if srcErr != nil || dstErr != nil || moved < Size {
			return srcErr, dstErr
		}
	}
}
