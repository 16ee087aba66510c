package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/inventory"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/vmnet"
)

// macs gives each NIC of a VM on a secondary network its NICIdentity, with the MAC that
// it keeps as long as the VM has it: what the VM's spec asks for, what it has already, or
// one that nobody has. That, and each MAC that a Pod asks for, is an object, MACLease,
// whose name is made of network and MAC, so that a MAC we choose is nobody else's. The
// steps, each of which may be the last before a crash, and is done again:
//
//	lease     the MAC is taken; the first that is tried is always the same
//	identity  nodes give it to launchers from now on
//	sweep     leases that no identity and no Pod has are given back after a grace
//
// MACs that somebody asks for are not refused here if another has them, but told of.
type macs struct {
	api, writer store.Store
	*state
	vms, instances *machineList
	leases         *known[v1alpha1.MACLease]
	identities     *known[identity]
	users          *known[macPod]
	pool           macRange
	grace          time.Duration
	log            *slog.Logger
	wake           chan struct{} // one: something has changed

	// idle are leases that nobody has, by name and UID, since when.
	idle map[[2]string]time.Time
	// said is what went wrong at the last look, by what, and says what does at this one;
	// told are collisions of which there are events.
	said, says map[string]string
	told       map[string]bool
}

// identity is a NICIdentity that we made.
type identity struct {
	key   store.Key
	uid   types.UID
	owner types.UID
	spec  v1alpha1.NICIdentitySpec
}

// macPod is a Pod that asks for MACs, or is a VM's.
type macPod struct {
	key  store.Key
	uid  types.UID
	vm   string // whose launcher it is
	runs bool   // on a node, and is not ending
	nics []nic
}

func newMACs(c *controller, s *state, vms *machines, writer store.Store) *macs {
	m := &macs{
		api: c.api, writer: writer, state: s, vms: vms.vms, instances: vms.instances, pool: c.macs, grace: c.Grace, log: c.Log, wake: make(chan struct{}, 1),
		idle: map[[2]string]time.Time{}, told: map[string]bool{},
	}
	m.leases = newKnown(func(obj *store.Object) (v1alpha1.MACLease, bool) {
		lease, err := v1alpha1.MACLeaseFromObject(obj)
		if err != nil {
			return v1alpha1.MACLease{}, false // its name is taken still
		}
		return *lease, true
	}, m.poke)
	m.identities = newKnown(readIdentity, m.poke)
	m.users = newKnown(readMACPod, m.poke)
	vms.changed = m.poke
	return m
}

func (m *macs) poke() {
	select {
	case m.wake <- struct{}{}:
	default: // it is about to
	}
}

func readIdentity(obj *store.Object) (identity, bool) {
	id, err := v1alpha1.FromObject(obj)
	if err != nil || obj.GetLabels()[vmLabel] == "" {
		return identity{}, false // it is not ours
	}
	is := identity{key: store.KeyOf(obj), uid: obj.GetUID(), spec: id.Spec}
	for _, owner := range obj.GetOwnerReferences() {
		is.owner = owner.UID
	}
	return is, true
}

// domainAnnotation names the VM on its launcher Pod (kubevirt.io/api v1.9.0, core/v1
// DomainAnnotation).
const domainAnnotation = "kubevirt.io/domain"

func readMACPod(obj *store.Object) (macPod, bool) {
	annotations := obj.GetAnnotations()
	text := annotations[netattach.NetworksAnnotation]
	if text == "" || inventory.Terminal(obj) {
		return macPod{}, false
	}
	list, err := netattach.ParseNetworks(text, obj.GetNamespace())
	if err != nil {
		return macPod{}, false // it is attached to nothing
	}
	is := macPod{key: store.KeyOf(obj), uid: obj.GetUID(), vm: annotations[domainAnnotation]}
	spec, _ := obj.Object["spec"].(map[string]any)
	is.runs = spec["nodeName"] != nil && obj.GetDeletionTimestamp() == nil
	for i, s := range list {
		mac, err := netstate.ParseMAC(s.MAC)
		if is.vm == "" && err != nil {
			continue // none, or an InfiniBand link's
		}
		one := nic{network: store.Key{Namespace: s.Namespace, Name: s.Name}, ifName: s.Interface, mac: mac}
		if one.ifName == "" {
			one.ifName = fmt.Sprintf("net%d", i+1)
		}
		is.nics = append(is.nics, one)
	}
	return is, len(is.nics) > 0
}

// String names the task.
func (*macs) String() string { return "keeper of MACs" }

// Run keeps MACs until ctx ends.
func (m *macs) Run(ctx context.Context) error {
	look := time.NewTicker(min(lookEvery, max(m.grace/4, 100*time.Millisecond)))
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C: // networks change, too, and graces end
		case <-m.wake:
			gather(ctx)
		}
		m.pass(ctx)
	}
}

// macUse is somebody who has a MAC on a network, or asks for it.
type macUse struct {
	network string
	owner   types.UID
	ifName  string
}

// macView is what is known at one look.
type macView struct {
	vms        []virtualMachine // and instances that have none
	runs       map[types.UID]virtualMachine
	leases     map[string]v1alpha1.MACLease
	identities map[store.Key]identity
	pods       []macPod
	uses       map[netstate.MAC][]macUse
}

// view gives what is known; ok is false as long as that is not all.
func (m *macs) view() (v *macView, ok bool) {
	vms, vmsKnown := m.vms.all()
	instances, instancesKnown := m.instances.all()
	leases, leasesKnown := m.leases.all()
	identities, identitiesKnown := m.identities.all()
	pods, podsKnown := m.users.all()
	_, networksKnown := m.ranges.All()
	// A cluster without KubeVirt has no VMs.
	if !leasesKnown || !identitiesKnown || !podsKnown || !networksKnown || !m.pods.Synced() {
		return nil, false
	}
	v = &macView{runs: map[types.UID]virtualMachine{}, leases: map[string]v1alpha1.MACLease{}, identities: map[store.Key]identity{}, pods: pods, uses: map[netstate.MAC][]macUse{}}
	if vmsKnown && instancesKnown {
		v.vms = vms
		for _, is := range instances {
			if is.ofVM == "" {
				v.vms = append(v.vms, is)
			} else {
				v.runs[is.ofVM] = is
			}
		}
	}
	for _, is := range leases {
		v.leases[is.Name] = is
		v.use(is.Spec.MAC, macUse{is.Spec.Network, is.Spec.Owner.UID, is.Spec.Interface})
	}
	for _, is := range identities {
		v.identities[is.key] = is
		v.use(is.spec.MAC, macUse{network: is.spec.Definition, owner: is.owner, ifName: ifNameOf(is.key.Name)})
	}
	for _, vm := range append(slices.Clone(v.vms), instances...) {
		owner := vm.uid
		if vm.ofVM != "" {
			owner = vm.ofVM
		}
		for _, nic := range vm.nics {
			v.use(nic.mac, macUse{nic.network.String(), owner, nic.ifName})
		}
	}
	for _, pod := range pods {
		for _, nic := range pod.nics {
			if pod.vm == "" {
				v.use(nic.mac, macUse{nic.network.String(), pod.uid, nic.ifName})
			}
		}
	}
	return v, true
}

// ifNameOf gives the interface in the name of an identity (netattach.ClaimOfVM).
func ifNameOf(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

func (v *macView) use(mac netstate.MAC, is macUse) {
	if mac != "" && !slices.Contains(v.uses[mac], is) {
		v.uses[mac] = append(v.uses[mac], is)
	}
}

// others says whether anybody else has a MAC, on that network or on any.
func (v *macView) others(mac netstate.MAC, me macUse, anywhere bool) bool {
	return slices.ContainsFunc(v.uses[mac], func(is macUse) bool { return is != me && (anywhere || is.network == me.network) })
}

// mine gives the MAC that a NIC has the lease of; empty: of none. Somebody deleted its
// identity, or we died before we made it.
func (v *macView) mine(owner v1alpha1.LeaseOwner, nic nic) (mac netstate.MAC) {
	for _, is := range v.leases {
		if is.Spec.Owner.UID == owner.UID && is.Spec.Interface == nic.ifName && is.Spec.Network == nic.network.String() && (mac == "" || is.Spec.MAC < mac) {
			mac = is.Spec.MAC
		}
	}
	return mac
}

// pass brings MACs in line with the NICs there are.
func (m *macs) pass(ctx context.Context) {
	v, ok := m.view()
	if !ok {
		return
	}
	m.says = map[string]string{}
	for _, pod := range v.pods {
		for _, nic := range pod.nics {
			if pod.vm == "" {
				err := m.take(ctx, v, leaseOfNIC(v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: pod.key.Namespace, Name: pod.key.Name, UID: pod.uid}, nic, nic.mac))
				m.tell(ctx, "Pod "+pod.key.String()+" "+nic.ifName, asked(err))
			}
		}
	}
	for _, vm := range v.vms {
		if !vm.leaving {
			m.ofVM(ctx, v, vm)
		}
	}
	m.sweep(ctx, v)
	m.collide(ctx, v)
	m.said = m.says
}

// asked passes over that another has a MAC that was asked for, which events tell.
func asked(err error) error {
	if errors.Is(err, errMACTaken) {
		return nil
	}
	return err
}

// tell tells of an error, once.
func (m *macs) tell(ctx context.Context, what string, err error) {
	if err == nil || ctx.Err() != nil || errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound) {
		return
	}
	if m.says[what] = err.Error(); m.said[what] != err.Error() {
		m.log.Warn("a MAC could not be kept; it is tried again", "of", what, "err", err)
	}
}

// ofVM keeps the identities of a VM's NICs.
func (m *macs) ofVM(ctx context.Context, v *macView, vm virtualMachine) {
	running := v.runs[vm.uid]
	if running.obscure {
		return // what it has is to stay
	}
	wanted := map[string]bool{}
	for _, nic := range append(slices.Clone(running.nics), vm.nics...) { // what runs counts, the rest comes with a restart
		name := netattach.ClaimOfVM(vm.key.Name, nic.ifName)
		if wanted[name] {
			continue
		}
		wanted[name] = true
		if m.ranges.TakesMAC(nic.network) {
			m.tell(ctx, "NICIdentity "+vm.key.Namespace+"/"+name, m.ensure(ctx, v, vm, nic))
		}
	}
	if vm.obscure {
		return
	}
	for key, is := range v.identities {
		if is.owner == vm.uid && !wanted[key.Name] {
			m.tell(ctx, "NICIdentity "+key.String(), m.remove(ctx, is))
		}
	}
}

func leaseOfNIC(owner v1alpha1.LeaseOwner, nic nic, mac netstate.MAC) v1alpha1.MACLeaseSpec {
	return v1alpha1.MACLeaseSpec{MAC: mac, Network: nic.network.String(), Interface: nic.ifName, Owner: owner}
}

// ensure gives a NIC its identity, or brings that in line with what the VM asks for.
func (m *macs) ensure(ctx context.Context, v *macView, vm virtualMachine, nic nic) error {
	key := store.Key{Namespace: vm.key.Namespace, Name: netattach.ClaimOfVM(vm.key.Name, nic.ifName)}
	is, there := v.identities[key]
	if there && is.owner != vm.uid { // of one of that name before, which Kubernetes takes away some time
		return m.remove(ctx, is)
	}
	want := is.spec
	want.VM, want.Network, want.Definition = vm.key.Name, nic.name, nic.network.String()
	owner := v1alpha1.LeaseOwner{Kind: vm.gvk.Kind, Namespace: vm.key.Namespace, Name: vm.key.Name, UID: vm.uid}
	switch {
	case nic.mac != "":
		want.MAC = nic.mac
	case want.MAC == "":
		want.MAC = cmp.Or(v.mine(owner, nic), nic.has)
	}
	var err error
	if want.MAC == "" {
		want.MAC, err = m.choose(ctx, v, owner, nic)
		if h, ok := errors.AsType[*hint.Error](err); ok && m.said["NICIdentity "+key.String()] != h.Error() {
			m.event(ctx, about{vm.gvk, vm.key, vm.uid}, "NoFreeMAC", h.Error())
		}
	} else {
		err = asked(m.take(ctx, v, leaseOfNIC(owner, nic, want.MAC)))
	}
	if err != nil || there && sameIdentity(want, is.spec) {
		return err
	}
	if there {
		return m.change(ctx, is, want)
	}
	return m.make(ctx, vm, key, want)
}

func sameIdentity(a, b v1alpha1.NICIdentitySpec) bool {
	return a.MAC == b.MAC && a.Definition == b.Definition && a.VM == b.VM && a.Network == b.Network
}

// make makes an identity.
func (m *macs) make(ctx context.Context, vm virtualMachine, key store.Key, spec v1alpha1.NICIdentitySpec) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	obj := &store.Object{Object: map[string]any{"spec": map[string]any{
		"vm": spec.VM, "network": spec.Network, "definition": spec.Definition, "mac": string(spec.MAC),
	}}}
	obj.SetGroupVersionKind(v1alpha1.NICIdentityKind)
	obj.SetNamespace(key.Namespace)
	obj.SetName(key.Name)
	obj.SetLabels(map[string]string{vmLabel: labelValue(vm.key.Name)})
	obj.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: vm.gvk.GroupVersion().String(), Kind: vm.gvk.Kind, Name: vm.key.Name, UID: vm.uid}})
	_, err := m.writer.Create(ctx, obj)
	if errors.Is(err, store.ErrExists) { // we have not heard of it yet
		return nil
	}
	if err == nil {
		m.log.Info("made the identity of a VM's NIC", "identity", key.String(), "network", spec.Definition, "mac", string(spec.MAC))
	}
	return err
}

// change writes an identity anew that is still as it was seen.
func (m *macs) change(ctx context.Context, is identity, want v1alpha1.NICIdentitySpec) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	obj, err := m.api.Get(ctx, v1alpha1.NICIdentityKind, is.key)
	if err != nil {
		return err
	}
	now, ok := readIdentity(obj)
	if !ok || now.uid != is.uid || !sameIdentity(now.spec, is.spec) {
		return store.ErrConflict // we have not heard of it yet
	}
	spec, _ := obj.Object["spec"].(map[string]any)
	spec["vm"], spec["network"], spec["definition"], spec["mac"] = want.VM, want.Network, want.Definition, string(want.MAC)
	if _, err := m.writer.Update(ctx, obj); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	m.log.Info("changed the identity of a VM's NIC", "identity", is.key.String(), "network", want.Definition, "mac", string(want.MAC), "was", string(is.spec.MAC))
	return nil
}

// remove deletes the identity of a NIC that there is no more.
func (m *macs) remove(ctx context.Context, is identity) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	if err := m.writer.Delete(ctx, v1alpha1.NICIdentityKind, is.key, store.Precondition{UID: is.uid}); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

// errMACTaken says that another has the lease of a MAC.
var errMACTaken = errors.New("the MAC is another's")

// take takes a MAC, which may be done already.
func (m *macs) take(ctx context.Context, v *macView, spec v1alpha1.MACLeaseSpec) error {
	mine := func(is v1alpha1.MACLeaseSpec) error {
		if is.Owner.UID != spec.Owner.UID || is.Interface != spec.Interface || is.MAC != spec.MAC || is.Network != spec.Network {
			return errMACTaken
		}
		return nil
	}
	lease := v1alpha1.MACLease{Spec: spec}
	lease.Name = v1alpha1.MACLeaseName(spec.Network, spec.MAC)
	if is, there := v.leases[lease.Name]; there {
		return mine(is.Spec)
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	obj, err := m.writer.Create(ctx, lease.Object())
	if errors.Is(err, store.ErrExists) { // an answer was lost, or another leader is as far
		obj, err = m.api.Get(ctx, v1alpha1.MACLeaseKind, store.Key{Name: lease.Name})
	}
	if err != nil {
		return fmt.Errorf("take MAC %s: %w", spec.MAC, err)
	}
	is, err := v1alpha1.MACLeaseFromObject(obj)
	if err != nil {
		return errMACTaken // whoever's it is
	}
	v.leases[is.Name] = *is
	v.use(is.Spec.MAC, macUse{is.Spec.Network, is.Spec.Owner.UID, is.Spec.Interface})
	return mine(is.Spec)
}

// choose takes a MAC for a NIC that asks for none: one that no network has, for two may
// be of one wire, or else one that its own has not.
func (m *macs) choose(ctx context.Context, v *macView, owner v1alpha1.LeaseOwner, nic nic) (netstate.MAC, error) {
	me := macUse{nic.network.String(), owner.UID, nic.ifName}
	for _, anywhere := range []bool{true, false} {
		// Of so many at most one is nobody's, and not the one of in-Pod bridges.
		for i := uint64(0); i < m.pool.size() && i < uint64(len(v.uses))+2; i++ {
			mac := m.pool.at(string(owner.UID)+"/"+nic.ifName, i)
			if mac == vmnet.ReservedMAC || v.others(mac, me, anywhere) {
				continue
			}
			if err := m.take(ctx, v, leaseOfNIC(owner, nic, mac)); !errors.Is(err, errMACTaken) {
				return mac, err
			}
		}
	}
	return "", &hint.Error{
		Field: "--mac-range", Problem: fmt.Sprintf("has no MAC left for interface %s of VM %s/%s on network %s", nic.ifName, owner.Namespace, owner.Name, nic.network),
		Remedy: "make the range wider, or give the NIC a macAddress",
	}
}

// sweep gives MACs back that no identity and no Pod has, and had none for a grace.
func (m *macs) sweep(ctx context.Context, v *macView) {
	still := map[[2]string]time.Time{}
	for _, is := range v.leases {
		if m.inUse(v, is.Spec) {
			continue
		}
		key := [2]string{is.Name, string(is.UID)}
		since, seen := m.idle[key]
		if !seen {
			since = time.Now()
		}
		if still[key] = since; time.Since(since) >= m.grace {
			m.tell(ctx, "MACLease "+is.Name, m.free(ctx, is))
		}
	}
	m.idle = still
}

// inUse says whether somebody has a lease's MAC, as far as we have heard. A launcher may
// have what its VM had when it began.
func (m *macs) inUse(v *macView, is v1alpha1.MACLeaseSpec) bool {
	if is.Owner.Kind == v1alpha1.OwnerPod {
		return slices.ContainsFunc(v.pods, func(pod macPod) bool { return pod.has(is) }) || m.pods.Live(is.Owner.UID)
	}
	id := v.identities[identityOf(is)]
	return id.has(is) || slices.ContainsFunc(v.pods, func(pod macPod) bool {
		return pod.vm == is.Owner.Name && pod.key.Namespace == is.Owner.Namespace
	})
}

// identityOf gives the key of the identity that a lease of a VM is for.
func identityOf(is v1alpha1.MACLeaseSpec) store.Key {
	return store.Key{Namespace: is.Owner.Namespace, Name: netattach.ClaimOfVM(is.Owner.Name, is.Interface)}
}

func (id identity) has(is v1alpha1.MACLeaseSpec) bool {
	return id.owner == is.Owner.UID && id.spec.MAC == is.MAC && id.spec.Definition == is.Network
}

func (pod macPod) has(is v1alpha1.MACLeaseSpec) bool {
	return pod.uid == is.Owner.UID && slices.ContainsFunc(pod.nics, func(n nic) bool { return n.mac == is.MAC && n.network.String() == is.Network })
}

// free deletes a lease, if the API server says, too, that nobody has the MAC.
func (m *macs) free(ctx context.Context, is v1alpha1.MACLease) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	kind, key := podKind, store.Key{Namespace: is.Spec.Owner.Namespace, Name: is.Spec.Owner.Name}
	if is.Spec.Owner.Kind != v1alpha1.OwnerPod {
		kind, key = v1alpha1.NICIdentityKind, identityOf(is.Spec)
	}
	obj, err := m.api.Get(ctx, kind, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("read %s %s: %w", kind.Kind, key, err)
	}
	if err == nil {
		pod, _ := readMACPod(obj)
		id, _ := readIdentity(obj)
		if pod.has(is.Spec) || id.has(is.Spec) {
			return nil
		}
	}
	if err := m.writer.Delete(ctx, v1alpha1.MACLeaseKind, store.Key{Name: is.Name}, store.Precondition{UID: is.UID, Revision: is.ResourceVersion}); err != nil {
		return fmt.Errorf("give back MAC %s: %w", is.Spec.MAC, err)
	}
	m.log.Info("a MAC was given back", "mac", string(is.Spec.MAC), "network", is.Spec.Network, "owner", is.Spec.Owner.Kind+" "+is.Spec.Owner.Namespace+"/"+is.Spec.Owner.Name)
	return nil
}
