package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/qemu"
	"github.com/weftnet/weft/internal/status"
	"github.com/weftnet/weft/internal/store"
)

// agentGrace is how long after its leases a guest is not called ready if its
// agent, which most have, has not spoken yet: it starts a moment later.
const agentGrace = 10 * time.Second

// awaitsAgent says how long the guest agent may still be waited for.
func (m *machine) awaitsAgent() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.facts.connected || m.facts.exit != nil || m.lease.IsZero() {
		return 0
	}
	return max(0, agentGrace-time.Since(m.lease))
}

// watchGuest asks the guest agent for its interfaces until the connection ends.
// It does not speak while nobody listens in the guest: what it said would wait
// in a buffer and reach an agent that starts much later.
func (m *machine) watchGuest(ctx context.Context) error {
	process := m.running()
	if process == nil || !m.snapshot().channel {
		return nil
	}
	agent, err := process.Agent(ctx)
	if err != nil {
		return err
	}
	m.guestMu.Lock()
	m.guest = agent
	m.guestMu.Unlock()
	defer func() {
		m.guestMu.Lock()
		m.guest = nil
		m.guestMu.Unlock()
		_ = agent.Close() // the peer may be gone
		m.update(func(f *machineFacts) { f.connected, f.guest = false, nil })
	}()
	for ctx.Err() == nil && m.snapshot().channel {
		wait := guestPoll
		switch err := m.askGuest(ctx, agent); {
		case err == nil:
		case errors.Is(err, context.DeadlineExceeded):
			// It hangs, or the guest is busy.
			m.update(func(f *machineFacts) { f.connected, f.guest = false, nil })
			wait = redial
		default:
			return err
		}
		pause(ctx, wait)
	}
	return nil
}

func (m *machine) askGuest(ctx context.Context, agent *qemu.Agent) error {
	m.guestMu.Lock()
	defer m.guestMu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, guestAnswer)
	defer cancel()
	links, err := agent.NetworkInterfaces(ctx)
	if err != nil {
		return err
	}
	var facts []status.GuestFact
	for _, link := range links {
		if link.Name == "lo" {
			continue
		}
		fact := status.GuestFact{Name: link.Name, MAC: string(link.MAC)}
		for _, p := range link.Addrs {
			fact.Addresses = append(fact.Addresses, p.Addr())
		}
		facts = append(facts, fact)
	}
	m.update(func(f *machineFacts) { f.connected, f.guest = true, facts })
	return nil
}

// agentPatience is how long exec waits for the guest agent: a guest may well
// have its addresses a moment before.
const agentPatience = 15 * time.Second

// exec runs a program in the guest.
func (m *machine) exec(ctx context.Context, command qemu.Command) (qemu.Result, error) {
	deadline := time.Now().Add(agentPatience)
	for !m.snapshot().connected && ctx.Err() == nil && time.Now().Before(deadline) {
		pause(ctx, redial)
	}
	m.guestMu.Lock()
	defer m.guestMu.Unlock()
	if m.guest == nil || !m.snapshot().connected {
		return qemu.Result{}, &hint.Error{
			Field: "vmi", Value: m.name, Problem: "no guest agent answers", Remedy: "install and start qemu-guest-agent in the guest; weft console reaches it without",
		}
	}
	return m.guest.Exec(ctx, command)
}

// GuestExec runs a program in the guest of an instance.
func (n *Node) GuestExec(ctx context.Context, key store.Key, command qemu.Command) (qemu.Result, error) {
	vmi, err := n.cfg.Store.Get(ctx, kubevirt.InstanceKind, key)
	if err != nil {
		return qemu.Result{}, fmt.Errorf("vmi %s: %w", key, err)
	}
	pod, err := n.launcherPod(ctx, vmi)
	if err != nil {
		return qemu.Result{}, err
	}
	var m *machine
	if pod != nil {
		n.awaitIntroduction(ctx, store.KeyOf(pod))
		m = n.machine(store.KeyOf(pod))
	}
	if m == nil {
		return qemu.Result{}, &hint.Error{Field: "vmi", Value: key.String(), Problem: "its machine does not run", Remedy: "weft describe vmi " + key.Name + " says what it waits for"}
	}
	return m.exec(ctx, command)
}
