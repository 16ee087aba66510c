package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/linux"
	takeover "github.com/weftnet/weft/internal/whereabouts"
)

const (
	whereaboutsNamespace = "kube-system" // where it keeps its objects unless told otherwise
	whereaboutsPath      = "/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/" + whereaboutsNamespace + "/"
)

// takenOver is a cluster that the real Whereabouts gives addresses in.
type takenOver struct {
	t       *testing.T
	api     *kubeAPI
	program string
	host    *linux.NS // where the API server is reached
	pod     string    // a namespace; nobody enters it
	// networks there are, and the ipam keys of each by its name.
	networks []ipam.Network
	keys     map[string]string
}

// newTakenOver builds Whereabouts as whereabouts/go.mod names it, and makes its
// kinds.
func newTakenOver(t *testing.T) *takenOver {
	t.Helper()
	const module = "github.com/k8snetworkplumbingwg/whereabouts"
	api := newKubeAPI(t)
	mod, modErr := os.ReadFile("whereabouts/go.mod")
	sum, sumErr := os.ReadFile("whereabouts/go.sum")
	dir, buildErr := cached("whereabouts", []string{string(mod), string(sum)}, func(dir string) error {
		return build("whereabouts", os.Environ(), "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "whereabouts"), module+"/cmd")
	})
	list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module)
	list.Dir, list.Env = "whereabouts", append(os.Environ(), "GOWORK=off")
	source, listErr := list.Output()
	host, hostErr := linux.OpenNS(api.cluster.NetNS())
	pod := filepath.Join(api.cluster.Dir, "pod-of-whereabouts")
	if err := errors.Join(modErr, sumErr, buildErr, listErr, hostErr, linux.CreateNS(pod)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(host.Close(), linux.DeleteNS(pod)); err != nil {
			t.Error(err)
		}
	})
	for _, kind := range []string{"ippools", "overlappingrangeipreservations"} {
		text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(source)), "doc/crds/whereabouts.cni.cncf.io_"+kind+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if out, err := api.cluster.Kubectl(t.Context(), string(text), "apply", "-f", "-"); err != nil {
			t.Fatal(out, err)
		}
		eventually(t, kind+" can be made", func() error {
			_, err := api.call(http.MethodGet, whereaboutsPath+kind, nil)
			return err
		})
	}
	if _, err := api.call(http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": whereaboutsNamespace}}); err != nil && !strings.Contains(err.Error(), "AlreadyExists") {
		t.Fatal(err)
	}
	api.kubeconfig(filepath.Join(api.cluster.Dir, "whereabouts.kubeconfig"), api.cluster.Server)
	// It refuses to work without this file, though every key may be in the network's.
	flat := fmt.Sprintf(`{"kubernetes": {"kubeconfig": "%s/whereabouts.kubeconfig"}}`, api.cluster.Dir)
	if err := os.WriteFile(filepath.Join(api.cluster.Dir, "whereabouts.conf"), []byte(flat), 0o600); err != nil {
		t.Fatal(err)
	}
	return &takenOver{t: t, api: api, program: filepath.Join(dir, "whereabouts"), host: host, pod: pod, keys: map[string]string{}}
}

// TestTakeover: what the real Whereabouts gave on a real API server is imported,
// every address with its holder; and what is written back as its objects, it goes
// on with: it gives none of them, and frees them when their Pods end.
func TestTakeover(t *testing.T) {
	c := newTakenOver(t)
	for _, n := range [][2]string{
		{"lan", `"range": "10.0.0.0/24", "exclude": ["10.0.0.2"]`},
		{"wide", `"range": "10.0.0.0/16"`},
		{"blue", `"range": "10.0.0.0/24", "network_name": "blue-1"`},
		{"apart", `"range": "10.5.0.0/28", "enable_overlapping_ranges": false`},
		{"dual", `"range": "10.7.0.10-10.7.0.20/24", "ipRanges": [{"range": "fd00::/64"}]`},
		{"upper", `"range": "caa5::/64", "range_start": "caa5::8000:0:0:1"`},
	} {
		c.network(n[0], n[1])
	}
	var want []string
	pods := map[string]takeover.Pod{}
	for i, network := range []string{"lan", "lan", "wide", "blue", "blue", "apart", "dual", "dual", "upper"} {
		pod := fmt.Sprint("p", i)
		pods[podsNamespace+"/"+pod] = takeover.Pod{UID: "u-" + pod, Node: "n1"}
		for _, a := range c.give(network, pod) {
			want = append(want, fmt.Sprintf("%s %s/%s box-%s net1 u-%s", a.Addr(), podsNamespace, pod, pod, pod))
		}
	}
	in := c.read(pods)
	for _, d := range in.Disagreements {
		t.Error(d)
	}
	slices.Sort(want)
	got := leasesText(in.Leases)
	if !slices.Equal(got, want) {
		t.Fatalf("imported %q\nwant     %q", got, want)
	}

	// Weft gave one more meanwhile; then the cluster is handed back.
	ours := takeover.Lease{
		Scope: ipam.WhereaboutsScope("", netip.Prefix{}), Addr: netip.MustParseAddr("10.0.0.5"), Pool: netip.MustParsePrefix("10.0.0.0/24"),
		PodRef: podsNamespace + "/ours", IfName: "net1", ContainerID: "box-ours", UID: "u-ours", Node: "n1",
	}
	pods[ours.PodRef] = takeover.Pod{UID: ours.UID, Node: ours.Node}
	for _, kind := range []string{"ippools", "overlappingrangeipreservations"} {
		c.api.must(http.MethodDelete, whereaboutsPath+kind, nil)
	}
	mirror := takeover.PlanMirror(append(in.Leases, ours), takeover.MirrorOptions{Namespace: whereaboutsNamespace})
	if len(mirror.Unreadable) != 1 || mirror.Unreadable[0].Addr != netip.MustParseAddr("caa5::8000:0:0:1") {
		t.Errorf("unreadable: %v", mirror.Unreadable)
	}
	for _, obj := range mirror.Changes(nil, nil, false).Create {
		kind := strings.ToLower(obj["kind"].(string)) + "s"
		c.api.must(http.MethodPost, whereaboutsPath+kind, obj)
	}
	for _, step := range []struct{ ends, starts, network, gets string }{
		{"", "new1", "lan", "10.0.0.4/24"},     // .1 to .3 are held, and .5
		{"ours", "new2", "lan", "10.0.0.5/24"}, // what weft gave comes free
		{"p0", "new3", "wide", "10.0.0.1/16"},  // of another range, by the reservation
		{"p3", "new4", "blue", "10.0.0.1/24"},  // a network_name for itself
		{"p5", "new5", "apart", "10.5.0.1/28"}, // without reservations
		{"p6", "new6", "dual", "10.7.0.10/24"}, // both families
	} {
		if step.ends != "" {
			c.takeBack(map[string]string{"ours": "lan", "p0": "lan", "p3": "blue", "p5": "apart", "p6": "dual"}[step.ends], step.ends)
		}
		if got := c.give(step.network, step.starts); got[0].String() != step.gets {
			t.Errorf("%s on %s after %q has ended: %v, want %s", step.starts, step.network, step.ends, got, step.gets)
		}
		pods[podsNamespace+"/"+step.starts] = takeover.Pod{UID: "u-" + step.starts, Node: "n1"}
	}
	again := c.read(pods)
	for _, d := range again.Disagreements {
		t.Errorf("after the way back: %s", d)
	}
	held := map[netip.Addr]bool{}
	for _, l := range again.Leases {
		held[l.Addr] = true
		if slices.Contains([]string{"ours", "p0", "p3", "p5", "p6"}, strings.TrimPrefix(l.PodRef, podsNamespace+"/")) {
			t.Errorf("%s is still held by %s", l.Addr, l.PodRef)
		}
	}
	if len(again.Leases) != len(in.Leases)+2 || !held[netip.MustParseAddr("10.0.0.4")] {
		t.Errorf("held after the way back: %q", leasesText(again.Leases))
	}
}

func leasesText(leases []takeover.Lease) []string {
	var out []string
	for _, l := range leases {
		out = append(out, fmt.Sprintf("%s %s %s %s %s", l.Addr, l.PodRef, l.ContainerID, l.IfName, l.UID))
	}
	slices.Sort(out)
	return out
}

func (c *takenOver) network(name, keys string) {
	c.t.Helper()
	config, err := ipam.Parse([]byte(`{"name": "n", "ipam": {"type": "whereabouts", `+keys+`}}`), "")
	if err != nil {
		c.t.Fatal(err)
	}
	c.networks = append(c.networks, ipam.Network{Name: name, Config: config})
	c.keys[name] = keys
}

// read imports the objects there are now.
func (c *takenOver) read(pods map[string]takeover.Pod) takeover.Import {
	c.t.Helper()
	facts := takeover.Facts{Networks: c.networks, Pods: pods}
	for _, obj := range c.list("ippools") {
		pool, err := whereabouts.IPPoolFromObject(obj)
		if err != nil {
			c.t.Fatal(err)
		}
		pool.Labels = nil // those we handed back are Whereabouts' again
		facts.Pools = append(facts.Pools, pool)
	}
	for _, obj := range c.list("overlappingrangeipreservations") {
		r, err := whereabouts.ReservationFromObject(obj)
		if err != nil {
			c.t.Fatal(err)
		}
		r.Labels = nil
		facts.Reservations = append(facts.Reservations, r)
	}
	return takeover.PlanImport(facts)
}

func (c *takenOver) list(kind string) []object {
	c.t.Helper()
	var list struct{ Items []object }
	if err := json.Unmarshal(c.api.must(http.MethodGet, whereaboutsPath+kind, nil), &list); err != nil {
		c.t.Fatal(err)
	}
	return list.Items
}

func (c *takenOver) give(network, pod string) []netip.Prefix {
	c.t.Helper()
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	out := c.run("ADD", network, pod)
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		c.t.Fatalf("whereabouts answers %q: %v", out, err)
	}
	var addresses []netip.Prefix
	for _, ip := range result.IPs {
		addresses = append(addresses, ip.Address)
	}
	return addresses
}

func (c *takenOver) takeBack(network, pod string) {
	c.t.Helper()
	c.run("DEL", network, pod)
}

func (c *takenOver) run(verb, network, pod string) string {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), c.program)
	flat := filepath.Join(c.api.cluster.Dir, "whereabouts.conf")
	cmd.Stdin = strings.NewReader(`{"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": {"type": "whereabouts", "configuration_path": "` + flat + `", ` + c.keys[network] + `}}`)
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=box-" + pod, "CNI_NETNS=" + c.pod, "CNI_IFNAME=net1", "CNI_PATH=" + filepath.Dir(c.program),
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=" + podsNamespace + ";K8S_POD_NAME=" + pod,
	}
	var out, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := c.host.Do(cmd.Run); err != nil {
		c.t.Fatalf("whereabouts %s of %s on %s: %v: %s%s", verb, pod, network, err, out.String(), stderr.String())
	}
	return out.String()
}
