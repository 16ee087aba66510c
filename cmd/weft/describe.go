package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/local"
	"github.com/weftnet/weft/internal/status"
	"github.com/weftnet/weft/internal/store"
)

func (a *app) describeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "describe vmi|vm|pod NAME",
		Short: "Tell each NIC's journey: requested, attached, wired, plugged, seen, and what is missing",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.describe(cmd.Context(), args[0], args[1])
		},
	}
}

func (a *app) describe(ctx context.Context, kind, name string) error {
	info, err := local.KindNamed(kind)
	if err != nil {
		return err
	}
	gvk := info.GVK
	if gvk == local.VM {
		gvk = local.VMI // a VM's NICs are those of its running instance
	}
	if gvk != local.VMI && gvk != local.Pod {
		return &hint.Error{Field: "kind", Value: kind, Problem: "has no NICs to describe", Remedy: "use weft get " + kind + " " + name + " -o yaml"}
	}
	client, _, err := a.client(ctx)
	if err != nil {
		return err
	}
	journey, err := client.Journey(ctx, gvk, store.Key{Namespace: a.namespace, Name: name})
	if err != nil {
		return err
	}
	a.printf("%s", journeyText(journey))
	return nil
}

// journeyText tells a journey, one NIC after the other, one stage a line.
func journeyText(j status.Journey) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s/%s   phase %s\n", j.Kind, j.Namespace, j.Name, orNone(j.Phase))
	if j.Pod != "" {
		fmt.Fprintf(&b, "  Pod    %s\n", j.Pod)
	}
	if j.NetNS != "" {
		fmt.Fprintf(&b, "  netns  %s\n", j.NetNS)
	}
	for _, message := range j.Messages {
		fmt.Fprintf(&b, "  note   %s\n", message)
	}
	for _, nic := range j.NICs {
		fmt.Fprintf(&b, "\nNIC %s   %s\n", nic.Request.Network, nic.Stage)
		b.WriteString(nicText(j.Kind == "VirtualMachineInstance", nic))
	}
	for _, other := range j.Others {
		fmt.Fprintf(&b, "\nguest interface %s (%s) is none of weft's: %s\n", other.Name, other.MAC, addrList(other.Addresses))
	}
	return b.String()
}

func nicText(isVM bool, nic status.NIC) string {
	var b strings.Builder
	line := func(done bool, stage status.Stage, format string, args ...any) {
		mark := "[ ]"
		if done {
			mark = "[x]"
		}
		fmt.Fprintf(&b, "  %s %-9s  %s\n", mark, stage, fmt.Sprintf(format, args...))
	}
	requested := nic.Request.Source
	if nic.Request.Binding != "" {
		requested += ", " + nic.Request.Binding + " binding"
	}
	line(true, status.Requested, "%s as %s", requested, nic.Request.PodLink)
	switch pod := nic.Pod; {
	case pod == nil || pod.Failure != "":
		line(false, status.Attached, "")
	default:
		line(true, status.Attached, "%s", podText(pod))
	}
	if isVM {
		vmText(line, nic)
	}
	if nic.Missing != "" {
		fmt.Fprintf(&b, "      ! %s\n", nic.Missing)
	}
	if nic.Remedy != "" {
		fmt.Fprintf(&b, "        %s\n", nic.Remedy)
	}
	return b.String()
}

func podText(pod *status.PodFact) string {
	addresses := make([]string, 0, len(pod.Addresses))
	for _, p := range pod.Addresses {
		addresses = append(addresses, p.String())
	}
	parts := []string{pod.Link, "mac " + pod.MAC}
	if pod.MTU > 0 {
		parts = append(parts, fmt.Sprintf("mtu %d", pod.MTU))
	}
	parts = append(parts, orNone(strings.Join(addresses, " ")))
	if len(pod.Gateways) > 0 {
		parts = append(parts, "via "+addrList(pod.Gateways))
	}
	if pod.HostLink != "" {
		parts = append(parts, "host link "+pod.HostLink)
	}
	return strings.Join(parts, ", ")
}

func vmText(line func(bool, status.Stage, string, ...any), nic status.NIC) {
	if wire := nic.Wire; wire == nil {
		line(false, status.Wired, "")
	} else {
		serving := "nothing served (no IPAM)"
		if len(wire.Serving) > 0 {
			serving = strings.Join(wire.Serving, ", ") + " offering " + addrList(wire.Offered)
		}
		line(true, status.Wired, "%s on bridge %s; %s", wire.TAP, wire.Bridge, serving)
	}
	if machine := nic.Machine; machine == nil {
		line(false, status.Plugged, "")
	} else {
		cable := "up"
		if !machine.LinkUp {
			cable = "down"
		}
		line(true, status.Plugged, "%s in slot %d, mac %s, %s, cable %s", machine.Model, machine.Slot, machine.MAC, count(machine.Queues, "queue"), cable)
	}
	switch {
	case nic.Guest != nil:
		line(nic.Stage == status.Seen, status.Seen, "guest calls it %s, has %s", nic.Guest.Name, addrList(nic.Guest.Addresses))
	case nic.Wire != nil && nic.Wire.LastExchange != "":
		line(nic.Stage == status.Seen, status.Seen, "no guest agent; DHCP: %s", nic.Wire.LastExchange)
	default:
		line(false, status.Seen, "")
	}
}

func addrList(addrs []netip.Addr) string {
	texts := make([]string, 0, len(addrs))
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	return orNone(strings.Join(texts, " "))
}
