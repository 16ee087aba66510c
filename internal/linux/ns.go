// Package linux is the thin layer between weft and the kernel's interfaces:
// network namespaces, route netlink, sysctl, TAP devices, the boot id.
//
// It observes, and gives dataplane the means to write; it decides nothing about
// what should be there.
package linux

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
)

// ErrNotNS means that a path is there but no network namespace is bound to it,
// such as what `ip netns add` leaves after a reboot or a crash in its middle.
var ErrNotNS = errors.New("not a network namespace")

// NS is an open network namespace. It keeps the namespace alive until closed.
type NS struct {
	file *os.File
	path string

	mu    sync.Mutex
	route *Conn // nil until somebody asks for it
}

// OpenNS opens the namespace bound to path, or /proc/PID/ns/net. The error is
// fs.ErrNotExist if nothing is there and ErrNotNS if something else is.
func OpenNS(path string) (*NS, error) {
	file, err := openFile(path, unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("open namespace: %w", err)
	}
	if err := checkNS(file); err != nil {
		file.Close() // opened for reading only: nothing to lose
		return nil, fmt.Errorf("open namespace %s: %w", path, err)
	}
	return &NS{file: file, path: path}, nil
}

// checkNS says whether file is a network namespace: a file of nsfs of that type.
func checkNS(file *os.File) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &st); err != nil {
		return fmt.Errorf("statfs: %w", err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return ErrNotNS
	}
	// NS_GET_NSTYPE, include/uapi/linux/nsfs.h, Linux 4.11.
	kind, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE)
	if err != nil {
		return fmt.Errorf("ask for the namespace's type: %w", err)
	}
	if kind != unix.CLONE_NEWNET {
		return ErrNotNS
	}
	return nil
}

// Path is the path the namespace was opened by.
func (n *NS) Path() string { return n.path }

// FD is the descriptor, valid until Close.
func (n *NS) FD() int { return int(n.file.Fd()) }

// Route is a connection to route netlink in the namespace, for all who ask,
// valid until Close.
func (n *NS) Route() (*Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.route != nil {
		return n.route, nil
	}
	conn, err := Dial(n, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	n.route = conn
	return conn, nil
}

// Close lets go of the namespace.
func (n *NS) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	err := n.file.Close()
	if n.route != nil {
		err = errors.Join(n.route.Close(), err)
		n.route = nil
	}
	return err
}

// ID names a namespace for as long as it lives.
type ID struct{ Dev, Ino uint64 }

// ID gives the identity of the namespace: two handles of one namespace have the same.
func (n *NS) ID() (ID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(n.FD(), &st); err != nil {
		return ID{}, fmt.Errorf("stat namespace %s: %w", n.path, err)
	}
	return ID{Dev: st.Dev, Ino: st.Ino}, nil
}

// home is the namespace of this process's threads but for those that run in
// another one for a moment, locked. Opened once: to open it takes longer than to
// enter another one and come back.
var home = sync.OnceValues(func() (*os.File, error) {
	file, err := openFile("/proc/thread-self/ns/net", unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("open the process's own namespace: %w", err)
	}
	return file, nil
})

// Do runs f inside the namespace, on the thread of its caller: to hand it to
// another one takes longer than to go there and back. f must not enter another
// namespace or start goroutines that count on this one; sockets and processes it
// opens there stay there.
func (n *NS) Do(f func() error) error {
	return visit(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", n.path, rootHint(err))
		}
		return nil
	}, f)
}

// visit runs f between enter and the way home. A thread that cannot go back
// stays locked, so that no other goroutine meets it and the runtime ends it with
// this one.
func visit(enter, f func() error) (err error) {
	back, err := home()
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := enter(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() { // even if f panics
		if backErr := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); backErr != nil {
			err = errors.Join(err, fmt.Errorf("leave the namespace: %w", backErr))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// InNS opens the namespace at path, runs f inside it and closes it again.
func InNS(path string, f func() error) error {
	ns, err := OpenNS(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(f)
}

// CreateNS makes a namespace and binds it to path, as `ip netns add` does: the
// namespace lives until DeleteNS, whatever becomes of this process. A namespace
// that is already there stays and is success; a plain file left by a crash is
// taken over. The loopback link of a new namespace is up, as a Pod's is
// everywhere.
func CreateNS(path string) error {
	ns, err := OpenNS(path)
	if err == nil {
		return ns.Close()
	}
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, ErrNotNS) {
		return err
	}
	if err := shareDir(filepath.Dir(path)); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return fmt.Errorf("create namespace: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("create namespace %s: %w", path, err)
	}
	if err := bindNew(path); err != nil {
		return errors.Join(fmt.Errorf("create namespace %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// bindNew makes a namespace and binds it to path.
func bindNew(path string) error {
	return inThrowaway(func() error {
		if err := loopbackUp(); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
}

// loopback is the index of lo in every namespace (drivers/net/loopback.c makes
// it first).
const loopback = 1

// loopbackUp sets lo up in the namespace of this thread.
func loopbackUp() error {
	conn, err := Dial(nil, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer conn.Close()
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index, info.Flags, info.Change = loopback, unix.IFF_UP, unix.IFF_UP
	if err := conn.Do(unix.RTM_NEWLINK, 0, info); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// inThrowaway runs f on a thread in a new namespace, which goes with the thread's
// way home. Ending the thread inside would do for most threads, but the process's
// first one never ends, and would keep the namespace alive.
func inThrowaway(f func() error) error {
	return visit(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make namespace: %w", rootHint(err))
		}
		return nil
	}, f)
}

// shareDir makes dir a shared mount point, so that a namespace bound or unbound
// below it is so in every mount namespace: otherwise a program with a mount
// namespace of its own would keep deleted namespaces alive. `ip netns add` does
// the same to /run/netns.
func shareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory for namespaces: %w", err)
	}
	err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("share mounts of %s: %w", dir, rootHint(err))
	}
	// EINVAL: not a mount point yet.
	if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s to itself: %w", dir, rootHint(err))
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share mounts of %s: %w", dir, err)
	}
	return nil
}

// ReleaseNSDir undoes what CreateNS did to the directory of its namespaces, once
// it is empty. A directory that is gone or holds other namespaces is success.
func ReleaseNSDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || len(entries) > 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read directory of namespaces: %w", err)
	}
	// EINVAL: no mount point, so there is nothing to undo.
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove directory of namespaces: %w", err)
	}
	return nil
}

// DeleteNS unbinds the namespace from path and removes the path. What is in the
// namespace goes once no process or open socket holds it, some milliseconds
// later. Nothing there is success.
func DeleteNS(path string) error {
	// EINVAL: a plain file, not a mount point. ENOENT: already gone.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil &&
		!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount namespace %s: %w", path, rootHint(err))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace: %w", err)
	}
	return nil
}

// rootHint explains EPERM.
func rootHint(err error) error {
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	return &hint.Error{
		Problem: "no permission to change networks", Err: err,
		Remedy: "run as root, or with the capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN",
	}
}
