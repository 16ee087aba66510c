package bench

import (
	"context"
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
	"time"

	"github.com/weftnet/weft/internal/linux"
)

const (
	whereaboutsNamespace = "kube-system" // where it keeps its objects unless told otherwise
	whereaboutsPath      = "/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/" + whereaboutsNamespace + "/"
)

// whereaboutsPlugin is the real Whereabouts, on a node of a cluster.
type whereaboutsPlugin struct {
	program string
	host    *linux.NS // where the API server is reached
	pod     string    // a namespace; nobody enters it
	flat    string    // its configuration file
}

// newWhereaboutsPlugin builds Whereabouts as whereabouts/go.mod names it, and makes
// its kinds. A cold build takes two minutes.
func newWhereaboutsPlugin(tb testing.TB, api *kubeAPI) *whereaboutsPlugin {
	tb.Helper()
	const module = "github.com/k8snetworkplumbingwg/whereabouts"
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
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := errors.Join(host.Close(), linux.DeleteNS(pod)); err != nil {
			tb.Error(err)
		}
	})
	for _, kind := range []string{"ippools", "overlappingrangeipreservations"} {
		text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(source)), "doc/crds/whereabouts.cni.cncf.io_"+kind+".yaml"))
		if err != nil {
			tb.Fatal(err)
		}
		if out, err := api.cluster.Kubectl(tb.Context(), string(text), "apply", "-f", "-"); err != nil {
			tb.Fatal(out, err)
		}
		eventually(tb, kind+" can be made", func() error {
			_, err := api.call(http.MethodGet, whereaboutsPath+kind, nil)
			return err
		})
	}
	if _, err := api.call(http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": whereaboutsNamespace}}); err != nil && !strings.Contains(err.Error(), "AlreadyExists") {
		tb.Fatal(err)
	}
	api.kubeconfig(filepath.Join(api.cluster.Dir, "whereabouts.kubeconfig"), api.cluster.Server)
	// It refuses to work without this file, though every key may be in the network's.
	flat := filepath.Join(api.cluster.Dir, "whereabouts.conf")
	text := fmt.Sprintf(`{"kubernetes": {"kubeconfig": "%s/whereabouts.kubeconfig"}}`, api.cluster.Dir)
	if err := os.WriteFile(flat, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	return &whereaboutsPlugin{program: filepath.Join(dir, "whereabouts"), host: host, pod: pod, flat: flat}
}

// call runs the plugin, with these keys of ipam, for a Pod.
func (w *whereaboutsPlugin) call(ctx context.Context, verb, keys, pod string) (string, error) {
	cmd := exec.CommandContext(ctx, w.program)
	cmd.Stdin = strings.NewReader(`{"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": {"type": "whereabouts", "configuration_path": "` + w.flat + `", ` + keys + `}}`)
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=box-" + pod, "CNI_NETNS=" + w.pod, "CNI_IFNAME=net1", "CNI_PATH=" + filepath.Dir(w.program),
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=" + podsNamespace + ";K8S_POD_NAME=" + pod,
	}
	var out, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := w.host.Do(cmd.Run); err != nil {
		return "", fmt.Errorf("whereabouts %s of %s with %s: %w: %s%s", verb, pod, keys, err, out.String(), stderr.String())
	}
	return out.String(), nil
}

// add gives the addresses of a Pod.
func (w *whereaboutsPlugin) add(ctx context.Context, keys, pod string) ([]netip.Prefix, error) {
	out, err := w.call(ctx, "ADD", keys, pod)
	if err != nil {
		return nil, err
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return nil, fmt.Errorf("whereabouts answers %q: %w", out, err)
	}
	var addresses []netip.Prefix
	for _, ip := range result.IPs {
		addresses = append(addresses, ip.Address)
	}
	return addresses, nil
}

// giver gives Pods their addresses, by their number.
type giver interface {
	give(ctx context.Context, pod int) ([]netip.Addr, error)
	takeBack(ctx context.Context, pod int) error
}

// whereaboutsWay is Whereabouts as Multus calls it: for one NIC after the other.
type whereaboutsWay struct {
	*whereaboutsPlugin
	keys string
	nics int // of each Pod
}

func (w whereaboutsWay) nic(pod, i int) string { return fmt.Sprintf("%d-%d", pod, i) }

func (w whereaboutsWay) give(ctx context.Context, pod int) (addrs []netip.Addr, _ error) {
	for i := range w.nics {
		got, err := w.add(ctx, w.keys, w.nic(pod, i))
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, got[0].Addr())
	}
	return addrs, nil
}

func (w whereaboutsWay) takeBack(ctx context.Context, pod int) error {
	for i := range w.nics {
		if _, err := w.call(ctx, "DEL", w.keys, w.nic(pod, i)); err != nil {
			return err
		}
	}
	return nil
}

// createWay is the floor: one object made for each address, and nothing else.
type createWay struct {
	api  *kubeAPI
	base netip.Addr // the first Pod's
	nics int        // of each Pod
}

const leasesPath = "/apis/weft.network/v1alpha1/addressleases"

func (w *createWay) give(_ context.Context, pod int) ([]netip.Addr, error) {
	addrs, errs := make([]netip.Addr, w.nics), make([]error, w.nics)
	each(w.nics, w.nics, func(i int) {
		addrs[i] = w.address(pod, i)
		_, errs[i] = w.api.call(http.MethodPost, leasesPath, object{
			"apiVersion": "weft.network/v1alpha1", "kind": "AddressLease",
			"metadata": object{"name": strings.ReplaceAll(addrs[i].String(), ".", "-"), "labels": object{
				"weft.network/node": "n1", "weft.network/pool": "10.101.0.0-16", "weft.network/owner-uid": "6b7c8d9e-0000-4000-8000-000000000000",
			}},
			"spec": object{
				"ip": addrs[i].String(), "scope": "net:", "pool": "10.101.0.0/16", "network": "nets/n", "interface": "net1", "sandbox": fmt.Sprintf("box%d", pod), "node": "n1",
				"owner": object{"kind": "Pod", "namespace": podsNamespace, "name": fmt.Sprintf("pod%d", pod), "uid": "6b7c8d9e-0000-4000-8000-000000000000"},
			},
		})
	})
	return addrs, errors.Join(errs...)
}

func (w *createWay) takeBack(_ context.Context, pod int) error {
	errs := make([]error, w.nics)
	each(w.nics, w.nics, func(i int) {
		_, errs[i] = w.api.call(http.MethodDelete, leasesPath+"/"+strings.ReplaceAll(w.address(pod, i).String(), ".", "-"), nil)
	})
	return errors.Join(errs...)
}

// address is that of a Pod's NIC, by their numbers.
func (w *createWay) address(pod, i int) netip.Addr {
	b := w.base.As4()
	number := pod*w.nics + i
	b[2], b[3] = byte(number>>8), byte(number)
	return netip.AddrFrom4(b)
}

// addressFigures are those of one way under one load.
type addressFigures struct {
	adds, dels    float64 // per second
	p50, p95, max time.Duration
}

// measureAddresses gives count Pods their addresses, atOnce at a time, and takes them back.
func measureAddresses(tb testing.TB, way giver, first, count, atOnce int) addressFigures {
	tb.Helper()
	took := make([]time.Duration, count)
	got := make([][]netip.Addr, count)
	all := func(f func(i int) error) time.Duration {
		start := time.Now()
		each(count, atOnce, func(i int) {
			if err := f(i); err != nil {
				tb.Error(err)
			}
		})
		return time.Since(start)
	}
	adding := all(func(i int) (err error) {
		start := time.Now()
		got[i], err = way.give(context.Background(), first+i)
		took[i] = time.Since(start)
		return err
	})
	given := slices.SortedFunc(slices.Values(slices.Concat(got...)), netip.Addr.Compare)
	if different := len(slices.Compact(slices.Clone(given))); different != len(given) {
		tb.Errorf("%d addresses were given, and %d of them twice", len(given), len(given)-different)
	}
	deleting := all(func(i int) error { return way.takeBack(context.Background(), first+i) })
	if tb.Failed() {
		tb.FailNow()
	}
	slices.Sort(took)
	return addressFigures{
		adds: float64(count) / adding.Seconds(), dels: float64(count) / deleting.Seconds(),
		p50: took[count/2], p95: took[count*95/100], max: took[count-1],
	}
}
