package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/launcher"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/qemu"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/vmnet"
)

// reconcileMachine brings a VM up in its attached Pod, step by step; each step
// may be repeated:
//
//	wire (TAPs, bridges, NAT) -> serve (DHCP, RA) -> find or start the machine -> tell
func (n *Node) reconcileMachine(ctx context.Context, pod *store.Object, sandbox *record.Sandbox, name string) (time.Duration, error) {
	key := store.Key{Namespace: pod.GetNamespace(), Name: name}
	vmi, err := n.get(ctx, kubevirt.InstanceKind, key)
	if err != nil || vmi == nil || !ownedBy(pod, vmi) {
		return 0, err // the Pod goes with its instance
	}
	leases, err := leasesText(pod, sandbox)
	if err != nil {
		return 0, err
	}
	if err := n.writePod(ctx, pod, sandbox, leases); err != nil {
		return 0, err
	}
	m, stage, err := n.bringUp(ctx, pod, vmi, sandbox)
	if err != nil {
		return 0, errors.Join(err, n.writeInstanceFailure(ctx, key, stage, err))
	}
	if wait := m.unheard(n.cfg.Now()); wait > 0 {
		return wait, nil
	}
	return m.awaitsAgent(), n.writeInstance(ctx, key, sandbox, m)
}

func ownedBy(pod, vmi *store.Object) bool {
	for _, ref := range pod.GetOwnerReferences() {
		if ref.UID == vmi.GetUID() {
			return true
		}
	}
	return false
}

// bringUp gives the machine of a Pod, wired, served and begun. stage is the
// reason to give for err.
func (n *Node) bringUp(ctx context.Context, pod, vmi *store.Object, sandbox *record.Sandbox) (m *machine, stage string, err error) {
	key := store.KeyOf(pod)
	inst, _, err := kubevirt.FromVMI(vmi)
	if err != nil {
		return nil, "Invalid", err
	}
	if m := n.machine(key); m != nil {
		m.follow(inst, vmi.GetGeneration())
		return m, "", nil
	}
	begun := n.cfg.Now()
	plan, err := n.planNetwork(pod, inst, sandbox)
	if err != nil {
		return nil, "WiringFailed", err
	}
	for _, warning := range plan.Warnings {
		n.cfg.Log.Warn("VM network", "vmi", store.KeyOf(vmi).String(), "warning", warning)
	}
	if err := n.noteMoved(ctx, sandbox, plan); err != nil {
		return nil, "WiringFailed", err
	}
	wiring := netstate.Plan{Alias: n.wiringAlias(sandbox.ID), Pod: plan.State}
	if _, err := n.cfg.Plane.Apply(ctx, sandbox.NetNS, wiring); err != nil {
		return nil, "WiringFailed", err
	}
	m = &machine{
		poke: make(chan struct{}, 1),
		name: inst.Namespace + "/" + inst.Name, dir: n.cfg.VMDir(inst.Namespace, inst.Name), netns: sandbox.NetNS, inst: inst, plan: plan,
		log: n.cfg.Log.With("vmi", inst.Namespace+"/"+inst.Name), changed: func() { n.pods.Add(key) },
	}
	m.follow(inst, vmi.GetGeneration())
	if err := m.watch(ctx); err != nil {
		return nil, "ServingFailed", err
	}
	if err := m.awaitServers(ctx); err != nil {
		m.close()
		return nil, "ServingFailed", err
	}
	m.wiring = n.cfg.Now().Sub(begun)
	if err := n.startOrAdopt(ctx, m, string(vmi.GetUID())); err != nil {
		m.close()
		return nil, "StartFailed", err
	}
	n.setMachine(key, m)
	return m, "", nil
}

// noteMoved writes into the record, before it is done, which addresses the
// wiring takes off the Pod's links for the guest to have.
func (n *Node) noteMoved(ctx context.Context, sandbox *record.Sandbox, plan vmnet.Plan) error {
	moved := map[netstate.IfName][]netip.Prefix{}
	for _, nic := range plan.NICs {
		for _, addr := range nic.Taken.Addrs {
			moved[addr.Link] = append(moved[addr.Link], addr.Prefix)
		}
	}
	known := true
	for link, prefixes := range moved {
		a := sandbox.Find(link)
		known = known && a != nil && slices.Equal(a.Moved, prefixes)
	}
	if known {
		return nil
	}
	_, err := n.cfg.Engine.SetMoved(ctx, sandbox.ID, moved)
	return err
}

func (n *Node) wiringAlias(sandbox string) string {
	return netstate.Alias(n.cfg.Instance, sandbox+"/vm")
}

// planNetwork plans the Pod's side of a VM from the record, never from the
// kernel: addresses a guest has taken over are not on the link any more.
func (n *Node) planNetwork(pod *store.Object, inst *kubevirt.Instance, sandbox *record.Sandbox) (vmnet.Plan, error) {
	given, err := v1alpha1.ParseVMPlan(pod.GetAnnotations()[v1alpha1.VMPlanAnnotation])
	if err != nil {
		return vmnet.Plan{}, err
	}
	identities := map[string]vmnet.Identity{}
	links := map[string]vmnet.PodLink{}
	for _, nic := range given.NICs {
		identities[nic.Network] = vmnet.Identity{MAC: nic.MAC, Slot: nic.Slot}
		attachment := sandbox.Find(nic.Link)
		if attachment == nil {
			continue
		}
		link, err := podLink(attachment)
		if err != nil {
			return vmnet.Plan{}, fmt.Errorf("read attachment %s: %w", nic.Link, err)
		}
		links[nic.Network] = link
	}
	dns, err := n.cfg.DNS()
	if err != nil {
		return vmnet.Plan{}, err
	}
	alias := n.wiringAlias(sandbox.ID)
	_, noIPv6 := os.Stat("/proc/sys/net/ipv6")
	_, noBridgeNetfilter := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return vmnet.Build(vmnet.Request{
		VM: inst.VMNet(), Links: links, Identities: identities, LauncherUID: LauncherUID,
		Alias: alias, Group: netstate.GroupOf(alias), DNS: inst.GuestDNS(dns), NoIPv6: noIPv6 != nil,
		BridgeNetfilter: noBridgeNetfilter == nil,
	})
}

// startOrAdopt finds the running machine of this instance, or starts it. One
// that ran and ended is not started again: that is for whoever wants a new
// instance to decide; unless the machine below it was restarted, which is no
// fault of the guest's.
func (n *Node) startOrAdopt(ctx context.Context, m *machine, uid string) error {
	process, err := launcher.Adopt(ctx, m.dir)
	switch {
	case err == nil && process.Spec.Machine.UUID == n.machineUUID(m.inst, uid):
		m.mu.Lock()
		m.adopted = n.cfg.Now()
		m.mu.Unlock()
		m.begin(process)
		return nil
	case err == nil: // an instance that had the name before; its Pod is gone
		if _, err := process.Stop(ctx, 0); err != nil {
			return err
		}
	case !errors.Is(err, launcher.ErrNotRunning):
		return err
	}
	spec, specErr := launcher.ReadSpec(m.dir)
	if specErr == nil && spec.Machine.UUID == n.machineUUID(m.inst, uid) && !rebooted(m.dir) {
		exit, err := launcher.ReadExit(m.dir)
		if err != nil {
			exit = launcher.Exit{Reason: launcher.Lost}
		}
		if exit.Reason != launcher.NotStarted {
			m.update(func(f *machineFacts) { f.exit = &exit })
			return nil
		}
	}
	return n.startMachine(ctx, m, uid)
}

func (n *Node) machineUUID(inst *kubevirt.Instance, uid string) string {
	if inst.Firmware.UUID != "" {
		return inst.Firmware.UUID
	}
	return qemu.StableUUID(inst.Namespace, inst.Name, uid)
}

// rebooted says whether the machine in dir was started before this boot.
func rebooted(dir string) bool { return !launcher.ThisBoot(dir) }

func (n *Node) startMachine(ctx context.Context, m *machine, uid string) error {
	inst := m.inst
	desired := qemu.Machine{
		Name: inst.Namespace + "_" + inst.Name, UUID: n.machineUUID(inst, uid), Accel: n.cfg.Accel,
		MachineType: inst.MachineType, CPU: qemu.CPU(inst.CPU), MemoryBytes: inst.MemoryBytes,
		Sockets: qemu.SocketsFor(uid), SerialLog: launcher.SerialLog(m.dir), Transitional: inst.Transitional,
	}
	slots := map[string]int{}
	for _, nic := range m.plan.NICs {
		desired.NICs = append(desired.NICs, nic.NIC)
		slots[nic.NIC.Network] = nic.NIC.Slot
	}
	desired.RootPorts = vmnet.RootPorts(slots)
	if err := n.prepareDisks(ctx, inst, m.dir, &desired); err != nil {
		return err
	}
	desired.Default()
	process, err := launcher.Start(ctx, launcher.Spec{
		Dir: m.dir, Machine: desired, NetNS: m.netns, UID: LauncherUID, GID: LauncherUID,
		Grace: time.Duration(inst.TerminationGraceSeconds) * time.Second,
	})
	if err != nil {
		return errors.Join(err, launcher.Forget(m.dir))
	}
	n.cfg.Log.Info("machine started", "vmi", inst.Namespace+"/"+inst.Name, "pid", process.PID, "wiring", m.wiring)
	m.begin(process)
	return nil
}

// endMachine shuts the machine of a Pod down, closes its servers and removes
// its wiring and files.
func (n *Node) endMachine(ctx context.Context, pod *store.Object, name string) error {
	key := store.KeyOf(pod)
	dir := n.cfg.VMDir(key.Namespace, name)
	plan, planErr := v1alpha1.ParseVMPlan(pod.GetAnnotations()[v1alpha1.VMPlanAnnotation])
	process, err := launcher.Adopt(ctx, dir)
	switch {
	case errors.Is(err, launcher.ErrNotRunning):
	case err != nil:
		return err
	case planErr == nil && process.Spec.Machine.Sockets != qemu.SocketsFor(plan.UID):
		// Another instance of this name runs there by now.
		return process.Close()
	default:
		if _, err := process.Stop(ctx, process.Spec.Grace); err != nil {
			return err
		}
	}
	if m := n.machine(key); m != nil {
		n.setMachine(key, nil)
		m.close()
	}
	sandbox := n.cfg.SandboxID(string(pod.GetUID()))
	if err := n.cfg.Plane.Delete(ctx, n.cfg.NetNS(key.Namespace, key.Name), netstate.Plan{Alias: n.wiringAlias(sandbox)}); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove files of VM %s: %w", name, err)
	}
	return nil
}

// leasesText tells the controller which addresses the VM's NICs hold.
func leasesText(pod *store.Object, sandbox *record.Sandbox) (map[string]string, error) {
	plan, err := v1alpha1.ParseVMPlan(pod.GetAnnotations()[v1alpha1.VMPlanAnnotation])
	if err != nil {
		return nil, err
	}
	leases := map[string][]v1alpha1.Lease{}
	for _, nic := range plan.NICs {
		attachment := sandbox.Find(nic.Link)
		if attachment == nil {
			continue
		}
		for _, lease := range attachment.Leases {
			leases[nic.Network] = append(leases[nic.Network], v1alpha1.Lease{Scope: lease.Scope, Addr: lease.Addr})
		}
	}
	text, err := json.Marshal(leases)
	if err != nil {
		return nil, fmt.Errorf("write annotation %s: %w", v1alpha1.LeasesAnnotation, err)
	}
	return map[string]string{v1alpha1.LeasesAnnotation: string(text)}, nil
}
