package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/nft"
)

// wantHint checks that err is for the user and says these words.
func wantHint(t *testing.T, err error, words ...string) {
	t.Helper()
	var h *hint.Error
	if !errors.As(err, &h) {
		t.Fatalf("got %v, want a hint", err)
	}
	if h.Remedy == "" {
		t.Errorf("%v has no remedy", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("no %q in %q", w, err)
		}
	}
}

func TestStrangersLinkIsNotTouched(t *testing.T) {
	l := newLab(t)
	l.sh(t, l.pod, "ip link add net1 type veth peer name other")
	_, err := l.Apply(context.Background(), l.pod, bridgePlan())
	wantHint(t, err, `"net1"`, "is not ours", "ip link del net1")
	if got := links(t, l.host); len(got) > 0 {
		t.Errorf("the refused plan left %v on the host", got)
	}
	if err := l.Delete(context.Background(), l.pod, bridgePlan()); err != nil {
		t.Fatal(err)
	}
	if got := sorted(links(t, l.pod)); !slices.Equal(got, []string{"net1", "other"}) {
		t.Errorf("got %v after delete, want the stranger's links", got)
	}
}

func TestOtherOwnersLinkIsNotTouched(t *testing.T) {
	l := newLab(t)
	l.apply(t, bridgePlan())
	other := bridgePlan()
	other.Alias = netstate.Alias(instance, "another")
	_, err := l.Apply(context.Background(), l.pod, other)
	wantHint(t, err, "belongs to "+owner)
	l.holds(t, bridgePlan())
}

func TestStrangersBridgeIsUsedAsItIs(t *testing.T) {
	l := newLab(t)
	l.sh(t, l.host, "ip link add br0 mtu 1400 type bridge mcast_snooping 1")
	before := l.sh(t, l.host, "ip -d link show br0")
	plan := bridgePlan()
	plan.Host.Links[0].Up = false
	l.apply(t, plan)
	l.holds(t, plan)
	if after := l.sh(t, l.host, "ip -d link show br0"); !strings.Contains(after, "mcast_snooping 1") || !strings.Contains(after, "mtu 1400") {
		t.Errorf("the stranger's bridge was changed from\n%s\nto\n%s", before, after)
	}
	if _, err := l.Prune(context.Background(), func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if got := links(t, l.host); !slices.Equal(got, []string{"br0"}) {
		t.Errorf("got %v after prune, want the stranger's bridge", got)
	}
}

func TestSharedNameOfAnotherType(t *testing.T) {
	l := newLab(t)
	l.sh(t, l.host, "ip link add br0 type veth peer name other")
	_, err := l.Apply(context.Background(), l.pod, bridgePlan())
	wantHint(t, err, `"br0"`, `"veth"`, `"bridge"`)
}

func TestMissingParentAndExistingLink(t *testing.T) {
	l := newLab(t)
	_, err := l.Apply(context.Background(), l.pod, macvlanPlan("bridge"))
	wantHint(t, err, `"wire0"`, "host")
	existing := netstate.Plan{Pod: netstate.State{Links: []netstate.Link{{Name: "net9", Presence: netstate.Existing}}}}
	ops, err := l.Check(context.Background(), l.pod, existing)
	if err != nil || len(ops) != 1 {
		t.Errorf("got %v, %v, want one operation about net9", ops, err)
	}
	_, err = l.Apply(context.Background(), l.pod, existing)
	wantHint(t, err, `"net9"`)
}

func TestStrangersTable(t *testing.T) {
	l := newLab(t)
	l.apply(t, bridgePlan())
	l.sh(t, l.pod, "nft add table ip weft")
	_, err := l.Apply(context.Background(), l.pod, vmPlan())
	wantHint(t, err, `"ip weft"`, "is not ours")
	if err := l.Delete(context.Background(), l.pod, vmPlan()); err != nil {
		t.Fatal(err)
	}
	if out := l.sh(t, l.pod, "nft list tables"); strings.TrimSpace(out) != "table ip weft" {
		t.Errorf("got %q, want the stranger's table", out)
	}
}

// TestTableTurnsUp lets a table of the plan's name turn up between the look and
// the transaction that adds it.
func TestTableTurnsUp(t *testing.T) {
	meanwhile := func(l *lab, do func()) {
		l.beforeStep = func(step string) error {
			if step == "nft" {
				l.beforeStep = nil
				do()
			}
			return nil
		}
	}
	t.Run("a stranger's", func(t *testing.T) {
		l := newLab(t)
		l.apply(t, bridgePlan())
		meanwhile(l, func() { l.sh(t, l.pod, "nft add table ip weft") })
		_, err := l.Apply(context.Background(), l.pod, vmPlan())
		wantHint(t, err, `"ip weft"`, "is not ours")
		if out := strings.TrimSpace(l.sh(t, l.pod, "nft list ruleset")); out != "table ip weft {\n}" {
			t.Errorf("got %q, want the stranger's empty table alone", out)
		}
	})
	t.Run("our own", func(t *testing.T) {
		l := newLab(t)
		l.apply(t, bridgePlan())
		meanwhile(l, func() {
			older := vmPlan()
			older.Pod.Tables[1].Chains[0].Rules = []nft.Rule{"counter"}
			l.apply(t, older)
		})
		l.apply(t, vmPlan())
		l.holds(t, vmPlan())
		if got, want := l.sh(t, l.pod, "nft list ruleset"), l.fresh(t, vmPlan()); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

// fresh gives the rules of a Pod in which a plan is applied for the first time.
func (l *lab) fresh(t *testing.T, plan netstate.Plan) string {
	t.Helper()
	other := newLab(t)
	other.apply(t, bridgePlan())
	other.apply(t, plan)
	return l.sh(t, other.pod, "nft list ruleset")
}

// TestNoNftStays stops a run while its nft waits for a script: it ends with the
// call, and has changed nothing.
func TestNoNftStays(t *testing.T) {
	l := newLab(t)
	l.apply(t, bridgePlan())
	pidFile, program := filepath.Join(l.dir, "pid"), filepath.Join(l.dir, "nft.sh")
	text := "#!/bin/sh\necho $$ >" + pidFile + ".new && mv " + pidFile + ".new " + pidFile + " && exec nft \"$@\"\n"
	must(t, os.WriteFile(program, []byte(text), 0o700)) //nolint:gosec // to be run
	t.Cleanup(func() { must(t, errors.Join(os.Remove(pidFile), os.Remove(program))) })
	l.nft = program
	pid := 0
	l.beforeStep = func(step string) error {
		if !strings.HasPrefix(step, "sysctl") {
			return nil
		}
		for deadline := time.Now().Add(30 * time.Second); pid == 0; time.Sleep(time.Millisecond) {
			if raw, err := os.ReadFile(pidFile); err == nil {
				pid, err = strconv.Atoi(strings.TrimSpace(string(raw)))
				must(t, err)
			}
			if time.Now().After(deadline) {
				t.Error("nft was not started before the other steps")
				break
			}
		}
		return errStopped
	}
	if _, err := l.Apply(context.Background(), l.pod, vmPlan()); !errors.Is(err, errStopped) {
		t.Fatalf("got %v, want that the run was stopped", err)
	}
	if err := unix.Kill(pid, 0); pid == 0 || !errors.Is(err, unix.ESRCH) {
		t.Errorf("nft is process %d, and to reach it gives %v, want that it has ended", pid, err)
	}
	l.beforeStep = nil
	if out := l.sh(t, l.pod, "nft list tables"); strings.TrimSpace(out) != "" {
		t.Errorf("got %q, want no table", out)
	}
	l.apply(t, vmPlan())
	l.holds(t, vmPlan())
}

func TestBadRuleNamesNft(t *testing.T) {
	l := newLab(t)
	plan := vmPlan()
	plan.Pod.Links, plan.Pod.FDB, plan.Pod.Sysctls = nil, nil, nil
	plan.Pod.Tables = []nft.Table{{Family: nft.IP, Name: "weft", Chains: []nft.Chain{{Name: "c", Rules: []nft.Rule{"no such rule"}}}}}
	if _, err := l.Apply(context.Background(), l.pod, plan); err == nil || !strings.Contains(err.Error(), "nft") {
		t.Errorf("got %v, want what nft says", err)
	}
	l.nft = "/nonexistent/nft"
	if _, err := l.Apply(context.Background(), l.pod, plan); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that nft is not there", err)
	}
}

func TestConflictingRoutes(t *testing.T) {
	l := newLab(t)
	l.addWire(t)
	l.apply(t, bridgePlan())
	second := macvlanPlan("bridge")
	second.Pod.Routes[0].Dst = pfx("0.0.0.0/0")
	_, err := l.Apply(context.Background(), l.pod, second)
	wantHint(t, err, "default via 10.2.2.1", "metric")
	second.Pod.Routes[0].IfAbsent = true
	l.apply(t, second)
	l.holds(t, second)
	l.holds(t, bridgePlan())
}

func TestNamespaceGone(t *testing.T) {
	l := newLab(t)
	l.apply(t, bridgePlan())
	if _, err := l.Apply(context.Background(), l.pod+"x", bridgePlan()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that the namespace is not there", err)
	}
	// A socket that somebody forgot keeps the links alive after the unmount.
	ns, err := linux.OpenNS(l.pod)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := linux.DeleteNS(l.pod); err != nil {
		t.Fatal(err)
	}
	if err := l.Delete(context.Background(), l.pod, bridgePlan()); err != nil {
		t.Fatal(err)
	}
	if got := links(t, l.host); !slices.Equal(got, []string{"br0"}) {
		t.Errorf("got %v, want br0 alone", got)
	}
}

// TestDeleteWithoutRecord finds what it has to delete by the mark alone.
func TestDeleteWithoutRecord(t *testing.T) {
	for _, gone := range []bool{false, true} {
		l := newLab(t)
		l.addWire(t)
		plan := netstate.Merge(attachPlan(1), attachPlan(2))
		l.apply(t, plan)
		ns, err := linux.OpenNS(l.pod)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		if gone {
			if err := linux.DeleteNS(l.pod); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Delete(context.Background(), l.pod, netstate.Plan{Alias: plan.Alias}); err != nil {
			t.Fatal(err)
		}
		if got := sorted(links(t, l.host)); !slices.Equal(got, []string{"br0", "wire0", "wire1"}) {
			t.Errorf("namespace gone %v: got %v", gone, got)
		}
	}
}

// TestGroupHoldsStrangers puts a stranger's link into our group: it must survive.
func TestGroupHoldsStrangers(t *testing.T) {
	l := newLab(t)
	l.addWire(t)
	plan := netstate.Merge(attachPlan(1), attachPlan(2))
	l.apply(t, plan)
	group := netstate.GroupOf(plan.Alias)
	l.sh(t, l.pod, fmt.Sprintf("ip link add stranger group %d type bridge", group))
	if err := l.Delete(context.Background(), l.pod, plan); err != nil {
		t.Fatal(err)
	}
	if got := links(t, l.pod); !slices.Equal(got, []string{"stranger"}) {
		t.Errorf("got %v, want the stranger alone", got)
	}
}

func TestPrune(t *testing.T) {
	l := newLab(t)
	l.addWire(t) // carries the mark of another instance
	l.apply(t, netstate.Merge(attachPlan(1), attachPlan(2)))
	table := func(alias, name string) nft.Table {
		return nft.Table{Family: nft.Inet, Name: name, Alias: alias}
	}
	plan := netstate.Plan{Host: netstate.State{Tables: []nft.Table{
		table(netstate.Alias(instance, "dead"), "dead"), table(netstate.Alias(instance, "kept"), "kept"),
		table(netstate.Alias("other", "dead"), "others"),
	}}}
	if _, err := l.Apply(context.Background(), "", plan); err != nil {
		t.Fatal(err)
	}
	told, err := l.Prune(context.Background(), func(owner string) bool { return owner == "kept" || owner == "shared/br0" })
	if err != nil {
		t.Fatal(err)
	}
	if len(told) != 3 {
		t.Errorf("got %q, want two links and a table", told)
	}
	if got := sorted(links(t, l.host)); !slices.Equal(got, []string{"br0", "wire0", "wire1"}) {
		t.Errorf("links: got %v", got)
	}
	if out := l.sh(t, l.host, "nft list tables"); strings.Contains(out, "dead") || !strings.Contains(out, "kept") || !strings.Contains(out, "others") {
		t.Errorf("tables: got %q", out)
	}
}

// TestSharedBridgeRace attaches many Pods at once to a bridge that is not there yet.
func TestSharedBridgeRace(t *testing.T) {
	l := newLab(t)
	var wg sync.WaitGroup
	for i := range 8 {
		pod := fmt.Sprintf("%s-%d", l.pod, i)
		if err := linux.CreateNS(pod); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := linux.DeleteNS(pod); err != nil {
				t.Error(err)
			}
		}()
		plan := attachPlan(i)
		plan.Alias = netstate.Alias(instance, fmt.Sprintf("pod%d", i))
		wg.Go(func() {
			if _, err := l.Apply(context.Background(), pod, plan); err != nil {
				t.Errorf("Pod %d: %v", i, err)
			}
			if ops, err := l.Check(context.Background(), pod, plan); err != nil || len(ops) > 0 {
				t.Errorf("Pod %d: %v\n%s", i, err, opsText(ops))
			}
		})
	}
	wg.Wait()
	if got := links(t, l.host); len(got) != 9 {
		t.Errorf("got %v, want br0 and eight veths", got)
	}
}

// TestMovesAddresses takes addresses off a link somebody else made, link-local
// ones included, and gives it back with what the plan of its owner says.
func TestMovesAddresses(t *testing.T) {
	l := newLab(t)
	l.apply(t, bridgePlan())
	addrs := func() string { return l.sh(t, l.pod, "ip -o addr show net1") }
	deadline := time.Now().Add(5 * time.Second)
	for !strings.Contains(addrs(), "fe80::") && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	l.apply(t, vmPlan())
	if got := addrs(); got != "" {
		t.Errorf("still there: %s", got)
	}
	l.holds(t, netstate.Merge(bridgePlan(), vmPlan()))
	if ops, err := l.Check(context.Background(), l.pod, bridgePlan()); err != nil || len(ops) == 0 {
		t.Errorf("got %v, %v: the bare plan must miss its addresses", ops, err)
	}
	if err := l.Delete(context.Background(), l.pod, vmPlan()); err != nil {
		t.Fatal(err)
	}
	if got := links(t, l.pod); !slices.Equal(got, []string{"net1"}) {
		t.Errorf("got %v, want net1 alone", got)
	}
}

func TestSettleWaitsForDAD(t *testing.T) {
	l := newLab(t)
	plan := bridgePlan()
	plan.Pod.Addrs[1].NoDAD, plan.Pod.Addrs[1].Settle = false, true
	l.apply(t, plan)
	if out := l.sh(t, l.pod, "ip addr show net1"); strings.Contains(out, "fd00:1::5/64 scope global tentative") {
		t.Errorf("apply came back before the address was usable:\n%s", out)
	}
	// The same address again, on another port of the bridge.
	second := l.pod + "-2"
	if err := linux.CreateNS(second); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := linux.DeleteNS(second); err != nil {
			t.Error(err)
		}
	}()
	twin := plan
	twin.Alias = netstate.Alias(instance, "twin")
	twin.Host.Links = slices.Clone(plan.Host.Links)
	twin.Host.Links[1].Name = "veth2"
	twin.Pod.Links = slices.Clone(plan.Pod.Links)
	twin.Pod.Links[0].MAC = "02:00:00:00:00:09"
	twin.Pod.Links[0].Veth = &netstate.Veth{PeerSide: netstate.Host, PeerName: "veth2"}
	_, err := l.Apply(context.Background(), second, twin)
	wantHint(t, err, "fd00:1::5/64", "another machine")
}

func TestUnsupportedKind(t *testing.T) {
	l := newLab(t)
	plan := macvlanPlan("bridge")
	plan.Pod.Links[0].Macvlan.Mode = "sideways"
	l.addWire(t)
	_, err := l.Apply(context.Background(), l.pod, plan)
	wantHint(t, err, `"sideways"`)
	wantHint(t, createError(netstate.Link{Kind: "ipvlan"}, unix.EOPNOTSUPP), "modprobe ipvlan")
}

// TestRoutesOnOthersLinks puts addresses, routes and rules on links somebody
// else made; they go with the plan that wanted them, and nothing else does.
func TestRoutesOnOthersLinks(t *testing.T) {
	l := newLab(t)
	l.addWire(t)
	l.sh(t, l.host, "ip addr add 10.5.0.1/24 dev wire0")
	l.sh(t, l.host, "ip route add 10.60.0.0/16 via 10.5.0.9 dev wire0")
	before := l.sh(t, l.host, "ip route") + l.sh(t, l.host, "ip -o -4 addr") + l.sh(t, l.host, "ip rule")
	plan := netstate.Plan{
		Alias: netstate.Alias(instance, "routes"),
		Host: netstate.State{
			Links:  []netstate.Link{{Name: "wire0", Presence: netstate.Existing, Up: true}},
			Addrs:  []netstate.Addr{{Link: "wire0", Prefix: pfx("10.6.0.1/24")}},
			Routes: []netstate.Route{{Dst: pfx("10.70.0.0/16"), Link: "wire0", Via: addr("10.6.0.9"), Metric: 7}, {Dst: pfx("fd07::/64"), Link: "wire0"}},
			Rules:  []netstate.Rule{{Family: 6, Priority: 700, From: pfx("fd07::/64"), Table: 77}},
		},
	}
	apply := func(want netstate.Plan) {
		t.Helper()
		if _, err := l.Apply(context.Background(), "", want); err != nil {
			t.Fatal(err)
		}
		if ops, err := l.Check(context.Background(), "", want); err != nil || len(ops) > 0 {
			t.Errorf("%v\n%s", err, opsText(ops))
		}
	}
	apply(plan)
	for _, want := range []string{"10.70.0.0/16 via 10.6.0.9 dev wire0 proto 119 metric 7", "10.60.0.0/16 via 10.5.0.9"} {
		if out := l.sh(t, l.host, "ip route"); !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	next := plan
	next.Host.Routes, next.Host.Rules = plan.Host.Routes[1:], nil
	if _, err := l.Replace(context.Background(), "", plan, next); err != nil {
		t.Fatal(err)
	}
	if out := l.sh(t, l.host, "ip route") + l.sh(t, l.host, "ip -6 rule"); strings.Contains(out, "10.70.0.0") || strings.Contains(out, "700:") {
		t.Errorf("what the next plan does not want is still there:\n%s", out)
	}
	if err := l.Delete(context.Background(), "", next); err != nil {
		t.Fatal(err)
	}
	if after := l.sh(t, l.host, "ip route") + l.sh(t, l.host, "ip -o -4 addr") + l.sh(t, l.host, "ip rule"); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}
