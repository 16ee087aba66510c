package kubenode

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// tinyConf has four addresses for two nodes.
const tinyConf = `---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: tiny}
spec:
  config: '{"cniVersion":"1.0.0","type":"bridge","bridge":"tiny0","ipam":{"type":"whereabouts","range":"10.81.0.0/29","range_start":"10.81.0.1","range_end":"10.81.0.4","network_name":"tiny"}}'
`

// leases has four Pods on two nodes share four addresses, replaces them all, and
// then ends them.
func (w *world) leases() {
	w.t.Helper()
	w.apply(tinyConf + deployment("tiny1", "n1", "tiny") + deployment("tiny2", "n2", "tiny"))
	w.kubectl("scale", "deployment/tiny1", "deployment/tiny2", "--replicas=2")
	w.rollout("tiny1", "tiny2")
	w.leased()
	w.kubectl("delete", "pods", "-l", "app in (tiny1, tiny2)", "--now")
	w.rollout("tiny1", "tiny2")
	w.leased()
	w.kubectl("scale", "deployment/tiny1", "--replicas=3")
	w.eventually("an event tells that no address is left", func() error {
		out := w.kubectl("get", "events", "--field-selector=reason=FailedCreatePodSandBox", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(out, "all 4 addresses of 10.81.0.1-10.81.0.4 of 10.81.0.0/29 are held") {
			return fmt.Errorf("there are %q", out)
		}
		return nil
	})
	w.kubectl("delete", "deployment", "tiny1", "tiny2", "--now")
	w.eventually("no lease is left", func() error {
		if out := w.kubectl("get", "addrlease", "-l", "weft.network/pool=10.81.0.0-29", "-o", "name"); out != "" {
			return fmt.Errorf("left are %s", out)
		}
		return nil
	})
	w.kubectl("delete", "events", "--field-selector=reason=FailedCreatePodSandBox") // a later test wants none
}

// leased wants the leases to be what the Pods tell, each once.
func (w *world) leased() {
	w.t.Helper()
	w.eventually("leases and Pods agree", func() error {
		var have []string
		for _, pod := range strings.Fields(w.kubectl("get", "pods", "-l", "app in (tiny1, tiny2)", "--field-selector=status.phase=Running", "-o", "name")) {
			for _, ip := range w.status(pod)["net1"].IPs {
				have = append(have, fmt.Sprintf("%s %s", strings.TrimPrefix(pod, "pod/"), ip))
			}
		}
		held := strings.Split(strings.TrimSpace(w.kubectl("get", "addrlease", "-l", "weft.network/pool=10.81.0.0-29",
			"-o", `jsonpath={range .items[*]}{.spec.owner.name} {.spec.ip}{"\n"}{end}`)), "\n")
		slices.Sort(have)
		slices.Sort(held)
		if len(have) != 4 || !slices.Equal(have, held) {
			return fmt.Errorf("Pods have %q, leases are %q", have, held)
		}
		seen := map[netip.Addr]bool{}
		for _, one := range held {
			_, ip, _ := strings.Cut(one, " ")
			seen[netip.MustParseAddr(ip)] = true
		}
		if len(seen) != 4 {
			return fmt.Errorf("an address is held twice: %q", held)
		}
		return nil
	})
	if table := w.kubectl("get", "addrlease"); !strings.Contains(table, "ADDRESS") || !strings.Contains(table, "default/tiny") {
		w.t.Errorf("kubectl shows\n%s", table)
	}
}

// aheadConf is the network of Pods that come quickly.
const aheadConf = `---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: quick}
spec:
  config: '{"cniVersion":"1.0.0","type":"bridge","bridge":"quick0","ipam":{"type":"whereabouts","range":"10.83.0.0/24","network_name":"quick"}}'
`

// keptAhead has a node take addresses ahead of its Pods: the next one gets one of them.
// It gives what is to be done later, when the cluster was told.
func (w *world) keptAhead() (later func()) {
	w.t.Helper()
	many := strings.TrimSuffix(strings.Repeat("quick,", 20), ",")
	w.apply(aheadConf + deployment("quick1", "n1", many))
	w.rollout("quick1")
	var ahead []string
	w.eventually("node n1 takes an address ahead", func() error {
		ahead = strings.Fields(w.kubectl("get", "addrlease", "-l", "weft.network/pool=10.83.0.0-24", "-o", `jsonpath={.items[?(@.spec.owner.kind=="Node")].spec.ip}`))
		if len(ahead) == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	w.apply(deployment("quick2", "n1", "quick"))
	w.rollout("quick2")
	pod := w.pod("quick2")
	ips := w.status(pod)["net1"].IPs
	if len(ips) != 1 || !slices.Contains(ahead, ips[0]) {
		w.t.Fatalf("the Pod has %v, ahead were %v", ips, ahead)
	}
	return func() { w.keptTold(pod, ips[0]) }
}

func (w *world) keptTold(pod, ip string) {
	w.t.Helper()
	w.eventually("the cluster is told whose it is", func() error {
		out := w.kubectl("get", "nodeaddr", "n1", "-o", `jsonpath={range .spec.bindings[*]}{.lease} {.owner.name}{"\n"}{end}`)
		if !strings.Contains(out, fmt.Sprintf("quick-%s %s\n", ip, strings.TrimPrefix(pod, "pod/"))) {
			return fmt.Errorf("told is %q", out)
		}
		return nil
	})
	w.kubectl("delete", "deployment", "quick1", "quick2", "--now")
	w.eventually("only what is ahead is left", func() error {
		if out := w.kubectl("get", "addrlease", "-l", "weft.network/pool=10.83.0.0-24", "-o", `jsonpath={.items[?(@.spec.owner.kind=="Pod")].spec.ip}`); out != "" {
			return fmt.Errorf("left are %s", out)
		}
		if out := w.kubectl("get", "addrlease", "quick-"+ip, "--ignore-not-found", "-o", "name"); out != "" {
			return fmt.Errorf("%s is left", out)
		}
		return nil
	})
}
