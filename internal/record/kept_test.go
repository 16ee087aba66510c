package record

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	k, err := OpenKept(dir)
	if err != nil {
		t.Fatal(err)
	}
	lease := func(owner, addr string) Lease {
		return Lease{Scope: "s", Addr: netip.MustParseAddr(addr), Owner: owner}
	}
	a, b := "claim:demo/"+strings.Repeat("a", 250), "claim:demo/b"
	for _, leases := range [][]Lease{{lease(a, "10.0.0.1")}, {lease(a, "10.0.0.2"), lease(a, "fd00::2")}} {
		if err := k.Save(a, leases); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.Save(b, []Lease{lease(b, "10.0.0.3")}); err != nil {
		t.Fatal(err)
	}
	got, err := k.List()
	slices.SortFunc(got, func(x, y Lease) int { return x.Addr.Compare(y.Addr) })
	if want := []Lease{lease(a, "10.0.0.2"), lease(b, "10.0.0.3"), lease(a, "fd00::2")}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
	for range 2 {
		if err := k.Remove(a); err != nil {
			t.Error(err)
		}
	}
	half := k.path(a) + tmpSuffix // a writer that died
	if err := os.WriteFile(half, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if k, err = OpenKept(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(half); !os.IsNotExist(err) {
		t.Errorf("half a file is left: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err = k.List()
	if want := []Lease{lease(b, "10.0.0.3")}; err == nil || !strings.Contains(err.Error(), "x.json") || !slices.Equal(got, want) {
		t.Errorf("beside a file that is cut: %v (%v)", got, err)
	}
}
