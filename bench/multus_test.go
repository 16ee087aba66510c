package bench

import (
	"fmt"
	"net/http"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/weftnet/weft/test/kubelab"
)

// Promised of the node agent, beside Multus thick in the same run. Where it is
// not so many times as fast, being near the floor counts as well.
const (
	fasterThanMultus = 10.0
	nearFloor        = 1.5
	shareOfMemory    = 0.5
	shareOfRequests  = 1.0 / 3
	slowAPI          = 300 * time.Millisecond
)

// multusBench is one run.
type multusBench struct {
	b                        *testing.B
	api                      *kubeAPI
	weft, thick, thin, floor *node
	idle                     map[string]used // memory of the agents
	verdicts                 []verdict
}

// BenchmarkMultus prints what ADD and DEL cost beside Multus, and which promises
// are met.
func BenchmarkMultus(b *testing.B) {
	api := newKubeAPI(b)
	bin := buildPrograms(b)
	m := &multusBench{b: b, api: api, weft: weftNode(b, api, bin, 0), floor: floorNode(b, api, bin, 1), thick: thickNode(b, api, bin, 2), thin: thinNode(b, api, bin, 3)}
	for _, n := range m.all() {
		n.start()
	}
	m.idle = map[string]used{}
	for _, n := range []*node{m.weft, m.thick} {
		m.idle[n.name] = n.memory()
	}
	for _, n := range m.all() {
		n.neighbour()
	}
	for _, part := range []struct {
		name string
		run  func()
	}{{"Burst", m.burst}, {"Alone", m.alone}, {"Together", m.together}, {"Foreign", m.foreign}, {"Requests", m.requests}} {
		b.Run(part.name, func(b *testing.B) {
			for b.Loop() {
				m.verdicts = nil
				part.run()
				report(m.verdicts)
			}
		})
	}
}

func (m *multusBench) all() []*node { return []*node{m.weft, m.floor, m.thick, m.thin} }

func (m *multusBench) table(title, head string, rows func(row func(cells ...any))) {
	fmt.Println("\n" + title)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, strings.ReplaceAll(head, " | ", "\t")+"\t")
	rows(func(cells ...any) {
		for _, cell := range cells {
			switch v := cell.(type) {
			case time.Duration:
				fmt.Fprintf(table, "%.1f ms\t", v.Seconds()*1e3)
			case float64:
				fmt.Fprintf(table, "%.1f\t", v)
			default:
				fmt.Fprintf(table, "%v\t", v)
			}
		}
		fmt.Fprintln(table)
	})
	if err := table.Flush(); err != nil {
		m.b.Fatal(err)
	}
}

// hold holds an ADD against Multus and the floor.
func (m *multusBench) hold(what string, weft, thick, floor time.Duration) {
	faster, times := ratio(thick, weft), ratio(weft, floor)
	m.verdicts = append(m.verdicts, verdict{
		fmt.Sprintf("%s: %.1fx as fast as Multus thick, want %.0fx; or else %.2fx the floor, want at most %.1fx", what, faster, fasterThanMultus, times, nearFloor),
		faster >= fasterThanMultus || times <= nearFloor,
	})
}

// alone is one Pod at a time.
func (m *multusBench) alone() {
	m.table("one Pod at a time, its networks beside the primary one; CPU is of the program, the agent and the plugins",
		"kind | networks | ADD: Multus thick | thin | weft | floor | thick/weft | weft/floor | DEL: thick | thin | weft | floor | CPU: thick | thin | weft",
		func(row func(...any)) {
			for _, kind := range kinds {
				for _, count := range counts {
					c := measureNodes(m.b, m.api, m.all(), load{nativePrimary, kind, count, 1}, 15)
					weft, thick, thin, floor := c[m.weft.name], c[m.thick.name], c[m.thin.name], c[m.floor.name]
					row(kind, count, thick.add, thin.add, weft.add, floor.add, ratio(thick.add, weft.add), ratio(weft.add, floor.add),
						thick.del, thin.del, weft.del, floor.del, thick.cpu, thin.cpu, weft.cpu)
					if count == 3 {
						m.hold("ADD with three networks ("+kind+"), alone", weft.add, thick.add, floor.add)
					}
				}
			}
		})
}

// together is many at a time.
func (m *multusBench) together() {
	for _, atOnce := range []int{8, 40} {
		perSecond := func(d time.Duration) float64 { return float64(atOnce) / d.Seconds() }
		m.table(fmt.Sprintf("%d Pods at a time; told: from the last answer until the last network-status is written", atOnce),
			"kind | networks | ADDs/s: Multus thick | weft | floor | weft/thick | floor/weft | ADD: thick | weft | floor | told: weft | DELs/s: thick | weft | floor | CPU: thick | weft",
			func(row func(...any)) {
				for _, kind := range kinds {
					for _, count := range counts {
						rounds := 5 - (atOnce+2*count)/16 // what takes Multus long is done less often
						if held := count == 3 && atOnce == 40; held {
							rounds = 6 // two in each order
						}
						c := measureNodes(m.b, m.api, []*node{m.weft, m.floor, m.thick}, load{nativePrimary, kind, count, atOnce}, rounds)
						weft, thick, floor := c[m.weft.name], c[m.thick.name], c[m.floor.name]
						row(kind, count, perSecond(thick.add), perSecond(weft.add), perSecond(floor.add), ratio(thick.add, weft.add), ratio(weft.add, floor.add),
							thick.call, weft.call, floor.call, weft.told, perSecond(thick.del), perSecond(weft.del), perSecond(floor.del), thick.cpu, weft.cpu)
						if count == 3 && atOnce == 40 {
							m.hold("Pods per second with three networks ("+kind+"), 40 at a time", weft.add, thick.add, floor.add)
						}
					}
				}
			})
	}
}

// foreign has a primary network by a plugin weft does not know.
func (m *multusBench) foreign() {
	m.table("one Pod at a time, with "+foreignPrimary+" of the reference plugins as primary network; its floor is weft-cni and that plugin alone",
		"kind | networks | ADD: Multus thick | weft | floor | thick/weft | weft/floor | DEL: thick | weft | floor",
		func(row func(...any)) {
			for _, count := range []int{0, 3} {
				c := measureNodes(m.b, m.api, []*node{m.weft, m.floor, m.thick}, load{foreignPrimary, "bridge", count, 1}, 15)
				weft, thick, floor := c[m.weft.name], c[m.thick.name], c[m.floor.name]
				row("bridge", count, thick.add, weft.add, floor.add, ratio(thick.add, weft.add), ratio(weft.add, floor.add), thick.del, weft.del, floor.del)
				times := ratio(weft.add, floor.add)
				m.verdicts = append(m.verdicts, verdict{
					fmt.Sprintf("ADD with a foreign primary and %d networks: %.2fx weft-cni and that plugin, want at most %.1fx", count, times, nearFloor), times <= nearFloor,
				})
			}
		})
}

// restBefore is for how long an agent has had nothing to do when its memory is
// looked at.
const restBefore = 15 * time.Second

// used is memory in bytes: all that is resident, what of that is in no file, and
// the most that was resident so far.
type used struct{ resident, anonymous, most int64 }

func (u used) String() string {
	return fmt.Sprintf("%.1f (%.1f) MiB", mib(u.resident), mib(u.anonymous))
}

// memory is what the agent has of it at rest.
func (n *node) memory() used {
	n.tb.Helper()
	time.Sleep(restBefore)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.agent.Process.Pid))
	if err != nil {
		n.tb.Fatal(err)
	}
	field := func(name string) int64 { // in KiB (proc_pid_status(5))
		_, rest, _ := strings.Cut(string(text), name+":")
		kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		if err != nil {
			n.tb.Fatal(err)
		}
		return kib << 10
	}
	return used{residentOf(n.tb, n.agent.Process.Pid), field("RssAnon"), field("VmHWM")}
}

// burst is memory, and what an ADD costs with many Pods there.
func (m *multusBench) burst() {
	const pods, rounds, step = 100, 9, 25
	l := load{nativePrimary, "bridge", 3, 1}
	nodes := []*node{m.weft, m.thick}
	before := measureNodes(m.b, m.api, nodes, l, rounds)
	full, boxes := map[string]used{}, map[string][]sandbox{}
	for _, n := range nodes {
		made := m.api.pods(n.name, l.kind, l.n, pods)
		boxes[n.name] = n.sandboxes(l.primary, made)
		for some := range slices.Chunk(boxes[n.name], step) {
			n.atOnce("ADD", some)
		}
		n.told(made, 1+l.n)
		full[n.name] = n.memory()
	}
	for _, n := range nodes { // the sandbox that measureNodes uses
		n.atOnce("DEL", boxes[n.name][:1])
	}
	after := measureNodes(m.b, m.api, nodes, l, rounds)
	for _, n := range nodes {
		n.atOnce("DEL", boxes[n.name][1:])
	}
	m.table("memory of the agent (RSS, and in no file), and ADD alone with so many other Pods of three networks", "agent | idle | after a burst of 100 | at most | ADD with 0 | with 100",
		func(row func(...any)) {
			for _, n := range nodes {
				row(n.name, m.idle[n.name], full[n.name], fmt.Sprintf("%.1f MiB", mib(full[n.name].most)), before[n.name].add, after[n.name].add)
			}
		})
	for when, has := range map[string]map[string]used{"idle": m.idle, "after a burst of 100 Pods": full} {
		share := float64(has[m.weft.name].resident) / float64(has[m.thick.name].resident)
		m.verdicts = append(m.verdicts, verdict{fmt.Sprintf("memory of the agent, %s: %.2f of Multus thick's, want at most %.1f", when, share, shareOfMemory), share <= shareOfMemory})
	}
}

// requests counts what the API is asked for, and makes it slow.
func (m *multusBench) requests() {
	proxy := m.api.cluster.Proxy(m.b)
	asked := map[string]map[int]float64{}
	normal, slow := map[string]time.Duration{}, map[string]time.Duration{}
	failed := map[string]int{}
	const pods, turns = 5, 7
	nodes := []*node{m.weft, m.thick, m.thin}
	for _, n := range nodes {
		n.stop()
		n.server = proxy.URL
		n.start()
		asked[n.name] = map[int]float64{}
		for _, count := range counts {
			l := load{nativePrimary, "bridge", count, 1}
			list := m.api.pods(n.name, l.kind, l.n, pods+1)
			n.once(l, list[pods:])
			quiet(m.b, proxy)
			for _, pod := range list[:pods] {
				n.once(l, []kubePod{pod})
			}
			asked[n.name][count] = float64(len(quiet(m.b, proxy))) / pods
			m.api.forget(list)
		}
		normal[n.name], _ = m.one(n, turns)
		proxy.Spoil(func(*http.Request) kubelab.Fault { return kubelab.Fault{Delay: slowAPI} })
		slow[n.name], failed[n.name] = m.one(n, turns)
		proxy.Spoil(nil)
		quiet(m.b, proxy)
	}
	m.table(fmt.Sprintf("requests to the API for one ADD, and ADD with three networks when the API takes %v longer", slowAPI), "agent | 1 network | 3 | 8 | ADD | with a slow API | failed",
		func(row func(...any)) {
			for _, n := range nodes {
				row(n.name, asked[n.name][1], asked[n.name][3], asked[n.name][8], normal[n.name], slow[n.name], fmt.Sprintf("%d of %d", failed[n.name], turns))
			}
		})
	share := asked[m.weft.name][3] / asked[m.thick.name][3]
	more := slow[m.weft.name] - normal[m.weft.name]
	m.verdicts = append(m.verdicts,
		verdict{fmt.Sprintf("requests to the API for an ADD with three networks: %.2f of Multus thick's, want at most %.2f", share, shareOfRequests), share <= shareOfRequests},
		verdict{fmt.Sprintf("with an API %v slower, ADD takes %s more, want at most that much", slowAPI, ms(more)), more <= slowAPI && failed[m.weft.name] == 0})
}

// one gives the median of ADDs with three networks, and how many failed.
func (m *multusBench) one(n *node, turns int) (took time.Duration, failed int) {
	list := m.api.pods(n.name, "bridge", 3, turns)
	var all []time.Duration
	for _, box := range n.sandboxes(nativePrimary, list) {
		box.netns = n.boxes[0]
		add, _, err := n.call("ADD", box)
		if err != nil {
			failed++
		}
		all = append(all, add)
		if err == nil {
			n.told([]kubePod{box.kubePod}, 4)
		}
		if _, _, err := n.call("DEL", box); err != nil {
			m.b.Log(err) // thin asks the API there, too
		}
	}
	m.api.forget(list)
	return median(all), failed
}

// quiet waits until nobody has made a request for a while, and gives those that
// were made, without watches.
func quiet(tb testing.TB, proxy *kubelab.Proxy) []kubelab.Request {
	tb.Helper()
	var all []kubelab.Request
	last := time.Now()
	for deadline := last.Add(kubelab.Patience); time.Since(last) < time.Second; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatal("requests do not end")
		}
		for _, r := range proxy.Take() {
			if r.Query.Get("watch") != "" || path.Base(r.Path) == "leases" {
				continue
			}
			all, last = append(all, r), time.Now()
		}
	}
	return all
}
