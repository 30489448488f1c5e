// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"math"
	"unsafe"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

const (
	// maxDecoded bounds a list of header fields that passes from one encoder to another, in bytes as
	// RFC 9113 §6.5.2 counts them. It is held no longer than that takes.
	maxDecoded = 256 << 10
	// maxFields and maxList bound a list that is matched and kept, in fields and in bytes.
	maxFields = 1000
	maxList   = 64 << 10
	// maxKept bounds the memory that is kept from one frame for the next, in bytes.
	maxKept = 1 << 10
	// maxTable bounds the table of a decoder. Who announces more seldom meets an encoder that makes
	// use of it: the block in which one begins to cannot be decoded.
	maxTable = 64 << 10
	// maxDebt bounds what may be sent to a receiver beyond what the other sender knows of.
	maxDebt = 1 << 20
	// maxAnnounced bounds how many settings may wait for their acknowledgement.
	maxAnnounced = 1000
)

// flow is one direction between client and app: from its sender to its receiver. While nothing of
// another peer has been mixed into it, all bytes pass as they are, and what is kept here is only
// what will be needed when something is.
//
// The receiver has one table of header fields and one flow-control window for all that it gets.
// Once blocks of two encoders have to go to it, or not all of one, they are encoded anew. Once it
// gets DATA that the sender does not know of, the receiver's window is smaller than the sender
// believes, by debt, until that much of what the receiver grants has been kept from the sender;
// what the sender sends too much meanwhile is held.
type flow struct {
	to   *writer
	back *writer // to the sender

	decoder *hpack.Decoder
	fields  []hpack.HeaderField // of the last block
	size    int                 // of these
	scratch []byte

	encoder  *hpack.Encoder // nil: blocks pass as they are
	encoded  bytes.Buffer
	table    uint32      // the receiver's SETTINGS_HEADER_TABLE_SIZE that is in force
	window0  int64       // and its SETTINGS_INITIAL_WINDOW_SIZE
	pending  []announced // settings of the receiver that the sender has not acknowledged
	maxTable uint32      // the largest table that was ever allowed
	maxFrame int         // the largest SETTINGS_MAX_FRAME_SIZE of the receiver
	inUse    int         // by how much the sender's table is larger than usual
	begun    bool        // the sender's first frame has come
	ahead    int         // bytes of an incomplete frame that the receiver has already

	data    passing
	window  int64 // of the receiver's connection
	debt    int64
	held    []held
	owned   int64 // bytes in held that the sender knows of
	waiting int   // bytes in held
	from    int
}

// passing is a DATA frame that is not complete.
type passing struct {
	id    uint32
	left  int  // bytes of its payload that have not come
	pad   int  // of these
	pads  bool // the length of the padding has not come
	end   bool
	asIs  bool // it passes as it is
	begun bool // some of it has been passed on
}

// announced is what matters here of a SETTINGS frame; -1 is for what it does not say.
type announced struct{ table, window int64 }

// held is what waits for the receiver's window.
type held struct {
	id      uint32 // as the receiver knows it
	data    []byte
	end     bool
	foreign bool       // the sender does not know of it
	fields  keptFields // instead of data
}

func newFlow(to, back *writer) *flow {
	f := &flow{to: to, back: back, table: defaultTable, maxTable: defaultTable, window0: defaultWindow,
		window: defaultWindow, maxFrame: frameSize}
	f.decoder = hpack.NewDecoder(defaultTable, f.field)
	return f
}

func (f *flow) field(field hpack.HeaderField) {
	f.size += int(field.Size())
	if f.size <= maxDecoded {
		f.fields = append(f.fields, field)
	}
}

// index is 0 for what the client sends, and 1 for the app.
func (f *flow) index() int { return f.from }

// parse takes one frame of the sender's from the front of p. The first has to be SETTINGS.
func (f *flow) parse(p []byte) (frame, error) {
	if !f.begun && !beginsSettings(p) {
		return frame{}, doubtFirst
	}
	fr, err := parse(p, f.maxFrame, &f.scratch)
	f.begun = f.begun || fr.all != nil
	return fr, err
}

// decode reads a header block into fields.
func (f *flow) decode(block []byte) error {
	clear(f.fields)
	f.fields, f.size = f.fields[:0], 0
	f.resizes(block)
	if _, err := f.decoder.Write(block); err != nil {
		return doubtHpack
	}
	if err := f.decoder.Close(); err != nil {
		return doubtHpack
	}
	return nil
}

// tooLarge reports whether fields does not have all of the last block.
func (f *flow) tooLarge() bool { return f.size > maxDecoded }

// keepable reports whether the last block may be matched, and kept.
func (f *flow) keepable() bool { return f.size <= maxList && len(f.fields) <= maxFields }

// trim lets go of what decoding the last block has left.
func (f *flow) trim() {
	clear(f.fields)
	f.fields = f.fields[:0]
	if cap(f.fields) > maxKept/int(unsafe.Sizeof(hpack.HeaderField{})) {
		f.fields = nil
	}
	if cap(f.scratch) > maxKept {
		f.scratch = nil
	}
}

// resizes takes note of a table that becomes larger than usual, as the beginning of a block says
// (RFC 7541 §6.3).
func (f *flow) resizes(block []byte) {
	n := 0
	for len(block) > 0 && block[0]&0xe0 == 0x20 {
		v, shift := int(block[0]&0x1f), 0
		block = block[1:]
		for more := v == 0x1f; more && len(block) > 0 && shift < 28; shift += 7 {
			v += int(block[0]&0x7f) << shift
			more = block[0]&0x80 != 0
			block = block[1:]
		}
		n = v + 1
	}
	if n > 0 {
		f.inUse = max(0, min(n-1, maxTable)-defaultTable)
	}
}

// encodeAnew makes all following blocks be encoded here, for a receiver whose table nobody knows:
// it is emptied first.
func (f *flow) encodeAnew() {
	if f.encoder != nil {
		return
	}
	f.encoder = hpack.NewEncoder(&f.encoded)
	f.encoder.SetMaxDynamicTableSize(0)
	f.encoder.SetMaxDynamicTableSize(min(f.table, defaultTable))
}

// sendBlock adds a header block of the receiver's stream id.
func (f *flow) sendBlock(id, promised uint32, priority []byte, fields []hpack.HeaderField, end bool) {
	f.encodeAnew()
	f.encoded.Reset()
	for _, field := range fields {
		f.encoder.WriteField(field) // a bytes.Buffer takes everything
	}
	f.to.pending = appendBlock(f.to.pending, id, promised, priority, f.encoded.Bytes(), end)
	if f.encoded.Cap() > frameSize {
		f.encoded = bytes.Buffer{}
	}
}

// announce takes note of settings of the receiver's, on their way to the sender.
func (f *flow) announce(payload []byte) error {
	a := announced{-1, -1}
	settings(payload, func(id http2.SettingID, value uint32) {
		switch id {
		case http2.SettingHeaderTableSize:
			a.table = int64(value)
			f.maxTable = max(f.maxTable, value)
		case http2.SettingInitialWindowSize:
			a.window = int64(value)
		case http2.SettingMaxFrameSize:
			f.maxFrame = max(f.maxFrame, int(min(value, 1<<24-1)))
		}
	})
	f.decoder.SetAllowedMaxDynamicTableSize(min(f.maxTable, maxTable))
	if len(f.pending) == maxAnnounced {
		return doubtSettings
	}
	f.pending = append(f.pending, a)
	return nil
}

// acknowledged is for the sender's acknowledgement of the oldest settings. It returns by how much
// the windows of open streams change.
func (f *flow) acknowledged() (delta int64) {
	if len(f.pending) == 0 {
		return 0
	}
	a := f.pending[0]
	if f.pending = f.pending[1:]; len(f.pending) == 0 {
		f.pending = nil
	}
	if a.table >= 0 {
		f.table = uint32(a.table)
		if f.encoder != nil {
			f.encoder.SetMaxDynamicTableSize(min(f.table, defaultTable))
		}
	}
	if a.window >= 0 {
		delta = a.window - f.window0
		f.window0 = a.window
	}
	return delta
}

// grow is for a WINDOW_UPDATE of the receiver's connection. It returns how much of it is for the
// sender.
func (f *flow) grow(n int64) int64 {
	f.window += n
	paid := min(f.debt, n)
	f.debt -= paid
	f.release()
	return n - paid
}

// begin starts a DATA frame.
func (f *flow) begin(fr *frame) {
	f.data = passing{
		id: fr.id, left: fr.length, end: fr.flags&http2.FlagDataEndStream != 0,
		pads: fr.flags&http2.FlagDataPadded != 0,
	}
}

// next takes what p has of the DATA frame that is passing: n bytes, of which chunk is data. last
// says that it is all of the frame.
func (f *flow) next(p []byte) (chunk []byte, n, padding int, last bool, err error) {
	d := &f.data
	if d.pads {
		if d.left == 0 {
			return nil, 0, 0, false, doubtPadding
		}
		d.pad, d.pads = int(p[0]), false
		if d.pad >= d.left {
			return nil, 0, 0, false, doubtPadding
		}
		d.left--
		n, padding = 1, 1
		p = p[1:]
	}
	k := min(len(p), d.left)
	chunk = p[:max(0, min(k, d.left-d.pad))]
	padding += k - len(chunk)
	d.pad -= k - len(chunk)
	d.left -= k
	return chunk, n + k, padding, d.left == 0, nil
}

// pass adds DATA of the sender's to what the receiver gets, as soon as its window allows.
func (f *flow) pass(id uint32, p []byte, end bool) {
	n := int64(len(p))
	if len(f.held) == 0 && (n <= f.window || f.debt == 0) {
		f.window -= n
		f.to.pending = appendData(f.to.pending, id, p, end)
		return
	}
	f.hold(held{id: id, data: bytes.Clone(p), end: end})
	f.owned += n
	if f.owned > f.window+f.debt { // the sender sends more than it may, which the receiver is to see
		f.window, f.debt = math.MaxInt32, 0
	}
	f.release()
}

// heldCost is what something that is held costs besides its bytes.
const heldCost = 100

func (f *flow) hold(h held) {
	f.held = append(f.held, h)
	f.waiting += len(h.data) + len(h.fields) + heldCost
}

// add adds DATA that the sender does not know of, as soon as the receiver's window allows.
func (f *flow) add(id uint32, p []byte, end bool) {
	f.hold(held{id: id, data: bytes.Clone(p), end: end, foreign: true})
	f.release()
}

// lend returns how much DATA of others the receiver can take at this moment.
func (f *flow) lend() int64 {
	if len(f.held) > 0 {
		return 0
	}
	return max(0, min(f.window, maxDebt-f.debt))
}

// lent says that DATA of others was added.
func (f *flow) lent(n int64) {
	f.window -= n
	f.debt += n
}

// after adds a header block behind what is held of its stream.
func (f *flow) after(id uint32, fields []hpack.HeaderField, end bool) {
	for i := range f.held {
		if f.held[i].id == id {
			f.hold(held{id: id, fields: keepFields(fields), end: end})
			return
		}
	}
	f.sendBlock(id, 0, nil, fields, end)
}

// release adds what is held and fits into the window.
func (f *flow) release() {
	for len(f.held) > 0 {
		h := &f.held[0]
		if h.fields != nil {
			f.sendBlock(h.id, 0, nil, h.fields.fields(), h.end)
		} else {
			n := max(0, min(int64(len(h.data)), f.window, frameSize))
			if n == 0 && len(h.data) > 0 {
				return
			}
			whole := n == int64(len(h.data))
			f.to.pending = appendData(f.to.pending, h.id, h.data[:n], h.end && whole)
			h.data = h.data[n:]
			f.waiting -= int(n)
			if h.foreign {
				f.lent(n)
			} else {
				f.window -= n
				f.owned -= n
			}
			if !whole {
				continue
			}
		}
		f.waiting -= len(h.fields) + heldCost
		f.held[0] = held{}
		if f.held = f.held[1:]; len(f.held) == 0 {
			f.held = nil
		}
	}
}

// drop forgets what is held of a stream that was reset. The sender counted it, and will not hear of
// it from the receiver.
func (f *flow) drop(id uint32) {
	kept, gone := f.held[:0], int64(0)
	for _, h := range f.held {
		switch {
		case h.id != id:
			kept = append(kept, h)
		case !h.foreign:
			gone += int64(len(h.data))
		}
		if h.id == id {
			f.waiting -= len(h.data) + len(h.fields) + heldCost
		}
	}
	clear(f.held[len(kept):])
	if f.held = kept; len(kept) == 0 {
		f.held = nil
	}
	if gone > 0 {
		f.owned -= gone
		f.back.pending = appendWindowUpdate(f.back.pending, 0, gone)
	}
	f.release()
}

// asIs passes what there is at the front of b of a DATA frame that passes as it is.
func (f *flow) passAsIs(b *stream.Buffer) {
	n := min(f.data.left, b.Len())
	f.to.acquire()
	f.data.left -= n
	f.to.forward(b.Bytes()[:n], f.data.left > 0)
	b.Drop(n)
}
