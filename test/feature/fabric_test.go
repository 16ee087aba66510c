package feature

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftnet/weft/test/machine"
)

// fabric is the LAN with servers of its own, which are not ours: they give
// other addresses, a default route and a prefix to whoever hears them. Both
// sides of every VM are captured.
type fabric struct {
	lab
	dir      string
	rogue    *machine.Running
	captures map[string]*machine.Running // by file
}

// serverFrames: DHCPv4, DHCPv6, router solicitations and advertisements.
const serverFrames = "udp port 67 or udp port 68 or udp port 546 or udp port 547 or (icmp6 and (ip6[40] == 133 or ip6[40] == 134))"

// Our servers speak from here (vmnet.ReservedMAC).
const ourMAC = "02:00:00:00:00:00"

func (l lab) watchFabric(t *testing.T) *fabric {
	t.Helper()
	f := &fabric{lab: l, dir: t.TempDir(), captures: map[string]*machine.Running{}}
	if err := os.WriteFile(filepath.Join(f.dir, "boot.ipxe"), []byte("#!ipxe\necho script runs, ${net0/ip}\nshell\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := l.On("lan", "ip", "addr", "add", "fd00:666::1/64", "dev", "lan0", "nodad"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, where := range []string{"lan", "node"} {
		f.capture(l.Name+"-"+where, "any", where)
	}
	f.rogue = l.BackgroundIn(l.Name+"-lan", "rogue servers", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
		"--port=0", "--user=root", "--interface=lan0", "--dhcp-range=172.16.1.200,172.16.1.210,1h", "--dhcp-authoritative",
		"--dhcp-option=option:dns-server,192.0.2.66", "--dhcp-range=fd00:666::100,fd00:666::1ff,64,1h", "--enable-ra", "--log-dhcp", "--log-facility=-",
		"--dhcp-leasefile="+filepath.Join(f.dir, "leases"), "--pid-file=", "--enable-tftp", "--tftp-root="+f.dir, "--tftp-no-fail")
	f.rogue.Wait("started")
	return f
}

func (f *fabric) capture(netns, link, name string) {
	c := f.BackgroundIn(netns, "capture "+name, "tcpdump", "-U", "--immediate-mode", "-i", link, "-w", filepath.Join(f.dir, name+".pcap"), serverFrames)
	c.Wait("listening on")
	f.captures[name] = c
}

// frames ends a capture and reads it, a line for each frame.
func (f *fabric) frames(t *testing.T, name string) []string {
	t.Helper()
	f.captures[name].End()
	lines, err := f.read(name)
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// read gives what a capture has written so far.
func (f *fabric) read(name string) ([]string, error) {
	out, err := exec.Command("tcpdump", "-nner", filepath.Join(f.dir, name+".pcap")).Output()
	if err != nil {
		return nil, fmt.Errorf("read capture %s: %w", name, err)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' }), nil
}

// tryRogue has the LAN's servers speak to everybody, which a Pod without
// addresses of ours hears, and looks at what comes out of the guest's TAP.
func (f *fabric) tryRogue(t *testing.T, l lab) {
	f.lab = l
	entries, err := filepath.Glob("/run/netns/" + l.Tag() + "_*launcher-full*")
	if err != nil || len(entries) != 1 {
		t.Fatalf("launcher Pod's namespace: %v %v", entries, err)
	}
	netns := filepath.Base(entries[0])
	pod, _ := l.NIC("full", "lan")["podInterfaceName"].(string)
	f.capture(netns, "tap"+strings.TrimPrefix(pod, "pod"), "tap")
	f.capture(netns, pod, "wire")

	if out, err := l.Weft("exec", "control", "--", "busybox", "udhcpc", "-f", "-n", "-q", "-B", "-t", "10", "-i", "lan0", "-s", "/bin/true"); err != nil {
		t.Fatalf("the rogue server gives nobody a lease: %v\n%s", err, out)
	}
	if out, err := l.Weft("exec", "control", "--", "rdisc6", "-1", "-w", "5000", "lan0"); err != nil || !strings.Contains(out, "fd00:666::/64") {
		t.Fatalf("the rogue router advertises nothing: %v\n%s", err, out)
	}
	l.guest("killall -USR1 udhcpc") // renew
	rogue := strings.Fields(f.mustOn(t, "lan", "ip", "-br", "link", "show", "lan0"))[2]
	for name, from := range map[string]string{"tap": ourMAC, "wire": rogue} {
		l.Eventually("frames of "+from+" on the "+name, func() (string, error) {
			frames, err := f.read(name)
			if err == nil && served(frames, from) == 0 {
				err = fmt.Errorf("none")
			}
			return strings.Join(frames, "\n"), err
		})
	}
	if tap := f.frames(t, "tap"); served(tap, rogue) > 0 {
		t.Errorf("rogue servers reach the guest:\n%s", strings.Join(tap, "\n"))
	}
	if addrs := l.guest("ip addr; ip route; ip -6 route; cat /etc/resolv.conf"); strings.Contains(addrs, "fd00:666:") || strings.Contains(addrs, "172.16.1.20") || strings.Contains(addrs, "192.0.2.66") {
		t.Errorf("the guest has taken something of the rogue servers:\n%s", addrs)
	}
	// What is no server's passes.
	for _, to := range []string{"172.16.1.1", "fd00:100::1"} {
		l.Ping("vmi/full", to)
	}
}

func (f *fabric) mustOn(t *testing.T, where string, command ...string) string {
	t.Helper()
	out, err := f.On(where, command...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return out
}

// judge looks at all that was on the fabric meanwhile, over boots, restarts
// and a network boot: nothing of our servers, and no question of a guest.
func (f *fabric) judge(t *testing.T) {
	t.Helper()
	for _, where := range []string{"lan", "node"} {
		frames := f.frames(t, where)
		if len(frames) == 0 {
			t.Errorf("nothing was captured on %s", where)
		}
		for _, mac := range []string{ourMAC, "02:00:00:00:1a:01", "02:00:00:00:1a:02"} {
			if n := count(frames, mac); n > 0 {
				t.Errorf("%d frames of %s on %s:\n%s", n, mac, where, strings.Join(frames, "\n"))
			}
		}
	}
	for _, mac := range []string{"02:00:00:00:1a:01", "02:00:00:00:1a:02"} {
		if strings.Contains(f.rogue.Text(), mac) {
			t.Errorf("the LAN's DHCP server was asked by %s:\n%s", mac, f.rogue.Text())
		}
	}
	if !strings.Contains(f.rogue.Text(), "DHCPACK") {
		t.Error(fmt.Errorf("the LAN's DHCP server never answered: the test tests nothing"))
	}
}

// served counts what a server said from this MAC: its host asks for routers
// and addresses, too.
func served(frames []string, mac string) int {
	n := 0
	for _, frame := range frames {
		for _, answer := range []string{"BOOTP/DHCP, Reply", "dhcp6 advertise", "dhcp6 reply", "router advertisement"} {
			if strings.Contains(frame, " "+mac+" > ") && strings.Contains(frame, answer) {
				n++
			}
		}
	}
	return n
}

func count(lines []string, text string) int {
	n := 0
	for _, line := range lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}
