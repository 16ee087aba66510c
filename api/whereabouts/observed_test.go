package whereabouts

import (
	"encoding/json"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestSameNamesAsWhereabouts holds names and offsets against what the code of
// whereabouts (v0.9.4) makes of the same; bench/whereabouts/observe writes the
// file. Its names that no object can have differ, and its offsets are cut to 64
// bits.
func TestSameNamesAsWhereabouts(t *testing.T) {
	text, err := os.ReadFile("testdata/whereabouts-names.json")
	if err != nil {
		t.Fatal(err)
	}
	var names []struct {
		Network, Node, Range, Addr, Pool, Reservation string
		Offset                                        uint64
	}
	if err := json.Unmarshal(text, &names); err != nil {
		t.Fatal(err)
	}
	same := func(what, ours, theirs string) {
		t.Helper()
		if !legal.MatchString(theirs) {
			theirs = "0" + theirs
		}
		if ours != theirs {
			t.Errorf("%s: got %s, want %s", what, ours, theirs)
		}
	}
	for _, n := range names {
		same("pool of "+n.Range, PoolName(n.Network, n.Node, prefix(n.Range)), n.Pool)
		same("reservation of "+n.Addr, ReservationName(n.Network, addr(n.Addr)), n.Reservation)
		if strings.HasPrefix(n.Reservation, "-") {
			continue
		}
		if got := ParseReservationName(n.Reservation); !slices.Contains(got, Named{n.Network, addr(n.Addr)}) {
			t.Errorf("ParseReservationName(%s) = %v", n.Reservation, got)
		}
		offset, err := Offset(prefix(n.Range), addr(n.Addr))
		exact, _ := new(big.Int).SetString(offset, 10)
		if err != nil || new(big.Int).And(exact, new(big.Int).SetUint64(^uint64(0))).Uint64() != n.Offset {
			t.Errorf("Offset(%s, %s) = %s %v, want %d", n.Range, n.Addr, offset, err, n.Offset)
		}
		got, exactly, err := AddrAt(prefix(n.Range), new(big.Int).SetUint64(n.Offset).String())
		if err != nil || exactly && got != addr(n.Addr) || !exactly && !SameOffset(got, addr(n.Addr)) {
			t.Errorf("AddrAt(%s, %d) = %s %v %v, want %s", n.Range, n.Offset, got, exactly, err, n.Addr)
		}
	}
	if len(names) < 80 {
		t.Errorf("only %d names", len(names))
	}
}
