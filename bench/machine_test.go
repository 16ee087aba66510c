package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/test/machine"
)

// podsOf3 are networks and n Pods with three NICs each: the default network's, a
// bridge's and a macvlan's.
func podsOf3(n int) string {
	var b strings.Builder
	network := func(name, config string) {
		fmt.Fprintf(&b, "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata: {name: %s}\nspec:\n  config: '%s'\n---\n", name, config)
	}
	network("blue", `{"cniVersion": "1.0.0", "type": "bridge", "bridge": "blue0", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.20.0.0/16"}]]}}`)
	network("lan", `{"cniVersion": "1.0.0", "type": "macvlan", "master": "eth1", "ipam": {"type": "whereabouts", "range": "172.16.0.0/16"}}`)
	for i := range n {
		fmt.Fprintf(&b, "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p%d\n  annotations: {k8s.v1.cni.cncf.io/networks: 'blue, lan'}\nspec: {containers: [{name: c, image: i}]}\n---\n", i)
	}
	return b.String()
}

// resident is residentOf the one process of a program on a machine.
func resident(tb testing.TB, m *machine.Machine, program string) int64 {
	tb.Helper()
	ids := m.Processes(program)
	if len(ids) != 1 {
		tb.Fatalf("%d processes of %s, want one", len(ids), program)
	}
	pid, err := strconv.Atoi(ids[0])
	if err != nil {
		tb.Fatal(err)
	}
	return residentOf(tb, pid)
}

// residentOf is what a process keeps in memory of its own and shared, in bytes
// (Rss of /proc/PID/smaps_rollup), once it has stopped changing.
func residentOf(tb testing.TB, pid int) int64 {
	tb.Helper()
	var last int64
	deadline := time.Now().Add(30 * time.Second)
	for same := 0; same < 3 && time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			tb.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), "Rss:")
		fields := strings.Fields(rest)
		kib, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			tb.Fatalf("read %s: %v", text, err)
		}
		if same++; kib<<10 != last {
			same = 0
		}
		last = kib << 10
	}
	return last
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// What weftd may keep in memory with 100 Pods of three NICs.
const (
	atMostMiB     = 40.0
	regressedMiB  = 60.0
	podsForMemory = 100
)

// TestMemory fails when weftd has come to need far more than promised.
func TestMemory(t *testing.T) {
	m := machine.New(t)
	m.MustWeft("up", "-f", m.File(podsOf3(podsForMemory)))
	if got := mib(resident(t, m, "weftd")); got > regressedMiB {
		t.Errorf("weftd has %.1f MiB with %d Pods of 3 NICs, want at most %.0f", got, podsForMemory, regressedMiB)
	}
}

// BenchmarkPods prints what a machine with Pods takes: time and memory.
func BenchmarkPods(b *testing.B) {
	for b.Loop() {
		m := machine.New(b)
		up := func(n int) time.Duration {
			start := time.Now()
			m.MustWeft("up", "-f", m.File(podsOf3(n)))
			return time.Since(start)
		}
		fmt.Println("\nPods of 3 NICs (bridge with NAT, bridge, macvlan) by weft up:")
		had := 0
		var memory float64
		for _, n := range []int{1, 10, podsForMemory} {
			took := up(n)
			memory = mib(resident(b, m, "weftd"))
			fmt.Printf("%5d  up %s, %s for each new one; weftd %.1f MiB\n", n, ms(took), ms(took/time.Duration(n-had)), memory)
			had = n
		}
		fmt.Printf("%5d  up again, nothing to do: %s\n", had, ms(up(had)))
		report([]verdict{{
			text: fmt.Sprintf("weftd has %.1f MiB with %d Pods of 3 NICs, want at most %.0f", memory, podsForMemory, atMostMiB),
			met:  memory <= atMostMiB,
		}})
	}
}

// vm is a VMI with so many NICs of podsOf3's networks.
func vm(name string, nics int) string {
	interfaces := []string{"{name: default, masquerade: {}}", "{name: blue, bridge: {}}", "{name: lan, bridge: {}}"}
	nets := []string{"{name: default, pod: {}}", "{name: blue, multus: {networkName: blue}}", "{name: lan, multus: {networkName: lan}}"}
	return fmt.Sprintf(`apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: %s}
spec:
  domain:
    memory: {guest: 128Mi}
    firmware:
      kernelBoot:
        kernelArgs: console=ttyS0 quiet
        container: {image: localhost/weft/guest:latest, kernelPath: /boot/vmlinuz, initrdPath: /boot/initrd}
    devices: {interfaces: [%s]}
  networks: [%s]
---
`, name, strings.Join(interfaces[:nics], ", "), strings.Join(nets[:nics], ", "))
}

// Bars of a VM's start.
const (
	atMostWiring = 5 * time.Millisecond // for each NIC
	atMostShare  = 0.01                 // of what is from the boot to the lease
)

// started is what a VM's start took.
type started struct {
	qemu    time.Duration // from weft apply to the process
	wiring  time.Duration // of the Pod's side, as weftd logs it
	network time.Duration // from weft apply until the guest has its addresses
}

// start starts a VM and waits for its network.
func start(b *testing.B, m *machine.Machine, name string, nics int) started {
	b.Helper()
	file := m.File(vm(name, nics))
	before := len(m.Processes("qemu-system-x86_64"))
	var s started
	begun := time.Now()
	m.MustWeft("apply", "-f", file)
	awaitMachines(b, m, before+1)
	s.qemu = time.Since(begun)
	m.Eventually(name+" has its addresses", func() (string, error) {
		out, err := m.Weft("get", "vmi", name, "-o", "json")
		if err == nil && !guestReady.MatchString(out) {
			err = errors.New("not yet")
		}
		return out, err
	})
	s.network = time.Since(begun)
	log, err := os.ReadFile(filepath.Join(m.Root, "weftd.log"))
	if err != nil {
		b.Fatal(err)
	}
	found := regexp.MustCompile(`msg="machine started" vmi=default/` + name + ` .*wiring=(\S+)`).FindSubmatch(log)
	if found == nil {
		b.Fatalf("weftd logs no wiring of %s:\n%s", name, log)
	}
	if s.wiring, err = time.ParseDuration(string(found[1])); err != nil {
		b.Fatal(err)
	}
	return s
}

// awaitMachines waits until so many QEMUs run.
func awaitMachines(b *testing.B, m *machine.Machine, n int) {
	b.Helper()
	for deadline := time.Now().Add(time.Minute); len(m.Processes("qemu-system-x86_64")) != n; {
		if time.Now().After(deadline) {
			b.Fatalf("%v run, want %d", m.Processes("qemu-system-x86_64"), n)
		}
	}
}

// guestReady finds the condition in a VMI's JSON, whose keys are sorted.
var guestReady = regexp.MustCompile(`"status": ?"True",\s*"type": ?"GuestNetworkReady"`)

const vmsForMemory = 20

// BenchmarkVMs prints what the start of VMs takes, with WEFT_VM set.
func BenchmarkVMs(b *testing.B) {
	machine.NeedVMs(b)
	for b.Loop() {
		m := machine.New(b)
		m.MustWeft("up", "-f", m.File(podsOf3(0)))
		m.LoadGuest()
		start(b, m, "warm", 1) // reads the image
		fmt.Println("\nstart of a VM:")
		var verdicts []verdict
		for nics := 1; nics <= 3; nics++ {
			var list [3][]time.Duration
			for turn := range 3 {
				name := fmt.Sprintf("timed%d-%d", nics, turn)
				s := start(b, m, name, nics)
				m.MustWeft("delete", "vmi", name)
				awaitMachines(b, m, 1)
				for i, d := range []time.Duration{s.qemu, s.wiring, s.network} {
					list[i] = append(list[i], d)
				}
			}
			qemu, wiring, network := median(list[0]), median(list[1]), median(list[2])
			each := wiring / time.Duration(nics)
			share := ratio(wiring, network-qemu)
			fmt.Printf("%5d NICs  accepted to QEMU started %s, of which wiring and servers %s (%s for each NIC); boot to lease %s\n",
				nics, ms(qemu), ms(wiring), ms(each), ms(network-qemu))
			verdicts = append(verdicts,
				verdict{fmt.Sprintf("wiring of %d NICs takes %s for each, want at most %s", nics, ms(each), ms(atMostWiring)), each <= atMostWiring},
				verdict{fmt.Sprintf("wiring of %d NICs takes %.2f %% of boot to lease, want at most %.0f %%", nics, 100*share, 100*atMostShare), share <= atMostShare})
		}
		report(verdicts)
		var all strings.Builder
		for i := range vmsForMemory {
			all.WriteString(vm(fmt.Sprintf("many%d", i), 1))
		}
		begun := time.Now()
		m.MustWeft("up", "--timeout", "10m", "-f", m.File(all.String()))
		fmt.Printf("%d VMs up in %s; weftd %.1f MiB\n", vmsForMemory, time.Since(begun).Round(time.Second), mib(resident(b, m, "weftd")))
	}
}

func TestMain(m *testing.M) { machine.Main(m) }
