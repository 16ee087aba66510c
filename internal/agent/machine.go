package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/internal/dhcp"
	"github.com/weftnet/weft/internal/launcher"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/qemu"
	"github.com/weftnet/weft/internal/status"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/vmnet"
)

// How often machine and guest are asked. A guest's new address is to show
// within 10 s; a question to either costs about a millisecond.
const (
	machinePoll = 2 * time.Second
	guestPoll   = 3 * time.Second
	redial      = 200 * time.Millisecond
	// guestAnswer bounds one question to a guest agent, which may hang.
	guestAnswer = 5 * time.Second
)

// machine watches over one VM whose Pod is wired: it runs the guest-facing
// servers and keeps what QEMU and the guest agent say. It survives QEMU: the
// facts then say so.
type machine struct {
	name     string // namespace/name of the instance
	dir      string
	netns    string
	inst     *kubevirt.Instance
	plan     vmnet.Plan
	wiring   time.Duration // what the Pod's side took, servers included
	log      *slog.Logger
	changed  func() // called after facts have changed
	servers  map[string]*dhcp.Server
	cancel   context.CancelFunc
	finished chan struct{}

	// guestMu is held while somebody talks to the guest agent: it serves one.
	guestMu sync.Mutex
	guest   *qemu.Agent

	poke chan struct{} // capacity 1: cables have changed

	// mu guards the fields below it.
	mu      sync.Mutex
	process *launcher.Process // nil: no QEMU was started or found
	cables  map[string]bool   // by network: shall its cable be in?
	seen    int64             // the generation of the instance that says so
	adopted time.Time         // zero: it was started, not found
	facts   machineFacts
	leased  map[string]bool
	lease   time.Time // when a NIC took its first lease last
}

// machineFacts is what was last heard. It is compared as a whole.
type machineFacts struct {
	runs bool
	nics map[string]qemu.NICFacts
	// cables are those QEMU was told of.
	cables map[string]bool
	// channel: somebody in the guest has the guest agent's channel open.
	channel   bool
	connected bool
	guest     []status.GuestFact
	// exit is how the machine ended; nil while it runs or was never started.
	exit *launcher.Exit
}

// watch makes the servers of the plan and begins to watch.
func (m *machine) watch(ctx context.Context) error {
	m.servers = map[string]*dhcp.Server{}
	m.leased = map[string]bool{}
	m.finished = make(chan struct{})
	for _, nic := range m.plan.NICs {
		if nic.Serve == nil {
			continue
		}
		network := nic.NIC.Network
		server, err := dhcp.New(dhcp.Config{
			NIC: m.name + "/" + network, Serve: *nic.Serve, Netns: m.netns, Log: m.log,
			OnEvent: func(e dhcp.Event) {
				if e.Kind == dhcp.Leased {
					m.noteLease(network)
				}
			},
		})
		if err != nil {
			return err
		}
		m.servers[network] = server
	}
	ctx, m.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(m.finished)
		m.run(ctx)
	}()
	return nil
}

// serversPatience bounds the wait for servers to begin.
const serversPatience = 20 * time.Second

// awaitServers waits until all of them have their socket: a guest's first
// question is not to go unheard.
func (m *machine) awaitServers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, serversPatience)
	defer cancel()
	for _, server := range m.servers {
		select {
		case <-server.Ready():
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to listen on its TAP: %w", server, ctx.Err())
		}
	}
	return nil
}

// follow takes over what may change while the machine runs: whether the cables
// are in.
func (m *machine) follow(inst *kubevirt.Instance, generation int64) {
	m.inst = inst
	cables := map[string]bool{}
	for _, iface := range inst.Interfaces {
		cables[iface.Name] = iface.State != vmnet.Down
	}
	m.mu.Lock()
	m.cables, m.seen = cables, generation
	m.mu.Unlock()
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// followed is the generation of the instance whose spec was taken over last.
func (m *machine) followed() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen
}

// close ends servers and watches; nothing then holds the namespace open.
func (m *machine) close() {
	m.cancel()
	<-m.finished
}

func (m *machine) run(ctx context.Context) {
	var group errgroup.Group
	for _, server := range m.servers {
		group.Go(func() error {
			if err := server.Run(ctx); err != nil && !errors.Is(err, dhcp.ErrNamespaceGone) {
				m.log.Error("guest server ended", "server", server.String(), "err", err)
			}
			return nil
		})
	}
	group.Go(func() error { m.repeat(ctx, m.watchExit); return nil })
	group.Go(func() error { m.repeat(ctx, m.watchMachine); return nil })
	group.Go(func() error { m.repeat(ctx, m.watchGuest); return nil })
	_ = group.Wait() // its functions return no errors
}

// repeat calls watch again whenever it ends, until ctx does.
func (m *machine) repeat(ctx context.Context, watch func(context.Context) error) {
	for ctx.Err() == nil {
		if err := watch(ctx); err != nil && ctx.Err() == nil {
			m.log.Debug("connection to the machine", "err", err)
		}
		pause(ctx, redial)
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// running gives the process, or nil if there is none or it has ended.
func (m *machine) running() *launcher.Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.facts.exit != nil {
		return nil
	}
	return m.process
}

// begin tells the watches which process to watch.
func (m *machine) begin(process *launcher.Process) {
	m.mu.Lock()
	m.process, m.facts.exit = process, nil
	m.mu.Unlock()
}

// introduction is how long a machine that was found has to tell how it is.
const introduction = 5 * time.Second

// returned notes that a launcher Pod was looked at.
func (n *Node) returned(pod store.Key) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.returning, pod)
}

// awaitIntroduction waits, after a start of the agent, until the machine of a
// launcher Pod was found again and has told how it is, so that nobody is told
// half the truth.
func (n *Node) awaitIntroduction(ctx context.Context, pod store.Key) {
	ctx, cancel := context.WithTimeout(ctx, introduction)
	defer cancel()
	for ctx.Err() == nil {
		n.mu.Lock()
		returning, m := n.returning[pod], n.machines[pod]
		n.mu.Unlock()
		if !returning && (m == nil || m.unheard(n.cfg.Now()) <= 0) {
			return
		}
		pause(ctx, redial/4)
	}
}

// unheard says how long to wait for a machine that was found to tell how it is.
// Until then its status is better left as the last agent wrote it.
func (m *machine) unheard(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.facts.exit != nil || m.facts.runs && (!m.facts.channel || m.facts.connected)
	if known || m.adopted.IsZero() {
		return 0
	}
	return m.adopted.Add(introduction).Sub(now)
}

// watchExit waits for the end of the process.
func (m *machine) watchExit(ctx context.Context) error {
	process := m.running()
	if process == nil {
		return nil
	}
	exit, err := process.Wait(ctx)
	if err != nil {
		return err
	}
	m.update(func(f *machineFacts) { f.exit = &exit })
	return nil
}

// watchMachine asks QEMU about its NICs until the connection ends.
func (m *machine) watchMachine(ctx context.Context) error {
	process := m.running()
	if process == nil {
		return nil
	}
	client, err := process.QMP(ctx)
	if err != nil {
		return err
	}
	defer client.Close() // the peer may be gone
	defer m.update(func(f *machineFacts) { f.runs, f.channel, f.nics, f.cables = false, false, nil, nil })
	tick := time.NewTicker(machinePoll)
	defer tick.Stop()
	for {
		if err := m.askMachine(ctx, client); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-client.Done():
			return nil
		case <-client.Events():
		case <-m.poke:
		case <-tick.C:
		}
	}
}

// askMachine asks QEMU what it has, and puts cables in and out as they shall be.
func (m *machine) askMachine(ctx context.Context, client *qemu.Client) error {
	nics, err := client.NICs(ctx)
	if err != nil {
		return err
	}
	channel, err := client.AgentOpen(ctx)
	if err != nil {
		return err
	}
	byNetwork := make(map[string]qemu.NICFacts, len(nics))
	for _, nic := range nics {
		nic.MulticastTable = nil // changes often and nobody asks
		byNetwork[nic.Network] = nic
	}
	m.mu.Lock()
	wanted, told := m.cables, maps.Clone(m.facts.cables)
	m.mu.Unlock()
	if told == nil { // newly connected: QEMU cannot be asked how its cables are
		told = map[string]bool{}
	}
	for network := range byNetwork {
		up, known := wanted[network]
		if before, same := told[network]; !known || same && before == up {
			continue
		}
		if err := client.SetLink(ctx, qemu.DeviceID(network), up); err != nil {
			return err
		}
		told[network] = up
	}
	m.update(func(f *machineFacts) { f.runs, f.channel, f.nics, f.cables = true, channel, byNetwork, told })
	return nil
}

func (m *machine) update(change func(*machineFacts)) {
	m.mu.Lock()
	before := m.facts
	change(&m.facts)
	same := reflect.DeepEqual(before, m.facts)
	m.mu.Unlock()
	if !same {
		m.changed()
	}
}

func (m *machine) snapshot() machineFacts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.facts
}

func (m *machine) noteLease(network string) {
	m.mu.Lock()
	known := m.leased[network]
	m.leased[network] = true
	if !known {
		m.lease = time.Now()
	}
	m.mu.Unlock()
	if !known {
		m.changed()
	}
}

// statusFacts gives what is known in the terms of package status.
func (m *machine) statusFacts() status.Facts {
	m.mu.Lock()
	known := m.facts
	leased := m.leased
	facts := status.Facts{
		Wire: map[string]status.WireFact{}, Machine: map[string]status.MachineFact{},
		MachineRuns: known.runs, Guest: known.guest, AgentConnected: known.connected,
		MachineReason: "it is starting",
	}
	if known.exit != nil {
		facts.MachineReason = "it ended: " + known.exit.String()
	}
	for _, nic := range m.plan.NICs {
		facts.Wire[nic.NIC.Network] = m.wireFact(nic, leased[nic.NIC.Network])
		if device, ok := known.nics[nic.NIC.Network]; ok {
			facts.Machine[nic.NIC.Network] = status.MachineFact{
				Model: nic.NIC.Model, MAC: string(device.MAC), MACInUse: string(device.MACInUse),
				Queues: nic.NIC.Queues, LinkUp: known.cables[nic.NIC.Network], Slot: nic.NIC.Slot,
			}
		}
	}
	m.mu.Unlock()
	return facts
}

func (m *machine) wireFact(nic vmnet.NICPlan, leased bool) status.WireFact {
	fact := status.WireFact{
		TAP: string(nic.NIC.TAP), MAC: string(nic.NIC.MAC), Bridge: string(bridgeOf(nic)), Leased: leased,
	}
	if nic.Serve == nil {
		return fact
	}
	if lease := nic.Serve.Lease4; lease != nil {
		fact.Serving = append(fact.Serving, "dhcpv4")
		fact.Offered = append(fact.Offered, lease.Addr.Addr())
	}
	if lease := nic.Serve.Lease6; lease != nil {
		fact.Serving = append(fact.Serving, "dhcpv6")
		fact.Offered = append(fact.Offered, lease.Addr)
	}
	if nic.Serve.RA != nil {
		fact.Serving = append(fact.Serving, "ra")
	}
	if server := m.servers[nic.NIC.Network]; server != nil {
		if all := server.Transactions(); len(all) > 0 {
			fact.LastExchange = exchangeText(all[len(all)-1])
		}
	}
	return fact
}

// notTold lists what the servers cannot tell the guests as it was configured.
func (m *machine) notTold() []string {
	var list []string
	for _, nic := range m.plan.NICs {
		if nic.Serve == nil {
			continue
		}
		if err := dhcp.Problems(*nic.Serve); err != nil {
			list = append(list, fmt.Sprintf("interface %s: left out of DHCP: %s", nic.NIC.Network, strings.ReplaceAll(err.Error(), "\n", "; ")))
		}
	}
	return list
}

func bridgeOf(nic vmnet.NICPlan) netstate.IfName {
	i := slices.IndexFunc(nic.State.Links, func(l netstate.Link) bool { return l.Kind == netstate.KindBridge })
	if i < 0 {
		return ""
	}
	return nic.State.Links[i].Name
}

// exchangeText is one DHCP transaction as people read it.
func exchangeText(t dhcp.Transaction) string {
	answer := t.Answer
	if answer == "" {
		answer = "no answer"
	}
	text := fmt.Sprintf("%s %s %s -> %s", t.Time.Format(time.TimeOnly), t.Protocol, t.Request, answer)
	if t.Given.IsValid() {
		text += " " + t.Given.String()
	}
	if t.Reason != "" {
		text += " (" + t.Reason + ")"
	}
	return text
}
