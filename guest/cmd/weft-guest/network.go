package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/weftnet/weft/guest/dhcp6c"
	"github.com/weftnet/weft/guest/link"
	"github.com/weftnet/weft/guest/seed"
)

// network configures every NIC there is and every one that comes later.
type network struct {
	seed         []seed.NIC
	unconfigured []string

	mu   sync.Mutex // guards nics
	nics map[int]*nic
}

// nic is one NIC and what runs for it.
type nic struct {
	state  link.State
	config *seed.NIC // nil: DHCP
	ctx    context.Context
	stop   context.CancelFunc
	// started is when configuration began: with the first carrier.
	started time.Time
	// managed: the router says that addresses come by DHCPv6.
	managed bool
	udhcpc  *os.Process
	// renew6 wakes the DHCPv6 client; nil while there is none.
	renew6 chan struct{}
}

func newNetwork(config []seed.NIC, unconfigured []string) *network {
	return &network{seed: config, unconfigured: unconfigured, nics: map[int]*nic{}}
}

// run follows the kernel's news.
func (n *network) run(ctx context.Context) error {
	return link.Watch(ctx, func(event link.Event) {
		n.mu.Lock()
		defer n.mu.Unlock()
		switch {
		case event.Link != nil:
			n.changedLocked(ctx, *event.Link)
		case event.Gone != nil:
			n.goneLocked(event.Gone.Index)
		case event.RA != nil:
			if have := n.nics[event.RA.Index]; have != nil && event.RA.Managed && have.config == nil {
				have.managed = true
				have.startDHCP6()
			}
		case event.Addr != nil:
			if have := n.nics[event.Addr.Index]; have != nil {
				have.announce(event.Addr.Prefix, "ra")
			}
		case event.DNS != nil:
			if have := n.nics[event.DNS.Index]; have != nil {
				writeResolv(have.state.Name+".ra", texts(event.DNS.Servers), event.DNS.Search)
			}
		}
	})
}

// changedLocked takes note of a link that is new or has changed.
func (n *network) changedLocked(ctx context.Context, state link.State) {
	have := n.nics[state.Index]
	if have == nil {
		if _, err := os.Stat("/sys/class/net/" + state.Name + "/device"); err != nil {
			return // no NIC: made by somebody in the guest
		}
		if slices.Contains(n.unconfigured, state.Name) {
			return
		}
		have = &nic{state: state, config: n.configOf(state)}
		have.ctx, have.stop = context.WithCancel(ctx)
		n.nics[state.Index] = have
		say("%s found, mac %s, carrier %s", state.Name, state.MAC, onOff(state.Carrier))
		if err := link.SetUp(state.Index); err != nil {
			say("%s: %v", state.Name, err)
		}
	}
	was := have.state
	have.state = state
	switch {
	case !state.Carrier && was.Carrier:
		say("%s carrier off", state.Name)
	case state.Carrier && have.started.IsZero():
		have.started = time.Now()
		have.configure()
	case state.Carrier && !was.Carrier:
		say("%s carrier on", state.Name)
		have.renew()
	}
}

func (n *network) goneLocked(index int) {
	have := n.nics[index]
	if have == nil {
		return
	}
	delete(n.nics, index)
	have.stop()
	name := have.state.Name
	for _, file := range []string{"lease/" + name, "lease/" + name + ".dhcp6", "configured/" + name, "resolv/" + name + ".dhcp", "resolv/" + name + ".dhcp6", "resolv/" + name + ".ra"} {
		os.Remove("/run/" + file) // may never have been
	}
	say("%s gone", name)
}

// configOf finds what the seed says of a NIC.
func (n *network) configOf(state link.State) *seed.NIC {
	for i, config := range n.seed {
		if config.MAC != "" && config.MAC != state.MAC.String() {
			continue
		}
		if config.MAC == "" {
			if match, err := filepath.Match(config.Name, state.Name); err != nil || !match {
				continue
			}
		}
		return &n.seed[i]
	}
	return nil
}

// configure gives the NIC what its seed says, or starts DHCP.
func (n *nic) configure() {
	if n.config == nil {
		n.startDHCP4()
		return
	}
	if err := n.setStatic(); err != nil {
		say("%s: %v", n.state.Name, err)
	}
	if n.config.DHCP4 {
		n.startDHCP4()
	}
	if n.config.DHCP6 {
		n.startDHCP6()
	}
	if len(n.config.Addrs) > 0 || !n.config.DHCP4 && !n.config.DHCP6 {
		n.markConfigured()
	}
}

// setStatic applies addresses, routes, MTU and DNS of the seed.
func (n *nic) setStatic() error {
	name := n.state.Name
	if n.config.MTU > 0 {
		if err := ip("link", "set", name, "mtu", fmt.Sprint(n.config.MTU)); err != nil {
			return err
		}
	}
	for _, addr := range n.config.Addrs {
		if err := ip("addr", "add", addr.String(), "dev", name); err != nil {
			return err
		}
		n.announce(addr, "cloud-init")
	}
	for _, route := range n.config.Routes {
		args := []string{"route", "add", route.Dst.String()}
		if route.Dst.Addr().Is6() {
			args = append([]string{"-6"}, args...)
		}
		if route.Via.IsValid() {
			args = append(args, "via", route.Via.String())
		}
		args = append(args, "dev", name)
		if route.Metric > 0 {
			args = append(args, "metric", fmt.Sprint(route.Metric))
		}
		if err := ip(args...); err != nil {
			return err
		}
	}
	writeResolv(name+".seed", n.config.DNS, n.config.Search)
	return nil
}

func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// startDHCP4 runs busybox's client for as long as the NIC is there.
func (n *nic) startDHCP4() {
	name := n.state.Name
	log, err := os.Create("/run/log/udhcpc." + name)
	if err != nil {
		say("%s: %v", name, err)
		return
	}
	// Three tries a second apart, a second's pause, again: guests of tests
	// should not sit out a server that comes late.
	args := []string{
		"-f", "-i", name, "-s", "/usr/share/udhcpc/default.script", "-t", "3", "-T", "1", "-A", "1",
		"-O", "staticroutes", "-O", "mtu", "-O", "search", "-O", "ntpsrv", "-V", "weft-guest",
	}
	if own, err := os.ReadFile("/run/hostname.fixed"); err == nil {
		args = append(args, "-x", "hostname:"+strings.TrimSpace(string(own)))
	}
	client := exec.CommandContext(n.ctx, "udhcpc", args...)
	client.Stdout, client.Stderr = log, log
	if err := client.Start(); err != nil {
		say("%s: %v", name, err)
		return
	}
	n.udhcpc = client.Process
	go func() {
		err := client.Wait()
		log.Close() // a log
		if n.ctx.Err() == nil {
			say("%s: udhcpc ended: %v", name, err)
		}
	}()
}

// startDHCP6 runs our client, once.
func (n *nic) startDHCP6() {
	if n.renew6 != nil {
		return
	}
	n.renew6 = make(chan struct{}, 1)
	state := n.state
	var held netip.Prefix
	client := &dhcp6c.Client{IfName: state.Name, MAC: state.MAC, Renew: n.renew6}
	client.Apply = func(lease *dhcp6c.Lease) error {
		if lease == nil || held.IsValid() && held.Addr() != lease.Addr {
			say("%s %s lost", state.Name, held)
			if err := link.DelAddr(state.Index, held); err != nil {
				return err
			}
			held = netip.Prefix{}
		}
		if lease == nil {
			return nil
		}
		// The prefix is the router's to say (RFC 5942, section 4).
		prefix := netip.PrefixFrom(lease.Addr, lease.Addr.BitLen())
		life := link.Lifetime{Preferred: lease.Preferred, Valid: lease.Valid}
		if err := link.SetAddr(state.Index, prefix, life); err != nil {
			return err
		}
		writeLease6(state.Name, lease)
		if held != prefix {
			n.announce(prefix, "dhcp6")
		}
		held = prefix
		return nil
	}
	log, err := os.Create("/run/log/dhcp6c." + state.Name)
	if err != nil {
		say("%s: %v", state.Name, err)
		return
	}
	client.Report = func(err error) { fmt.Fprintf(log, "%s %v\n", uptime(), err) }
	go func() {
		defer log.Close() // a log
		if err := client.Run(n.ctx); err != nil && n.ctx.Err() == nil {
			say("%s: dhcp6: %v", state.Name, err)
		}
	}()
}

func writeLease6(name string, lease *dhcp6c.Lease) {
	dns := texts(lease.DNS)
	writeResolv(name+".dhcp6", dns, lease.Search)
	text := fmt.Sprintf("ip=%s dns=%q search=%q preferred=%s valid=%s t1=%s t2=%s\n", lease.Addr, strings.Join(dns, " "),
		strings.Join(lease.Search, " "), lease.Preferred, lease.Valid, lease.T1, lease.T2)
	if err := os.WriteFile("/run/lease/"+name+".dhcp6", []byte(text), 0o644); err != nil {
		say("%s: %v", name, err)
	}
}

func texts(addrs []netip.Addr) []string {
	var out []string
	for _, addr := range addrs {
		out = append(out, addr.String())
	}
	return out
}

// renew makes the clients ask again: the NIC may be on another network now.
func (n *nic) renew() {
	if n.udhcpc != nil {
		if err := n.udhcpc.Signal(syscall.SIGUSR1); err != nil {
			say("%s: renew: %v", n.state.Name, err)
		}
	}
	if n.renew6 != nil {
		select {
		case n.renew6 <- struct{}{}:
		default: // it will renew anyway
		}
	}
}

// announce prints an address and notes that the NIC has one.
func (n *nic) announce(prefix netip.Prefix, source string) {
	say("%s %s via %s", n.state.Name, prefix, source)
	n.markConfigured()
}

func (n *nic) markConfigured() {
	if err := os.WriteFile("/run/configured/"+n.state.Name, nil, 0o644); err != nil {
		say("%s: %v", n.state.Name, err)
	}
}

// waitConfigured waits until every NIC with a carrier has an address, some
// seconds at most: a network without a server must not stop the boot.
func (n *network) waitConfigured(ctx context.Context) {
	const (
		longest = 15 * time.Second
		every   = 50 * time.Millisecond
	)
	// A NIC is seen some time after its module was loaded.
	begin := time.Now()
	for time.Since(begin) < longest && ctx.Err() == nil {
		if n.allConfigured() {
			return
		}
		time.Sleep(every)
	}
	say("not every NIC has an address after %s", longest)
}

func (n *network) allConfigured() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	links, err := filepath.Glob("/sys/class/net/*/device")
	if err != nil || len(links)-len(n.unconfigured) > len(n.nics) {
		return false
	}
	for _, have := range n.nics {
		if !have.settled() {
			return false
		}
	}
	return true
}

// settled says whether there is nothing to wait for: no carrier, or the
// addresses that were promised. With one family served, the other is waited
// for a while.
func (n *nic) settled() bool {
	const patience = 5 * time.Second
	name := n.state.Name
	if !n.state.Up {
		return false
	}
	if !n.state.Carrier {
		return true
	}
	if n.started.IsZero() || !exists("/run/configured/"+name) {
		return false
	}
	want4 := n.config == nil || n.config.DHCP4
	want6 := n.managed || n.config != nil && n.config.DHCP6
	have4, have6 := exists("/run/lease/"+name), exists("/run/lease/"+name+".dhcp6")
	return (have4 || !want4) && (have6 || !want6) || time.Since(n.started) > patience
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// writeResolv notes name servers of one source and joins those of all.
func writeResolv(source string, dns, search []string) {
	var text strings.Builder
	if len(search) > 0 {
		text.WriteString("search " + strings.Join(search, " ") + "\n")
	}
	for _, server := range dns {
		text.WriteString("nameserver " + server + "\n")
	}
	if text.Len() == 0 {
		return
	}
	if err := os.WriteFile("/run/resolv/"+source, []byte(text.String()), 0o644); err != nil {
		say("%v", err)
		return
	}
	if err := exec.Command("/bin/sh", "-c", "cat /run/resolv/* >/etc/resolv.conf").Run(); err != nil {
		say("write resolv.conf: %v", err)
	}
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
