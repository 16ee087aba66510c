package linux

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LinkNews tells of changes of one namespace's links as they happen. It keeps the
// namespace alive.
type LinkNews struct {
	file *os.File
	buf  []byte
}

// LinkChange is a link that was made, changed or removed.
type LinkChange struct {
	Alias string
	// Down: it is set down; Gone: it was removed.
	Down, Gone bool
}

// newsBuffer holds the messages of one read, which are at most a page or two of
// bytes each (NLMSG_GOODSIZE, include/linux/netlink.h).
const newsBuffer = 16 << 10

// newsBacklog is what the kernel may keep until it is read, in bytes of its own
// memory: four or eight thousand for each message.
const newsBacklog = 4 << 20

// OpenLinkNews begins to listen in a namespace; nil means the process's own.
func OpenLinkNews(ns *NS) (*LinkNews, error) {
	conn, err := Dial(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	err = unix.SetsockoptInt(conn.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_LINK)
	if err == nil {
		err = unix.SetNonblock(conn.fd, true) // for the runtime's poller
	}
	// What does not fit is lost, no more; without the right to it, that is sooner.
	_ = unix.SetsockoptInt(conn.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, newsBacklog)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for news of links: %w", err), conn.Close())
	}
	return &LinkNews{file: os.NewFile(uintptr(conn.fd), "rtnetlink"), buf: make([]byte, newsBuffer)}, nil
}

// Close ends Next.
func (n *LinkNews) Close() error { return n.file.Close() }

// atMost bounds what Next gives at once, in messages.
const atMost = 4096

// Next waits for changes, and gives all that have come by then. Those that came
// faster than they were read are lost.
func (n *LinkNews) Next() ([]LinkChange, error) {
	conn, err := n.file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("read news of links: %w", err)
	}
	var out []LinkChange
	var failed error
	err = conn.Read(func(fd uintptr) bool {
		for range atMost {
			size, err := unix.Read(int(fd), n.buf)
			switch {
			case err == nil:
				out = append(out, linkChanges(n.buf[:size])...)
			case errors.Is(err, unix.EAGAIN):
				return len(out) > 0
			case !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR):
				failed = err
				return true
			}
		}
		return true
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("read news of links: %w", err)
	}
	return out, nil
}

func linkChanges(b []byte) []LinkChange {
	var out []LinkChange
	for len(b) >= unix.SizeofNlMsghdr {
		h := (*unix.NlMsghdr)(unsafe.Pointer(&b[0]))
		if int(h.Len) < unix.SizeofNlMsghdr || int(h.Len) > len(b) {
			return out
		}
		data := b[unix.SizeofNlMsghdr:h.Len]
		if (h.Type == unix.RTM_NEWLINK || h.Type == unix.RTM_DELLINK) && len(data) >= unix.SizeofIfInfomsg {
			info := (*unix.IfInfomsg)(unsafe.Pointer(&data[0]))
			change := LinkChange{Down: info.Flags&unix.IFF_UP == 0, Gone: h.Type == unix.RTM_DELLINK}
			for kind, value := range attributes(data[unix.SizeofIfInfomsg:]) {
				if kind == unix.IFLA_IFALIAS {
					change.Alias = text(value)
				}
			}
			if info.Family == unix.AF_UNSPEC { // bridges tell of their ports in a family of their own
				out = append(out, change)
			}
		}
		b = b[min(align4(int(h.Len)), len(b)):]
	}
	return out
}
