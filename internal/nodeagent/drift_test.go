package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/metrics"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/kube"
	"github.com/weftnet/weft/test/kubelab"
)

// looker is an agent on a real API server with a namespace for a node, whose
// looks at Pods the test calls one by one.
type looker struct {
	*agent
	t   *testing.T
	ns  string // Kubernetes namespace
	dir string
}

func newLooker(t *testing.T) *looker {
	t.Helper()
	c := kubelab.Shared(t)
	client, err := kubeapi.Open(c.Kubeconfig(), kubeapi.Options{Dial: c.Dial})
	if err != nil {
		t.Fatal(err)
	}
	api := kube.New(client)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	if err := (networks.Maker{API: api, CRD: definitionCRD, Kind: networks.DefinitionKind.Kind, Log: log}).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := &looker{t: t, ns: strings.ToLower(t.Name()), dir: t.TempDir(), agent: &agent{
		api: api, node: "looked", log: log, count: metrics.New("test", func() metrics.Facts { return metrics.Facts{} }), boxes: map[store.Key]string{}, fresh: map[store.Key]fresh{}, watched: map[store.Key]*watched{},
		cache: kube.NewCache(api, log, kube.PodsOnNode("looked"), kube.Scope{GVK: networks.DefinitionKind}),
	}}
	t.Cleanup(func() {
		if err := linux.ReleaseNSDir(l.dir); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- l.cache.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	records, err := record.Open(filepath.Join(t.TempDir(), "records"), filepath.Join(t.TempDir(), "run"))
	if err != nil {
		t.Fatal(err)
	}
	plane, err := dataplane.New(dataplane.Config{Instance: "looktest", HostNS: l.namespace("host")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = plane.Close() }) // only read through
	l.engine, err = chain.New(t.Context(), chain.Options{
		Instance: "looktest", Machine: "looked", Records: records, Dataplane: plane, Host: plane.Host(), Addresses: ipam.NewMemory(),
		HostNS: filepath.Join(l.dir, "host"), Networks: networks.Definitions{Reader: api}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	l.create("v1", "Namespace", "", l.ns, nil)
	return l
}

func (l *looker) namespace(name string) string {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := linux.CreateNS(path); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if err := linux.DeleteNS(path); err != nil {
			l.t.Error(err)
		}
	})
	return path
}

func (l *looker) create(version, kind, namespace, name string, more map[string]any) *store.Object {
	l.t.Helper()
	metadata := map[string]any{"name": name}
	if namespace != "" {
		metadata["namespace"] = namespace
	}
	if annotations, ok := more["annotations"]; ok {
		metadata["annotations"] = annotations
		delete(more, "annotations")
	}
	obj := &store.Object{Object: map[string]any{"apiVersion": version, "kind": kind, "metadata": metadata}}
	for key, value := range more {
		obj.Object[key] = value
	}
	var made *store.Object
	wait(l.t, "create "+kind+" "+name, func() (err error) { // a new namespace has no service account at first
		made, err = l.api.Create(l.t.Context(), obj)
		return err
	})
	return made
}

// pod makes one with a network of ours, and begins to look at it.
func (l *looker) pod(name, network string, more map[string]any) store.Key {
	l.t.Helper()
	spec := map[string]any{"nodeName": "looked", "containers": []any{map[string]any{"name": "c", "image": "none"}}, "tolerations": []any{map[string]any{"operator": "Exists"}}}
	for key, value := range more {
		spec[key] = value
	}
	made := l.create("v1", "Pod", l.ns, name, map[string]any{"spec": spec})
	key := store.KeyOf(made)
	box, err := l.engine.Add(l.t.Context(), chain.Request{
		ID: name, NetNS: l.namespace(name), Pod: record.Pod{Namespace: l.ns, Name: name, UID: string(made.GetUID())},
		Default: &chain.DefaultNetwork{Namespace: l.ns, Name: network},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if err := l.engine.Del(context.Background(), name); err != nil {
			l.t.Error(err)
		}
	})
	l.mu.Lock()
	l.boxes[key] = box.ID
	l.mu.Unlock()
	wait(l.t, "the cache has the Pod", func() error {
		_, err := l.cache.Get(l.t.Context(), podKind, key)
		return err
	})
	l.look(key)
	return key
}

// look is one round, and what comes of it.
func (l *looker) look(key store.Key) {
	l.t.Helper()
	if _, err := l.watchOver(l.t.Context(), key); err != nil {
		l.t.Fatal(err)
	}
}

func (l *looker) in(pod string, args ...string) {
	l.t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + filepath.Join(l.dir, pod)}, args...)...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// condition reads ours from the API server.
func (l *looker) condition(key store.Key) condition {
	l.t.Helper()
	pod, err := l.api.Get(l.t.Context(), podKind, key)
	if err != nil {
		l.t.Fatal(err)
	}
	return conditionIn(pod)
}

// events of a Pod, by reason.
func (l *looker) events(key store.Key) map[string]int {
	l.t.Helper()
	list, _, err := l.api.List(l.t.Context(), eventKind, store.Selector{Namespace: key.Namespace})
	if err != nil {
		l.t.Fatal(err)
	}
	count := map[string]int{}
	for _, event := range list {
		about, _ := event.Object["involvedObject"].(map[string]any)
		reason, _ := event.Object["reason"].(string)
		if about["name"] == key.Name {
			count[reason]++
		}
	}
	return count
}

func (l *looker) tells(key store.Key, status, reason, message string, events map[string]int) {
	l.t.Helper()
	got := l.condition(key)
	if got.status != status || got.reason != reason || !strings.Contains(got.message, message) {
		l.t.Errorf("the condition is %+v, want %s %s %q", got, status, reason, message)
	}
	if got := l.events(key); fmt.Sprint(got) != fmt.Sprint(events) {
		l.t.Errorf("events are %v, want %v", got, events)
	}
}

func TestDriftIsToldOnce(t *testing.T) {
	l := newLooker(t)
	l.create("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", l.ns, "blue", map[string]any{"spec": map[string]any{"config": blueConfig}})
	key := l.pod("a", "blue", nil)
	l.look(key)
	l.tells(key, "", "", "", nil) // nothing to tell is not told
	l.in("a", "ip", "addr", "flush", "dev", "eth0")
	l.look(key)
	l.tells(key, "", "", "", nil) // it may be in the middle of a change
	for range 3 {
		l.look(key)
	}
	told := map[string]int{networksChanged: 1}
	l.tells(key, "False", networksChanged, "interface eth0 (network "+l.ns+"/blue) lacks: pod: ip addr add 10.64.0.2/24 dev eth0", told)

	// Another agent does not tell it again.
	clear(l.watched)
	wait(t, "the cache has the condition", func() error {
		pod, err := l.cache.Get(t.Context(), podKind, key)
		if err == nil && conditionIn(pod).status != "False" {
			err = errors.New("not yet")
		}
		return err
	})
	for range 3 {
		l.look(key)
	}
	l.tells(key, "False", networksChanged, "10.64.0.2/24", told)

	l.in("a", "ip", "link", "set", "eth0", "mtu", "1400")
	l.look(key)
	l.tells(key, "False", networksChanged, "ip link set eth0 mtu 1500", map[string]int{networksChanged: 2})

	l.in("a", "ip", "link", "set", "eth0", "mtu", "1500")
	l.in("a", "ip", "addr", "add", "10.64.0.2/24", "dev", "eth0")
	for range 2 {
		l.look(key)
	}
	healed := map[string]int{networksChanged: 2, networksRestored: 1}
	l.tells(key, "True", asMade, "", healed)

	l.in("a", "ip", "link", "set", "eth0", "down") // the same again is a new change
	l.look(key)
	l.look(key)
	l.in("a", "ip", "link", "set", "eth0", "up")
	l.look(key)
	l.in("a", "ip", "link", "set", "eth0", "down")
	l.look(key)
	l.look(key)
	l.tells(key, "False", networksChanged, "eth0 up", map[string]int{networksChanged: 4, networksRestored: 2})

	l.in("a", "ip", "link", "del", "eth0")
	l.look(key)
	l.tells(key, "False", networksChanged, "link eth0, which is gone", map[string]int{networksChanged: 5, networksRestored: 2})
}

const blueConfig = `{"cniVersion":"1.0.0","type":"bridge","bridge":"blue0","ipam":{"type":"host-local","subnet":"10.64.0.0/24"}}`

func TestReadinessGateAndRewired(t *testing.T) {
	l := newLooker(t)
	l.create("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", l.ns, "blue", map[string]any{"spec": map[string]any{"config": blueConfig}})
	gated := l.pod("gated", "blue", map[string]any{"readinessGates": []any{map[string]any{"conditionType": networksReady}}})
	l.tells(gated, "True", asMade, "", nil)
	rewired := l.pod("rewired", "blue", nil)
	l.in("rewired", "sh", "-ec", "ip link set eth0 down; ip link set eth0 name eth0-nic; ip addr flush dev eth0-nic; ip link add eth0 type bridge")
	l.look(rewired)
	l.look(rewired)
	l.tells(rewired, "True", networksRewired, "eth0 is eth0-nic now", nil)
}

func TestRepairIsOptIn(t *testing.T) {
	l := newLooker(t)
	l.create("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", l.ns, "kept", map[string]any{
		"annotations": map[string]any{repairAnnotation: "true"}, "spec": map[string]any{"config": blueConfig},
	})
	l.create("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", l.ns, "left", map[string]any{
		"annotations": map[string]any{repairAnnotation: "false"}, "spec": map[string]any{"config": blueConfig},
	})
	wait(t, "the cache has the network", func() error {
		_, err := l.cache.Get(t.Context(), networks.DefinitionKind, store.Key{Namespace: l.ns, Name: "left"})
		return err
	})
	kept, left := l.pod("kept", "kept", nil), l.pod("left", "left", nil)
	launcher := l.pod("launcher", "kept", nil)
	annotate := map[string]any{"metadata": map[string]any{"annotations": map[string]any{launcherAnnotation: "vm"}}}
	if _, err := l.api.Patch(t.Context(), podKind, launcher, annotate, store.Precondition{}); err != nil {
		t.Fatal(err)
	}
	wait(t, "the cache has the annotation", func() error {
		pod, err := l.cache.Get(t.Context(), podKind, launcher)
		if err == nil && pod.GetAnnotations()[launcherAnnotation] == "" {
			err = errors.New("not yet")
		}
		return err
	})
	for round := range 2 {
		for _, key := range []store.Key{kept, left, launcher} {
			l.in(key.Name, "ip", "addr", "flush", "dev", "eth0")
			l.look(key)
			l.look(key)
		}
		l.tells(kept, "", "", "", map[string]int{networkRepaired: round + 1})
		if err := l.engine.Check(t.Context(), "kept"); err != nil {
			t.Errorf("after the repair: %v", err)
		}
		for _, key := range []store.Key{left, launcher} {
			l.tells(key, "False", networksChanged, "ip addr add", map[string]int{networksChanged: 1})
			if err := l.engine.Check(t.Context(), key.Name); !errors.Is(err, chain.ErrChanged) {
				t.Errorf("%s was repaired: %v", key.Name, err)
			}
		}
	}
	l.in("kept", "ip", "link", "del", "eth0")
	l.look(kept)
	l.look(kept)
	l.tells(kept, "False", networksChanged, "link eth0, which is gone", map[string]int{networkRepaired: 2, networksChanged: 1})
}

// TestForgetsPodsThatAreGone: what is in memory must not grow with each Pod that
// ever was.
func TestForgetsPodsThatAreGone(t *testing.T) {
	l := newLooker(t)
	l.create("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", l.ns, "blue", map[string]any{"spec": map[string]any{"config": blueConfig}})
	key := l.pod("a", "blue", nil)
	l.end(key)
	again, err := l.reconcile(t.Context(), key)
	if err != nil || again == 0 || l.boxes[key] == "" {
		t.Errorf("before its DEL: come again after %v (%v), sandbox %q", again, err, l.boxes[key])
	}
	if err := l.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if again, err = l.reconcile(t.Context(), key); err != nil || again != 0 || len(l.boxes) > 0 {
		t.Errorf("after its DEL: come again after %v (%v), sandboxes %v", again, err, l.boxes)
	}
	l.look(key)
	if len(l.watched) > 0 {
		t.Errorf("it is still looked at: %v", l.watched)
	}
}

// end deletes a Pod as its kubelet does, which there is none of.
func (l *looker) end(key store.Key) {
	l.t.Helper()
	out, err := kubelab.Shared(l.t).Kubectl(l.t.Context(), "", "-n", key.Namespace, "delete", "pod", key.Name, "--grace-period=0", "--force")
	if err != nil {
		l.t.Fatalf("%v: %s", err, out)
	}
	wait(l.t, "the cache knows that the Pod is gone", func() error {
		_, err := l.cache.Get(l.t.Context(), podKind, key)
		if err == nil {
			return errors.New("it has it")
		}
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
}

// wait tries until it works.
func wait(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(kubelab.Patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
