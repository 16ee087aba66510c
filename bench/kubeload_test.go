package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// atOnce makes a call for all sandboxes at the same time. Calls is what each
// took, cpu what their programs needed of the processor.
func (n *node) atOnce(command string, boxes []sandbox) (wall time.Duration, calls []time.Duration, cpu time.Duration) {
	n.tb.Helper()
	calls = make([]time.Duration, len(boxes))
	spent := make([]time.Duration, len(boxes))
	began := time.Now()
	each(len(boxes), len(boxes), func(i int) {
		var err error
		if calls[i], spent[i], err = n.call(command, boxes[i]); err != nil {
			n.tb.Error(err)
		}
	})
	wall = time.Since(began)
	if n.tb.Failed() {
		n.tb.FailNow()
	}
	for _, d := range spent {
		cpu += d
	}
	return wall, calls, cpu
}

// tick is the unit of processor time in /proc (USER_HZ, 100 on every Linux).
const tick = 10 * time.Millisecond

// spent is what the agent and the programs it has waited for needed of the
// processor so far (proc_pid_stat(5), fields 14 to 17).
func (n *node) spent() time.Duration {
	n.tb.Helper()
	if n.agent == nil {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.agent.Process.Pid))
	if err != nil {
		n.tb.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var sum time.Duration
	for _, field := range fields[11:15] {
		ticks, err := strconv.Atoi(field)
		if err != nil {
			n.tb.Fatal(err)
		}
		sum += time.Duration(ticks) * tick
	}
	return sum
}

// load is what nodes are asked for: so many Pods at a time, each with n networks
// of a kind beside the primary one.
type load struct {
	primary, kind string
	n, atOnce     int
}

// cost is what it takes: medians over rounds.
type cost struct {
	add, del time.Duration // until all of a round are done
	call     time.Duration // of one ADD among them
	cpu      time.Duration // of one ADD: program, agent and plugins, status and events included
	told     time.Duration // from the last answer until all statuses are written
}

// measureNodes loads all nodes by turns, so that what else the machine does hits all.
func measureNodes(tb testing.TB, api *kubeAPI, nodes []*node, l load, rounds int) map[string]cost {
	tb.Helper()
	pods := map[string][]kubePod{}
	for _, n := range nodes {
		pods[n.name] = api.pods(n.name, l.kind, l.n, rounds*l.atOnce+1)
		// Now the agent has seen all of them.
		n.once(l, pods[n.name][rounds*l.atOnce:])
	}
	costs := map[string][]cost{}
	for i := range rounds {
		for j := range nodes { // each begins a round in turn
			n := nodes[(i+j)%len(nodes)]
			settle(tb)
			costs[n.name] = append(costs[n.name], n.once(l, pods[n.name][i*l.atOnce:(i+1)*l.atOnce]))
		}
	}
	for _, n := range nodes {
		api.forget(pods[n.name])
	}
	out := map[string]cost{}
	for name, list := range costs {
		of := func(field func(cost) time.Duration) time.Duration {
			var all []time.Duration
			for _, c := range list {
				all = append(all, field(c))
			}
			return median(all)
		}
		var cpu time.Duration // a tick is too long for a median
		for _, c := range list {
			cpu += c.cpu
		}
		out[name] = cost{
			add: of(func(c cost) time.Duration { return c.add }), del: of(func(c cost) time.Duration { return c.del }),
			call: of(func(c cost) time.Duration { return c.call }), told: of(func(c cost) time.Duration { return c.told }),
			cpu: cpu / time.Duration(len(list)),
		}
	}
	return out
}

// What counts as a machine that has settled, and how long is waited for it.
const (
	settledIdle  = 0.9
	settleLook   = 100 * time.Millisecond
	settleWithin = 5 * time.Second
)

// settle waits until the processors have little to do: what the kernel takes
// links apart with after one node's DEL is not to be a cost of the next.
func settle(tb testing.TB) {
	tb.Helper()
	idle, all := processorTime(tb)
	for deadline := time.Now().Add(settleWithin); time.Now().Before(deadline); {
		time.Sleep(settleLook)
		idleNow, allNow := processorTime(tb)
		if float64(idleNow-idle) >= settledIdle*float64(allNow-all) {
			return
		}
		idle, all = idleNow, allNow
	}
}

// processorTime is what all processors together were idle, and all of their time,
// in ticks (proc_stat(5)).
func processorTime(tb testing.TB) (idle, all int) {
	tb.Helper()
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		tb.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line)[1:9] { // guests are in user
		ticks, err := strconv.Atoi(field)
		if err != nil {
			tb.Fatal(err)
		}
		if all += ticks; i == 3 {
			idle = ticks
		}
	}
	return idle, all
}

// once attaches Pods and detaches them.
func (n *node) once(l load, pods []kubePod) cost {
	n.tb.Helper()
	boxes := n.sandboxes(l.primary, pods)
	before := n.spent()
	wall, calls, cpu := n.atOnce("ADD", boxes)
	c := cost{add: wall, call: median(calls)}
	began := time.Now()
	n.told(pods, 1+l.n)
	c.told = time.Since(began)
	c.cpu = (cpu + n.spent() - before) / time.Duration(len(pods))
	c.del, _, _ = n.atOnce("DEL", boxes)
	return c
}

// told waits until the Pods' statuses are written.
func (n *node) told(pods []kubePod, interfaces int) {
	n.tb.Helper()
	if n.name != floorName {
		n.api.told(pods, interfaces)
	}
}

// neighbour attaches a Pod to all bridges for as long as the benchmark runs:
// weft takes bridges away that nobody uses, and others do not.
func (n *node) neighbour() {
	n.tb.Helper()
	box := n.sandboxes(nativePrimary, n.api.pods(n.name, "bridge", most, 1))[0]
	box.netns = n.boxes[mostBoxes]
	if _, _, err := n.call("ADD", box); err != nil {
		n.tb.Fatal(err)
	}
}
