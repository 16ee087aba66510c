package chain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/device"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// ErrUnknownNetwork says that a network that was asked for does not exist.
var ErrUnknownNetwork = errors.New("no such network")

// Question is what Resolve answers: everything that was looked up for one
// sandbox. Looking up is the caller's, so that the answer is a pure function.
type Question struct {
	Sandbox string
	Pod     record.Pod
	// IfName is the interface of the default network.
	IfName netstate.IfName
	// Default is the default network's config; nil: the Pod has none.
	Default *netattach.NetConf
	// DefaultName is how network-status calls it, and DefaultSelection what the
	// annotation asked of it, if the Pod chose its default network itself.
	DefaultName      string
	DefaultSelection *netattach.Selection
	// DefaultResource is the resource the default network takes a device of.
	DefaultResource string
	// Everywhere are networks every sandbox gets after its default network.
	Everywhere []Everywhere
	// RuntimeConfig is what the runtime told about the Pod (portMappings, ...):
	// it concerns the default network and nobody else.
	RuntimeConfig map[string]json.RawMessage
	// CNIArgs the runtime passed beside the K8S_ ones.
	CNIArgs [][2]string
	// Selections are the further networks in order, and First the number N of
	// the first one's net<N>.
	Selections []netattach.Selection
	First      int
	// Definitions by namespace/name; what is missing does not exist. Elsewhere
	// says, by name, in which namespaces such a one does.
	Definitions map[string]*netattach.NetworkAttachmentDefinition
	Elsewhere   map[string][]string
	// Devices the Pod holds, by resource, in the order in which they are handed
	// out; of the resources it holds none of, Offered are those that have devices.
	Devices     map[string][]string
	Offered     map[string]bool
	DeviceFiles device.Files
	// Present are the attachments the sandbox has already.
	Present []*record.Attachment
	// Kinds is the table of native kinds.
	Kinds func(pluginType string) (kind.Kind, bool)
	// ForeignIPAM says of a type of IPAM that weft answers, too, whether its plugin
	// is to be asked; nil: of none.
	ForeignIPAM func(ipamType string) bool
	// FlatFile reads a file with defaults for networks of ipam type whereabouts;
	// nil: there are none.
	FlatFile func(path string) ([]byte, error)

	parsed *parsedConfigs // nil: every config is read anew
}

// Everywhere is a network of every sandbox.
type Everywhere struct {
	// Name is how network-status calls it.
	Name string
	Conf *netattach.NetConf
	// Resource it takes a device of; empty: none.
	Resource string
}

// Delegate is one attachment to make.
type Delegate struct {
	Network   string
	Interface netstate.IfName
	Default   bool
	// Conf is the network's config with the Pod's cni-args in it.
	Conf           *netattach.NetConf
	Selection      *netattach.Selection
	CNIArgs        [][2]string
	CapabilityArgs map[string]json.RawMessage
	// Device it attaches, and the Resource that is of if the kubelet gave it.
	Resource, Device string
	// DeviceFile describes the device; empty: nothing does.
	DeviceFile string
	// Native is the first plugin as parsed by its native kind; nil: foreign.
	Native kind.Conf
	// IPAM is the foreign IPAM plugin of a native first plugin; empty: none.
	IPAM string
	// Claim is whose the addresses are; nil: the attachment's own.
	Claim *netattach.IPAMClaim
	// Sticky: they are the Pod's name's.
	Sticky bool
}

// Foreign says whether a binary takes part.
func (d *Delegate) Foreign() bool {
	return d.Native == nil || d.IPAM != "" || len(d.Conf.Plugins) > 1
}

// Resolve turns the question into the attachments to make, in order, or into
// all the reasons why that cannot be. Every reason is a hint.
func Resolve(q Question) ([]Delegate, error) {
	r := resolver{Question: q, names: map[netstate.IfName]string{}, devices: map[heldDevice]string{}}
	r.claimDevices()
	for _, a := range q.Present {
		r.names[a.Interface] = a.Network
	}
	if q.Default != nil {
		r.add(wanted{network: q.DefaultName, name: q.IfName, conf: q.Default, resource: q.DefaultResource, selection: q.DefaultSelection, isDefault: true})
	}
	// Names that were asked for go before those that are numbered, so that the
	// element with the number is the one told to step aside.
	for i := range q.Selections {
		r.claim(&q.Selections[i])
	}
	for i, network := range q.Everywhere {
		if name, free := r.numbered(q.First+i, "default network "+network.Name, network.Name); free {
			r.add(wanted{network: network.Name, name: name, conf: network.Conf, resource: network.Resource})
		}
	}
	for i := range q.Selections {
		r.selection(&q.Selections[i], q.First+len(q.Everywhere)+i)
	}
	r.defaultRoutes()
	r.macs()
	if err := errors.Join(r.errs...); err != nil {
		return nil, err
	}
	return r.out, nil
}

type resolver struct {
	Question
	names   map[netstate.IfName]string // who has the interface
	devices map[heldDevice]string      // who has the device
	out     []Delegate
	errs    []error
}

// wanted is one attachment before it is resolved.
type wanted struct {
	network   string
	name      netstate.IfName
	conf      *netattach.NetConf
	resource  string
	selection *netattach.Selection
	isDefault bool
}

func (r *resolver) fail(field, value, problem, remedy string) {
	r.errs = append(r.errs, &hint.Error{Field: field, Value: value, Problem: problem, Remedy: remedy})
}

// claim reserves the interface name an element asks for.
func (r *resolver) claim(s *netattach.Selection) {
	if s.Interface == "" {
		return
	}
	field := s.Field + ".interface"
	if err := netattach.ValidInterface(field, s.Interface); err != nil {
		r.errs = append(r.errs, err)
		return
	}
	name := netstate.IfName(s.Interface)
	if holder, taken := r.names[name]; taken {
		r.fail(field, s.Interface, "is already the interface of "+holder, "choose another name, or none")
		return
	}
	r.names[name] = s.FullName()
}

// selection resolves one element of the annotation; number is its place.
func (r *resolver) selection(s *netattach.Selection, number int) {
	name := netstate.IfName(s.Interface)
	if name == "" {
		var free bool
		if name, free = r.numbered(number, s.Field, s.FullName()); !free {
			return
		}
	}
	nad := r.Definitions[s.FullName()]
	if nad == nil {
		r.errs = append(r.errs, unknown(s, r.Elsewhere[s.Name]))
		return
	}
	conf, err := r.parsed.config(nad.Config, nad.Name)
	if err != nil {
		r.errs = append(r.errs, ofNetwork(nad.FullName(), err))
		return
	}
	r.add(wanted{network: nad.FullName(), name: name, conf: conf, resource: nad.ResourceName(), selection: s})
}

// numbered reserves net<number> for a network that asks for no name.
func (r *resolver) numbered(number int, field, network string) (netstate.IfName, bool) {
	name := netstate.IfName(fmt.Sprintf("net%d", number))
	if holder, taken := r.names[name]; taken {
		r.fail(field, network, fmt.Sprintf("would get the interface %s by its place, which %s has", name, holder), "give it an interface name, or give the other one another")
		return name, false
	}
	r.names[name] = network
	return name, true
}

// unknown says that a network does not exist, and where one of that name does.
func unknown(s *netattach.Selection, elsewhere []string) error {
	h := &hint.Error{
		Field: s.Field + ".name", Value: s.Name, Problem: fmt.Sprintf("there is no %s %s", netattach.Kind, s.FullName()),
		Remedy: "create it, or correct the name", Err: ErrUnknownNetwork,
	}
	others := slices.DeleteFunc(slices.Clone(elsewhere), func(ns string) bool { return ns == s.Namespace })
	if len(others) > 0 {
		slices.Sort(others)
		h.Remedy = fmt.Sprintf("one of that name is in namespace %s: write %s/%s, or create it in %s", strings.Join(others, ", "), others[0], s.Name, s.Namespace)
	}
	return h
}

// ofNetwork says of which network the hints in err speak.
func ofNetwork(network string, err error) error {
	return eachHint(err, func(h *hint.Error) { h.Field = "network " + network + ": " + h.Field })
}

// eachHint gives err with a changed copy of every hint in it.
func eachHint(err error, change func(*hint.Error)) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var parts []error
		for _, part := range joined.Unwrap() {
			parts = append(parts, eachHint(part, change))
		}
		return errors.Join(parts...)
	}
	h, ok := err.(*hint.Error) //nolint:errorlint // this walks the tree itself
	if !ok {
		return err
	}
	copied := *h
	change(&copied)
	return &copied
}

// add makes one delegate, unless something speaks against it.
func (r *resolver) add(w wanted) {
	if w.isDefault && !r.defaultName(&w) {
		return
	}
	d := Delegate{Network: w.network, Interface: w.name, Default: w.isDefault, Selection: w.selection, Conf: w.conf}
	r.device(&d, w.resource)
	d.DeviceFile = r.deviceFile(&d)
	var err error
	if d.Conf, err = withRequest(w.conf, w.selection, d.Device); err != nil {
		r.errs = append(r.errs, ofNetwork(w.network, err))
		return
	}
	main := &d.Conf.Plugins[0]
	native, isNative := r.Kinds(main.Type)
	if isNative && main.IPAMType != "" && (!ipam.Supported(main.IPAMType) || r.ForeignIPAM != nil && r.ForeignIPAM(main.IPAMType)) {
		d.IPAM = main.IPAMType
	}
	if isNative && d.IPAM == "" && main.IPAMType == ipam.TypeWhereabouts {
		if d.Conf, err = r.withFlatFile(d.Conf); err != nil {
			r.errs = append(r.errs, ofNetwork(w.network, err))
			return
		}
	}
	if d.CapabilityArgs, err = r.capabilities(&d); err != nil {
		r.errs = append(r.errs, err)
		return
	}
	if err := claimable(&d, isNative); err != nil {
		r.errs = append(r.errs, err)
		return
	}
	d.CNIArgs = r.cniArgs(w.selection)
	if !isNative {
		r.out = append(r.out, d)
		return
	}
	if err := notForNative(&d); err != nil {
		r.errs = append(r.errs, err)
		return
	}
	if d.Native, err = r.parsed.native(native, &d); err != nil {
		r.errs = append(r.errs, err)
		return
	}
	r.out = append(r.out, d)
}

// defaultName reserves the interface of the default network.
func (r *resolver) defaultName(w *wanted) bool {
	if s := w.selection; s != nil && s.Interface != "" {
		w.name = netstate.IfName(s.Interface)
	}
	if err := netattach.ValidInterface("default network: interface", string(w.name)); err != nil {
		r.errs = append(r.errs, err)
		return false
	}
	if holder, taken := r.names[w.name]; taken {
		r.fail("default network: interface", string(w.name), "is already the interface of "+holder, "choose another name")
		return false
	}
	r.names[w.name] = w.network
	return true
}

// withRequest puts what the Pod asks for into the config itself: its cni-args
// into args.cni of each plugin, where they win over the network's own, and the
// device.
func withRequest(conf *netattach.NetConf, s *netattach.Selection, device string) (*netattach.NetConf, error) {
	var cniArgs map[string]json.RawMessage
	if s != nil {
		cniArgs = s.CNIArgs
	}
	if len(cniArgs) == 0 && device == "" {
		return conf, nil
	}
	plugins := make([]json.RawMessage, len(conf.Plugins))
	for i, p := range conf.Plugins {
		changes := map[string]any{}
		if len(cniArgs) > 0 {
			args, err := mergeArgs(fmt.Sprintf("spec.config.plugins[%d].args", i), p.Bytes, cniArgs)
			if err != nil {
				return nil, err
			}
			changes["args"] = args
		}
		if device != "" {
			// Both names are in use among plugins.
			changes["deviceID"], changes["pciBusID"] = device, device
		}
		changed, err := inject(p.Bytes, changes)
		if err != nil {
			return nil, err
		}
		plugins[i] = changed
	}
	list, err := inject(conf.Bytes, map[string]any{"plugins": plugins})
	if err != nil {
		return nil, err
	}
	return netattach.ParseConfig(list, conf.Name)
}

func mergeArgs(field string, plugin []byte, own map[string]json.RawMessage) (map[string]json.RawMessage, error) {
	var conf struct {
		Args json.RawMessage `json:"args"`
	}
	if err := json.Unmarshal(plugin, &conf); err != nil {
		return nil, fmt.Errorf("read plugin config: %w", err)
	}
	args := map[string]json.RawMessage{}
	cni := map[string]json.RawMessage{}
	if len(conf.Args) > 0 {
		if err := json.Unmarshal(conf.Args, &args); err != nil {
			return nil, &hint.Error{Field: field, Value: string(conf.Args), Problem: "is no object", Remedy: `write "args": {"cni": {...}}`}
		}
	}
	if args == nil {
		args = map[string]json.RawMessage{}
	}
	if raw := args["cni"]; len(raw) > 0 && string(raw) != "null" {
		if err := json.Unmarshal(raw, &cni); err != nil {
			return nil, &hint.Error{Field: field + ".cni", Value: string(raw), Problem: "is no object", Remedy: `write "args": {"cni": {...}}`}
		}
	}
	for key, value := range own {
		cni[key] = value
	}
	raw, err := json.Marshal(cni)
	if err != nil {
		return nil, fmt.Errorf("encode args: %w", err)
	}
	args["cni"] = raw
	return args, nil
}

// inject sets top-level keys of a JSON object and leaves all else as written.
func inject(object []byte, changes map[string]any) ([]byte, error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(object, &fields); err != nil {
		return nil, fmt.Errorf("read plugin config: %w", err)
	}
	for key, value := range changes {
		raw, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", key, err)
		}
		fields[key] = raw
	}
	out, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("encode plugin config: %w", err)
	}
	return out, nil
}

// cniArgs are what every plugin of the attachment gets in CNI_ARGS.
func (r *resolver) cniArgs(s *netattach.Selection) [][2]string {
	args := [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", r.Pod.Namespace},
		{"K8S_POD_NAME", r.Pod.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", r.Sandbox},
		{"K8S_POD_UID", r.Pod.UID},
	}
	for _, arg := range r.CNIArgs {
		known := slices.ContainsFunc(args, func(have [2]string) bool { return have[0] == arg[0] })
		if !known && !strings.Contains(arg[0]+arg[1], ";") {
			args = append(args, arg)
		}
	}
	if s == nil {
		return args
	}
	if s.MAC != "" {
		args = append(args, [2]string{"MAC", s.MAC})
	}
	if len(s.IPs) > 0 {
		var texts []string
		for _, ip := range s.IPs {
			texts = append(texts, ip.String())
		}
		args = append(args, [2]string{"IP", strings.Join(texts, ",")})
	}
	return args
}

// defaultRoutes allows one gateway per family over all attachments, those the
// sandbox has already included.
func (r *resolver) defaultRoutes() {
	asked := map[bool]string{}
	for _, a := range r.Present {
		if a.Selection == nil {
			continue
		}
		for _, gw := range a.Selection.DefaultRoute {
			asked[gw.Is4()] = "interface " + string(a.Interface)
		}
	}
	for i := range r.out {
		s := r.out[i].Selection
		if s == nil {
			continue
		}
		for j, gw := range s.DefaultRoute {
			field := fmt.Sprintf("%s.default-route[%d]", s.Field, j)
			if first, taken := asked[gw.Is4()]; taken {
				r.fail(field, gw.String(), "is a second default route of its family; "+first+" has the first", "keep one gateway per address family")
				continue
			}
			asked[gw.Is4()] = field
		}
	}
}

// macs refuses one MAC asked for twice on the same network.
func (r *resolver) macs() {
	type key struct{ network, mac string }
	holders := map[key]string{}
	for _, a := range r.Present {
		if a.Selection != nil && a.Selection.MAC != "" {
			holders[key{a.Network, a.Selection.MAC}] = string(a.Interface)
		}
	}
	for i := range r.out {
		s := r.out[i].Selection
		if s == nil || s.MAC == "" {
			continue
		}
		k := key{r.out[i].Network, s.MAC}
		if holder, taken := holders[k]; taken {
			r.fail(s.Field+".mac", s.MAC, fmt.Sprintf("is already the MAC of %s on network %s", holder, k.network), "give each interface of a network a MAC of its own")
			continue
		}
		holders[k] = string(r.out[i].Interface)
	}
}

// joinArgs gives CNI_ARGS as one text.
func joinArgs(args [][2]string) string {
	var b strings.Builder
	for _, arg := range args {
		if b.Len() > 0 {
			b.WriteByte(';')
		}
		b.WriteString(arg[0] + "=" + arg[1])
	}
	return b.String()
}

// pluginConfig is what a plugin reads: its own object with the network's name
// and version, and of the capability arguments those it declared.
func pluginConfig(conf *netattach.NetConf, p *netattach.PluginConf, capabilityArgs map[string]json.RawMessage) ([]byte, error) {
	changes := map[string]any{"name": conf.Name}
	if conf.CNIVersion != "" {
		changes["cniVersion"] = conf.CNIVersion
	}
	runtimeConfig := map[string]json.RawMessage{}
	for name, value := range capabilityArgs {
		if p.Declares(name) {
			runtimeConfig[name] = value
		}
	}
	if len(runtimeConfig) > 0 {
		changes["runtimeConfig"] = runtimeConfig
	}
	return inject(p.Bytes, changes)
}

// parseNative reads the first plugin's config with its native kind. A foreign
// IPAM is taken out of it: what it gives is not known yet.
func parseNative(k kind.Kind, d *Delegate) (kind.Conf, error) {
	config, err := pluginConfig(d.Conf, &d.Conf.Plugins[0], d.CapabilityArgs)
	if err != nil {
		return nil, err
	}
	cniArgs := joinArgs(d.CNIArgs)
	if d.IPAM != "" {
		if config, cniArgs, err = withoutIPAM(config, d); err != nil {
			return nil, err
		}
	}
	conf, err := k.Parse(kind.Input{Config: config, CNIArgs: cniArgs})
	if err != nil {
		return nil, blame(d, err)
	}
	return conf, nil
}

// withoutIPAM takes the ipam object and the requests meant for it out.
func withoutIPAM(config []byte, d *Delegate) ([]byte, string, error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, "", fmt.Errorf("read plugin config: %w", err)
	}
	delete(fields, "ipam")
	if raw := fields["runtimeConfig"]; len(raw) > 0 {
		runtimeConfig := map[string]json.RawMessage{}
		if err := json.Unmarshal(raw, &runtimeConfig); err != nil {
			return nil, "", fmt.Errorf("read runtimeConfig: %w", err)
		}
		delete(runtimeConfig, "ips")
		delete(runtimeConfig, "ipRanges")
		changed, err := json.Marshal(runtimeConfig)
		if err != nil {
			return nil, "", fmt.Errorf("encode runtimeConfig: %w", err)
		}
		fields["runtimeConfig"] = changed
	}
	out, err := json.Marshal(fields)
	if err != nil {
		return nil, "", fmt.Errorf("encode plugin config: %w", err)
	}
	args := slices.DeleteFunc(slices.Clone(d.CNIArgs), func(arg [2]string) bool { return arg[0] == "IP" || arg[0] == "GATEWAY" })
	return out, joinArgs(args), nil
}

// blame puts the fields of hints where the user wrote them: a request that
// reached the kind as CNI_ARGS or runtimeConfig stands in the annotation, and
// everything else in the network's config.
func blame(d *Delegate, err error) error {
	return eachHint(err, func(h *hint.Error) {
		if d.Selection != nil {
			if d.Selection.Field != "" && strings.HasPrefix(h.Field, d.Selection.Field) {
				return // it stands there already
			}
			for _, way := range []struct{ from, to string }{
				{"CNI_ARGS.IP", ".ips"},
				{"runtimeConfig.ips", ".ips"},
				{"CNI_ARGS.MAC", ".mac"},
				{"runtimeConfig.mac", ".mac"},
				{"args.cni", ".cni-args"},
			} {
				if rest, ok := strings.CutPrefix(h.Field, way.from); ok {
					h.Field = d.Selection.Field + way.to + rest
					return
				}
			}
		}
		switch where := "spec.config"; {
		case h.Field == "":
			h.Field = fmt.Sprintf("network %s: %s", d.Network, where)
		case bytes.HasPrefix([]byte(h.Field), []byte(where)):
			h.Field = fmt.Sprintf("network %s: %s", d.Network, h.Field)
		default:
			h.Field = fmt.Sprintf("network %s: %s.%s", d.Network, where, h.Field)
		}
	})
}
