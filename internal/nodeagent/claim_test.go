package nodeagent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
)

func (l *lab) claimKind() {
	l.t.Helper()
	crd := &store.Object{}
	if err := json.Unmarshal([]byte(networks.ClaimCRD), &crd.Object); err != nil {
		l.t.Fatal(err)
	}
	l.make("CustomResourceDefinition", "apiextensions.k8s.io/v1", "", crd.GetName(), map[string]any{"spec": crd.Object["spec"]})
}

func (l *lab) claim(name string) {
	l.t.Helper()
	l.make(networks.ClaimKind.Kind, "k8s.cni.cncf.io/v1alpha1", l.ns, name, map[string]any{"spec": map[string]any{"network": "blue", "interface": "net1"}})
}

// onClaim gives a Pod on blue by a claim, or by none.
func (l *lab) onClaim(name string) *pod {
	l.t.Helper()
	networks := "blue"
	if name != "" {
		networks = fmt.Sprintf(`[{"name":"blue","ipam-claim-reference":%q}]`, name)
	}
	p := l.pod(networks)
	p.sandbox(true)
	return p
}

func (p *pod) has(address string) {
	p.t.Helper()
	if err := p.add(); err != nil {
		p.t.Fatal(err)
	}
	if got := p.addresses()["net1"]; got != address {
		p.t.Errorf("%s has %s, want %s", p.key.Name, got, address)
	}
}

// TestClaim: the addresses of an IPAMClaim outlast its Pods, the agent, the node's
// memory and the API server's absence, and end with the claim.
func TestClaim(t *testing.T) {
	l := newLab(t)
	l.claimKind()
	l.start()
	l.define()
	l.claim("keeps")
	l.claim("elsewhere")
	const kept, next = "10.62.0.2", "10.62.0.3"
	first := l.onClaim("keeps")
	first.has(kept)
	l.eventually("the claim tells its node and its address", func() error {
		claim, err := l.api.Get(t.Context(), networks.ClaimKind, store.Key{Namespace: l.ns, Name: "keeps"})
		if err != nil {
			return err
		}
		status, _ := claim.Object["status"].(map[string]any)
		if node := claim.GetAnnotations()[nodeAnnotation]; node != "n1" || fmt.Sprint(status["ips"]) != "["+kept+"/24]" {
			return fmt.Errorf("it tells of node %q, addresses %v", node, status["ips"])
		}
		return nil
	})
	code(t, l.onClaim("keeps").add(), types.ErrInvalidNetworkConfig, "ipam-claim-reference", "is in use by Pod "+first.key.String(), "a claim of its own")
	first.end()

	l.kill()
	l.start()
	other := l.onClaim("")
	other.has(next)
	again := l.onClaim("keeps")
	again.has(kept)
	again.end()
	other.end()

	l.kill() // and the power with it
	if err := os.RemoveAll(filepath.Join(l.dir, "run")); err != nil {
		t.Fatal(err)
	}
	l.start()
	other = l.onClaim("")
	other.has(next)
	other.end()

	elsewhere := map[string]any{"metadata": map[string]any{"annotations": map[string]any{nodeAnnotation: "n2"}}}
	if _, err := l.api.Patch(t.Context(), networks.ClaimKind, store.Key{Namespace: l.ns, Name: "elsewhere"}, elsewhere, store.Precondition{}); err != nil {
		t.Fatal(err)
	}
	code(t, l.onClaim("elsewhere").add(), types.ErrInvalidNetworkConfig, "elsewhere", "has its addresses on node n2", "run the Pod there")
	code(t, l.onClaim("nothing").add(), types.ErrInvalidNetworkConfig, "there is no IPAMClaim "+l.ns+"/nothing", "create it")

	if err := l.api.Delete(t.Context(), networks.ClaimKind, store.Key{Namespace: l.ns, Name: "keeps"}, store.Precondition{}); err != nil {
		t.Fatal(err)
	}
	l.kill() // looks at once when it starts, and every half a minute
	l.start()
	l.eventually("the claim's addresses are given back", func() error {
		files, err := filepath.Glob(filepath.Join(l.dir, "claims", "*"))
		if err == nil && len(files) > 0 {
			err = errors.New("they are kept in " + files[0])
		}
		return err
	})
	last := l.onClaim("")
	last.has(kept)
	last.end()
	l.nothingLeft()
}
