// Package guest_test boots the small guest under QEMU, on a network served by
// dnsmasq, and checks what it made of it.
package guest_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/weftnet/weft/guest/echo"
	"github.com/weftnet/weft/internal/image"
	"github.com/weftnet/weft/test/vmlab"
)

// fabric is a namespace with bridge br0 (10.9.0.1, fd09::1) and TAPs on it.
type fabric struct {
	name string
	log  string // dnsmasq's
}

// newFabric makes the namespace; everything in it goes with it.
func newFabric(t *testing.T, taps ...string) *fabric {
	t.Helper()
	f := &fabric{name: fmt.Sprintf("weftguest%d", os.Getpid()), log: filepath.Join(t.TempDir(), "dnsmasq.log")}
	run(t, "ip", "netns", "add", f.name)
	t.Cleanup(func() { run(t, "ip", "netns", "del", f.name) })
	f.ip(t, "link set lo up")
	f.ip(t, "link add br0 type bridge")
	f.ip(t, "link set br0 up")
	f.ip(t, "addr add 10.9.0.1/24 dev br0")
	f.ip(t, "addr add fd09::1/64 dev br0 nodad")
	for _, tap := range taps {
		f.ip(t, "tuntap add "+tap+" mode tap")
		f.ip(t, "link set "+tap+" master br0 up")
	}
	return f
}

func (f *fabric) ip(t *testing.T, line string) {
	t.Helper()
	run(t, "ip", append([]string{"-n", f.name}, strings.Fields(line)...)...)
}

// serve starts dnsmasq with DHCPv4, DHCPv6 and router advertisements.
func (f *fabric) serve(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("dnsmasq is not installed")
		}
		t.Skip("dnsmasq is not installed: apt-get install dnsmasq-base")
	}
	config := filepath.Join(t.TempDir(), "dnsmasq.conf")
	text := `port=0
interface=br0
bind-dynamic
no-ping
keep-in-foreground
user=root
pid-file=
log-dhcp
log-facility=` + f.log + `
dhcp-leasefile=` + filepath.Join(t.TempDir(), "leases") + `
dhcp-range=10.9.0.50,10.9.0.60,255.255.255.0,2m
dhcp-range=fd09::50,fd09::60,64,2m
dhcp-host=02:00:00:00:00:11,10.9.0.51
enable-ra
dhcp-option=option:router,10.9.0.1
dhcp-option=option:classless-static-route,0.0.0.0/0,10.9.0.7,192.168.77.0/24,10.9.0.8,172.20.0.0/16,0.0.0.0
dhcp-option=option:mtu,1380
dhcp-option=option:dns-server,10.9.0.53
dhcp-option=option:domain-search,one.example,two.example
dhcp-option=option:ntp-server,10.9.0.9
dhcp-option=option6:dns-server,[fd09::53]
`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	server := exec.Command("ip", "netns", "exec", f.name, "dnsmasq", "-C", config)
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill() // fails if it has ended
		_ = server.Wait()         // killed
		if t.Failed() {
			t.Logf("dnsmasq:\n%s", f.logText(t))
		}
	})
}

func (f *fabric) logText(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile(f.log)
	if err != nil {
		t.Log(err)
	}
	return string(raw)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// inside runs do on a thread in the namespace; the thread ends with it.
func (f *fabric) inside(t *testing.T, do func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is of no use to others
		ns, err := netns.GetFromName(f.name)
		if err == nil {
			err = netns.Set(ns)
			ns.Close() // the thread is in it
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func wantContains(t *testing.T, what, got string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(got, want) {
			t.Errorf("%s: got\n%s\nwant %q in it", what, got, want)
		}
	}
}

func TestGuest(t *testing.T) {
	vmlab.Require(t)
	small := vmlab.SmallGuest(t)
	f := newFabric(t, "tap0", "tap1")
	f.serve(t)
	seed := vmlab.Seed(t, map[string]string{
		"meta-data": "instance-id: i1\nlocal-hostname: probe\n",
		"user-data": `#cloud-config
write_files:
- {path: /etc/given, content: aGVsbG8=, encoding: b64, permissions: "0600"}
runcmd:
- echo list of lines
- [echo, list of, words]
users: [x]
`,
	})
	m := vmlab.Start(t, vmlab.Config{
		NetNS: f.name, Guest: small, Ports: 1,
		KernelArgs: []string{"weft.serve=8080,8081", "weft.mcast=239.1.2.3:5000@eth0,[ff15::9]:5001@eth0"},
		NICs:       []vmlab.NIC{{TAP: "tap0", MAC: "02:00:00:00:00:11"}},
		Args:       []string{"-drive", "if=virtio,format=raw,readonly=on,file=" + seed},
	})
	m.Console.Wait(t, "weft-guest: eth0 10.9.0.51/24 via dhcp")
	m.Console.Wait(t, "weft-guest: eth0 fd09::5")
	t.Log(m.Console.Wait(t, "weft-guest: ready probe"))

	t.Run("addresses", func(t *testing.T) { testAddresses(t, m) })
	t.Run("seed", func(t *testing.T) {
		m.Console.Wait(t, "runcmd: list of lines")
		m.Console.Wait(t, "runcmd: list of words")
		m.Console.Wait(t, "user-data key users is not supported")
		if got := m.Exec(t, "cat /etc/given; hostname; stat -c %a /etc/given"); got != "helloprobe\n600" {
			t.Errorf("got %q, want the file, the name and the mode", got)
		}
	})
	t.Run("serve", func(t *testing.T) { testServe(t, f, m) })
	t.Run("carrier", func(t *testing.T) {
		asked := strings.Count(f.logText(t), "DHCPREQUEST")
		m.QMP(t, "set_link", map[string]any{"name": "nic0", "up": false})
		m.Console.Wait(t, "eth0 carrier off")
		m.QMP(t, "set_link", map[string]any{"name": "nic0", "up": true})
		m.Console.Wait(t, "eth0 carrier on")
		vmlab.Eventually(t, "a renewal after the carrier came back", func() bool {
			log := f.logText(t)
			return strings.Count(log, "DHCPREQUEST") > asked && strings.Contains(log, "DHCPRENEW")
		})
	})
	t.Run("hot plug", func(t *testing.T) {
		m.QMP(t, "netdev_add", map[string]any{"type": "tap", "id": "late", "ifname": "tap1", "script": "no", "downscript": "no"})
		m.QMP(t, "device_add", map[string]any{
			"driver": "virtio-net-pci", "id": "late", "netdev": "late", "bus": "rp0", "mac": "02:00:00:00:00:12", "romfile": "",
		})
		m.Console.Wait(t, "eth1 10.9.0.")
		m.Console.Wait(t, "eth1 fd09::")
		m.QMP(t, "device_del", map[string]any{"id": "late"})
		m.Console.Wait(t, "eth1 gone")
	})
	t.Run("power button", func(t *testing.T) {
		took := m.PowerDown(t)
		t.Logf("off after %s", took)
		if took > 30*time.Second {
			t.Errorf("off after %s", took)
		}
	})
}

// testAddresses checks what came of DHCPv4, DHCPv6 and RA.
func testAddresses(t *testing.T, m *vmlab.Machine) {
	agent := string(m.Agent(t, "guest-network-get-interfaces", nil))
	wantContains(t, "guest agent", agent, `"10.9.0.51"`, `"fd09::5`, `02:00:00:00:00:11`)
	wantContains(t, "links", m.Exec(t, "ip link show eth0"), "mtu 1380")
	routes := m.Exec(t, "ip route")
	wantContains(t, "routes", routes, "default via 10.9.0.7 dev eth0", "192.168.77.0/24 via 10.9.0.8 dev eth0", "172.20.0.0/16 dev eth0", "10.9.0.0/24 dev eth0")
	if strings.Contains(routes, "10.9.0.1 ") {
		t.Errorf("got routes\n%s\nthe router option must be ignored beside classless routes", routes)
	}
	wantContains(t, "IPv6 routes", m.Exec(t, "ip -6 route"), "default via fe80:", "fd09::/64 dev eth0")
	wantContains(t, "resolv.conf", m.Exec(t, "cat /etc/resolv.conf"), "nameserver 10.9.0.53", "nameserver fd09::53", "search one.example two.example")
	wantContains(t, "lease", m.Exec(t, "cat /run/lease/eth0"), `ntp="10.9.0.9"`, "mtu=1380")
	wantContains(t, "DNS of the advertisement", m.Exec(t, "cat /run/resolv/eth0.ra"), "fd09::53")
	ping := m.Exec(t, "ping -c 1 -W 5 10.9.0.1 && ping6 -c 1 -W 5 fd09::1")
	wantContains(t, "ping", ping, "1 packets received")
}

// testServe talks to the guest's servers.
func testServe(t *testing.T, f *fabric, m *vmlab.Machine) {
	addr6 := strings.Split(strings.Fields(m.Console.Wait(t, "eth0 fd09::"))[2], "/")[0]
	f.inside(t, func() error {
		for _, addr := range []string{"10.9.0.51:8080", net.JoinHostPort(addr6, "8081")} {
			conn, err := net.DialTimeout("tcp", addr, vmlab.Patience)
			if err != nil {
				return err
			}
			in := bufio.NewReader(conn)
			greeting, err := in.ReadString('\n')
			if err != nil || greeting != "probe\n" {
				t.Errorf("tcp %s: got %q, %v; want the name", addr, greeting, err)
			}
			fmt.Fprintln(conn, "say it again")
			if echoed, err := in.ReadString('\n'); err != nil || echoed != "say it again\n" {
				t.Errorf("tcp %s: got %q, %v; want the echo", addr, echoed, err)
			}
			conn.Close() // only read
			udp, err := net.Dial("udp", addr)
			if err != nil {
				return err
			}
			fmt.Fprint(udp, "ping")
			reply := make([]byte, 100)
			if err := udp.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				return err
			}
			n, err := udp.Read(reply)
			if err != nil || string(reply[:n]) != "probe: ping" {
				t.Errorf("udp %s: got %q, %v; want the answer", addr, reply[:n], err)
			}
			udp.Close() // only read
		}
		// The thread is ours, so the client must not dial on another.
		conn, err := net.Dial("tcp", "10.9.0.51:8080")
		if err != nil {
			return err
		}
		defer conn.Close() // only read
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: probe\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK || string(body) != "probe\n" {
			t.Errorf("http: got %d %q, %v", response.StatusCode, body, err)
		}
		return nil
	})
	for _, text := range []string{"239.1.2.3:5000", "[ff15::9]:5001"} {
		m.Console.Wait(t, "joined "+text)
		group := echo.Group{Addr: addrPort(t, text), Link: "br0"}
		f.inside(t, func() error { return group.Send("tick of " + text) })
		m.Console.Wait(t, "mcast eth0 "+text)
		wantContains(t, "multicast", m.Console.Wait(t, "tick of "+text), "mcast eth0")
	}
}

// TestArchive: what is loaded as an image is what was built.
func TestArchive(t *testing.T) {
	vmlab.Require(t)
	small := vmlab.SmallGuest(t)
	store, err := image.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := store.Load(t.Context(), small.Archive, "")
	if err != nil || len(loaded) != 1 || loaded[0].Name != "localhost/weft/guest:latest" {
		t.Fatalf("got %+v, %v; want localhost/weft/guest:latest", loaded, err)
	}
	for path, built := range map[string]string{"/boot/vmlinuz": small.Kernel, "/boot/initrd": small.Initrd} {
		file, err := store.Extract(t.Context(), "localhost/weft/guest", path)
		if err != nil {
			t.Fatal(err)
		}
		got, gotErr := os.ReadFile(file.Path)
		want, wantErr := os.ReadFile(built)
		if gotErr != nil || wantErr != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; want the %d of %s, %v", path, len(got), gotErr, len(want), built, wantErr)
		}
	}
}

// TestGuestStatic: network-config instead of DHCP, a script, a command, off.
func TestGuestStatic(t *testing.T) {
	vmlab.Require(t)
	small := vmlab.SmallGuest(t)
	f := newFabric(t, "tap0")
	seed := vmlab.Seed(t, map[string]string{
		"meta-data": "local-hostname: fixed\n",
		"user-data": "#!/bin/bash\necho script on $(hostname); exit 3\n",
		"network-config": `version: 2
ethernets:
  any:
    match: {macaddress: "02:00:00:00:00:21"}
    addresses: [10.9.0.99/24, "fd09::99/64"]
    gateway4: 10.9.0.1
    routes: [{to: 192.168.5.0/24, via: 10.9.0.2, metric: 7}]
    mtu: 1400
    nameservers: {addresses: [10.9.0.54], search: [fixed.example]}
`,
	})
	m := vmlab.Start(t, vmlab.Config{
		NetNS: f.name, Guest: small,
		KernelArgs: []string{`weft.run="ip route; cat /etc/resolv.conf; ip link show eth0; weft-guest mcast-send 239.1.1.1:5@eth0 x"`, "weft.end=off"},
		NICs:       []vmlab.NIC{{TAP: "tap0", MAC: "02:00:00:00:00:21"}},
		Args:       []string{"-device", "virtio-scsi-pci", "-drive", "if=none,id=cd,media=cdrom,file=" + seed, "-device", "scsi-cd,drive=cd"},
	})
	select {
	case <-m.Ended():
	case <-time.After(vmlab.Patience):
		t.Fatal("the guest did not turn itself off")
	}
	wantContains(t, "console", m.Console.Text(t),
		"eth0 10.9.0.99/24 via cloud-init", "eth0 fd09::99/64 via cloud-init", "user-data: script on fixed", "user-data ended, exit 3",
		"run: default via 10.9.0.1 dev eth0", "run: 192.168.5.0/24 via 10.9.0.2 dev eth0  metric 7", "run: nameserver 10.9.0.54",
		"run: search fixed.example", "mtu 1400", "run ended, exit 0", "weft-guest: power off")
	if got := m.Console.Lines(t, "via dhcp"); len(got) > 0 {
		t.Errorf("got %q, want no DHCP", got)
	}
}

func addrPort(t *testing.T, text string) netip.AddrPort {
	t.Helper()
	addr, err := netip.ParseAddrPort(text)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}
