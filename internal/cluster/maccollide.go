package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/store"
)

// macKey is a MAC on a network.
type macKey struct {
	network string
	mac     netstate.MAC
}

// macStation is what has a MAC on a network: a Pod, or a VM, all of whose launchers count
// as one.
type macStation struct {
	name  string // for people
	about about
}

// stations gives what runs with each MAC, sorted by name.
func (m *macs) stations(v *macView) map[macKey][]macStation {
	instances, _ := m.instances.all()
	byKey := map[store.Key]about{}
	for _, is := range instances {
		byKey[is.key] = about{is.gvk, is.key, is.uid}
	}
	out := map[macKey][]macStation{}
	for _, pod := range v.pods {
		if !pod.runs {
			continue
		}
		is := macStation{"Pod " + pod.key.String(), about{podKind, pod.key, pod.uid}}
		if pod.vm != "" {
			key := store.Key{Namespace: pod.key.Namespace, Name: pod.vm}
			is.name = "VM " + key.String()
			if of, known := byKey[key]; known {
				is.about = of
			}
		}
		for _, nic := range pod.nics {
			key := macKey{nic.network.String(), nic.mac}
			if key.mac == "" {
				key.mac = v.identities[store.Key{Namespace: pod.key.Namespace, Name: netattach.ClaimOfVM(pod.vm, nic.ifName)}].spec.MAC
			}
			if key.mac != "" && !slices.ContainsFunc(out[key], func(other macStation) bool { return other.name == is.name }) {
				out[key] = append(out[key], is)
			}
		}
	}
	maps.DeleteFunc(out, func(_ macKey, list []macStation) bool { return len(list) < 2 })
	for _, list := range out {
		slices.SortFunc(list, func(a, b macStation) int { return strings.Compare(a.name, b.name) })
	}
	return out
}

// collide tells of MACs that several have on one network, each of them once.
func (m *macs) collide(ctx context.Context, v *macView) {
	all := m.stations(v)
	m.collisions.Store(int64(len(all)))
	still := map[string]bool{}
	for key, list := range all {
		var names []string
		for _, is := range list {
			names = append(names, is.name)
		}
		for i, is := range list {
			others := others(names, i)
			message := fmt.Sprintf("MAC %s is on network %s that of %s, too: frames for one reach the other", key.mac, key.network, others)
			still[is.name+" "+message] = m.told[is.name+" "+message]
			if !m.told[is.name+" "+message] {
				m.log.Warn("a MAC is that of several", "mac", string(key.mac), "network", key.network, "of", is.name, "others", others)
				still[is.name+" "+message] = m.event(ctx, is.about, "MACCollision", message)
			}
		}
	}
	m.told = still
}

// mostNamed bounds how many are named beside one who has the same MAC.
const mostNamed = 3

// others names those beside one, the first of them: what is told does not change with
// each that comes.
func others(names []string, but int) string {
	var out []string
	for i, name := range names {
		switch {
		case i == but:
		case len(out) == mostNamed:
			return strings.Join(out, ", ") + " and others"
		default:
			out = append(out, name)
		}
	}
	return strings.Join(out, ", ")
}

// event writes one, and says whether it is written.
func (m *macs) event(ctx context.Context, is about, reason, message string) bool {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	err := warn(ctx, m.writer, is, reason, message)
	if err != nil {
		m.log.Debug("event is not written", "about", is.key.String(), "reason", reason, "err", err)
	}
	return err == nil
}
