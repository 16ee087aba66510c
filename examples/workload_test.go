package examples

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/test/machine"
)

func TestUPF(t *testing.T) {
	machine.NeedVMs(t)
	m := machine.New(t)
	m.LoadGuest()
	m.MustWeft("up", "-f", machine.Example("5g-upf.yaml"))
	for i, network := range []string{"management", "n3", "n4", "n6"} {
		nic := m.NIC("upf", network)
		if got, want := nic["interfaceName"], fmt.Sprintf("eth%d", i); got != want {
			t.Errorf("%s is %v in the guest, want %s: NICs come in the order of the spec", network, got, want)
		}
		if got := nic["queueCount"]; got != 2.0 {
			t.Errorf("%s has %v queues, want one for each of the 2 vCPUs", network, got)
		}
	}
	// Each neighbour speaks its protocol's port on its own reference point.
	n3, n4, n6 := m.Address("upf", "n3"), m.Address("upf", "n4"), m.Address("upf", "n6")
	m.UDP("gnb", n3+":2152", "G-PDU")
	m.UDP("smf", n4+":8805", "session establishment request")
	m.Ping("vmi/upf", m.NetworkStatus("gnb")["net1"].IPs[0])
	m.Ping("vmi/upf", m.NetworkStatus("smf")["net1"].IPs[0])
	m.NoPing("gnb", n4)
	m.NoPing("smf", n3)
	// N6: the lowest address that is not excluded, and the route of the network's
	// IPAM, which the guest has by DHCP.
	if n6 != "10.100.6.16" {
		t.Errorf("n6 has %s, want 10.100.6.16", n6)
	}
	if routes := m.MustWeft("exec", "vmi/upf", "--", "ip", "route"); !strings.Contains(routes, "198.18.0.0/15 via 10.100.6.1 dev eth3") {
		t.Errorf("the guest has no route to the data network by n6:\n%s", routes)
	}
	m.Ping("vmi/upf", "198.18.0.1")
	m.Ping("vmi/upf", "203.0.113.1") // by management, the default route
	// Management has the one port that was opened.
	management := m.Address("upf", "management")
	m.Eventually("management port", func() (string, error) {
		return m.On("node", "busybox", "nc", "-w", "2", management, "8080")
	})
	if out, err := m.On("node", "busybox", "nc", "-w", "2", management, "2152"); err == nil {
		t.Errorf("management answers on a port that is not open: %s", out)
	}
}

func TestTrading(t *testing.T) {
	machine.NeedVMs(t)
	m := machine.New(t)
	m.LoadGuest()
	m.MustWeft("up", "-f", machine.Example("trading.yaml"))

	const feed = "239.1.1.1:5000"
	recorder := m.Background("recorder hears the feed", "exec", "recorder", "--", m.Helper(), "mcast-listen", feed+"@md0")
	// By a host of the LAN, and by a Pod on the same network, which hears itself.
	ticks := map[string]func(tick string) (string, error){
		"ACME 101.25 from the exchange": func(tick string) (string, error) {
			return m.On("lan", m.Helper(), "mcast-send", feed+"@lan0", tick)
		},
		"ACME 101.50 from the recorder": func(tick string) (string, error) {
			return m.Weft("exec", "recorder", "--", m.Helper(), "mcast-send", feed+"@md0", tick)
		},
	}
	for tick, send := range ticks {
		// Datagrams may be lost; the guest's console shows what came.
		m.Eventually("engine and recorder hear "+tick, func() (string, error) {
			if out, err := send(tick); err != nil {
				return out, err
			}
			out, err := m.Weft("logs", "engine")
			if err == nil && (!strings.Contains(out, tick) || !strings.Contains(recorder.Text(), tick)) {
				err = fmt.Errorf("no %q on the console above, or not at the recorder: %s", tick, recorder.Text())
			}
			return out, err
		})
	}

	// The engine sends an order; its network has no way to anywhere else.
	gateway := m.NetworkStatus("gateway")["oe0"].IPs[0]
	orders := m.Background("gateway takes orders", "exec", "gateway", "--", "busybox", "nc", "-l", "-p", "9001")
	m.Eventually("engine sends an order", func() (string, error) {
		return m.Weft("exec", "vmi/engine", "--", "sh", "-c", "echo BUY 100 ACME | nc -w 2 "+gateway+" 9001")
	})
	orders.Wait("BUY 100 ACME")
	if routes := m.MustWeft("exec", "vmi/engine", "--", "ip", "route"); strings.Contains(routes, "via") {
		t.Errorf("the engine has a way out of its networks:\n%s", routes)
	}
}

func TestStorage(t *testing.T) {
	machine.NeedVMs(t)
	m := machine.New(t)
	m.LoadGuest()
	m.MustWeft("up", "-f", machine.Example("storage.yaml"))
	const jumbo = "9000"
	if got := strings.TrimSpace(m.MustWeft("exec", "vmi/worker", "--", "cat", "/sys/class/net/eth1/mtu")); got != jumbo {
		t.Errorf("the guest's storage NIC has MTU %s, want %s", got, jumbo)
	}
	if got := m.NetworkStatus("nas")["st0"].IPs; !slices.Equal(got, []string{"10.104.0.10"}) {
		t.Errorf("nas has %v, want the address asked for", got)
	}
	worker := m.Address("worker", "storage")
	m.Eventually("an unfragmented jumbo frame passes", func() (string, error) {
		return m.Weft("exec", "nas", "--", "ping", "-c", "1", "-W", "2", "-M", "do", "-s", "8972", worker)
	})
	// Jumbo frames are the storage network's alone.
	if got := strings.TrimSpace(m.MustWeft("exec", "vmi/worker", "--", "cat", "/sys/class/net/eth0/mtu")); got == jumbo {
		t.Error("the default network has the storage network's MTU")
	}

	const size = 8 << 20
	data := make([]byte, size)
	seed := rand.NewChaCha8([32]byte{}) // the same each time
	_, _ = seed.Read(data)              // never fails
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "volume"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	m.Background("nas serves", "exec", "nas", "--", "busybox", "httpd", "-f", "-p", "10.104.0.10:80", "-h", dir)
	m.Eventually("the guest fills its disk from the nas", func() (string, error) {
		return m.Weft("exec", "vmi/worker", "--", "sh", "-c", "wget -q -O - http://10.104.0.10/volume | dd of=/dev/vda bs=64k && sync")
	})
	sum := sha256.Sum256(data)
	got := m.MustWeft("exec", "vmi/worker", "--", "sh", "-c", fmt.Sprintf("echo 3 >/proc/sys/vm/drop_caches; head -c %d /dev/vda | sha256sum", size))
	if want := hex.EncodeToString(sum[:]); !strings.HasPrefix(got, want) {
		t.Errorf("the disk holds %s, want %s", got, want)
	}
}
