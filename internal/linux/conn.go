package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// receiveBuffer is the size the kernel is offered per read of a dump; it fills
// up to 32 KiB of it (net/netlink/af_netlink.c, netlink_dump).
const receiveBuffer = 64 << 10

// buffers are for the length of one exchange each: a connection of its own would
// cost most attachments a new one.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, receiveBuffer)
	return &b
}}

// dumpTries bounds how often a dump that changed under the reader is repeated.
const dumpTries = 20

// Conn is one netlink socket inside one namespace. It is safe for use by
// several goroutines, one exchange at a time.
//
// It exists beside the netlink library's handles because it reads into one
// buffer, asks the kernel for its own words on every error without a switch
// global to the process, and restricts dumps in the kernel (strict checking).
type Conn struct {
	mu  sync.Mutex
	fd  int
	seq uint32
}

// Dial opens a netlink socket of the protocol (unix.NETLINK_ROUTE,
// unix.NETLINK_NETFILTER) inside the namespace; nil means the process's own. The
// socket stays there, and keeps the namespace alive until it is closed.
func Dial(ns *NS, protocol int) (*Conn, error) {
	c := &Conn{fd: -1}
	open := func() (err error) {
		c.fd, err = openSocket(protocol)
		return err
	}
	if ns == nil {
		return c, open()
	}
	if err := ns.Do(open); err != nil {
		return nil, err
	}
	return c, nil
}

func openSocket(protocol int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, fmt.Errorf("open netlink socket: %w", err)
	}
	// Both options are Linux 4.20 or older; a kernel without them costs words in
	// errors and speed in dumps, not correctness.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind netlink socket: %w", err)
	}
	return fd, nil
}

// Close closes the socket.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil
	}
	fd := c.fd
	c.fd = -1
	return unix.Close(fd)
}

// Do sends a request and waits until the kernel has carried it out. The error,
// if there is one, is the errno with the kernel's own words where it has some.
func (c *Conn) Do(msgType uint16, flags int, payload ...nl.NetlinkRequestData) error {
	return c.exchange(msgType, flags|unix.NLM_F_ACK, payload, nil)
}

// Get sends a request that one message answers and passes that to f, whose
// argument is only valid during the call.
func (c *Conn) Get(msgType uint16, f func([]byte) error, payload ...nl.NetlinkRequestData) error {
	return c.exchange(msgType, 0, payload, f)
}

// Dump sends a request that many messages answer and passes each to f, whose
// argument is only valid during the call. If the kernel's tables changed under
// the dump it is repeated from the start; reset is called before each try.
func (c *Conn) Dump(msgType uint16, reset func(), f func([]byte) error, payload ...nl.NetlinkRequestData) error {
	var err error
	for range dumpTries {
		reset()
		err = c.exchange(msgType, unix.NLM_F_DUMP, payload, f)
		// EINTR comes as an error from kernels that give up a dump half-way.
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return fmt.Errorf("the kernel's tables kept changing through %d reads: %w", dumpTries, err)
}

func (c *Conn) exchange(msgType uint16, flags int, payload []nl.NetlinkRequestData, f func([]byte) error) error {
	req := nl.NetlinkRequest{
		NlMsghdr: unix.NlMsghdr{Len: unix.SizeofNlMsghdr, Type: msgType, Flags: uint16(flags) | unix.NLM_F_REQUEST},
		Data:     payload,
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	req.Seq = c.seq
	if err := c.send(req.Serialize()); err != nil {
		return fmt.Errorf("send netlink message: %w", err)
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	r := reply{seq: c.seq, dump: flags&unix.NLM_F_DUMP == unix.NLM_F_DUMP, single: flags == 0, each: f}
	for !r.done {
		n, err := c.receive(*buf)
		if err != nil {
			return fmt.Errorf("read netlink message: %w", err)
		}
		if err := r.read((*buf)[:n]); err != nil {
			return err
		}
	}
	return r.result()
}

func (c *Conn) send(msg []byte) error {
	for {
		err := unix.Sendto(c.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (c *Conn) receive(buf []byte) (int, error) {
	for {
		n, from, err := unix.Recvfrom(c.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		// Another process may write to our port; only the kernel answers.
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue
		}
		return n, nil
	}
}

// reply gathers the answer to one request.
type reply struct {
	seq  uint32
	dump bool
	// single: one message answers, and no other follows it.
	single bool
	each   func([]byte) error

	done        bool
	interrupted bool
	err         error // what the kernel answered
	eachErr     error // the first error of each; the rest is read and dropped
}

func (r *reply) read(b []byte) error {
	for len(b) >= unix.SizeofNlMsghdr {
		h := (*unix.NlMsghdr)(unsafe.Pointer(&b[0]))
		if int(h.Len) < unix.SizeofNlMsghdr || int(h.Len) > len(b) {
			return fmt.Errorf("read netlink message: length %d of %d bytes", h.Len, len(b))
		}
		if h.Seq == r.seq {
			r.message(h, b[unix.SizeofNlMsghdr:h.Len])
		}
		b = b[min(align4(int(h.Len)), len(b)):]
	}
	return nil
}

func (r *reply) message(h *unix.NlMsghdr, data []byte) {
	if h.Flags&unix.NLM_F_DUMP_INTR != 0 {
		r.interrupted = true
	}
	switch h.Type {
	case unix.NLMSG_ERROR, unix.NLMSG_DONE:
		r.done = true
		r.err = ackError(h, data)
	default:
		if r.each != nil && r.eachErr == nil {
			r.eachErr = r.each(data)
		}
		r.done = r.single
	}
}

func (r *reply) result() error {
	switch {
	case r.err != nil:
		return r.err
	case r.dump && r.interrupted:
		return netlink.ErrDumpInterrupted
	default:
		return r.eachErr
	}
}

// ackError decodes struct nlmsgerr and its attributes (include/uapi/linux/netlink.h).
func ackError(h *unix.NlMsghdr, data []byte) error {
	if len(data) < 4 {
		return nil
	}
	code := int32(binary.NativeEndian.Uint32(data))
	if code == 0 {
		return nil
	}
	errno := unix.Errno(-code)
	if h.Flags&unix.NLM_F_ACK_TLVS == 0 {
		return errno
	}
	rest := data[4:]
	if h.Type == unix.NLMSG_ERROR {
		if len(rest) < unix.SizeofNlMsghdr {
			return errno
		}
		echoed := unix.SizeofNlMsghdr
		if h.Flags&unix.NLM_F_CAPPED == 0 {
			echoed = align4(int(binary.NativeEndian.Uint32(rest)))
		}
		if echoed > len(rest) {
			return errno
		}
		rest = rest[echoed:]
	}
	for kind, value := range attributes(rest) {
		if kind == unix.NLMSGERR_ATTR_MSG {
			return fmt.Errorf("%w: %s", errno, text(value))
		}
	}
	return errno
}
