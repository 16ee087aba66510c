package kubenode

import (
	"errors"
	"strings"

	"github.com/weftnet/weft/test/kubelab"
)

// stray attaches a sandbox that the node's runtime knows nothing of, as one that
// was lost has it, and one that somebody else made for no Pod; later the first is
// taken back, and nothing else is.
func (w *world) stray(node *kubelab.Node) (takenBack func()) {
	w.t.Helper()
	const conf = `{"cniVersion":"1.0.0","name":"weft","type":"weft-cni","clusterNetwork":"/etc/cni/net.d/10-primary.conflist","runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"k8s.v1.cni.cncf.io/networks":"blue"}}}`
	call := func(command, id, uid string) {
		w.t.Helper()
		args := "K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + id
		if uid != "" {
			args += ";K8S_POD_UID=" + uid
		}
		w.on(node, "printf %s '"+conf+"' | CNI_COMMAND="+command+" CNI_CONTAINERID="+id+" CNI_NETNS=/run/netns/"+id+" CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin CNI_ARGS='"+args+"' /opt/cni/bin/weft-cni")
	}
	for id, uid := range map[string]string{"stray": "0000", "guest": ""} {
		w.on(node, "ip netns add "+id)
		call("ADD", id, uid)
	}
	records := func() string {
		return w.on(node, "cd /; ls var/lib/weft/attachments run/weft/attachments")
	}
	if got := records(); !strings.Contains(got, "stray.json") || !strings.Contains(got, "guest.json") {
		w.t.Fatalf("records: %s", got)
	}
	return func() {
		w.t.Helper()
		w.eventually("what the runtime does not know is taken back", func() error {
			if strings.Contains(records(), "stray.json") {
				return errors.New("its record is there")
			}
			return nil
		})
		if got := w.on(node, "ip -n stray -br link"); strings.Contains(got, "eth0") || strings.Contains(got, "net1") {
			w.t.Errorf("the stray has %s", got)
		}
		if got := w.on(node, "ip -n guest -br link"); !strings.Contains(got, "eth0") || !strings.Contains(got, "net1") {
			w.t.Errorf("what was made for no Pod has %s", got)
		}
		call("DEL", "guest", "")
		w.on(node, "ip netns delete stray && ip netns delete guest")
	}
}
