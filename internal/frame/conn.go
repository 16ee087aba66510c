package frame

import (
	"errors"
	"fmt"
	"net"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// Errors a caller acts upon.
var (
	// ErrNoDevice: no device has that name in the namespace, now.
	ErrNoDevice = errors.New("no such device")
	// ErrDown: the device is down or was deleted. A Conn on a device that is
	// still there hears again once it comes up; look at the index.
	ErrDown = errors.New("device is down")
	// ErrClosed: Close was called.
	ErrClosed = net.ErrClosed
)

// receiveBuffer bounds, in bytes, the kernel memory one guest can fill with
// requests we have not read; it holds some fifty of them.
const receiveBuffer = 64 << 10

// Conn is a packet socket bound to one device. It works from any goroutine,
// whatever namespace that runs in, and pins its namespace until closed.
type Conn struct {
	pc    *packet.Conn
	index int
}

// Open opens a socket for the frames w on the device name in the namespace of
// the calling thread.
//
// It listens for every protocol: only such sockets see the frames of a bridge
// port, which the kernel hands to the bridge before it looks for listeners of
// one protocol. The filter picks ours out before anything is copied, and
// frames towards the guest are not even shown to it.
func Open(name string, w Wants) (*Conn, error) {
	index, err := Index(name)
	if err != nil {
		return nil, err
	}
	filter, err := w.filter()
	if err != nil {
		return nil, err
	}
	pc, err := packet.Listen(&net.Interface{Index: index, Name: name}, packet.Raw, unix.ETH_P_ALL, &packet.Config{Filter: filter})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("open packet socket on %s: %w", name, ErrNoDevice)
	}
	if err != nil {
		return nil, fmt.Errorf("open packet socket on %s: %w", name, err)
	}
	c := &Conn{pc: pc, index: index}
	if err := c.setOptions(); err != nil {
		return nil, errors.Join(fmt.Errorf("set up packet socket on %s: %w", name, err), pc.Close())
	}
	return c, nil
}

func (c *Conn) setOptions() error {
	raw, err := c.pc.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	control := raw.Control(func(fd uintptr) {
		set = errors.Join(
			// Since Linux 4.20. Without it each frame to the guest is cloned
			// before the filter runs, ours and the LAN's alike.
			unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer),
		)
	})
	return errors.Join(control, set)
}

// Index gives the index of the device name in the namespace of the calling
// thread; ErrNoDevice if there is none.
func Index(name string) (int, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("find device %q: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open packet socket: %w", err)
	}
	ioctl := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request)
	_ = unix.Close(fd) // never written to: nothing can be lost
	switch {
	case errors.Is(ioctl, unix.ENODEV):
		return 0, fmt.Errorf("find device %s: %w", name, ErrNoDevice)
	case ioctl != nil:
		return 0, fmt.Errorf("find device %s: %w", name, ioctl)
	}
	return int(request.Uint32()), nil
}

// SetWants changes which frames are received from now on.
func (c *Conn) SetWants(w Wants) error {
	filter, err := w.filter()
	if err != nil {
		return err
	}
	if err := c.pc.SetBPF(filter); err != nil {
		return fmt.Errorf("change filter of packet socket: %w", err)
	}
	return nil
}

// Index is the index of the device the socket is bound to.
func (c *Conn) Index() int { return c.index }

// Read fills b with the next frame. ErrDown and ErrClosed tell why none comes.
func (c *Conn) Read(b []byte) (int, error) {
	n, _, err := c.pc.ReadFrom(b)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, net.ErrClosed):
		return 0, ErrClosed
	case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return 0, fmt.Errorf("read frame: %w", ErrDown)
	}
	return 0, fmt.Errorf("read frame: %w", err)
}

// Write sends one whole frame to the guest.
func (c *Conn) Write(b []byte) error {
	// The address only names the protocol and the device; SOCK_RAW sends b as it is.
	_, err := c.pc.WriteTo(b, &packet.Addr{HardwareAddr: net.HardwareAddr(b[:6])})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, net.ErrClosed):
		return ErrClosed
	case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("write frame: %w", ErrDown)
	}
	return fmt.Errorf("write frame: %w", err)
}

// Close closes the socket and wakes a reader. When it returns the kernel has
// let go of the namespace, unless a Read is just returning.
func (c *Conn) Close() error {
	if err := c.pc.Close(); err != nil {
		return fmt.Errorf("close packet socket: %w", err)
	}
	return nil
}
