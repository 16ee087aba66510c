package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/local"
	"github.com/weftnet/weft/internal/status"
	"github.com/weftnet/weft/internal/store"
)

// table prints columns as wide as their widest cell, two spaces apart.
type table struct {
	header []string
	rows   [][]string
}

func (t table) String() string {
	widths := make([]int, len(t.header))
	for _, row := range slices.Concat([][]string{t.header}, t.rows) {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	var b strings.Builder
	for _, row := range slices.Concat([][]string{t.header}, t.rows) {
		var line strings.Builder
		for i, cell := range row {
			fmt.Fprintf(&line, "%-*s  ", widths[i], cell)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}

// columnsOf gives the header of a kind's table and what fills a row.
func columnsOf(gvk schema.GroupVersionKind, wide bool) ([]string, func(*store.Object) []string) {
	switch gvk {
	case local.Pod:
		return []string{"NAMESPACE", "NAME", "PHASE", "NETWORK", "NICS"}, podRow
	case local.VMI:
		if wide {
			return []string{"NAMESPACE", "NAME", "PHASE", "READY", "IP", "NICS", "INFO SOURCE"}, vmiRowWide
		}
		return []string{"NAMESPACE", "NAME", "PHASE", "READY", "IP", "NICS"}, vmiRow
	case local.VM:
		return []string{"NAMESPACE", "NAME", "STATUS", "READY"}, func(o *store.Object) []string {
			ready, _ := local.Condition(o, "Ready")
			return []string{o.GetNamespace(), o.GetName(), text(o, "status", "printableStatus"), orNone(ready)}
		}
	case local.NAD:
		return []string{"NAMESPACE", "NAME", "TYPE"}, func(o *store.Object) []string {
			return []string{o.GetNamespace(), o.GetName(), nadTypes(text(o, "spec", "config"))}
		}
	case local.IPAMClaim:
		return []string{"NAMESPACE", "NAME", "NETWORK", "ADDRESSES"}, func(o *store.Object) []string {
			ips, _, _ := unstructured.NestedStringSlice(o.Object, "status", "ips") // none before its first Pod
			return []string{o.GetNamespace(), o.GetName(), orNone(text(o, "spec", "network")), orNone(strings.Join(ips, ","))}
		}
	case local.Identity:
		return []string{"NAMESPACE", "NAME", "VM", "NETWORK", "MAC", "SLOT", "ADDRESSES"}, identityRow
	default:
		return []string{"NAME"}, func(o *store.Object) []string { return []string{o.GetName()} }
	}
}

func podRow(o *store.Object) []string {
	network, _ := local.Condition(o, "PodReadyToStartContainers")
	state := map[string]string{"True": "ready", "False": local.ConditionReason(o, "PodReadyToStartContainers")}[network]
	var nics []string
	var elements []struct {
		Interface string   `json:"interface"`
		IPs       []string `json:"ips"`
	}
	// An annotation somebody else spoiled shows as no NICs.
	if json.Unmarshal([]byte(o.GetAnnotations()["k8s.v1.cni.cncf.io/network-status"]), &elements) == nil {
		for _, e := range elements {
			nics = append(nics, e.Interface+"="+orNone(strings.Join(e.IPs, ",")))
		}
	}
	return []string{o.GetNamespace(), o.GetName(), text(o, "status", "phase"), orNone(state), orNone(strings.Join(nics, " "))}
}

func vmiInterfaces(o *store.Object) []map[string]any {
	// Nobody but weft writes the status; another shape shows as no NICs.
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "interfaces")
	var nics []map[string]any
	for _, item := range list {
		if nic, ok := item.(map[string]any); ok {
			nics = append(nics, nic)
		}
	}
	return nics
}

func vmiRow(o *store.Object) []string {
	ip := ""
	var names []string
	for i, nic := range vmiInterfaces(o) {
		address, _ := nic["ipAddress"].(string)
		if i == 0 {
			ip = address
		}
		name, _ := nic["name"].(string)
		names = append(names, name+"="+orNone(address))
	}
	ready, _ := local.Condition(o, "Ready")
	return []string{o.GetNamespace(), o.GetName(), text(o, "status", "phase"), orNone(ready), orNone(ip), orNone(strings.Join(names, " "))}
}

func vmiRowWide(o *store.Object) []string {
	var sources []string
	for _, nic := range vmiInterfaces(o) {
		source, _ := nic["infoSource"].(string)
		sources = append(sources, "["+source+"]")
	}
	return append(vmiRow(o), orNone(strings.Join(sources, " ")))
}

func identityRow(o *store.Object) []string {
	slot, _, _ := unstructured.NestedFieldNoCopy(o.Object, "spec", "slot")
	addresses, _, _ := unstructured.NestedStringSlice(o.Object, "spec", "addresses")
	return []string{
		o.GetNamespace(), o.GetName(), text(o, "spec", "vm"), text(o, "spec", "network"), text(o, "spec", "mac"),
		fmt.Sprint(slot), orNone(strings.Join(addresses, ",")),
	}
}

func nadTypes(config string) string {
	var c struct {
		Type    string
		Plugins []struct{ Type string }
	}
	if json.Unmarshal([]byte(config), &c) != nil {
		return "(not JSON)"
	}
	types := []string{c.Type}
	for _, p := range c.Plugins {
		types = append(types, p.Type)
	}
	return strings.Trim(strings.Join(types, ","), ",")
}

func text(o *store.Object, path ...string) string {
	s, _, _ := unstructured.NestedString(o.Object, path...) // absent or of another type: nothing to show
	return orNone(s)
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// printNICTable prints one line per NIC of every Pod and VM, or of one.
func (a *app) printNICTable(ctx context.Context, client *local.Client, kind string, key store.Key) error {
	t := table{header: []string{"OBJECT", "NIC", "NETWORK", "BINDING", "POD LINK", "MAC", "ADDRESSES", "STAGE", "SOURCES"}}
	var notes []string
	for _, gvk := range []schema.GroupVersionKind{local.VMI, local.Pod} {
		if kind != "" && kind != gvk.Kind {
			continue
		}
		reply, err := client.List(ctx, gvk, key)
		if err != nil {
			return err
		}
		for _, obj := range reply.Items {
			if gvk == local.Pod && len(obj.GetOwnerReferences()) > 0 {
				continue // a launcher Pod shows as its VM
			}
			journey, err := client.Journey(ctx, gvk, store.KeyOf(obj))
			if errors.Is(err, store.ErrNotFound) {
				continue // deleted meanwhile
			}
			if err != nil {
				return err
			}
			for _, nic := range journey.NICs {
				t.rows = append(t.rows, nicRow(gvk, journey, nic))
				if nic.Missing != "" {
					notes = append(notes, fmt.Sprintf("%s %s, %s: %s; %s", strings.ToLower(gvk.Kind), obj.GetName(), nic.Request.Network, nic.Missing, nic.Remedy))
				}
			}
		}
	}
	if len(t.rows) > 0 {
		a.printf("\n%s", t)
	}
	for _, note := range notes {
		a.printf("! %s\n", strings.TrimSuffix(note, "; "))
	}
	return nil
}

func nicRow(gvk schema.GroupVersionKind, journey status.Journey, nic status.NIC) []string {
	shortKind := map[schema.GroupVersionKind]string{local.VMI: "vmi", local.Pod: "pod"}[gvk]
	name := journey.Name
	if journey.Namespace != "default" {
		name = journey.Namespace + "/" + name
	}
	return []string{
		shortKind + "/" + name, nic.Request.Network, nic.Request.Source, orNone(nic.Request.Binding), nic.Request.PodLink,
		orNone(nicMAC(nic)), orNone(strings.Join(nicAddresses(nic), ",")), string(nic.Stage), orNone(nic.InfoSource()),
	}
}

func nicMAC(nic status.NIC) string {
	switch {
	case nic.Machine != nil:
		return nic.Machine.MAC
	case nic.Pod != nil:
		return nic.Pod.MAC
	default:
		return ""
	}
}

// nicAddresses gives what the guest reports if it does, else what it was given,
// else what the Pod has.
func nicAddresses(nic status.NIC) []string {
	var addrs []netip.Addr
	switch {
	case nic.Guest != nil && len(status.GlobalOnly(nic.Guest.Addresses)) > 0:
		addrs = status.GlobalOnly(nic.Guest.Addresses)
	case nic.Wire != nil:
		addrs = nic.Wire.Offered
	case nic.Pod != nil:
		for _, p := range nic.Pod.Addresses {
			addrs = append(addrs, p.Addr())
		}
	}
	texts := make([]string, 0, len(addrs))
	for _, addr := range addrs {
		texts = append(texts, addr.String())
	}
	return texts
}

func count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + one + "s"
}
