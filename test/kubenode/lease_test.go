package kubenode

import (
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
