package kubenode

import (
	"fmt"
	"strings"
)

// thinNode has n2 do without an agent: kubelet and containerd call the thin
// plugin, which asks the API server itself.
func (w *world) thinNode() {
	w.t.Helper()
	n2 := w.c.Nodes()[1]
	const file = "/etc/cni/net.d/00-weft.conflist"
	write := func(config string) {
		w.t.Helper()
		w.on(n2, "printf %s '"+config+"' >"+file+".new && mv "+file+".new "+file)
	}
	w.killAgent(n2)
	write(strings.Replace(config, `"type":"weft-cni"`, fmt.Sprintf(`"type":"weft-cni-thin","kubeconfig":%q`, w.c.Kubeconfig()), 1))
	var pods []string
	for i := range 3 {
		name := fmt.Sprintf("thin-%d", i)
		w.apply(strings.Replace(outagePod(name), "nodeName: n1", "nodeName: n2", 1))
		pods = append(pods, name)
	}
	w.outageOver(pods...)
	w.kubectl("delete", "pods", "-l", "outage=yes", "--now")
	if out := w.on(n2, "grep -l thin- /run/weft/attachments/*.json /var/lib/weft/attachments/*.json 2>/dev/null || true"); out != "" {
		w.t.Errorf("the thin plugin leaves records: %s", out)
	}
	write(config)
	w.startAgent(n2)
	w.apply(strings.Replace(outagePod("after-thin"), "nodeName: n1", "nodeName: n2", 1)) // the agent's again
	w.outageOver("after-thin")
	w.kubectl("delete", "pod", "after-thin", "--now")
}
