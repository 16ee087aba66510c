package kubenode

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/weftnet/weft/test/kubelab"
)

// outageOf is less than the 15 s that are promised by what an agent takes to
// start.
const outageOf = 12 * time.Second

// outages take the agent away, and then the API server from the agent. Pods wait
// or start; the kubelet never has to try a second time. Meanwhile running reaches
// address on another node.
func (w *world) outages(running, address string) {
	w.t.Helper()
	n1 := w.c.Nodes()[0]
	collected := w.endWithoutDel()
	ends := "outage-ends"
	w.apply(outagePod(ends))
	w.kubectl("wait", "--for=condition=Ready", "pod/"+ends, "--timeout=120s")

	w.killAgent(n1)
	back := time.After(outageOf)
	w.apply(outagePod("outage-agent-0") + outagePod("outage-agent-1") + outagePod("outage-agent-2"))
	w.kubectl("delete", "pod", ends, "--now")
	if err := w.ping(running, address); err != nil {
		w.t.Errorf("a Pod loses its network with the agent: %v", err)
	}
	<-back
	w.startAgent(n1)
	w.outageOver("outage-agent-0", "outage-agent-1", "outage-agent-2")

	proxy := w.c.Proxy(w.t)
	through, err := proxy.Kubeconfig(w.c.Kubeconfig())
	if err != nil {
		w.t.Fatal(err)
	}
	w.killAgent(n1)
	w.startAgentWith(n1, through)
	w.outageOver()
	for name, fault := range map[string]kubelab.Fault{"slow": {Delay: 2 * time.Second}, "gone": {Away: true}, "broken": {Status: http.StatusInternalServerError}} {
		proxy.Spoil(func(*http.Request) kubelab.Fault { return fault })
		proxy.Cut()
		w.apply(outagePod("outage-api-" + name))
		w.kubectl("wait", "--for=condition=Ready", "pod/outage-api-"+name, "--timeout=120s")
		if err := w.ping(running, address); err != nil {
			w.t.Errorf("a Pod loses its network with the API server %s: %v", name, err)
		}
		proxy.Spoil(nil)
		w.outageOver("outage-api-" + name)
	}
	w.kubectl("delete", "pods", "-l", "outage=yes", "--now")
	w.killAgent(n1)
	w.startAgent(n1)
	collected()
}

// endWithoutDel ends a Pod on n2 while the runtime's DEL goes to nobody, as if
// the power had gone between the two. The agent there notices by itself; collected
// waits for it.
func (w *world) endWithoutDel() (collected func()) {
	w.t.Helper()
	n2 := w.c.Nodes()[1]
	const lost = "outage-lost"
	w.apply(strings.Replace(outagePod(lost), "nodeName: n1", "nodeName: n2", 1))
	w.kubectl("wait", "--for=condition=Ready", "pod/"+lost, "--timeout=120s")
	const records = "grep -l " + lost + " /run/weft/attachments/*.json /var/lib/weft/attachments/*.json 2>/dev/null || true"
	if out := w.on(n2, records); out == "" {
		w.t.Error("there is no record of " + lost)
	}
	const plugin = "/opt/cni/bin/weft-cni"
	w.on(n2, "mv "+plugin+" "+plugin+".away && printf '#!/bin/sh\\nexit 0\\n' >"+plugin+" && chmod +x "+plugin)
	w.kubectl("delete", "pod", lost, "--now")
	w.on(n2, "mv "+plugin+".away "+plugin)
	return func() {
		w.t.Helper()
		w.eventually("the record of "+lost+" goes", func() error {
			if out := w.on(n2, records); out != "" {
				return fmt.Errorf("there is %s", out)
			}
			return nil
		})
	}
}

// outageOver waits until these Pods are ready and their status is written, and
// asks the events for sandboxes that had to be made a second time.
func (w *world) outageOver(pods ...string) {
	w.t.Helper()
	for _, pod := range pods {
		w.kubectl("wait", "--for=condition=Ready", "pod/"+pod, "--timeout=120s")
		if got := w.status("pod/" + pod)["net1"]; len(got.IPs) != 1 {
			w.t.Errorf("%s has %+v", pod, got)
		}
	}
	out := w.kubectl("get", "events", "--field-selector=reason=FailedCreatePodSandBox", "-o", `jsonpath={range .items[*]}{.involvedObject.name}: {.message}{"\n"}{end}`)
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "outage-") || strings.HasPrefix(line, "thin-") {
			w.t.Errorf("a sandbox failed: %s", line)
		}
	}
}

func outagePod(name string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {outage: "yes"}, annotations: {k8s.v1.cni.cncf.io/networks: blue}}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "lab.local/pause:1", imagePullPolicy: Never}]
`, name)
}
