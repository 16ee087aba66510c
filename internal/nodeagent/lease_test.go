package nodeagent

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/test/kubelab"
)

// leases lists the addresses held in the cluster, by sandbox and interface.
func (l *lab) leases() ([]string, error) {
	list, _, err := l.api.List(l.t.Context(), v1alpha1.AddressLeaseKind, store.Selector{})
	var out []string
	for _, obj := range list {
		one, err := v1alpha1.LeaseFromObject(obj)
		if err != nil {
			return nil, err
		}
		out = append(out, fmt.Sprintf("%s/%s %s", one.Spec.Sandbox, one.Spec.Interface, one.Spec.IP))
	}
	slices.Sort(out)
	return out, err
}

// leaseLab is a lab whose networks lan and wan have addresses of the cluster.
func leaseLab(t *testing.T) *lab {
	t.Helper()
	l := newLab(t)
	l.c.LeaseKind(t)
	l.start()
	l.nad("lan", `{"cniVersion":"1.0.0","type":"bridge","bridge":"lan0","ipam":{"type":"whereabouts","range":"10.71.0.0/24"}}`)
	l.nad("wan", `{"cniVersion":"1.0.0","type":"bridge","bridge":"wan0","ipam":{"type":"whereabouts","range":"10.72.0.0/24","network_name":"wan"}}`)
	return l
}

const leasedPod = "lan,wan,lan"

// leased wants the leases there are to be the addresses that the Pod has.
func (p *pod) leased() {
	p.t.Helper()
	var want []string
	for name, addr := range p.addresses() {
		if strings.HasPrefix(name, "net") {
			want = append(want, fmt.Sprintf("%s/%s %s", p.now.ContainerID, name, addr))
		}
	}
	slices.Sort(want)
	if got, err := p.leases(); err != nil || !slices.Equal(got, want) || len(got) != 3 {
		p.t.Errorf("leases are %q (%v), and the Pod has %q", got, err, want)
	}
}

func (l *lab) noLeases() {
	l.t.Helper()
	l.eventually("no lease is left", func() error {
		left, err := l.leases()
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left are %q", left)
		}
		return err
	})
	l.nothingLeft()
}

// TestLeasesSurviveKills kills weft-node before each step of an ADD and a DEL of a
// Pod whose addresses are leases, its start included.
func TestLeasesSurviveKills(t *testing.T) {
	l := leaseLab(t)
	l.kill()
	l.steps(func(env string) bool {
		p := l.pod(leasedPod)
		p.sandbox(true)
		l.start(env)
		err := p.add()
		killed := err != nil
		if killed {
			code(t, err, types.ErrTryAgainLater, "agent")
			l.kill()
			l.start()
			if err := p.add(); err != nil {
				t.Fatalf("ADD after %s: %v", env, err)
			}
		}
		p.leased()
		p.check()
		l.kill()
		l.start(env)
		p.end()
		if l.leftovers() != nil { // killed in DEL, which weft-cni kept
			killed = true
			l.kill()
			l.start()
		}
		l.noLeases()
		l.kill()
		return killed
	})
}

// TestLeasesWithoutAPI: while the API server is away an ADD is told to try again and
// a DEL is done; what it held is given back later, by another process, too.
func TestLeasesWithoutAPI(t *testing.T) {
	l := leaseLab(t)
	stays, goes := l.pod(leasedPod), l.pod("lan")
	for _, p := range []*pod{stays, goes} {
		p.sandbox(true)
		if err := p.add(); err != nil {
			t.Fatal(err)
		}
	}
	l.proxy.Spoil(func(*http.Request) kubelab.Fault { return kubelab.Fault{Away: true} })
	l.proxy.Cut()
	goes.end()
	late := l.pod("lan")
	late.sandbox(true)
	code(t, late.add(), types.ErrTryAgainLater, "API server", "did not answer")
	late.end()
	l.kill()
	l.start()
	l.proxy.Spoil(nil)
	l.eventually("the lease of the Pod that ended is given back", func() error {
		left, err := l.leases()
		if err == nil && len(left) != 3 {
			err = fmt.Errorf("there are %q", left)
		}
		return err
	})
	stays.leased()
	stays.end()
	l.noLeases()
}

// TestLeaseRequests counts what an ADD and a DEL ask of the API server: a create and
// a delete for each address.
func TestLeaseRequests(t *testing.T) {
	l := leaseLab(t)
	warm := l.pod(leasedPod)
	warm.sandbox(true)
	if err := warm.add(); err != nil { // the agent knows by now that the kind is there
		t.Fatal(err)
	}
	p := l.pod(leasedPod)
	p.sandbox(true)
	l.proxy.Take()
	if err := p.add(); err != nil {
		t.Fatal(err)
	}
	p.del()
	count := map[string]int{}
	for _, r := range l.proxy.Take() {
		if strings.Contains(r.Path, "addressleases") {
			count[r.Method]++
		}
	}
	if count["POST"] != 3 || count["DELETE"] != 3 || len(count) != 2 {
		t.Errorf("requests for leases: %v", count)
	}
	if _, body := l.ask("/metrics"); !strings.Contains(body, `weft_address_duration_seconds_count{result="given"} 6`) {
		t.Error("metrics do not tell how long six addresses took")
	}
	p.end()
	warm.end()
	l.noLeases()
}
