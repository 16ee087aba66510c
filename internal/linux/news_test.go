package linux

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestLinkNews(t *testing.T) {
	ns := newNS(t)
	news, err := OpenLinkNews(ns)
	if err != nil {
		t.Fatal(err)
	}
	ip := func(args string) {
		t.Helper()
		if err := ns.Do(func() error {
			out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("ip %s: %w: %s", args, err, out)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	until := func(want LinkChange) {
		t.Helper()
		for {
			changes, err := news.Next()
			if err != nil {
				t.Fatal(err)
			}
			for _, change := range changes {
				if change == want {
					return
				}
			}
		}
	}
	ip("link add va type veth peer name vb")
	ip("link set va alias mine up")
	until(LinkChange{Alias: "mine"})
	ip("link set va down")
	until(LinkChange{Alias: "mine", Down: true})
	ip("link del vb")
	until(LinkChange{Alias: "mine", Down: true, Gone: true})
	ended := make(chan error)
	go func() {
		for {
			if _, err := news.Next(); err != nil {
				ended <- err
				return
			}
		}
	}()
	if err := news.Close(); err != nil {
		t.Error(err)
	}
	<-ended
}

func TestListener(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			t.Log(err) // a machine without IPv6
			continue
		}
		port := uint16(listener.Addr().(*net.TCPAddr).Port)
		if got, want := Listener(port), fmt.Sprintf("%.15s (PID %d)", filepath.Base(os.Args[0]), os.Getpid()); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
		if got := Listener(port); got != "" {
			t.Errorf("nobody listens, and it is %s", got)
		}
	}
}
