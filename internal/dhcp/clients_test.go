package dhcp

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patch is a Pod namespace whose "TAP" is one end of a veth; the other end,
// eth0, is in a namespace in which real clients run.
type patch struct {
	pod, guest ns
	dir        string
}

func newPatch(t testing.TB) *patch {
	t.Helper()
	p := &patch{newNS(t, "pod"), newNS(t, "guest"), t.TempDir()}
	p.pod.ip(t, "link", "add", "tap0", "type", "veth", "peer", "name", "eth0", "netns", p.guest.name)
	p.pod.ip(t, "link", "set", "tap0", "up")
	p.guest.ip(t, "link", "set", "eth0", "address", guestText)
	return p
}

// up brings the guest's side up with a link-local address usable at once.
func (p *patch) up(t testing.TB, sysctls ...string) {
	t.Helper()
	for _, s := range append([]string{"eth0.accept_dad=0"}, sysctls...) {
		run(t, "ip", "netns", "exec", p.guest.name, "sysctl", "-qw", "net.ipv6.conf."+s)
	}
	p.guest.ip(t, "link", "set", "eth0", "up")
	eventually(t, "eth0 has a link-local address", func() bool {
		out := p.guest.ip(t, "-6", "addr", "show", "dev", "eth0", "scope", "link")
		return strings.Contains(out, "fe80::") && !strings.Contains(out, "tentative")
	})
}

// script writes an executable shell script and gives its path.
func (p *patch) script(t testing.TB, name, body string) string {
	t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func (p *patch) file(name string) string { return filepath.Join(p.dir, name) }

// background runs a program in the guest's namespace until the test ends.
func (p *patch) background(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	var out bytes.Buffer
	cmd := p.guest.exec(context.Background(), name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // ended by itself: fine
		_ = cmd.Wait()                                      // says that it was killed
		if t.Failed() {
			t.Logf("%s said:\n%s", name, &out)
		}
	})
	return cmd
}

// waitLine waits for a line of a file that starts with prefix and gives it.
func waitLine(t testing.TB, path, prefix string, nth int) string {
	t.Helper()
	var line string
	eventually(t, fmt.Sprintf("%s says %s (%d)", filepath.Base(path), prefix, nth), func() bool {
		b, _ := os.ReadFile(path) // not there yet
		seen := 0
		for l := range strings.Lines(string(b)) {
			if strings.HasPrefix(l, prefix) {
				if seen++; seen == nth {
					line = strings.TrimSpace(l)
					return true
				}
			}
		}
		return false
	})
	return line
}

// bridgedGuest serves bridgeLease with a lease time.
func bridgedGuest(t testing.TB, p *patch) *Server {
	t.Helper()
	serve := serveAll()
	lease := bridgeLease()
	lease.Lifetime, lease.MTU = time.Hour, 1450
	serve.Lease4, serve.Lease6, serve.RA = &lease, nil, nil
	s, _ := start(t, Config{Netns: p.pod.path, Serve: serve})
	waitReady(t, s)
	return s
}

const udhcpcScript = `
echo "$1 ip=$ip mask=$subnet router=$router dns=$dns domain=$domain hostname=$hostname mtu=$mtu ntp=$ntpsrv search=$search routes=$staticroutes tftp=$tftp boot=$boot_file opt53=$opt53 server=$serverid lease=$lease siaddr=$siaddr" >> OUT
case $1 in
bound|renew)
	ip addr replace $ip/$mask dev $interface
	ip route replace $serverid dev $interface
esac
`

func TestUdhcpc(t *testing.T) {
	t.Parallel()
	busybox := needProgram(t, "busybox")
	p := newPatch(t)
	s := bridgedGuest(t, p)
	p.up(t)
	out := p.file("out")
	script := p.script(t, "udhcpc.sh", strings.ReplaceAll(udhcpcScript, "OUT", out))
	pidfile := p.file("pid")
	p.background(t, busybox, "udhcpc", "-f", "-i", "eth0", "-s", script, "-p", pidfile, "-t", "3", "-T", "1")
	facts := " ip=192.0.2.10 mask=25 router=192.0.2.1 dns=192.0.2.53 192.0.2.54 domain=example.org hostname=vm-b mtu=1450" +
		" ntp=192.0.2.123 search=example.org b.example" +
		" routes=169.254.1.1/32 0.0.0.0 198.51.100.0/22 192.0.2.2 0.0.0.0/0 192.0.2.1" +
		" tftp=192.0.2.69 boot=boot/vm.ipxe opt53=05 server=169.254.75.10 lease=3600 siaddr=192.0.2.69"
	if got := waitLine(t, out, "bound", 1); got != strings.Replace("bound"+facts, "mask=25", "mask=255.255.255.128", 1) && got != "bound"+facts {
		t.Errorf("got %s\nwant bound%s", got, facts)
	}
	// SIGUSR1 renews, by unicast to the server: the guest asks for its MAC first,
	// which only the server can answer.
	pid := strings.TrimSpace(waitLine(t, pidfile, "", 1))
	run(t, "kill", "-USR1", pid)
	waitLine(t, out, "renew", 1)
	if out := p.guest.ip(t, "neigh", "show", "169.254.75.10"); !strings.Contains(out, "lladdr 02:00:00:00:00:00") {
		t.Errorf("the guest did not learn the server's MAC: %s", out)
	}
	// The address changes while the guest holds the old one: NAK, then the new one.
	serve := s.served().Serve
	lease := *serve.Lease4
	lease.Addr = prefix("192.0.2.20/25")
	serve.Lease4 = &lease
	if err := s.Update(serve); err != nil {
		t.Fatal(err)
	}
	run(t, "kill", "-USR1", pid)
	waitLine(t, out, "nak", 1)
	if got := waitLine(t, out, "bound", 2); !strings.HasPrefix(got, "bound ip=192.0.2.20 ") {
		t.Errorf("got %s", got)
	}
	run(t, "kill", "-USR2", pid) // release
	eventually(t, "the release is noted", func() bool {
		return s.Stats().Exchanges[Exchange{DHCPv4, "RELEASE", ""}] == 1
	})
}

const dhclientScript = `
echo "$reason ip=$new_ip_address mask=$new_subnet_mask router=$new_routers dns=$new_domain_name_servers domain=$new_domain_name search=$new_domain_search mtu=$new_interface_mtu lease=$new_dhcp_lease_time ip6=$new_ip6_address dns6=$new_dhcp6_name_servers search6=$new_dhcp6_domain_search life6=$new_max_life" >> OUT
if [ "$reason" = PREINIT6 ]; then ip link set dev $interface up; fi
exit 0
`

func TestDhclient4(t *testing.T) {
	t.Parallel()
	dhclient := needProgram(t, "dhclient")
	p := newPatch(t)
	bridgedGuest(t, p)
	p.up(t)
	out := p.file("out")
	script := p.script(t, "dhclient.sh", strings.ReplaceAll(dhclientScript, "OUT", out))
	// The lease it remembers is another network's: init-reboot, NAK, DISCOVER.
	leases := p.file("leases")
	old := `lease {
  interface "eth0";
  fixed-address 10.1.1.1;
  option dhcp-lease-time 4294967295;
  option dhcp-server-identifier 10.1.1.254;
  option subnet-mask 255.255.255.0;
  renew 5 2030/01/01 00:00:00; rebind 5 2031/01/01 00:00:00; expire 5 2032/01/01 00:00:00;
}
`
	if err := os.WriteFile(leases, []byte(old), 0o644); err != nil {
		t.Fatal(err)
	}
	p.background(t, dhclient, "-4", "-d", "-sf", script, "-lf", leases, "-pf", p.file("pid"), "-cf", "/dev/null", "eth0")
	want := "ip=192.0.2.10 mask=255.255.255.128 router=192.0.2.1 dns=192.0.2.53 192.0.2.54 domain=example.org search=example.org. b.example. mtu=1450 lease=3600"
	if got := waitLine(t, out, "BOUND", 1); !strings.Contains(got, want) {
		t.Errorf("got %s\nwant %s", got, want)
	}
	b, err := os.ReadFile(out)
	if err != nil || !strings.Contains(string(b), "EXPIRE") {
		t.Errorf("the wrong lease was not refused: %s %v", b, err)
	}
}

func TestDhclient6(t *testing.T) {
	t.Parallel()
	dhclient := needProgram(t, "dhclient")
	p := newPatch(t)
	s, _ := start(t, Config{Netns: p.pod.path, Serve: serveAll()})
	waitReady(t, s)
	p.up(t)
	out := p.file("out")
	script := p.script(t, "dhclient.sh", strings.ReplaceAll(dhclientScript, "OUT", out))
	cmd := p.background(t, dhclient, "-6", "-1", "-d", "-sf", script, "-lf", p.file("leases"), "-pf", p.file("pid"), "-cf", "/dev/null", "eth0")
	want := "ip6=fd10:0:2::2 dns6=fd00::53 search6=example.org. life6=3600"
	if got := waitLine(t, out, "BOUND6", 1); !strings.Contains(got, want) {
		t.Errorf("got %s\nwant %s", got, want)
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // the lease file stays
	_ = cmd.Wait()                                      // killed
	// It comes back and confirms the address it had.
	p.background(t, dhclient, "-6", "-d", "-sf", script, "-lf", p.file("leases"), "-pf", p.file("pid"), "-cf", "/dev/null", "eth0")
	eventually(t, "the address is confirmed", func() bool {
		return s.Stats().Exchanges[Exchange{DHCPv6, "CONFIRM", "REPLY"}] > 0
	})
	run(t, "ip", "netns", "exec", p.guest.name, dhclient, "-6", "-r", "-sf", script, "-lf", p.file("leases"), "-pf", p.file("pid"), "-cf", "/dev/null", "eth0")
	eventually(t, "the release is noted", func() bool {
		return s.Stats().Exchanges[Exchange{DHCPv6, "RELEASE", "REPLY"}] > 0
	})
}

func TestKernelAcceptsRA(t *testing.T) {
	t.Parallel()
	p := newPatch(t)
	serve := serveAll()
	serve.RA.Routes = nil
	s, _ := start(t, Config{Netns: p.pod.path, Serve: serve})
	waitReady(t, s)
	p.up(t, "eth0.accept_ra=2")
	var routes string
	eventually(t, "the guest has a default route", func() bool {
		routes = p.guest.ip(t, "-6", "route", "show", "dev", "eth0")
		return strings.Contains(routes, "default via fe80::ff:fe00:0 proto ra")
	})
	if !strings.Contains(routes, "fd10:0:2::/120 proto kernel") {
		t.Errorf("the prefix is not on-link: %s", routes)
	}
	if out := p.guest.ip(t, "-6", "addr", "show", "dev", "eth0", "scope", "global"); strings.TrimSpace(out) != "" {
		t.Errorf("the guest made itself an address: %s", out)
	}
	if out := run(t, "ip", "netns", "exec", p.guest.name, "sysctl", "-n", "net.ipv6.conf.eth0.mtu"); strings.TrimSpace(out) != "1450" {
		t.Errorf("IPv6 MTU is %s", out)
	}
	// The agent goes, the router stays.
	s.Close()
	if out := p.guest.ip(t, "-6", "route", "show", "default"); !strings.Contains(out, "fe80::ff:fe00:0") {
		t.Errorf("the default route went with the agent: %s", out)
	}
}

func TestKernelRouteWithdrawn(t *testing.T) {
	t.Parallel()
	p := newPatch(t)
	s, _ := start(t, Config{Netns: p.pod.path, Serve: serveAll()})
	waitReady(t, s)
	p.up(t, "eth0.accept_ra=2")
	defaults := func() string { return p.guest.ip(t, "-6", "route", "show", "default") }
	eventually(t, "the guest has a default route", func() bool { return strings.Contains(defaults(), "via fe80") })
	serve := serveAll()
	serve.RA.RouterLifetime = 0
	if err := s.Update(serve); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the default route is withdrawn", func() bool { return !strings.Contains(defaults(), "via fe80") })
}

func TestRdisc6(t *testing.T) {
	t.Parallel()
	rdisc6 := needProgram(t, "rdisc6")
	p := newPatch(t)
	serve := serveAll()
	serve.RA.Routes = []netip.Prefix{prefix("2001:db8:1::/48")}
	s, _ := start(t, Config{Netns: p.pod.path, Serve: serve})
	waitReady(t, s)
	p.up(t)
	out := run(t, "ip", "netns", "exec", p.guest.name, rdisc6, "-1", "-w", "5000", "eth0")
	for _, want := range []string{
		"Hop limit                 :           64", "Stateful address conf.    :          Yes", "Stateful other conf.      :          Yes",
		"Router lifetime           :        65535", "Source link-layer address: 02:00:00:00:00:00", "MTU                      :         1450",
		"Prefix                   : fd10:0:2::/120", "On-link                 :          Yes", "Autonomous address conf.:           No",
		"Route                    : 2001:db8:1::/48", "Recursive DNS server     : fd00::53", "DNS search list          : example.org",
		"from fe80::ff:fe00:0",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("rdisc6 does not say %q:\n%s", want, out)
		}
	}
}

const networkdScript = `
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases
chown -R systemd-network:systemd-network /run/systemd/netif
mount -o remount,ro /sys
cp CONFIG /run/systemd/network/10-eth0.network
echo $$ > PID
exec NETWORKD
`

const networkdConfig = `[Match]
Name=eth0
[Network]
DHCP=yes
IPv6AcceptRA=yes
[DHCPv4]
UseMTU=yes
UseDomains=yes
[IPv6AcceptRA]
UseDomains=yes
`

// TestNetworkd runs systemd-networkd, which does all three protocols at once.
// It has a /run of its own, as it would otherwise take the host's for its own;
// /sys read-only tells it that there is no udev to wait for.
func TestNetworkd(t *testing.T) {
	t.Parallel()
	networkd := needProgram(t, "systemd-networkd")
	p := newPatch(t)
	s, _ := start(t, Config{Netns: p.pod.path, Serve: serveAll()})
	waitReady(t, s)
	config, pidfile := p.file("eth0.network"), p.file("pid")
	if err := os.WriteFile(config, []byte(networkdConfig), 0o644); err != nil {
		t.Fatal(err)
	}
	script := p.script(t, "networkd.sh", strings.NewReplacer("CONFIG", config, "PID", pidfile, "NETWORKD", networkd).Replace(networkdScript))
	p.background(t, "unshare", "-m", "sh", script)
	eventually(t, "the guest has all addresses and routes", func() bool {
		addrs := p.guest.ip(t, "addr", "show", "dev", "eth0")
		routes := p.guest.ip(t, "route") + p.guest.ip(t, "-6", "route")
		return strings.Contains(addrs, "10.0.2.2/24") && strings.Contains(addrs, "fd10:0:2::2/128") &&
			strings.Contains(routes, "default via 10.0.2.1 ") && strings.Contains(routes, "default via fe80::ff:fe00:0 ") &&
			strings.Contains(routes, "fd10:0:2::/120") && strings.Contains(addrs, "mtu 1450")
	})
	pattern := filepath.Join("/proc", waitLine(t, pidfile, "", 1), "root/run/systemd/netif/links/*")
	eventually(t, "name servers and domains of all protocols are known", func() bool {
		links, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		var state strings.Builder
		for _, link := range links {
			b, _ := os.ReadFile(link) // being rewritten: next turn
			state.Write(b)
		}
		for _, want := range []string{"10.96.0.10", "fd00::53", "svc.cluster.local", "example.org"} {
			if !strings.Contains(state.String(), want) {
				return false
			}
		}
		return true
	})
}

// TestDhcpcd asks for rapid commit (RFC 4039): two messages instead of four.
func TestDhcpcd(t *testing.T) {
	t.Parallel()
	dhcpcd := needProgram(t, "dhcpcd")
	p := newPatch(t)
	s, _ := start(t, Config{Netns: p.pod.path, Serve: serveAll()})
	waitReady(t, s)
	p.up(t)
	config, out := p.file("conf"), p.file("out")
	script := p.script(t, "hook.sh", `echo "$reason ip=$new_ip_address/$new_subnet_cidr router=$new_routers search=$new_domain_search" >> `+out+"\n")
	body := "option rapid_commit\noption domain_search, domain_name_servers, interface_mtu\nipv4only\nnoipv4ll\nnoarp\nscript " + script + "\n"
	if err := os.WriteFile(config, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
	// Its own directories for pid and lease files, so that the host keeps none.
	wrapper := p.script(t, "dhcpcd.sh", "mount -t tmpfs tmpfs /run\nmount -t tmpfs tmpfs /var/lib/dhcpcd || exit 1\nexec "+dhcpcd+" -B -f "+config+" eth0\n")
	p.background(t, "unshare", "-m", "sh", wrapper)
	want := "BOUND ip=10.0.2.2/24 router=10.0.2.1 search=default.svc.cluster.local svc.cluster.local cluster.local"
	if got := waitLine(t, out, "BOUND", 1); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if s.Stats().Exchanges[Exchange{DHCPv4, "DISCOVER", "ACK"}] == 0 {
		t.Errorf("no rapid commit: %v", s.Stats().Exchanges)
	}
}

// TestIPXE boots a virtual machine without a disk: the ROM of its virtio NIC is
// a whole DHCP client, on a real TAP held by QEMU.
func TestIPXE(t *testing.T) {
	t.Parallel()
	if testing.Short() && os.Getenv("CI") == "" {
		t.Skip("boots a virtual machine")
	}
	qemu := needProgram(t, "qemu-system-x86_64")
	pod := newNS(t, "pod")
	p := &patch{pod, pod, t.TempDir()}
	pod.ip(t, "link", "add", "br0", "type", "bridge")
	pod.ip(t, "tuntap", "add", "dev", "tap0", "mode", "tap", "vnet_hdr")
	pod.ip(t, "link", "set", "br0", "up")
	pod.ip(t, "link", "set", "tap0", "master", "br0", "up")
	s := bridgedGuest(t, p)
	serial := p.file("serial")
	p.background(t, qemu, "-M", "q35,graphics=off", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none",
		"-serial", "file:"+serial, "-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=n,bootindex=1,mac="+guestText)
	deadline := time.Now().Add(2 * time.Minute)
	for {
		b, _ := os.ReadFile(serial) // not there yet
		if text := string(b); strings.Contains(text, "192.0.2.10/255.255.255.128") && strings.Contains(text, "boot/vm.ipxe") && strings.Contains(text, "192.0.2.69") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("iPXE has no address after two minutes; the server saw %+v, the console shows:\n%s", s.Transactions(), b)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if s.Stats().Exchanges[Exchange{DHCPv4, "REQUEST", "ACK"}] == 0 {
		t.Errorf("got %v", s.Stats().Exchanges)
	}
}
