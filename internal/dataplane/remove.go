package dataplane

import (
	"errors"
	"sync"

	"github.com/weftnet/weft/internal/linux"
)

// maxTogether bounds the links that are deleted in one go, if several asked: while
// the kernel does it, nobody can change a link of the machine.
const maxTogether = 256

// remover deletes links of the host's namespace. Who asks first is served at once;
// those who ask meanwhile are served together after that, so that many sandboxes
// that end at a time pay the kernel's grace period once or twice, and not each.
type remover struct {
	conn *linux.Conn
	step func(string) error

	// mu guards busy, that somebody deletes, and the queue of those who wait.
	mu    sync.Mutex
	busy  bool
	queue []*removal
}

// removal is what one asked for.
type removal struct {
	links []linux.Link
	// turn gives, once, the removals to do together, this one among them; none: it is done.
	turn chan []*removal
	err  error // read after turn gave none
}

// errNotDone is the error of a removal that nobody has come to.
var errNotDone = errors.New("delete links: whoever did it for several was interrupted")

// remove deletes links that were seen to be ours.
func (r *remover) remove(links []linux.Link) error {
	if len(links) == 0 {
		return nil
	}
	mine := &removal{links: links, turn: make(chan []*removal, 1), err: errNotDone}
	batch := []*removal{mine}
	r.mu.Lock()
	waits := r.busy
	if waits {
		r.queue = append(r.queue, mine)
	}
	r.busy = true
	r.mu.Unlock()
	if waits {
		if batch = <-mine.turn; batch == nil {
			return mine.err
		}
	}
	defer func() { // even after a panic nobody must wait forever
		r.passOn()
		for _, other := range batch {
			if other != mine {
				other.turn <- nil
			}
		}
	}()
	r.do(batch)
	return mine.err
}

// passOn gives the turn to those who wait.
func (r *remover) passOn() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queue) == 0 {
		r.busy, r.queue = false, nil
		return
	}
	n, links := 1, len(r.queue[0].links)
	for n < len(r.queue) && links+len(r.queue[n].links) <= maxTogether {
		links += len(r.queue[n].links)
		n++
	}
	batch := r.queue[:n:n]
	r.queue = r.queue[n:]
	batch[0].turn <- batch
}

// do deletes the links of all. If that fails, it is found out whose fault it is.
func (r *remover) do(batch []*removal) {
	if len(batch) > 1 {
		var all []linux.Link
		for _, one := range batch {
			all = append(all, one.links...)
		}
		err := deleteTogether(r.conn, all, r.step)
		if err == nil || errors.Is(err, errStopped) {
			for _, one := range batch {
				one.err = err
			}
			return
		}
	}
	for _, one := range batch {
		one.err = deleteTogether(r.conn, one.links, r.step)
	}
}
