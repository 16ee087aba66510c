package kubevirt_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/internal/hint"
)

const (
	devices = "domain: {memory: {guest: 64Mi}, devices: "
	ifaces  = "spec.domain.devices.interfaces"
)

// nets is a spec with these interfaces and networks.
func nets(interfaces, networks string) string {
	return devices + "{interfaces: [" + interfaces + "]}}\nnetworks: [" + networks + "]"
}

const (
	pod = "{name: p, pod: {}}"
	mul = "{name: m, multus: {networkName: x}}"
)

// one masqueraded interface with more fields.
func masq(more string) string { return nets("{name: p, masquerade: {}, "+more+"}", pod) }

// one bridged interface with more fields.
func brdg(more string) string { return nets("{name: m, bridge: {}, "+more+"}", mul) }

// TestAdmission holds KubeVirt's admission table and our additions: each row is
// a spec and the one problem (field and text) it must be refused with.
func TestAdmission(t *testing.T) {
	tests := []struct{ name, spec, field, problem string }{
		{"two pod networks", nets("{name: p, masquerade: {}}, {name: q, masquerade: {}}", pod+", {name: q, pod: {}}"), ifaces, "more than one interface is connected to a pod network in " + ifaces},
		{"two multus defaults", nets("{name: a, bridge: {}}, {name: b, bridge: {}}", "{name: a, multus: {networkName: x, default: true}}, {name: b, multus: {networkName: w, default: true}}"), "spec.networks", "Multus CNI should only have one default network"},
		{"pod and multus default", nets("{name: p, masquerade: {}}, {name: b, bridge: {}}", pod+", {name: b, multus: {networkName: w, default: true}}"), "spec.networks", "Pod network cannot be defined when Multus default network is defined"},
		{"no source", nets("{name: m, bridge: {}}", "{name: m}"), "spec.networks[0]", "should have a network type"},
		{"two sources", nets("{name: m, bridge: {}}", "{name: m, pod: {}, multus: {networkName: x}}"), "spec.networks[0]", "should have only one network type"},
		{"no network name", nets("{name: m, bridge: {}}", "{name: m, multus: {networkName: ''}}"), "spec.networks[0]", "CNI delegating plugin must have a networkName"},
		{"bad state", brdg("state: sideways"), ifaces + "[0].state", "logical m interface state value is unsupported: sideways"},
		{"absent on default network", nets("{name: p, bridge: {}, state: absent}", pod), ifaces + "[0].state", `"p" interface's state "absent" is not supported on default networks`},
		{"no binding", nets("{name: m}", mul), ifaces + "[0]", "logical m interface must have exactly one binding method or binding plugin"},
		{"two bindings", nets("{name: p, bridge: {}, masquerade: {}}", pod), ifaces + "[0]", "logical p interface must have exactly one binding method or binding plugin"},
		{"masquerade on multus", nets("{name: m, masquerade: {}}", mul), ifaces + "[0].name", "Masquerade interface only implemented with pod network"},
		{"reserved MAC", brdg("macAddress: '02-00-00-00-00-00'"), ifaces + "[0].macAddress", "The requested MAC address is reserved for the in-pod bridge. Please choose another one."},
		{"slirp", nets("{name: p, slirp: {}}", pod), ifaces + "[0].slirp", "Slirp interface support has been discontinued since v1.3"},
		{"passt", nets("{name: p, passt: {}}", pod), ifaces + "[0].passt", "Passt network binding has been discontinued since v1.3"},
		{"macvtap", nets("{name: m, macvtap: {}}", mul), ifaces + "[0].macvtap", "Macvtap network binding has been discontinued since v1.3"},
		{"core passt", nets("{name: p, passtBinding: {}}", pod), ifaces + "[0].name", "PasstBinding feature gate is not enabled"},
		{"SR-IOV", nets("{name: m, sriov: {}}", mul), ifaces + "[0].sriov", "SR-IOV NICs are not supported on one machine yet"},
		{"plugin", nets("{name: p, binding: {name: zap}}", pod), ifaces + "[0].binding", "unable to find the network binding plugin 'zap' in Kubevirt configuration"},
		{"network without interface", nets("{name: p, masquerade: {}}", pod+", "+mul), "spec.networks[1].name", "spec.networks[1].name 'm' not found."},
		{"interface without network", nets("{name: p, masquerade: {}}, {name: m, bridge: {}}", pod), ifaces + "[1].name", ifaces + "[1].name 'm' not found."},
		{"duplicate network", nets("{name: m, bridge: {}}", mul+", "+mul), "spec.networks[1].name", `Network with name "m" already exists, every network must have a unique name`},
		{"duplicate interface", nets("{name: m, bridge: {}}, {name: m, bridge: {}}", mul), ifaces + "[1].name", "Only one interface can be connected to one specific network"},
		{"name characters", nets("{name: a.b, bridge: {}}", "{name: a.b, multus: {networkName: x}}"), ifaces + "[0].name", "Network interface name can only contain alphabetical characters, numbers, dashes (-) or underscores (_)"},
		{"model", brdg("model: vmxnet3"), ifaces + "[0].model", "interface " + ifaces + "[0].name uses model vmxnet3 that is not supported."},
		{"malformed MAC", brdg("macAddress: 'xx'"), ifaces + "[0].macAddress", "interface " + ifaces + "[0].name has malformed MAC address (xx)."},
		{"long MAC", brdg("macAddress: '02:00:00:00:00:00:00:01'"), ifaces + "[0].macAddress", "interface " + ifaces + "[0].name has too long MAC address (02:00:00:00:00:00:00:01)."},
		{"PCI address", brdg("pciAddress: '0000:00:08.9'"), ifaces + "[0].pciAddress", "interface " + ifaces + "[0].name has malformed PCI address (0000:00:08.9)."},
		{"port zero", masq("ports: [{}]"), ifaces + "[0].ports[0].port", "Port field is mandatory."},
		{"port range", masq("ports: [{port: 80}, {port: 70000}]"), ifaces + "[0].ports[1].port", "Port field must be in range 0 < x < 65536."},
		{"port protocol", masq("ports: [{port: 80, protocol: tcp}]"), ifaces + "[0].ports[0].protocol", "Unknown protocol, only TCP or UDP allowed"},
		{"port name twice", masq("ports: [{port: 80, name: a}, {port: 81, name: a}]"), ifaces + "[0].ports[1].name", "Duplicate name of the port: a"},
		{"port name", masq("ports: [{port: 80, name: a_b}]"), ifaces + "[0].ports[0].name", "Invalid name of the port: a_b"},
		{"ports and ranges", masq("ports: [{port: 80}], portRanges: [{protocol: TCP, start: 1, end: 2}]"), ifaces + "[0].name", "Cannot define both ports and portRanges on interface"},
		{"ranges on bridge", brdg("portRanges: [{protocol: TCP, start: 1, end: 2}]"), ifaces + "[0].name", "portRanges are only supported on masquerade interfaces"},
		{"eleven ranges", masq("portRanges: [" + elevenRanges() + "]"), ifaces + "[0].portRanges", "No more than 10 portRanges are allowed"},
		{"range start", masq("portRanges: [{protocol: TCP, start: 0, end: 2}]"), ifaces + "[0].portRanges[0].start", "Start must be a valid port number, 0 < x < 65536"},
		{"range end", masq("portRanges: [{protocol: TCP, start: 1, end: 65536}]"), ifaces + "[0].portRanges[0].end", "End must be a valid port number, 0 < x < 65536"},
		{"range order", masq("portRanges: [{protocol: TCP, start: 3, end: 2}]"), ifaces + "[0].portRanges[0].start", "Start must be less than or equal to end"},
		{"ranges overlap", masq("portRanges: [{protocol: TCP, start: 1, end: 9}, {protocol: TCP, start: 9, end: 12}]"), ifaces + "[0].portRanges", "TCP portRanges [1-9] and [9-12] overlap"},
		{"DHCP option range", masq("dhcpOptions: {privateOptions: [{option: 223, value: a}]}"), ifaces + "[0].dhcpOptions.privateOptions[0].option", "provided DHCPPrivateOptions are out of range, must be in range 224 to 254"},
		{"DHCP option twice", masq("dhcpOptions: {privateOptions: [{option: 224, value: a}, {option: 224, value: b}]}"), ifaces + "[0].dhcpOptions.privateOptions[1].option", "Found Duplicates: you have provided duplicate DHCPPrivateOptions"},
		{"NTP", masq("dhcpOptions: {ntpServers: [192.0.2.1, ntp.example]}"), ifaces + "[0].dhcpOptions.ntpServers[1]", "NTP servers must be a list of valid IPv4 addresses."},
		{"DRA", nets("{name: d, bridge: {}}", "{name: d, resourceClaim: {claimName: c, requestName: r}}"), "spec.networks[0].resourceClaim", "vmi.spec.networks contains DRA networks but NetworkDevicesWithDRA feature gate is not enabled"},
		// Ours.
		{"multicast MAC", brdg("macAddress: '01:00:00:00:00:01'"), ifaces + "[0].macAddress", "is a multicast address, which no NIC can have"},
		{"zero MAC", brdg("macAddress: '00:00:00:00:00:00'"), ifaces + "[0].macAddress", "is the zero address, which no NIC can have"},
		{"duplicate MAC", nets("{name: p, masquerade: {}, macAddress: '02:00:00:00:00:0a'}, {name: m, bridge: {}, macAddress: '02-00-00-00-00-0A'}", pod+", "+mul), ifaces + "[1].macAddress", "duplicate MAC address 02:00:00:00:00:0a found on interfaces: p and m"},
		{"boot order twice", nets("{name: p, masquerade: {}, bootOrder: 2}, {name: m, bridge: {}, bootOrder: 2}", pod+", "+mul), ifaces + "[1].bootOrder", "Boot order for " + ifaces + "[1] already set for a different device."},
		{"boot order of disk and NIC", devices + "{disks: [{name: d, disk: {}, bootOrder: 1}], interfaces: [{name: p, masquerade: {}, bootOrder: 1}]}}\nnetworks: [" + pod + "]\nvolumes: [{name: d, emptyDisk: {capacity: 1Gi}}]", ifaces + "[0].bootOrder", "Boot order for " + ifaces + "[0] already set for a different device."},
		{"boot order zero", masq("bootOrder: 0"), ifaces + "[0].bootOrder", ifaces + "[0] must have a boot order > 0, if supplied"},
		{"ACPI index range", masq("acpiIndex: 16384"), ifaces + "[0].acpiIndex", "is not between 1 and 16383"},
		{"ACPI index twice", nets("{name: p, masquerade: {}, acpiIndex: 1}, {name: m, bridge: {}, acpiIndex: 1}", pod+", "+mul), ifaces + "[1].acpiIndex", "is taken by interface p"},
		{"small CIDR", nets("{name: p, masquerade: {}}", "{name: p, pod: {vmNetworkCIDR: 10.0.0.0/31}}"), "spec.networks[0].pod.vmNetworkCIDR", "VM CIDR subnet is too small, at least 2 host addresses are required: 10.0.0.0/31"},
		{"small IPv6 CIDR", nets("{name: p, masquerade: {}}", "{name: p, pod: {vmIPv6NetworkCIDR: 'fd00::/127'}}"), "spec.networks[0].pod.vmIPv6NetworkCIDR", "VM CIDR subnet is too small, at least 2 host addresses are required: fd00::/127"},
		{"CIDR", nets("{name: p, masquerade: {}}", "{name: p, pod: {vmNetworkCIDR: ten}}"), "spec.networks[0].pod.vmNetworkCIDR", "is not a CIDR"},
		{"CIDR family", nets("{name: p, masquerade: {}}", "{name: p, pod: {vmNetworkCIDR: 'fd00::/64'}}"), "spec.networks[0].pod.vmNetworkCIDR", "is of the other address family"},
		{"no memory", "domain: {devices: {}}", "spec.domain.memory.guest", "no memory requested, at least one of 'spec.domain.memory.guest', 'spec.domain.memory.hugepages.size' or 'spec.domain.resources.requests.memory' must be set"},
		{"little memory", "domain: {memory: {guest: 64}, devices: {}}", "spec.domain.memory.guest", "is less than one MiB"},
		{"negative memory", "domain: {memory: {guest: -64Mi}, devices: {}}", "spec.domain.memory.guest", "is less than one MiB"},
		{"vCPUs", "domain: {memory: {guest: 64Mi}, cpu: {sockets: 4294967295, cores: 4294967295, threads: 4294967295}, devices: {}}", "spec.domain.cpu", "sockets x cores x threads is more than 255"},
		{"cores as text", "domain: {memory: {guest: 64Mi}, cpu: {cores: two}, devices: {}}", "spec.domain.cpu.cores", "is not a number that fits"},
		{"network name as bool", nets("{name: m, bridge: {}}", "{name: m, multus: {networkName: true}}"), "spec.networks.multus.networkName", "is not a text"},
		{"boot file as list", masq("dhcpOptions: {bootFileName: []}"), "spec.domain.devices.interfaces.dhcpOptions.bootFileName", "is not a text"},
		{"memory as text", "domain: {memory: {guest: much}, devices: {}}", "", "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"},
		{"hostname", "hostname: A_B\n" + devices + "{}}", "spec.hostname", "does not conform to the kubernetes DNS_LABEL rules"},
		{"name server", "dnsConfig: {nameservers: [dns.example]}\n" + devices + "{}}", "spec.dnsConfig.nameservers[0]", "is not an IP address"},
		{"kernel without image", "domain: {memory: {guest: 64Mi}, firmware: {kernelBoot: {container: {kernelPath: /k}}}, devices: {}}", "spec.domain.firmware.kernelBoot.container.image", "image must be provided in order to use kernel boot"},
		{"kernel args alone", "domain: {memory: {guest: 64Mi}, firmware: {kernelBoot: {kernelArgs: quiet}}, devices: {}}", "spec.domain.firmware.kernelBoot", "kernel arguments cannot be provided without an external kernel"},
		{"disk without volume", devices + "{disks: [{name: d, disk: {}}]}}", "spec.domain.devices.disks[0].name", "spec.domain.devices.disks[0].Name 'd' not found."},
		{"volume twice", devices + "{}}\nvolumes: [{name: v, emptyDisk: {capacity: 1Gi}}, {name: v, emptyDisk: {capacity: 1Gi}}]", "spec.volumes[1].name", "spec.volumes[0] and spec.volumes[1] must not have the same Name."},
		{"volume without source", devices + "{}}\nvolumes: [{name: v}]", "spec.volumes[0]", "spec.volumes[0] must have exactly one source type set"},
		{"data volume", devices + "{}}\nvolumes: [{name: v, dataVolume: {name: x}}]", "spec.volumes[0].dataVolume", "is not supported on one machine"},
		{"claim", devices + "{}}\nvolumes: [{name: v, persistentVolumeClaim: {claimName: x}}]", "spec.volumes[0].persistentVolumeClaim", "is not supported on one machine"},
		{"cloud-init secret", devices + "{}}\nvolumes: [{name: v, cloudInitNoCloud: {secretRef: {name: s}}}]", "spec.volumes[0].cloudInitNoCloud", "data from a Secret is not supported on one machine"},
		{"cloud-init twice", devices + "{}}\nvolumes: [{name: v, cloudInitNoCloud: {userData: a, userDataBase64: YQ==}}]", "spec.volumes[0].cloudInitNoCloud", "must have exactly one userdata source set"},
		{"cloud-init base64", devices + "{}}\nvolumes: [{name: v, cloudInitNoCloud: {userDataBase64: '***'}}]", "spec.volumes[0].cloudInitNoCloud.userDataBase64", "is not base64: illegal base64 data at input byte 0"},
		{"empty disk", devices + "{}}\nvolumes: [{name: v, emptyDisk: {capacity: 0}}]", "spec.volumes[0].emptyDisk.capacity", "must be greater than 0"},
		{"host disk type", devices + "{}}\nvolumes: [{name: v, hostDisk: {path: /x, type: File}}]", "spec.volumes[0].hostDisk.type", "has invalid value, allowed are 'DiskOrCreate' or 'Disk'"},
		{"disk bus", devices + "{disks: [{name: d, disk: {bus: ide}}]}}\nvolumes: [{name: d, emptyDisk: {capacity: 1Gi}}]", "spec.domain.devices.disks[0].disk.bus", "is set with an unrecognized bus"},
		{"lun", devices + "{disks: [{name: d, lun: {}}]}}\nvolumes: [{name: d, emptyDisk: {capacity: 1Gi}}]", "spec.domain.devices.disks[0].lun", "LUN pass-through is not supported on one machine"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			obj := parse(t, []byte("apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nmetadata: {name: vm}\nspec:\n  "+strings.ReplaceAll(tt.spec, "\n", "\n  ")))
			_, _, err := kubevirt.FromVMI(obj)
			hints := hintsOf(err)
			if len(hints) != 1 {
				t.Fatalf("want one problem, got %d: %v", len(hints), err)
			}
			h := hints[0]
			if h.Problem != tt.problem || h.Field != tt.field {
				t.Errorf("got %q: %q\nwant %q: %q", h.Field, h.Problem, tt.field, tt.problem)
			}
			if h.Remedy == "" {
				t.Error("no remedy")
			}
		})
	}
}

// TestStateOnSRIOV: KubeVirt's words for a cable that cannot be pulled, beside
// ours for the binding.
func TestStateOnSRIOV(t *testing.T) {
	for _, state := range []string{"up", "down"} {
		_, _, err := kubevirt.FromVMI(parse(t, []byte("spec:\n  "+strings.ReplaceAll(nets("{name: m, sriov: {}, state: "+state+"}", mul), "\n", "\n  "))))
		found := slices.ContainsFunc(hintsOf(err), func(h *hint.Error) bool {
			return h.Field == ifaces+"[0].state" && h.Problem == `"m" interface's state "`+state+`" is not supported for SR-IOV NICs`
		})
		if !found {
			t.Errorf("state %s: %v", state, err)
		}
	}
}

// TestAbsentOnMasquerade: such an interface is on the default network too, so it
// is refused for both reasons.
func TestAbsentOnMasquerade(t *testing.T) {
	_, _, err := kubevirt.FromVMI(parse(t, []byte("spec:\n  "+strings.ReplaceAll(masq("state: absent"), "\n", "\n  "))))
	hints := hintsOf(err)
	if len(hints) != 2 || hints[0].Field != ifaces+"[0].state" ||
		hints[0].Problem != `"p" interface's state "absent" is supported only for bridge binding` {
		t.Errorf("got %v", err)
	}
}

func elevenRanges() string {
	var list []string
	for _, n := range strings.Fields("1 2 3 4 5 6 7 8 9 10 11") {
		list = append(list, "{protocol: UDP, start: "+n+", end: "+n+"}")
	}
	return strings.Join(list, ", ")
}

// hintsOf takes a joined error apart; anything that is no hint counts as one.
func hintsOf(err error) []*hint.Error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []*hint.Error
		for _, part := range joined.Unwrap() {
			all = append(all, hintsOf(part)...)
		}
		return all
	}
	var h *hint.Error
	if errors.As(err, &h) {
		return []*hint.Error{h}
	}
	return []*hint.Error{{Problem: "not a hint: " + err.Error()}}
}

func TestVirtualMachine(t *testing.T) {
	const template = "  template: {spec: {domain: {memory: {guest: 64Mi}, devices: {}}}}\n"
	tests := []struct {
		name, spec string
		strategy   kubevirt.RunStrategy
		problems   []string
	}{
		{"running", "  running: true\n" + template, kubevirt.Always, nil},
		{"stopped", "  running: false\n" + template, kubevirt.Halted, nil},
		{"once", "  runStrategy: Once\n" + template, kubevirt.Once, nil},
		{"both", "  running: true\n  runStrategy: Once\n" + template, "", []string{"Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use RunStrategy instead"}},
		{"neither", template, "", []string{"One of Running or RunStrategy must be specified"}},
		{"unknown", "  runStrategy: Sometimes\n" + template, "", []string{"Invalid RunStrategy (Sometimes)"}},
		{"no template", "  running: true\n", "", []string{"missing virtual machine template."}},
		{"nothing", "  {}\n", "", []string{"One of Running or RunStrategy must be specified", "missing virtual machine template."}},
		{"instance type", "  running: true\n  instancetype: {name: u1.small}\n" + template, "", []string{"instance types are not supported on one machine"}},
		{"preference", "  running: true\n  preference: {name: fedora}\n" + template, "", []string{"preferences are not supported on one machine"}},
		{"data volumes", "  running: true\n  dataVolumeTemplates: [{metadata: {name: a}, spec: {}}]\n" + template, "", []string{"data volumes are not supported on one machine"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, _, err := kubevirt.FromVM(parse(t, []byte("kind: VirtualMachine\nmetadata: {name: vm}\nspec:\n"+tt.spec)))
			var problems []string
			for _, h := range hintsOf(err) {
				problems = append(problems, h.Problem)
			}
			if !slices.Equal(problems, tt.problems) {
				t.Fatalf("got %q, want %q", problems, tt.problems)
			}
			if err == nil && m.RunStrategy != tt.strategy {
				t.Errorf("got strategy %s, want %s", m.RunStrategy, tt.strategy)
			}
		})
	}
}

// TestVMIOfVM: the instance a VM makes reads like the VM's template.
func TestVMIOfVM(t *testing.T) {
	m, _, err := kubevirt.FromVM(parse(t, []byte("kind: VirtualMachine\nmetadata: {name: vm, namespace: lab, uid: u}\nspec: {running: true, template: {spec: {domain: {memory: {guest: 64Mi}, devices: {}}}}}")))
	if err != nil {
		t.Fatal(err)
	}
	inst, warnings, err := kubevirt.FromVMI(m.VMI())
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v %v", warnings, err)
	}
	if inst.Owner == nil || *inst.Owner != *m.Instance.Owner || len(inst.Interfaces) != 1 || inst.MemoryBytes != 64<<20 {
		t.Errorf("got %+v, want as %+v", inst, m.Instance)
	}
}
