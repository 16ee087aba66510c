package link

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inNetNS runs test on a thread with a network namespace of its own, which
// goes with the thread.
func inNetNS(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root for a network namespace")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		test(t)
	}()
	<-done
}

// TestWatch: the loopback of a new namespace is found, its change is told,
// and an address comes and goes.
func TestWatch(t *testing.T) {
	inNetNS(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var seen []State
		err := Watch(ctx, func(event Event) {
			if event.Link == nil {
				return
			}
			seen = append(seen, *event.Link)
			if event.Link.Up {
				cancel()
				return
			}
			if err := SetUp(event.Link.Index); err != nil {
				t.Error(err)
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want to be cancelled by the news; saw %+v", err, seen)
		}
		first, last := seen[0], seen[len(seen)-1]
		if first.Name != "lo" || first.Up || !last.Up || first.Index != last.Index {
			t.Errorf("got %+v, want lo down, then up", seen)
		}
		prefix := netip.MustParsePrefix("fd00::5/128")
		life := Lifetime{Preferred: time.Minute, Valid: time.Hour}
		for range 2 { // the second time renews
			if err := SetAddr(first.Index, prefix, life); err != nil {
				t.Fatal(err)
			}
		}
		if got := addrs(t); !slices.Contains(got, prefix.String()) {
			t.Errorf("got %v, want %s", got, prefix)
		}
		for range 2 { // the second time it is gone already
			if err := DelAddr(first.Index, prefix); err != nil {
				t.Fatal(err)
			}
		}
		if got := addrs(t); slices.Contains(got, prefix.String()) {
			t.Errorf("got %v, want no %s", got, prefix)
		}
		if err := SetUp(12345); !errors.Is(err, unix.ENODEV) {
			t.Errorf("got %v, want ENODEV", err)
		}
	})
}

func addrs(t *testing.T) []string {
	t.Helper()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	list, err := lo.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

func TestParseDNS(t *testing.T) {
	header := make([]byte, userOptHeaderLen)
	header[0], header[4] = unix.AF_INET6, 3
	server := netip.MustParseAddr("fd00::53").As16()
	rdnss := append([]byte{optRDNSS, 3, 0, 0, 0, 0, 0, 60}, server[:]...)
	dnssl := append([]byte{optDNSSL, 3, 0, 0, 0, 0, 0, 60}, "\x01a\x07example\x00\x00\x00\x00\x00\x00"...)
	event, ok := parseDNS(slices.Concat(header, rdnss, dnssl))
	if !ok || event.DNS.Index != 3 || !slices.Equal(event.DNS.Servers, []netip.Addr{netip.AddrFrom16(server)}) ||
		!slices.Equal(event.DNS.Search, []string{"a.example"}) {
		t.Errorf("got %+v, %v", event.DNS, ok)
	}
	for _, bad := range [][]byte{nil, header, append(header, optRDNSS, 0, 0, 0, 0, 0, 0, 0), append(header, optRDNSS, 9, 0, 0, 0, 0, 0, 0)} {
		if event, ok := parseDNS(bad); ok {
			t.Errorf("%v: got %+v, want nothing", bad, event)
		}
	}
}

// FuzzParse: the kernel's messages are read within their bounds.
func FuzzParse(f *testing.F) {
	f.Add(uint16(unix.RTM_NEWLINK), make([]byte, 40))
	f.Add(uint16(unix.RTM_NEWADDR), make([]byte, 20))
	f.Add(uint16(unix.RTM_NEWNDUSEROPT), make([]byte, 48))
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		msg := syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind, Len: uint32(len(data))}, Data: data}
		event, ok := parse(msg)
		if some := event != (Event{}); some != ok {
			t.Errorf("got %+v, %v", event, ok)
		}
	})
}
