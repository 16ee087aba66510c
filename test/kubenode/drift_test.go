package kubenode

import (
	"fmt"
	"strings"

	"github.com/weftnet/weft/test/kubelab"
)

// inside runs a command in the network namespace of a Pod, as somebody on its
// node with more rights than the Pod's.
func (w *world) inside(node *kubelab.Node, pod, command string) string {
	w.t.Helper()
	name := strings.TrimPrefix(pod, "pod/")
	return w.on(node, `ns=$(grep -h '"name":"`+name+`"' /var/lib/weft/attachments/*.json /run/weft/attachments/*.json 2>/dev/null | tail -n1 | sed 's/.*"netns":"\([^"]*\)".*/\1/'); nsenter --net="$ns" `+command)
}

// drift takes an address off a Pod of node n2, and later has that told, and
// repaired once the network's owner wants it.
func (w *world) drift(pod string) (told func()) {
	w.t.Helper()
	n2 := w.c.Nodes()[1]
	name := strings.TrimPrefix(pod, "pod/")
	w.inside(n2, pod, "ip addr del 192.168.77.11/24 dev net1")
	condition := func() string {
		return w.kubectl("get", pod, "-o", `jsonpath={range .status.conditions[?(@.type=="weft.network/NetworksReady")]}{.status} {.reason} {.message}{end}`)
	}
	return func() {
		w.t.Helper()
		w.eventually("the Pod's condition tells that an address is missing", func() error {
			if got := condition(); !strings.HasPrefix(got, "False NetworksChanged") || !strings.Contains(got, "ip addr add 192.168.77.11/24 dev net1") {
				return fmt.Errorf("it is %q", got)
			}
			return nil
		})
		w.kubectl("annotate", "net-attach-def", "macvlan-conf", "weft.network/repair=true")
		w.eventually("the address is back, and told of", func() error {
			if got := condition(); !strings.HasPrefix(got, "True AsMade") {
				return fmt.Errorf("the condition is %q", got)
			}
			return nil
		})
		if got := w.inside(n2, pod, "ip -br addr show dev net1"); !strings.Contains(got, "192.168.77.11/24") {
			w.t.Errorf("net1 has %s", got)
		}
		w.eventually("there is an event for each change", func() error {
			count := map[string]int{}
			for reason := range strings.FieldsSeq(w.kubectl("get", "events", "--field-selector=involvedObject.name="+name, "-o", "jsonpath={.items[*].reason}")) {
				count[reason]++
			}
			if count["NetworksChanged"] != 1 || count["NetworkRepaired"] != 1 || count["NetworksRestored"] != 1 {
				return fmt.Errorf("there are %v", count)
			}
			return nil
		})
		w.kubectl("annotate", "net-attach-def", "macvlan-conf", "weft.network/repair-")
	}
}
