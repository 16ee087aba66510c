package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/kube"
)

const (
	identitiesPath = "/apis/weft.network/v1alpha1/namespaces/default/nicidentities"
	macLeasesPath  = "/apis/weft.network/v1alpha1/macleases"
	labMACs        = "02:00:00:00:00:00-02:00:00:00:00:7f"
)

func (l *lab) objects() objectsOf {
	l.t.Helper()
	client, err := kubeapi.Open(l.Kubeconfig(), kubeapi.Options{Dial: l.Dial})
	if err != nil {
		l.t.Fatal(err)
	}
	return objectsOf{kube.New(client)}
}

// macsMade wants the real controller to have made the identities of VM web, which agents may
// read one by one.
func (l *lab) macsMade(api objectsOf, names ...string) {
	l.t.Helper()
	l.eventually("each NIC has a MAC", func() error {
		macs, leases := api.macs(l.t), api.macLeases(l.t)
		one, two := macs["web a_b"], macs["web a.b"]
		if len(macs) != 2 || len(leases) != 2 || one == two || leases["default/lan "+one] == "" || leases["default/lan "+two] == "" {
			return fmt.Errorf("MACs %v, leases %v", macs, leases)
		}
		return nil
	})
	for _, try := range []struct {
		method, path, body string
		code               int
	}{
		{"GET", identitiesPath + "/" + names[0], "", http.StatusOK},
		{"GET", identitiesPath, "", http.StatusForbidden},
		{"DELETE", identitiesPath + "/" + names[0], "", http.StatusForbidden},
		{"POST", macLeasesPath, `{}`, http.StatusForbidden},
		{"GET", macLeasesPath + "/none", "", http.StatusNotFound},
	} {
		if code, answer := l.asAgent(l.t.Context(), "n1", try.method, try.path, try.body); code != try.code {
			l.t.Errorf("an agent that asks %s %s is told %d, want %d: %s", try.method, try.path, code, try.code, answer)
		}
	}
}

// keepMACs is what a leader does about MACs, until ctx ends.
func keepMACs(ctx context.Context, api store.Store, pool macRange) {
	c := newController(Options{Namespace: "weft", Name: "test", Grace: time.Second, Compare: 5 * time.Second, Log: slog.New(slog.DiscardHandler)})
	c.api, c.macs = api, pool
	view := adviser.New()
	s := &state{book: newBook(view), pods: newPods(), view: view, ranges: newPools()}
	vms := newMachines(newClaims(c, s, api))
	macs := newMACs(c, s, vms, api)
	tasks := []task{macs}
	for gvk, to := range map[schema.GroupVersionKind]follower{
		podKind: several{s.pods, macs.users}, networks.DefinitionKind: s.ranges, machineKind: vms.vms, instanceKind: vms.instances,
		v1alpha1.NICIdentityKind: macs.identities, v1alpha1.MACLeaseKind: macs.leases,
	} {
		tasks = append(tasks, feed{api: api, gvk: gvk, every: c.Compare, to: to, log: c.Log})
	}
	var running sync.WaitGroup
	for _, task := range tasks {
		running.Go(func() { _ = task.Run(ctx) }) // ends with ctx
	}
	running.Wait()
}

// macsNeverTwice: two leaders at a time, who both think that they lead and die before or after
// any of their writes, give MACs to VMs that come meanwhile, of a range that has hardly more.
func (l *lab) macsNeverTwice(api objectsOf) {
	l.t.Helper()
	pool, err := parseMACRange(labMACs)
	if err != nil {
		l.t.Fatal(err)
	}
	const vms, lives = 60, 8
	var leaders sync.WaitGroup
	for leader := range 2 {
		leaders.Go(func() {
			for life := range lives {
				ctx, cancel := context.WithCancel(l.t.Context())
				dies := &mortal{Store: api.Store, at: int64(life + 1), after: (life+leader)%2 == 0, dead: make(chan struct{})}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					keepMACs(ctx, dies, pool)
				}()
				select {
				case <-dies.dead:
				case <-time.After(20 * time.Second):
					l.t.Error("a leader found nothing to do")
				}
				cancel()
				<-ended
			}
		})
	}
	for i := range vms {
		l.create(vmsPath, fmt.Sprintf(`{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachine","metadata":{"name":"vm%d"},"spec":{"template":{"spec":{
			"networks":[{"name":"one","multus":{"networkName":"lan"}},{"name":"two","multus":{"networkName":"lan"}}]}}}}`, i))
	}
	leaders.Wait()
	ctx, cancel := context.WithCancel(l.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		keepMACs(ctx, api, pool)
	}()
	defer func() {
		cancel()
		<-ended
	}()
	l.eventually("each NIC has a MAC of its own, and none is lost", func() error {
		macs, leases := api.macs(l.t), api.macLeases(l.t)
		met := map[string]string{}
		var errs []error
		for nic, mac := range macs {
			if other := met[mac]; other != "" {
				l.t.Fatalf("MAC %s is that of %s and of %s", mac, nic, other)
			}
			met[mac] = nic
			if leases["default/lan "+mac] == "" {
				errs = append(errs, fmt.Errorf("MAC %s of %s has no lease", mac, nic))
			}
		}
		if len(macs) != 2*vms || len(leases) != 2*vms {
			errs = append(errs, fmt.Errorf("%d identities, %d leases, want %d", len(macs), len(leases), 2*vms))
		}
		return errors.Join(errs...)
	})
}
