package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/test/need"
)

// atMostGrowth is how much more an attach to a bridge may grow than bare netlink
// does, from one other Pod to mostPresent. The kernel floods what a new port
// sends to all the others.
const atMostGrowth = 1.3

const mostPresent = 400

// grown are the medians of an attach with a number of other Pods on the bridge.
type grown struct{ weft, bare time.Duration }

// growth gives them for each of present, in rising order.
func growth(tb testing.TB, present []int, rounds int) []grown {
	tb.Helper()
	w := newWorld(tb)
	silent(tb, w.host)
	engine := newEngine(tb, w.host, networks{"net-0": networkConfs("bridge", "/unused")[0]})
	one := &engineWay{engine: engine, host: w.host, pod: w.pod(tb)}
	var bare *bareWay
	var out []grown
	there := 0
	for _, n := range present {
		for ; there < n; there++ {
			name, pod := fmt.Sprintf("other%d", there), newNS(tb)
			silent(tb, pod)
			_, err := engine.Add(context.Background(), chain.Request{
				ID: name, NetNS: pod.Path(), Pod: record.Pod{Namespace: "demo", Name: name, UID: name},
				Annotations: map[string]string{netattach.NetworksAnnotation: "net-0"},
			})
			if err != nil {
				tb.Fatal(err)
			}
		}
		if bare == nil {
			bare = newBareWay(tb, "bridge", w.host, w.pod(tb), []string{"br0"})
		}
		var ours, floor []time.Duration
		for range rounds {
			attach, _ := once(tb, one, 1)
			ours = append(ours, attach)
			attach, _ = once(tb, bare, 1)
			floor = append(floor, attach)
		}
		out = append(out, grown{median(ours), median(floor)})
	}
	return out
}

// silent makes later links of a namespace have no IPv6: for a minute, what
// hundreds of new ones send to all others would be all there is to measure.
func silent(tb testing.TB, ns *linux.NS) {
	tb.Helper()
	err := ns.Do(func() error { return linux.SetSysctl("net/ipv6/conf/default/disable_ipv6", "1") })
	if err != nil {
		tb.Fatal(err)
	}
}

// factor is how much more weft grew than bare netlink did.
func factor(list []grown) float64 {
	last := list[len(list)-1]
	return ratio(last.weft, list[0].weft) / ratio(last.bare, list[0].bare)
}

// TestGrowth fails when an attach comes to cost more with every Pod there is.
func TestGrowth(t *testing.T) {
	need.Root(t)
	var took []grown
	for range 3 {
		if took = growth(t, []int{1, 200}, 15); factor(took) < 2*atMostGrowth {
			return
		}
	}
	t.Errorf("attach takes %v with one other Pod and %v with 200, bare netlink %v and %v", took[0].weft, took[1].weft, took[0].bare, took[1].bare)
}

// BenchmarkGrowth prints what an attach costs as Pods grow in number.
func BenchmarkGrowth(b *testing.B) {
	need.Root(b)
	for b.Loop() {
		present := []int{1, 100, mostPresent}
		took := growth(b, present, 60)
		fmt.Println("\nattach of one NIC to a bridge, with other Pods on it:")
		for i, n := range present {
			fmt.Printf("%5d  weft %s  netlink %s\n", n, ms(took[i].weft), ms(took[i].bare))
		}
		report([]verdict{{
			text: fmt.Sprintf("from one Pod to %d, attach grows %.2fx as much as bare netlink, want at most %.1fx", mostPresent, factor(took), atMostGrowth),
			met:  factor(took) <= atMostGrowth,
		}})
	}
}
