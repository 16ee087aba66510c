package bench

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMigration: the real controller takes a cluster over from the real Whereabouts
// and hands it back, after a time in which both give addresses. While the one gives them
// alone the other cannot, and Pods end all the time.
func TestMigration(t *testing.T) {
	api := newKubeAPI(t)
	w := newWhereaboutsPlugin(t, api)
	program := filepath.Join(t.TempDir(), "weft-controller")
	if err := build("..", os.Environ(), "build", "-o", program, "./cmd/weft-controller"); err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile("../deploy/weft.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := api.cluster.Kubectl(t.Context(), string(manifest), "apply", "-f", "-"); err != nil {
		t.Fatal(out, err)
	}
	const keys = `"range": "10.0.0.0/24"`
	gives := func(pod, want string) {
		t.Helper()
		got, err := w.add(t.Context(), keys, pod)
		if err != nil || got[0].String() != want {
			t.Errorf("%s: got %v, %v, want %s", pod, got, err, want)
		}
	}
	gives("a", "10.0.0.1/24")
	gives("b", "10.0.0.2/24")

	end := api.controller(program, "mixed", "mixed")
	newMixedBench(t, api, w).run()
	end()

	end = api.controller(program, "takeOver", "weft")
	if got, err := w.add(t.Context(), keys, "c"); err == nil {
		t.Errorf("weft gives addresses, and Whereabouts gave %v", got)
	}
	if _, err := w.call(t.Context(), "DEL", keys, "a"); err != nil {
		t.Errorf("a Pod of before cannot end: %v", err)
	}
	for _, addr := range []string{"10.0.0.1", "10.0.0.2"} {
		api.must(http.MethodGet, leasesPath+"/"+addr, nil)
	}
	api.must(http.MethodDelete, leasesPath+"/10.0.0.1", nil) // as the node does
	eventually(t, "the reservation follows", func() error {
		if _, err := api.call(http.MethodGet, whereaboutsPath+"overlappingrangeipreservations/10.0.0.1", nil); err == nil || !strings.Contains(err.Error(), "404") {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
	end()

	end = api.controller(program, "handBack", "whereabouts")
	gives("d", "10.0.0.1/24") // which came free
	gives("e", "10.0.0.3/24")
	if _, err := w.call(t.Context(), "DEL", keys, "b"); err != nil { // which weft knew no Pod of
		t.Error(err)
	}
	gives("f", "10.0.0.2/24")
	end()
}

// controller runs the controller until somebody gives addresses.
func (a *kubeAPI) controller(program, wish, giver string) (end func()) {
	a.tb.Helper()
	var token struct{ Status struct{ Token string } }
	if err := json.Unmarshal(a.must(http.MethodPost, "/api/v1/namespaces/kube-system/serviceaccounts/weft-controller/token", object{}), &token); err != nil {
		a.tb.Fatal(err)
	}
	file := filepath.Join(a.tb.TempDir(), "kubeconfig")
	config := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":%q,"certificate-authority":%q}}],"users":[{"name":"u","user":{"token":%q}}]}`,
		a.cluster.Server, filepath.Join(a.cluster.Dir, "ca.crt"), token.Status.Token)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		a.tb.Fatal(err)
	}
	cmd := exec.Command("nsenter", "--net="+a.cluster.NetNS(), "--", program, "--kubeconfig="+file, "--namespace=kube-system", "--name=test", "--compare-every=5s", "--collect-after=1s", "--whereabouts="+wish)
	cmd.Stderr = a.tb.Output()
	if err := cmd.Start(); err != nil {
		a.tb.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stopped := false
	end = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
			select {
			case <-ended:
			case <-time.After(30 * time.Second):
				_ = cmd.Process.Kill()
				<-ended
			}
		}
	}
	a.tb.Cleanup(end)
	eventually(a.tb, "addresses are given by "+giver, func() error {
		answer, err := a.call(http.MethodGet, "/api/v1/namespaces/kube-system/configmaps/weft-whereabouts", nil)
		if err == nil && !strings.Contains(string(answer), fmt.Sprintf(`"gives":%q`, giver)) {
			err = fmt.Errorf("it says %s", answer)
		}
		return err
	})
	return end
}
