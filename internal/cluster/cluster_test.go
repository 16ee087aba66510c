package cluster

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/internal/advice"
	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/test/kubelab"
	"github.com/weftnet/weft/test/machine"
)

// lab is a real API, where nobody but the test and the controllers does anything.
type lab struct {
	*kubelab.Cluster
	t      testing.TB
	dir    string
	client *http.Client
}

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{Cluster: kubelab.New(t, kubelab.Options{APIOnly: true}), t: t, dir: t.TempDir()}
	config, err := l.TLS()
	if err != nil {
		t.Fatal(err)
	}
	l.client = &http.Client{Transport: &http.Transport{TLSClientConfig: config, DialContext: l.Dial, ForceAttemptHTTP2: true}}
	t.Cleanup(l.client.CloseIdleConnections)
	build := exec.Command("go", "build", "-o", l.dir, "./cmd/weft-controller", "./cmd/weft")
	build.Dir = machine.Tree()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	l.t.Log("built")
	l.kubectl("", "apply", "-f", filepath.Join(machine.Tree(), "deploy", "weft.yaml"))
	l.kubectl("", "wait", "--for=condition=Established", "crd/addressleases.weft.network", "--timeout=60s")
	l.create("/api/v1/nodes", `{"metadata":{"name":"n1"}}`)
	l.create("/api/v1/namespaces", `{"metadata":{"name":"kube-node-lease"}}`)
	l.create(beats, `{"metadata":{"name":"n1"}}`)
	l.create("/api/v1/namespaces/default/serviceaccounts", `{"metadata":{"name":"default"}}`)
	return l
}

func (l *lab) kubectl(stdin string, args ...string) string {
	l.t.Helper()
	out, err := l.Kubectl(l.t.Context(), stdin, args...)
	if err != nil {
		l.t.Fatalf("kubectl: %v", err)
	}
	return strings.TrimSpace(out)
}

func (l *lab) eventually(what string, is func() error) {
	l.t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for {
		err := is()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("not in time: %s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond) // until it is looked at again
	}
}

// copyOf is a running copy of the controller, and the way it asks the API.
type copyOf struct {
	name  string
	cmd   *exec.Cmd
	proxy *kubelab.Proxy

	mu  sync.Mutex // guards log
	log bytes.Buffer
}

// Write takes what it logs.
func (c *copyOf) Write(text []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.Write(text)
}

func (c *copyOf) said(text string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Count(c.log.String(), text)
}

// kubeconfig gives one with a token.
func (l *lab) kubeconfig(name, server, token string) (file string) {
	l.t.Helper()
	file = filepath.Join(l.dir, name+".kubeconfig")
	config := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":%q,"certificate-authority":%q}}],"users":[{"name":"u","user":{"token":%q}}]}`, server, filepath.Join(l.Dir, "ca.crt"), token)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return file
}

// controller starts a copy with what its ServiceAccount may do.
func (l *lab) controller(name string, adviser int, more ...string) *copyOf {
	l.t.Helper()
	c := &copyOf{name: name, proxy: l.Proxy(l.t)}
	file := l.kubeconfig(name, c.proxy.URL, l.token("weft-controller", ""))
	args := append([]string{
		"--net=" + l.NetNS(), "--", filepath.Join(l.dir, "weft-controller"), "--kubeconfig=" + file, "--namespace=kube-system",
		"--name=" + name, "--collect-after=1s", "--compare-every=5s", fmt.Sprintf("--adviser-address=127.0.0.1:%d", adviser), "--advertise-address=127.0.0.1",
		fmt.Sprintf("--http-address=127.0.0.1:%d", adviser+100),
	}, more...)
	c.cmd = exec.Command("nsenter", args...)
	c.cmd.Stderr = c
	if err := c.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.cmd.Wait() }()
	l.t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // it may have ended
		<-ended
		if l.t.Failed() {
			l.t.Logf("%s says:\n%s", name, c.log.String())
		}
	})
	return c
}

func (l *lab) signal(c *copyOf, signal syscall.Signal) {
	l.t.Helper()
	if err := c.cmd.Process.Signal(signal); err != nil {
		l.t.Fatal(err)
	}
}

// writes gives what a copy wrote since it was last asked, but for reviews.
func (c *copyOf) writes() (all []string) {
	for _, request := range c.proxy.Take() {
		if request.Method != "GET" && !strings.HasSuffix(request.Path, "/tokenreviews") {
			all = append(all, request.Method+" "+request.Path)
		}
	}
	return all
}

func (l *lab) leads(c *copyOf) {
	l.t.Helper()
	l.eventually(c.name+" leads", func() error {
		if holder := l.holder(); !strings.HasPrefix(holder, c.name+"_") {
			return fmt.Errorf("holder: %q", holder)
		}
		return nil
	})
}

// holder gives who leads.
func (l *lab) holder() string {
	l.t.Helper()
	var lease struct {
		Spec struct {
			HolderIdentity string `json:"holderIdentity"`
		} `json:"spec"`
	}
	l.ask("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/"+leaseName, "", &lease)
	return lease.Spec.HolderIdentity
}

const podsPath = "/api/v1/namespaces/default/pods"

// pod makes a Pod with a lease, and gives its UID.
func (l *lab) pod(name, addr string) types.UID {
	l.t.Helper()
	uid := l.create(podsPath, fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"nodeName":"n1","terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":"x"}]}}`, name))
	l.create(leasesPath, fmt.Sprintf(`{"apiVersion":"weft.network/v1alpha1","kind":"AddressLease","metadata":{"name":%q},
		"spec":{"ip":%q,"scope":"whereabouts:","node":"n1","sandbox":"s","owner":{"kind":"Pod","namespace":"default","name":%q,"uid":%q}}}`, addr, addr, name, uid))
	return uid
}

func (l *lab) held() (names []string) {
	l.t.Helper()
	var list struct {
		Items []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		} `json:"items"`
	}
	l.ask("GET", leasesPath, "", &list)
	for _, item := range list.Items {
		names = append(names, item.Metadata.Name)
	}
	return names
}

func (l *lab) beat() {
	l.t.Helper()
	l.ask("PATCH", beats+"/n1", fmt.Sprintf(`{"spec":{"renewTime":%q}}`, time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")), nil)
}

func (l *lab) becomes(want ...string) {
	l.t.Helper()
	l.eventually(fmt.Sprintf("%v are held", want), func() error {
		l.beat()
		if got := l.held(); !slices.Equal(got, want) {
			return fmt.Errorf("held: %v", got)
		}
		return nil
	})
}

// agent gives the adviser's client of a node's agent, with a token as the kubelet
// gives it.
func (l *lab) agent() *advice.Client {
	l.t.Helper()
	l.create("/api/v1/namespaces/kube-system/pods", `{"metadata":{"name":"agent"},"spec":{"nodeName":"n1","serviceAccountName":"weft","containers":[{"name":"c","image":"x"}]}}`)
	token := l.token("weft", `"audiences":["weft-adviser"],"boundObjectRef":{"apiVersion":"v1","kind":"Pod","name":"agent"}`)
	file := filepath.Join(l.dir, "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		l.t.Fatal(err)
	}
	client := advice.New(advice.Options{API: l, ConfigMap: store.Key{Namespace: "kube-system", Name: adviser.ConfigMap}, TokenFile: file, Dial: l.Dial, Log: logTo(l.t)})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- client.Run(ctx) }()
	l.t.Cleanup(func() {
		cancel()
		<-ended
	})
	return client
}

var wide = []ipam.Span{{First: netip.MustParseAddr("10.9.0.1"), Last: netip.MustParseAddr("10.9.255.254")}}

func (l *lab) advises(client *advice.Client, want string) {
	l.t.Helper()
	l.eventually("advice is "+want, func() error {
		got := client.Candidates(l.t.Context(), "whereabouts:", wide, 1)
		if len(got) != 1 || got[0].String() != want {
			return fmt.Errorf("got %v", got)
		}
		return nil
	})
}

// TestCluster is two copies of the real program on a real API: one that leads is
// stopped, goes on, and is killed.
func TestCluster(t *testing.T) {
	l := newLab(t)
	if os.Getenv("WEFT_LONG") != "" { // that is what is asked for
		l.longRun(t)
		return
	}
	l.addressesAlone()
	a := l.controller("a", 10981)
	l.leads(a)
	b := l.controller("b", 10982)
	l.pod("x", "10.9.0.1")
	l.pod("y", "10.9.0.3")
	client := l.agent()
	l.advises(client, "10.9.0.2")
	old := l.pod("z", "10.9.0.4")
	t.Log("advised")
	l.addressesLed()
	a.proxy.Take()
	t.Log("told")
	l.ask("DELETE", podsPath+"/x", "", nil)
	l.ask("DELETE", podsPath+"/z", "", nil)
	if again := l.pod("z", "10.9.0.5"); again == old {
		t.Error("the Pods have the same UID")
	}
	l.becomes("10.9.0.3", "10.9.0.5")
	if n := b.writes(); len(n) > 0 {
		t.Errorf("b wrote, and a led: %v", n)
	}
	l.ask("DELETE", podsPath+"/y", "", nil)
	t.Log("collected")
	l.signal(a, syscall.SIGSTOP)
	l.leads(b)
	l.becomes("10.9.0.5")
	a.proxy.Take()
	l.signal(a, syscall.SIGCONT)
	l.eventually("a knows that it leads no more", func() error {
		if a.said("leads no more") == 0 {
			return fmt.Errorf("it does not say so")
		}
		return nil
	})
	for _, write := range a.writes() {
		// A renewal of before it was stopped; the API server refuses it.
		if write != "PUT /apis/coordination.k8s.io/v1/namespaces/kube-system/leases/weft-controller" {
			t.Errorf("a, that leads no more: %s", write)
		}
	}
	l.leads(b)
	l.advises(client, "10.9.0.1")
	t.Log("b led")
	l.signal(b, syscall.SIGKILL)
	l.ask("DELETE", podsPath+"/z", "", nil)
	l.leads(a)
	l.becomes()
	l.advises(client, "10.9.0.1")
	l.strangers()
	l.agentsTellOfTheirNode()
	l.agentsOfClaims()
	l.signal(a, syscall.SIGTERM)
	l.eventually("a lets others lead", func() error {
		if holder := l.holder(); holder != "" {
			return fmt.Errorf("holder: %q", holder)
		}
		return nil
	})
	t.Run("LongRun", l.longRun)
}
