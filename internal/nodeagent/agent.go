// Package nodeagent is weft on one Kubernetes node: it answers the CNI calls of
// the container runtime, tells in each Pod's network-status what it has, and
// attaches and detaches networks of running Pods as their annotation changes.
//
// It reads Pods of its own node and NetworkAttachmentDefinitions from memory. Of
// Pods it writes that annotation and one condition; beside that events, and the
// node and addresses of IPAMClaims.
package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/cniserver"
	"github.com/weftnet/weft/internal/cri"
	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/device"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/install"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/metrics"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/reconcile"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/kube"
)

// Options are what the agent of a node is run with.
type Options struct {
	// Kubeconfig is a file; empty: the service account of the Pod we run in.
	Kubeconfig string
	// Node is the node's name in the API.
	Node string
	// Instance is the tag in our marks; State and Run are directories, of which
	// the first outlasts a reboot.
	Instance, State, Run string
	// BinDirs are searched for foreign CNI plugins.
	BinDirs []string
	// KubeletDir is the directory of the kubelet (its --root-dir).
	KubeletDir string
	// CRISocket is the container runtime's; empty: all that are where they usually are.
	// CollectAfter is for how long it must not know a sandbox that is taken back.
	CRISocket    string
	CollectAfter time.Duration
	// HostRoot is where the node's files are, if this is a container.
	HostRoot string
	// Web is where metrics and probes are served, such as :10970; empty: probes alone,
	// on a socket in Run. Profiles adds pprof for who asks from the node itself.
	Web      string
	Profiles bool
	// AdviserToken is a file with the token to ask the cluster's adviser with, which
	// is found by a ConfigMap in Namespace; empty: addresses are chosen here.
	AdviserToken, Namespace string
	// RefuseMACs: a Pod that asks for a MAC that is another's on the network is not
	// attached. Else that is told of.
	RefuseMACs bool
	// Version is told in the metrics.
	Version string
	// Install keeps weft in the runtime's directories; nil: somebody else does.
	Install *install.Installer
	Log     *slog.Logger
}

var podKind = schema.GroupVersionKind{Version: "v1", Kind: "Pod"}

// agent is one node's.
type agent struct {
	api    *kube.Store
	cache  *kube.Cache
	engine *chain.Engine
	// server is nil until all that was left by the agent before is dealt with.
	server atomic.Pointer[cniserver.Server]
	loop   *reconcile.Loop
	looks  *reconcile.Loop // at what Pods have
	claims *claims
	leases *leases
	count  *metrics.Metrics
	socket string // where runtimes ask us
	log    *slog.Logger
	node   string // name

	// calls says how many of the runtime's calls are worked on.
	calls func() int
	// added counts sandboxes that were attached.
	added atomic.Uint64

	// mu guards boxes, the sandbox of each Pod, fresh and watched, all by the Pod's key,
	// and newest, when the last Pod was attached.
	mu      sync.Mutex
	boxes   map[store.Key]string
	fresh   map[store.Key]fresh
	newest  time.Time
	watched map[store.Key]*watched
}

// ownPatience is how long a new agent waits for the one before it to end.
const ownPatience = 30 * time.Second

// Run is the agent. It ends when ctx does, leaving Pods as they are.
func Run(ctx context.Context, opt Options) (err error) {
	if opt.Node == "" {
		return &hint.Error{Field: "--node", Problem: "is missing", Remedy: "give the name of this node, or set NODE_NAME"}
	}
	a := &agent{log: opt.Log, node: opt.Node, socket: filepath.Join(opt.Run, "cni.sock"), boxes: map[store.Key]string{}, fresh: map[store.Key]fresh{}, watched: map[store.Key]*watched{}}
	a.count = metrics.New(opt.Version, a.facts)
	a.api, err = kube.Connect(opt.Kubeconfig, "weft-node", a.count.Requested)
	if err != nil {
		return err
	}
	a.cache = kube.NewCache(a.api, opt.Log, kube.PodsOnNode(opt.Node), kube.Scope{GVK: networks.DefinitionKind})
	defer a.serveWeb(ctx, opt)() // from the start: what comes first may take its time
	if err := linux.UnlockSysctls(); err != nil {
		return err
	}
	records, err := record.Open(filepath.Join(opt.State, "attachments"), filepath.Join(opt.Run, "attachments"))
	if err != nil {
		return err
	}
	owning, cancel := context.WithTimeout(ctx, ownPatience)
	defer cancel()
	release, err := records.Own(owning)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	if opt.Install != nil { // we are the only agent here, so the only installer
		opt.Install.Rival = a.tellRival
		if err := opt.Install.Prepare(); err != nil {
			return err
		}
	}
	plane, err := dataplane.New(dataplane.Config{Instance: opt.Instance})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.Close()) }()
	a.claims, err = newClaims(a, opt)
	if err != nil {
		return err
	}
	a.leases, err = newLeases(a, opt, records)
	if err != nil {
		return err
	}
	a.leases.begin(ctx)
	a.engine, err = chain.New(ctx, chain.Options{
		Instance: opt.Instance, Machine: opt.Node, Records: records, Dataplane: plane, Host: plane.Host(), Addresses: a.leases, Leases: a.leases,
		Networks: definitions{networks.Definitions{Reader: a.cache}, networks.Definitions{Reader: a.api}}, BinDirs: opt.BinDirs, HostRoot: opt.HostRoot,
		Cluster: true, Claims: a.claims, Keep: a.claims.keep, MACs: macs{a.api, opt.RefuseMACs}, Devices: device.NewKubelet(opt.HostRoot, opt.KubeletDir), Observe: a.observe, Warned: a.warned, Strange: a.strange, Log: opt.Log,
	})
	if err != nil {
		return err
	}
	a.leases.engine = a.engine
	if err := a.claims.hold(ctx, a.engine); err != nil {
		opt.Log.Error("keep addresses of IPAMClaims", "err", err)
	}
	if err := a.engine.Restore(ctx); err != nil {
		// What could not be rolled back stays in its record and is tried again.
		opt.Log.Error("restore attachments", "err", err)
	}
	const workers = 8
	a.loop = reconcile.NewLoop("pods", workers, opt.Log, a.reconcile)
	a.looks = reconcile.NewLoop("looks", 2, opt.Log, a.watchOver)
	if err := a.remember(records); err != nil {
		return err
	}
	a.server.Store(cniserver.New(cniserver.Config{
		Socket: a.socket, Queue: filepath.Join(opt.State, "dels"), Engine: a.engine, Pods: a, HostRoot: opt.HostRoot,
		Live: cri.NewRuntime(opt.HostRoot, opt.CRISocket).Sandboxes, CollectAfter: opt.CollectAfter,
		Attached: a.attached, Refused: a.refused, Observe: a.observe, Failed: a.failed, Log: opt.Log,
	}))
	return a.run(ctx, opt)
}

// task runs until ctx ends.
type task interface {
	Run(ctx context.Context) error
}

func (a *agent) run(ctx context.Context, opt Options) error {
	a.calls = a.server.Load().Working
	group, ctx := errgroup.WithContext(ctx)
	tasks := []task{a.cache, a.loop, a.looks, a.claims.loop, a.leases, a.leases.advice, reconcile.Source{Store: a.cache, GVK: podKind, Loop: a.loop}, a.server.Load(), networks.Maker{API: a.api, CRD: definitionCRD, Kind: networks.DefinitionKind.Kind, Log: a.log}, thrift{a.added.Load}, news{opt.Instance, nil, a.attachedPods, a.looks.Add, a.log}}
	if opt.Install != nil {
		tasks = append(tasks, opt.Install)
	}
	for _, task := range tasks {
		group.Go(func() error {
			if err := task.Run(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%v: %w", task, err)
			}
			return nil
		})
	}
	a.log.Info("agent runs")
	defer a.log.Info("agent ends")
	defer a.claims.writing.Wait()
	return group.Wait()
}

// remember finds the sandboxes of Pods that were attached before this start.
func (a *agent) remember(records *record.Store) error {
	ids, err := records.IDs()
	if err != nil {
		return err
	}
	for _, id := range ids {
		box, err := records.Load(id)
		if err != nil {
			continue // the engine tells of it
		}
		a.note(box)
	}
	return nil
}

// attached takes note of a sandbox that was attached just now; its Pod's status is
// written soon.
func (a *agent) attached(box *record.Sandbox) {
	a.added.Add(1)
	if box.Pod.Name != "" {
		a.mu.Lock()
		a.newest = time.Now()
		a.fresh[podOf(box)] = fresh{box, a.newest}
		a.mu.Unlock()
	}
	a.note(box)
}

// note takes note of a sandbox.
func (a *agent) note(box *record.Sandbox) {
	if box.Pod.Name == "" {
		return
	}
	a.mu.Lock()
	a.boxes[podOf(box)] = box.ID
	a.mu.Unlock()
	a.loop.Add(podOf(box))
}

func podOf(box *record.Sandbox) store.Key { return podKey(box.Pod) }

func podKey(pod record.Pod) store.Key { return store.Key{Namespace: pod.Namespace, Name: pod.Name} }

// forgetPause is how long the runtime, or the next collection, is given to take
// care of the sandbox of a Pod that is gone.
const forgetPause = time.Minute

// forget drops what is known of a Pod that is gone, once its sandbox is gone too;
// until then it says when to come again: the cache may be behind, and the Pod new.
func (a *agent) forget(key store.Key) time.Duration {
	a.mu.Lock()
	id := a.boxes[key]
	a.mu.Unlock()
	if id == "" {
		return 0
	}
	if _, err := a.engine.Get(id); !errors.Is(err, record.ErrNotFound) {
		return forgetPause
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.boxes[key] == id {
		delete(a.boxes, key)
	}
	return 0
}

// sandbox gives the record of a Pod; nil if it has none.
func (a *agent) sandbox(pod *store.Object) (*record.Sandbox, error) {
	key := store.KeyOf(pod)
	a.mu.Lock()
	id := a.boxes[key]
	a.mu.Unlock()
	if id == "" {
		return nil, nil
	}
	if box := a.takeFresh(key, id); box != nil && isPod(pod, box.Pod.UID) {
		return box, nil
	}
	box, err := a.engine.Get(id)
	if errors.Is(err, record.ErrNotFound) {
		a.mu.Lock()
		if a.boxes[key] == id {
			delete(a.boxes, key)
		}
		a.mu.Unlock()
		return nil, nil
	}
	if err != nil || !isPod(pod, box.Pod.UID) {
		return nil, err // another Pod of that name had it
	}
	return box, nil
}
