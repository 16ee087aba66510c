package main

import (
	"cmp"
	"context"
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/inventory"
)

func (a *app) printHoldings(list []inventory.Holding, output string) error {
	switch output {
	case "json", "yaml":
		return a.printData(list, output)
	}
	if len(list) == 0 {
		a.printf("no address is held\n")
		return nil
	}
	t := table{header: []string{"ADDRESS", "NETWORK", "HOLDER", "INTERFACE", "NODE", "AGE"}}
	if output == "wide" {
		t.header = append(t.header, "RANGE", "SCOPE", "STATE", "SANDBOX", "LEASE")
	}
	now := time.Now()
	for _, is := range list {
		interfaces, nodes := hadBy(is)
		row := []string{is.Address.String(), orNone(is.Network), is.OwnerName(), orNone(interfaces), orNone(nodes), age(is.Since, now)}
		if output == "wide" {
			row = append(row, orNone(is.Pool), is.Scope, stateOf(is), orNone(is.Sandbox), orNone(is.Lease))
		}
		t.rows = append(t.rows, row)
	}
	a.printf("%s", t)
	return nil
}

// hadBy gives the interfaces that have an address, and their nodes.
func hadBy(is inventory.Holding) (interfaces, nodes string) {
	if len(is.Holders) == 0 {
		return is.Interface, is.Node
	}
	var onInterface, onNode []string
	for _, holder := range is.Holders {
		onInterface, onNode = append(onInterface, holder.Interface), append(onNode, holder.Node)
	}
	return strings.Join(onInterface, ","), strings.Join(onNode, ",")
}

// stateOf says whether somebody has an address.
func stateOf(is inventory.Holding) string {
	if is.Quarantined() {
		return "conflict"
	}
	if is.Reserved() {
		return "reserved"
	}
	return cmp.Or(is.State, "used")
}

// age is for how long, as short as kubectl has it.
func age(since, now time.Time) string {
	if since.IsZero() {
		return "-"
	}
	took := max(0, now.Sub(since))
	switch {
	case took < 2*time.Minute:
		return fmt.Sprintf("%ds", int(took.Seconds()))
	case took < 2*time.Hour:
		return fmt.Sprintf("%dm", int(took.Minutes()))
	case took < 48*time.Hour:
		return fmt.Sprintf("%dh", int(took.Hours()))
	}
	return fmt.Sprintf("%dd", int(took.Hours()/24))
}

// holdingText tells all of one address.
func holdingText(is inventory.Holding, now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is held by %s\n", is.Address, is.OwnerName())
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "  %-10s %s\n", name, value)
		}
	}
	line("uid", string(is.Owner.UID))
	line("network", is.Network)
	line("range", is.Pool)
	line("scope", is.Scope)
	line("interface", is.Interface)
	line("node", is.Node)
	line("sandbox", is.Sandbox)
	for _, holder := range is.Holders {
		line("on", holderText(holder))
	}
	line("state", stateOf(is))
	if !is.Since.IsZero() {
		line("since", fmt.Sprintf("%s (%s)", is.Since.Local().Format(time.RFC3339), age(is.Since, now)))
	}
	line("lease", is.Lease)
	return b.String()
}

// holderText tells which Pod has a claim's address.
func holderText(holder v1alpha1.LeaseHolder) string {
	text := "Pod " + holder.Pod
	if holder.VM != "" {
		text += " of VM " + holder.VM
	}
	return text + ", " + holder.Interface + " of node " + holder.Node + ", sandbox " + holder.Sandbox
}

// printWhy tells of each scope where an address is, or could be, held.
func (a *app) printWhy(ctx context.Context, from ledger, known *inventory.Known, addr netip.Addr) {
	held := map[string]bool{}
	for _, is := range known.Of(addr) {
		held[is.Scope] = true
		keeping := from.why(ctx, known, is)
		where := ""
		for _, part := range [][2]string{{" on ", is.Interface}, {" of node ", is.Node}, {", network ", is.Network}} {
			if part[1] != "" {
				where += part[0] + part[1]
			}
		}
		a.printf("%s is held by %s%s\n", addr, is.OwnerName(), where)
		for _, holder := range is.Holders {
			a.printf("  on       %s\n", holderText(holder))
		}
		if !is.Since.IsZero() {
			a.printf("  since    %s (%s)\n", is.Since.Local().Format(time.RFC3339), age(is.Since, time.Now()))
		}
		a.printf("  because  %s\n  to free  %s\n", keeping.Why, keeping.Remedy)
		if inventory.PoolOf(known.Pools, is) == nil && is.Pool != "" {
			a.printf("  note     no network gives it any more: once it is free, it stays so\n")
		}
	}
	told := len(held)
	for _, place := range known.Places(addr) {
		if held[string(place.Scope)] {
			continue
		}
		told++
		if place.Gives {
			a.printf("%s is free: network %s gives it, of %s\n", addr, place.Network, place.Range)
		} else {
			a.printf("%s is not given by network %s: it %s\n", addr, place.Network, place.Why)
		}
	}
	if told == 0 {
		a.printf("%s is held by nobody, and is in no range of a network; weft ip pools lists them\n", addr)
	}
}

// poolDocument is a pool as JSON and YAML have it: sizes are numbers of any length.
type poolDocument struct {
	Name      string   `json:"name"`
	Scope     string   `json:"scope"`
	Range     string   `json:"range"`
	Networks  []string `json:"networks"`
	Size      *big.Int `json:"size"`
	Used      int      `json:"used"`
	Reserved  int      `json:"reserved"`
	Conflicts int64    `json:"conflicts"`
	Free      *big.Int `json:"free"`
	Full      int64    `json:"full"`
	Overlaps  []string `json:"overlaps,omitempty"`
}

func (a *app) printPools(list []inventory.PoolUsage, output string) error {
	documents := make([]poolDocument, 0, len(list))
	for _, pool := range list {
		documents = append(documents, poolDocument{
			Name: pool.Name, Scope: string(pool.Scope), Range: pool.Range.String(), Networks: pool.Networks, Size: pool.Size, Used: pool.Used,
			Reserved: pool.Reserved, Conflicts: pool.Conflicts, Free: pool.Free, Full: pool.Full(), Overlaps: pool.Overlaps,
		})
	}
	switch output {
	case "json", "yaml":
		return a.printData(documents, output)
	}
	if len(documents) == 0 {
		a.printf("no network gives addresses of a range\n")
		return nil
	}
	t := table{header: []string{"RANGE", "SIZE", "USED", "RESERVED", "CONFLICTS", "FREE", "FULL", "NETWORKS"}}
	if output == "wide" {
		t.header = append(t.header, "SCOPE", "NAME")
	}
	for _, d := range documents {
		row := []string{
			d.Range, howMany(d.Size), fmt.Sprint(d.Used), fmt.Sprint(d.Reserved), fmt.Sprint(d.Conflicts), howMany(d.Free), fmt.Sprintf("%d%%", d.Full), strings.Join(d.Networks, ","),
		}
		if output == "wide" {
			row = append(row, d.Scope, d.Name)
		}
		t.rows = append(t.rows, row)
	}
	a.printf("%s", t)
	told := map[string]bool{}
	for _, d := range documents {
		for _, overlap := range d.Overlaps { // both pools have it
			if !told[overlap] {
				fmt.Fprintln(a.errOut, "weft: warning: "+overlap)
			}
			told[overlap] = true
		}
	}
	return nil
}

// howMany gives a number of addresses; those of IPv6 as a power.
func howMany(n *big.Int) string {
	if n.BitLen() <= 40 {
		return n.String()
	}
	about, _ := new(big.Float).SetInt(n).Float64()
	return fmt.Sprintf("%.3g", about)
}
