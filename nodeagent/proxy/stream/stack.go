package stream

// Deepen has the stack of a new goroutine grow once, while there is hardly anything on it, to what serving a connection takes: growing by and by, each time with
// more on it to be moved, costs several microseconds. The garbage collector shrinks the stacks of connections that are idle.
//
//go:noinline
func Deepen() {
	var room [deep]byte
	touch(&room)
}

// deep is what must be free on the stack, in bytes. With what the runtime keeps for itself that makes a stack of 8 KiB.
const deep = 6 << 10

//go:noinline
func touch(room *[deep]byte) { room[0] = 1 }
