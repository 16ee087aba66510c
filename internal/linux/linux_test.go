package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/test/need"
)

// newNS makes a namespace that goes with the test.
func newNS(tb testing.TB) *NS {
	tb.Helper()
	need.Root(tb)
	dir := filepath.Join(tb.TempDir(), "netns")
	path := filepath.Join(dir, "a")
	if err := CreateNS(path); err != nil {
		tb.Fatal(err)
	}
	ns, err := OpenNS(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := errors.Join(ns.Close(), DeleteNS(path), ReleaseNSDir(dir)); err != nil {
			tb.Error(err)
		}
	})
	return ns
}

func TestNamespaceLife(t *testing.T) {
	need.Root(t)
	dir := filepath.Join(t.TempDir(), "netns")
	path := filepath.Join(dir, "a")
	if _, err := OpenNS(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that it is not there", err)
	}
	// What a crash between the file and the mount leaves.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenNS(path); !errors.Is(err, ErrNotNS) {
		t.Errorf("got %v, want ErrNotNS", err)
	}
	for range 2 { // the second time it is there already
		if err := CreateNS(path); err != nil {
			t.Fatal(err)
		}
	}
	ns, err := OpenNS(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	checkInside(t, ns)
	if out, err := exec.Command("nsenter", "--net="+path, "ping", "-c", "1", "-W", "2", "127.0.0.1").CombinedOutput(); err != nil {
		t.Errorf("the new namespace does not reach itself: %v\n%s", err, out)
	}
	for range 2 {
		if err := DeleteNS(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want the path gone", err)
	}
	if err := ReleaseNSDir(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want the directory gone", err)
	}
}

// checkInside wants Do to be inside the namespace, and back out after it.
func checkInside(t *testing.T, ns *NS) {
	t.Helper()
	want, err := ns.ID()
	if err != nil {
		t.Fatal(err)
	}
	id := func() ID {
		cur, err := OpenNS("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		defer cur.Close()
		id, err := cur.ID()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	outside := id()
	sentinel := errors.New("mine")
	if err := ns.Do(func() error {
		if got := id(); got != want {
			t.Errorf("inside %v, want %v", got, want)
		}
		return sentinel
	}); !errors.Is(err, sentinel) {
		t.Errorf("got %v, want what the function returned", err)
	}
	if got := id(); got != outside {
		t.Errorf("after Do in %v, want %v", got, outside)
	}
}

func TestMountIsNoNetNS(t *testing.T) {
	if _, err := OpenNS("/proc/self/ns/mnt"); !errors.Is(err, ErrNotNS) {
		t.Errorf("got %v, want ErrNotNS for a mount namespace", err)
	}
}

// TestNoThreadStaysInside makes and enters many namespaces at once: afterwards
// no thread may be left in one, because it would keep it alive.
func TestNoThreadStaysInside(t *testing.T) {
	need.Root(t)
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "netns")
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			path := filepath.Join(dir, fmt.Sprint(i))
			if err := CreateNS(path); err != nil {
				t.Error(err)
				return
			}
			if err := InNS(path, func() error { return nil }); err != nil {
				t.Error(err)
			}
			if err := DeleteNS(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := ReleaseNSDir(dir); err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if got, err := os.Readlink(task); err == nil && got != home {
			t.Errorf("%s is in %s, want %s", task, got, home)
		}
	}
}

func TestSysctlIsTheNamespaces(t *testing.T) {
	ns := newNS(t)
	const path = "net/ipv4/ip_forward"
	if err := ns.Do(func() error {
		if err := SetSysctl(path, "1"); err != nil {
			return err
		}
		got, err := Sysctl(path)
		if got != "1" {
			t.Errorf("got %q, want 1", got)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := SetSysctl("net/ipv4/no_such", "1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that it is not there", err)
	}
}

// TestLinkTellsSysctls holds every setting that is read along with a link against
// what is below /proc.
func TestLinkTellsSysctls(t *testing.T) {
	ns := newNS(t)
	c, err := Dial(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for family, keys := range confPlaces {
		for key := range keys {
			path := "net/" + family + "/conf/lo/" + key
			for _, want := range []string{"1", "0"} {
				if err := ns.Do(func() error { return SetSysctl(path, want) }); err != nil {
					t.Fatal(err)
				}
				l, err := c.LinkByName("lo")
				if err != nil {
					t.Fatal(err)
				}
				if got, ok := l.Sysctl(path); !ok || got != want {
					t.Errorf("%s: got %q, %v, want %q", path, got, ok, want)
				}
			}
		}
	}
	l, err := c.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"net/ipv6/conf/other/accept_ra", "net/ipv6/conf/lo/no_such_key", "net/ipv4/conf/lo/accept_ra", "net/ipv4/ip_forward", ""} {
		if got, ok := l.Sysctl(path); ok {
			t.Errorf("%s: got %q of a link that does not tell it", path, got)
		}
	}
}

func TestTapIsGoneWhenSetupFails(t *testing.T) {
	ns := newNS(t)
	c, err := Dial(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := netstate.Tap{Owner: 107, MultiQueue: true}
	stop := errors.New("stop")
	for _, fails := range []error{stop, nil} {
		err := ns.Do(func() error { return MakeTap("tap0", want, func() error { return fails }) })
		if !errors.Is(err, fails) {
			t.Fatalf("got %v, want %v", err, fails)
		}
		l, err := c.LinkByName("tap0")
		if fails != nil {
			if !errors.Is(err, ErrNoLink) {
				t.Errorf("got %v, %v: the TAP stayed", l, err)
			}
			continue
		}
		if err != nil || l.Tap == nil || *l.Tap != want || !l.TapPersists || !l.TapOwned {
			t.Errorf("got %+v, %v", l, err)
		}
	}
}

func TestLookups(t *testing.T) {
	ns := newNS(t)
	c, err := Dial(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	lo, err := c.LinkByName("lo")
	if err != nil || lo.Index != 1 {
		t.Errorf("got %+v, %v", lo, err)
	}
	if _, err := c.LinkByName("none"); !errors.Is(err, ErrNoLink) {
		t.Errorf("got %v, want ErrNoLink", err)
	}
	if _, err := c.LinkByIndex(99); !errors.Is(err, ErrNoLink) {
		t.Errorf("got %v, want ErrNoLink", err)
	}
	if links, err := c.Links(); err != nil || len(links) != 1 {
		t.Errorf("got %v, %v", links, err)
	}
	if addrs, err := c.Addrs(99); err != nil || len(addrs) > 0 {
		t.Errorf("got %v, %v for a link that is not there", addrs, err)
	}
	// The kernel's own words stand in the error.
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, []byte("nosuch"))
	err = c.Do(unix.RTM_NEWLINK, unix.NLM_F_CREATE, nl.NewIfInfomsg(unix.AF_UNSPEC), info)
	if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "Unknown device type") {
		t.Errorf("got %v, want the kernel's own words", err)
	}
}

// TestDumpsUnderChange lists links while others come and go: a dump that was
// interrupted is repeated, so lo is always in it, once.
func TestDumpsUnderChange(t *testing.T) {
	ns := newNS(t)
	c, err := Dial(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			name := netstate.IfName(fmt.Sprintf("tap%d", i%50))
			err := ns.Do(func() error { return MakeTap(name, netstate.Tap{Owner: 1}, func() error { return errStop }) })
			if !errors.Is(err, errStop) {
				t.Error(err)
				return
			}
		}
	})
	deadline := time.Now().Add(500 * time.Millisecond)
	for time.Now().Before(deadline) {
		links, err := c.Links()
		if err != nil {
			t.Errorf("list links: %v", err)
			break
		}
		count := 0
		for _, l := range links {
			if l.Name == "lo" {
				count++
			}
		}
		if count != 1 {
			t.Errorf("lo is there %d times", count)
		}
	}
	close(stop)
	wg.Wait()
}

var errStop = errors.New("stop")

func TestKindHint(t *testing.T) {
	err := KindHint("nosuchkind", errStop)
	if h, ok := errors.AsType[*hint.Error](err); !ok || !errors.Is(err, errStop) || !strings.Contains(h.Error(), "modprobe nosuchkind") {
		t.Errorf("got %v, want a hint that names the module", err)
	}
}

func TestParseComment(t *testing.T) {
	tests := []struct {
		udata string
		want  string
	}{
		{"", ""},
		{"\x00\x05weft\x00", "weft"},
		{"\x07\x01x\x00\x03ab\x00", "ab"},
		{"\x00\x09short", ""},
	}
	for _, tt := range tests {
		if got := udataComment([]byte(tt.udata)); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.udata, got, tt.want)
		}
	}
}

// FuzzParse feeds every decoder with whatever bytes: none may panic, and what
// one gives must be printable.
func FuzzParse(f *testing.F) {
	f.Add(make([]byte, 16))
	f.Add([]byte{0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 3, 0, 'l', 'o', 0, 0})
	f.Fuzz(func(_ *testing.T, data []byte) {
		l, _ := parseLink(data)
		a, _ := parseAddr(data)
		r, _, _ := parseRoute(data)
		u, _, _ := parseRule(data)
		e, _ := parseFDB(data)
		t, _ := parseTable(data)
		_ = fmt.Sprint(l, a, r, u, e, t)
		msg := reply{}
		_ = msg.read(data)
	})
}

func TestParseRouteVia(t *testing.T) {
	// default via inet6 fe80::1 dev 2, as the kernel encodes RTA_VIA.
	via := append([]byte{10, 0}, netip.MustParseAddr("fe80::1").AsSlice()...)
	data := []byte{2, 0, 0, 0, 254, 119, 0, 1, 0, 0, 0, 0}
	data = append(data, 8, 0, unix.RTA_OIF, 0, 2, 0, 0, 0)
	data = append(data, byte(4+len(via)), 0, unix.RTA_VIA, 0)
	data = append(append(data, via...), 0, 0)
	r, ok, err := parseRoute(data)
	if err != nil || !ok || r.Via != netip.MustParseAddr("fe80::1") || r.Dst != netip.MustParsePrefix("0.0.0.0/0") || r.Protocol != 119 {
		t.Errorf("got %+v, %v, %v", r, ok, err)
	}
}

func TestTablesCarryTheirComment(t *testing.T) {
	ns := newNS(t)
	c, err := Dial(ns, unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tables, err := c.Tables()
	if err != nil || len(tables) != 0 {
		t.Errorf("got %v, %v in a new namespace", tables, err)
	}
}

// TestUnlockSysctls works in a mount namespace of one thread, which ends with it.
func TestUnlockSysctls(t *testing.T) {
	need.Root(t)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread is not to be used again
		done <- unlockWhereLocked()
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func unlockWhereLocked() error {
	const key = "net/ipv4/ip_default_ttl"
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
		return err
	}
	for _, mount := range []struct {
		source, target string
		flags          uintptr
	}{
		{"", "/", unix.MS_REC | unix.MS_PRIVATE},
		{sysctlRoot, sysctlRoot, unix.MS_BIND},
		{"", sysctlRoot, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY}, // as runc does
	} {
		if err := unix.Mount(mount.source, mount.target, "", mount.flags, ""); err != nil {
			return fmt.Errorf("mount %+v: %w", mount, err)
		}
	}
	if err := SetSysctl(key, "63"); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("on a read-only file system: %w", err)
	}
	for range 2 {
		if err := UnlockSysctls(); err != nil {
			return err
		}
	}
	if err := SetSysctl(key, "63"); err != nil {
		return err
	}
	if got, err := Sysctl(key); err != nil || got != "63" {
		return fmt.Errorf("the setting is %s (%w)", got, err)
	}
	return nil
}
