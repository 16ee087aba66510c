package whereabouts

import (
	"encoding/json"
	"math/big"
	"net/netip"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// legal is what Kubernetes takes as the name of an object (RFC 1123).
var legal = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func addr(text string) netip.Addr     { return netip.MustParseAddr(text) }
func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }

// TestPoolNames: names as whereabouts gives them (observed, and its own tests).
func TestPoolNames(t *testing.T) {
	for _, c := range []struct{ network, node, r, want string }{
		{"", "", "10.0.0.0/8", "10.0.0.0-8"},
		{"test", "", "10.0.0.0/8", "test-10.0.0.0-8"},
		{"", "testnode", "10.0.0.0/8", "testnode-10.0.0.0-8"},
		{"testnetwork", "testnode", "10.0.0.0/8", "testnetwork-testnode-10.0.0.0-8"},
		{"", "", "caa5::/64", "caa5---64"},
		{"", "", "fd00::/48", "fd00---48"},
		{"", "", "::/126", "0---126"}, // there: ---126, which no object can have
		{"blue", "", "::/126", "blue----126"},
	} {
		got := PoolName(c.network, c.node, prefix(c.r))
		if got != c.want || !legal.MatchString(got) {
			t.Errorf("PoolName(%q, %q, %s) = %s, want %s", c.network, c.node, c.r, got, c.want)
		}
		before, ok := PoolPrefix(got, prefix(c.r))
		want := c.network + c.node
		if c.network != "" && c.node != "" {
			want = c.network + "-" + c.node
		}
		if before != want || !ok {
			t.Errorf("PoolPrefix(%s) = %q %v, want %q", got, before, ok, want)
		}
	}
	if before, ok := PoolPrefix("mine", prefix("10.0.0.0/8")); ok {
		t.Errorf("PoolPrefix(mine) = %q", before)
	}
	if got := NodeSlicePoolName("", "lan"); got != "lan" {
		t.Errorf("got %s, want lan", got)
	}
	if got := NodeSlicePoolName("blue", "lan"); got != "blue" {
		t.Errorf("got %s, want blue", got)
	}
}

// TestReservationNames: names as whereabouts gives them, and back. The network
// is told from the address whatever characters it has (B6).
func TestReservationNames(t *testing.T) {
	for _, c := range []struct {
		network, addr, want string
		also                []Named
	}{
		{"", "10.0.0.5", "10.0.0.5", nil},
		{"", "2001::1", "2001--1", nil},
		{"", "2001:db9::", "2001-db9--0", []Named{{"2001", addr("db9::")}}},
		{"blue", "10.30.0.1", "blue-10.30.0.1", nil},
		{"", "::1", "0--1", nil}, // there: --1, which no object can have
		{"blue", "::1", "blue---1", nil},
		{"a-b.c", "2001:db8::7", "a-b.c-2001-db8--7", []Named{{"a-b.c-2001", addr("db8::7")}}},
		{"", "fd00:1::1", "fd00-1--1", []Named{{"fd00", addr("1::1")}}},
		{"", "1:2:3:4:5:6:7:8", "1-2-3-4-5-6-7-8", nil},
	} {
		got := ReservationName(c.network, addr(c.addr))
		if got != c.want || !legal.MatchString(got) {
			t.Errorf("ReservationName(%q, %s) = %s, want %s", c.network, c.addr, got, c.want)
		}
		want := append([]Named{{c.network, addr(c.addr)}}, c.also...)
		if back := ParseReservationName(got); !slices.Equal(back, want) {
			t.Errorf("ParseReservationName(%s) = %v, want %v", got, back, want)
		}
	}
	for _, name := range []string{"", "x", "10.0.0", "2001-0--1", "-10.0.0.5", "blue-010.0.0.5", "fe80--1%eth0"} {
		if got := ParseReservationName(name); len(got) != 0 {
			t.Errorf("ParseReservationName(%q) = %v", name, got)
		}
	}
}

func TestOffsets(t *testing.T) {
	for _, c := range []struct {
		r, addr, offset string
		exact, readable bool
	}{
		{"10.0.0.0/24", "10.0.0.1", "1", true, true},
		{"10.0.0.0/8", "10.1.2.3", "66051", true, true},
		{"10.0.0.64/26", "10.0.0.127", "63", true, true},
		{"0.0.0.0/0", "255.255.255.255", "4294967295", true, true},
		{"fd00::/64", "fd00::1", "1", true, true},
		{"caa5::/64", "caa5::8000:0:0:1", "9223372036854775809", true, false}, // B3
		{"fd00::/48", "fd00:0:0:1::1", "18446744073709551617", true, false},   // B4: there "1"
		{"fd00::/48", "fd00::1", "1", false, true},
		{"::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "340282366920938463463374607431768211455", true, false},
	} {
		got, err := Offset(prefix(c.r), addr(c.addr))
		if got != c.offset || err != nil || Readable(got) != c.readable {
			t.Errorf("Offset(%s, %s) = %s %v, readable %v", c.r, c.addr, got, err, Readable(got))
		}
		back, exact, err := AddrAt(prefix(c.r), c.offset)
		if back != addr(c.addr) || exact != c.exact || err != nil {
			t.Errorf("AddrAt(%s, %s) = %s %v %v", c.r, c.offset, back, exact, err)
		}
	}
	if got, _, err := AddrAt(prefix("caa5::/64"), "-9223372036854775807"); got != addr("caa5::8000:0:0:1") || err != nil {
		t.Errorf("a negative offset: %s %v", got, err)
	}
	for _, c := range []struct{ r, offset string }{
		{"10.0.0.0/24", "256"},
		{"10.0.0.0/24", "-1"},
		{"10.0.0.0/24", "x"},
		{"10.0.0.0/24", ""},
		{"255.255.255.0/24", "4294967296"},
		{"fd00::/64", "18446744073709551616"},
		{"fd00::/64", "99999999999999999999999999999999999999999"},
	} {
		if got, _, err := AddrAt(prefix(c.r), c.offset); err == nil {
			t.Errorf("AddrAt(%s, %q) = %s", c.r, c.offset, got)
		}
	}
	for _, a := range []string{"9.255.255.255", "fd00::1"} {
		if got, err := Offset(prefix("10.0.0.0/24"), addr(a)); err == nil {
			t.Errorf("Offset(10.0.0.0/24, %s) = %s", a, got)
		}
	}
	if !SameOffset(addr("fd00::1"), addr("fd00:0:0:1::1")) || SameOffset(addr("fd00::1"), addr("fd00:0:0:1::2")) || SameOffset(addr("fd00::1"), addr("0.0.0.1")) {
		t.Error("SameOffset is about the lower 64 bits of one family")
	}
}

// TestNamesAndOffsetsComeBack: any address of any range.
func TestNamesAndOffsetsComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{4, 16}).Draw(t, "bytes")
		raw := rapid.SliceOfN(rapid.OneOf(rapid.Byte(), rapid.Just(byte(0)), rapid.Just(byte(255))), size, size).Draw(t, "addr")
		a, _ := netip.AddrFromSlice(raw)
		a = a.Unmap()
		r := netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
		network := rapid.SampledFrom([]string{"", "blue", "a-b", "fd00", "10.0"}).Draw(t, "network")
		name := ReservationName(network, a)
		if !legal.MatchString(name) || !slices.Contains(ParseReservationName(name), Named{network, a}) {
			t.Fatalf("%s of %q: %s gives %v", a, network, name, ParseReservationName(name))
		}
		offset, err := Offset(r, a)
		if err != nil {
			t.Fatal(err)
		}
		back, _, err := AddrAt(r, offset)
		if back != a || err != nil {
			t.Fatalf("offset %s of %s: %s %v, want %s", offset, r, back, err, a)
		}
		if n, _ := new(big.Int).SetString(offset, 10); n.IsInt64() != Readable(offset) {
			t.Fatalf("Readable(%s) = %v", offset, Readable(offset))
		}
	})
}

// TestObjectsComeBack: what is read is written, and what nobody here knows too.
func TestObjectsComeBack(t *testing.T) {
	decode := func(text string) map[string]any {
		var obj map[string]any
		if err := json.Unmarshal([]byte(text), &obj); err != nil {
			t.Fatal(err)
		}
		return obj
	}
	const poolText = `{"apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "IPPool",
		"metadata": {"name": "10.0.0.0-24", "namespace": "kube-system", "uid": "u1", "resourceVersion": "7", "generation": 3, "labels": {"a": "b"}, "managedFields": [{"manager": "x"}]},
		"spec": {"range": "10.0.0.0/24", "more": 1, "allocations": {"1": {"id": "c1", "podref": "default/a", "ifname": "net1", "later": true}, "2": {"id": "c2", "podref": "default/b"}}}}`
	pool, err := IPPoolFromObject(decode(poolText))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]Allocation{"1": {"c1", "default/a", "net1"}, "2": {"c2", "default/b", ""}}, pool.Allocations); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(decode(poolText), pool.Object()); diff != "" {
		t.Errorf("pool (-want +got):\n%s", diff)
	}
	delete(pool.Allocations, "2")
	pool.Allocations["1"] = Allocation{"c9", "default/z", ""}
	want := decode(poolText)
	want["spec"].(map[string]any)["allocations"] = map[string]any{"1": map[string]any{"id": "c9", "podref": "default/z", "later": true}}
	if diff := cmp.Diff(want, pool.Object()); diff != "" {
		t.Errorf("changed pool (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(decode(poolText), pool.doc); diff != "" {
		t.Errorf("what was read has changed (-want +got):\n%s", diff)
	}

	const text = `{"apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "OverlappingRangeIPReservation",
		"metadata": {"name": "10.0.0.1", "namespace": "kube-system", "finalizers": ["weft.network/lease"], "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"podref": "default/a", "ifname": "net1"}}`
	r, err := ReservationFromObject(decode(text))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(decode(text), r.Object()); diff != "" || !r.Deleting {
		t.Errorf("reservation, deleting %v (-want +got):\n%s", r.Deleting, diff)
	}

	slices, err := NodeSlicePoolFromObject(decode(`{"metadata": {"name": "lan"}, "spec": {"range": "10.0.0.0/24", "sliceSize": "/26"},
		"status": {"allocations": [{"nodeName": "a", "sliceRange": "10.0.0.0/26"}, {"nodeName": "", "sliceRange": "10.0.0.64/26"}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Slice{{"a", "10.0.0.0/26"}, {"", "10.0.0.64/26"}}, slices.Slices); diff != "" || slices.SliceSize != "/26" {
		t.Errorf("slices (-want +got):\n%s", diff)
	}
	if _, err := IPPoolFromObject(decode(`{"spec": {"range": 5}}`)); err == nil {
		t.Error("a range that is a number was read")
	}
}
