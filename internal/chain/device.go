package chain

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/record"
)

// Devices says which devices a Pod holds; *device.Kubelet does.
type Devices interface {
	// Allocated gives the ids by resource, in the order in which they are handed
	// out to networks.
	Allocated(ctx context.Context, namespace, name string) (map[string][]string, error)
	// Offered says whether the machine has devices of a resource at all.
	Offered(ctx context.Context, resource string) (bool, error)
}

// heldDevice is one device of a Pod.
type heldDevice struct{ resource, id string }

// takesDevice says whether a network can do anything with a device: our kinds
// attach none, so nobody is asked for theirs.
func takesDevice(q *Question, conf *netattach.NetConf) bool {
	_, native := q.Kinds(conf.Plugins[0].Type)
	return !native || conf.Declares(capDeviceID)
}

// resources lists those that the networks in question take devices of.
func (q *Question) resources() []string {
	var out []string
	want := func(resource string, conf *netattach.NetConf) {
		if resource != "" && !slices.Contains(out, resource) && takesDevice(q, conf) {
			out = append(out, resource)
		}
	}
	if q.Default != nil {
		want(q.DefaultResource, q.Default)
	}
	for _, network := range q.Everywhere {
		want(network.Resource, network.Conf)
	}
	for i := range q.Selections {
		nad := q.Definitions[q.Selections[i].FullName()]
		if nad == nil || nad.ResourceName() == "" {
			continue
		}
		if conf, err := q.parsed.config(nad.Config, nad.Name); err == nil { // else Resolve tells of it
			want(nad.ResourceName(), conf)
		}
	}
	return out
}

// lookUpDevices fills in what the Pod holds, if any network takes a device.
func (e *Engine) lookUpDevices(ctx context.Context, q *Question) error {
	if e.Devices == nil {
		return nil
	}
	resources := q.resources()
	if len(resources) == 0 {
		return nil
	}
	held, err := e.Devices.Allocated(ctx, q.Pod.Namespace, q.Pod.Name)
	if err != nil {
		return fmt.Errorf("look up devices of Pod %s: %w", q.Pod, err)
	}
	q.Devices, q.Offered = held, map[string]bool{}
	for _, resource := range resources {
		if len(held[resource]) > 0 {
			continue
		}
		if q.Offered[resource], err = e.Devices.Offered(ctx, resource); err != nil {
			return fmt.Errorf("look up devices of resource %s: %w", resource, err)
		}
	}
	return nil
}

// claimDevices reserves the devices that elements ask for by id, so that no
// other is given them.
func (r *resolver) claimDevices() {
	claim := func(s *netattach.Selection, resource string) {
		if s == nil || s.DeviceID == "" || len(r.Devices[resource]) == 0 {
			return
		}
		field := s.Field + ".deviceID"
		if !slices.Contains(r.Devices[resource], s.DeviceID) {
			r.fail(field, s.DeviceID, fmt.Sprintf("is none of the devices of resource %s that the Pod holds", resource),
				"leave it out, or name one of "+some(r.Devices[resource]))
			return
		}
		device := heldDevice{resource, s.DeviceID}
		if holder, taken := r.devices[device]; taken {
			r.fail(field, s.DeviceID, "is already the device of "+holder, "name another one, or none")
			return
		}
		r.devices[device] = s.FullName()
	}
	for _, a := range r.Present {
		if a.Resource != "" {
			r.devices[heldDevice{a.Resource, a.Device}] = a.Network
		}
	}
	claim(r.DefaultSelection, r.DefaultResource)
	for i := range r.Selections {
		if nad := r.Definitions[r.Selections[i].FullName()]; nad != nil {
			claim(&r.Selections[i], nad.ResourceName())
		}
	}
}

// device gives a network the device it is asked to attach, or the next one of
// its resource.
func (r *resolver) device(d *Delegate, resource string) {
	s := d.Selection
	if s != nil {
		d.Device = s.DeviceID
	}
	if resource == "" || !takesDevice(&r.Question, d.Conf) {
		return
	}
	held := r.Devices[resource]
	if len(held) == 0 && !r.Offered[resource] {
		// A number on the Node, or its device plugin is away: then the id may be that
		// of another Pod's device.
		if d.Device != "" && r.Offered != nil {
			r.fail(s.Field+".deviceID", d.Device, fmt.Sprintf("is no device that the Pod holds: there are none of resource %s on this node", resource),
				"leave it out, or see that the resource's device plugin runs and request one")
		}
		return
	}
	d.Resource = resource
	if d.Device != "" && len(held) > 0 {
		return // claimed
	}
	for _, id := range held {
		if _, taken := r.devices[heldDevice{resource, id}]; !taken {
			r.devices[heldDevice{resource, id}] = d.Network
			d.Device = id
			return
		}
	}
	field := "network " + d.Network
	if s != nil {
		field = s.Field
	}
	if len(held) == 0 {
		r.fail(field, d.Network, fmt.Sprintf("takes a device of resource %s, and the Pod was allocated none", resource),
			fmt.Sprintf("request it in a container of the Pod: resources: {limits: {%q: 1}}", resource))
		return
	}
	r.fail(field, d.Network, fmt.Sprintf("takes a device of resource %s, and all that the Pod was allocated have a network (%s)", resource, some(held)),
		fmt.Sprintf("request as many as there are networks of that resource: limits: {%q: %d}", resource, len(held)+1))
}

// some lists the first few: a message is cut off where an event ends, and its
// remedy stands last.
func some(list []string) string {
	const most = 4
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}

// deviceFile is where the device of a delegate is described; empty: nowhere.
func (r *resolver) deviceFile(d *Delegate) string {
	if d.Resource == "" && !d.Conf.Declares(capDeviceInfo) {
		return ""
	}
	return r.DeviceFiles.Of(d.Network, r.Sandbox, string(d.Interface))
}

// describeDevice copies what the device plugin says of an attachment's device to
// where its plugins read and change it. It is a description: a Pod works without.
func (t *attaching) describeDevice(w *attachment) {
	if w.rec.DeviceFile == "" {
		return
	}
	if err := t.deviceFiles.Describe(w.rec.Resource, w.rec.Device, w.rec.DeviceFile); err != nil {
		t.Log.Warn("device information", "sandbox", t.box.ID, "interface", w.Interface, "err", err)
	}
}

// readDevice notes what is said of the device of an attachment now.
func (t *attaching) readDevice(w *attachment) {
	if w.rec.DeviceFile == "" {
		return
	}
	info, err := t.deviceFiles.Read(w.rec.DeviceFile)
	if err != nil {
		t.Log.Warn("device information", "sandbox", t.box.ID, "interface", w.Interface, "err", err)
	}
	w.rec.DeviceInfo = info
}

// pciAddress is domain:bus:device.function in hex.
var pciAddress = regexp.MustCompile(`^[0-9a-fA-F]{4,}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]$`)

// deviceInfo is what network-status says of an attachment's device: what its
// plugins say, or what its id does.
func deviceInfo(a *record.Attachment) *netattach.DeviceInfo {
	if a.DeviceInfo != nil || !pciAddress.MatchString(a.Device) {
		return a.DeviceInfo
	}
	return &netattach.DeviceInfo{Type: "pci", Version: netattach.DeviceInfoVersion, PCI: &netattach.PCIDevice{PCIAddress: a.Device}}
}
