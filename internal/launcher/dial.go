package launcher

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/qemu"
)

// Peer is who listens at the other end of a unix socket, as the kernel wrote
// it down when it began to listen.
type Peer struct {
	PID      int
	UID, GID uint32
}

// DialAbstract connects to an abstract unix socket inside a network namespace;
// an empty path is the caller's own.
func DialAbstract(ctx context.Context, netns, name string) (*net.UnixConn, Peer, error) {
	var conn net.Conn
	dial := func() (err error) {
		// "@" stands for the leading NUL.
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", "@"+name)
		return err
	}
	var err error
	if netns == "" {
		err = dial()
	} else {
		err = linux.InNS(netns, dial)
	}
	if err != nil {
		return nil, Peer{}, fmt.Errorf("dial %s: %w", name, err)
	}
	unixConn := conn.(*net.UnixConn) // what network "unix" gives
	peer, err := peerOf(unixConn)
	if err != nil {
		return nil, Peer{}, errors.Join(fmt.Errorf("dial %s: %w", name, err), unixConn.Close())
	}
	return unixConn, peer, nil
}

func peerOf(conn *net.UnixConn) (Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, credErr); err != nil {
		return Peer{}, fmt.Errorf("ask who listens: %w", err)
	}
	return Peer{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, nil
}

// dial connects to one of the machine's sockets. Abstract sockets have no
// permissions: anybody in the namespace could listen under the name, so whoever
// is not QEMU's user is refused.
func (p *Process) dial(ctx context.Context, name string) (*net.UnixConn, Peer, error) {
	conn, peer, err := DialAbstract(ctx, p.Spec.NetNS, name)
	if err != nil {
		return nil, Peer{}, err
	}
	if peer.UID != p.Spec.UID {
		refusal := &hint.Error{
			Field: "socket", Value: name,
			Problem: fmt.Sprintf("process %d of user %d listens there, not this machine's QEMU (user %d)", peer.PID, peer.UID, p.Spec.UID),
			Remedy:  "end that process and restart the VM",
		}
		return nil, Peer{}, errors.Join(refusal, conn.Close())
	}
	return conn, peer, nil
}

// QMP connects to QEMU's monitor. It serves one client at a time.
func (p *Process) QMP(ctx context.Context) (*qemu.Client, error) {
	conn, _, err := p.dial(ctx, p.Spec.Machine.Sockets.QMP)
	if err != nil {
		return nil, err
	}
	return qemu.NewClient(ctx, conn)
}

// Agent connects to the guest agent's channel. That somebody in the guest
// listens there is not said: Client.AgentOpen is.
func (p *Process) Agent(ctx context.Context) (*qemu.Agent, error) {
	conn, _, err := p.dial(ctx, p.Spec.Machine.Sockets.Agent)
	if err != nil {
		return nil, err
	}
	return qemu.NewAgent(conn), nil
}

// Console connects to the serial console. It serves one client at a time.
func (p *Process) Console(ctx context.Context) (*net.UnixConn, error) {
	conn, _, err := p.dial(ctx, p.Spec.Machine.Sockets.Console)
	return conn, err
}

// QEMUPID is the process id of QEMU, as the kernel knows it.
func (p *Process) QEMUPID(ctx context.Context) (int, error) {
	// The agent's channel may be in use; a connection that waits behind another
	// one tells as much, and takes nothing from it.
	conn, peer, err := p.dial(ctx, p.Spec.Machine.Sockets.Agent)
	if err != nil {
		return 0, err
	}
	return peer.PID, conn.Close()
}
