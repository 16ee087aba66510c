package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftnet/weft/test/kubelab"
)

// many are Pods of sixteen NICs on one network. Whereabouts is asked for fewer of
// them, since it takes minutes for all.
func (m *addressBench) many() {
	const nics, pods, theirPods = 16, 128, 8
	theirs := m.theirs
	theirs.keys, theirs.nics = `"range": "10.110.0.0/16"`, nics
	weft := m.weft.with(m.b, `"range": "10.111.0.0/16"`, nics)
	floor := &createWay{api: m.api, base: netip.MustParseAddr("10.112.0.0"), nics: nics}
	m.print(fmt.Sprintf("%d Pods of %d NICs each, all at a time; %d at a time for Whereabouts", pods, nics, theirPods), func(row func(string, addressFigures, addressFigures, addressFigures)) {
		row(fmt.Sprint(pods), m.measure(theirs, theirPods, theirPods), m.measure(weft, pods, pods), m.measure(floor, pods, pods))
	})
}

// full is a range with as many addresses as there are Pods, each of which is
// replaced: one goes, and the next finds what it left.
func (m *addressBench) full() {
	const addresses, atOnce = 100, 50
	theirs := m.theirs
	theirs.keys = `"range": "10.113.0.0/24", "range_start": "10.113.0.1", "range_end": "10.113.0.100"`
	weft := m.weft.with(m.b, `"range": "10.114.0.0/24", "range_start": "10.114.0.1", "range_end": "10.114.0.100"`, 1)
	floor := &createWay{api: m.api, base: netip.MustParseAddr("10.115.0.0"), nics: 1}
	fmt.Printf("\n%d Pods on a range of %d addresses, each replaced by another, %d at a time\n", addresses, addresses, atOnce)
	figures := map[string]float64{}
	for _, way := range []struct {
		name  string
		is    giver
		turns int
	}{{"Whereabouts", theirs, 1}, {"weft", weft, 5}, {"bare deletes and creates", floor, 5}} {
		figures[way.name] = m.replace(way.is, addresses, atOnce, way.turns)
		fmt.Printf("  %s: %.1f Pods/s\n", way.name, figures[way.name])
	}
	fmt.Printf("  weft is %.0fx Whereabouts and %.2fx bare deletes and creates\n", figures["weft"]/figures["Whereabouts"], figures["weft"]/figures["bare deletes and creates"])
}

// replace gives how many Pods are replaced in a second. No two have the same address
// at the same time.
func (m *addressBench) replace(way giver, count, atOnce, turns int) float64 {
	var mu sync.Mutex // guards has
	has := map[netip.Addr]int{}
	give := func(pod int) {
		addrs, err := way.give(context.Background(), pod)
		if err != nil {
			m.b.Error(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if other, twice := has[addrs[0]]; twice {
			m.b.Errorf("%s is Pod %d's and Pod %d's", addrs[0], other, pod)
		}
		has[addrs[0]] = pod
	}
	takeBack := func(pod int) {
		mu.Lock()
		for addr, of := range has {
			if of == pod {
				delete(has, addr)
			}
		}
		mu.Unlock()
		if err := way.takeBack(context.Background(), pod); err != nil {
			m.b.Error(err)
		}
	}
	first := m.first
	m.first += count * (turns + 1)
	each(count, atOnce, func(i int) { give(first + i) })
	began := time.Now()
	each(atOnce, atOnce, func(worker int) {
		for turn := range turns {
			for i := worker; i < count; i += atOnce {
				takeBack(first + turn*count + i)
				give(first + (turn+1)*count + i)
			}
		}
	})
	took := time.Since(began)
	each(count, atOnce, func(i int) { takeBack(first + count*turns + i) })
	if m.b.Failed() {
		m.b.FailNow()
	}
	return float64(count*turns) / took.Seconds()
}

// away is an API server that is not reached for a while: what ends meanwhile ends,
// and its addresses are given back when the API server is there again.
func (m *addressBench) away() {
	const pods, asking, awayFor = 200, 20, 30 * time.Second
	proxy := m.api.cluster.Proxy(m.b)
	path := filepath.Join(m.api.cluster.Dir, "away.kubeconfig")
	m.api.kubeconfig(path, proxy.URL)
	node := newLeaseNode(m.b, m.api, "away", path)
	way := (&leaseWay{nodes: []*leaseNode{node}}).with(m.b, `"range": "10.116.0.0/16"`, 1)
	first := m.first
	m.first += 2 * pods
	each(pods, 50, func(i int) {
		if _, err := way.give(context.Background(), first+i); err != nil {
			m.b.Error(err)
		}
	})
	proxy.Spoil(func(*http.Request) kubelab.Fault { return kubelab.Fault{Away: true} })
	proxy.Cut()
	left := time.Now()
	dels := make([]time.Duration, pods/2)
	each(len(dels), 50, func(i int) {
		began := time.Now()
		if err := way.takeBack(context.Background(), first+i); err != nil {
			m.b.Error(err)
		}
		dels[i] = time.Since(began)
	})
	var refused atomic.Int64
	each(asking, asking, func(i int) {
		if _, err := way.give(context.Background(), first+pods+i); err != nil {
			refused.Add(1)
		}
	})
	time.Sleep(time.Until(left.Add(awayFor)))
	proxy.Spoil(nil)
	back := time.Now()
	addrs, err := way.give(context.Background(), first+2*pods-1)
	if err != nil {
		m.b.Fatal(err)
	}
	firstADD := time.Since(back)
	eventually(m.b, "what ended is given back", func() error {
		if count := m.count("away"); count != pods/2+1 {
			return fmt.Errorf("%d are held", count)
		}
		return nil
	})
	given := time.Since(back)
	slices.Sort(dels)
	fmt.Printf("\nthe API server is away for %v: %d DELs take %s at the median, all succeed; %d of %d ADDs are refused; the next ADD after its return takes %s (%s), and all addresses are given back after %s\n",
		awayFor, len(dels), ms(dels[len(dels)/2]), refused.Load(), asking, ms(firstADD), addrs[0], ms(given))
	each(pods/2+1, 50, func(i int) {
		pod := first + pods/2 + i
		if i == pods/2 {
			pod = first + 2*pods - 1
		}
		if err := way.takeBack(context.Background(), pod); err != nil {
			m.b.Error(err)
		}
	})
}

// count says how many leases a node holds.
func (m *addressBench) count(node string) int {
	m.b.Helper()
	var list struct{ Items []json.RawMessage }
	if err := json.Unmarshal(m.api.must(http.MethodGet, leasesPath+"?labelSelector=weft.network/node%3D"+node, nil), &list); err != nil {
		m.b.Fatal(err)
	}
	return len(list.Items)
}
