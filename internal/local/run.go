package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftnet/weft/internal/agent"
	"github.com/weftnet/weft/internal/controller"
	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/image"
	"github.com/weftnet/weft/internal/instance"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/qemu"
	"github.com/weftnet/weft/internal/record"
	storelocal "github.com/weftnet/weft/internal/store/local"
	"github.com/weftnet/weft/internal/version"
	"github.com/weftnet/weft/internal/vmnet"
)

// Options are what the agent of one machine is run with.
type Options struct {
	Instance instance.Instance
	// BinDirs are searched for foreign CNI plugins.
	BinDirs []string
	Accel   qemu.Accel
	Log     *slog.Logger
}

// ownPatience is how long a new agent waits for whoever works on the records: an
// agent that is ending, or a CNI call that did without one.
const ownPatience = 30 * time.Second

// Run is the agent of one machine without Kubernetes. It ends when ctx does,
// leaving Pods and VMs as they are, or after a down.
func Run(ctx context.Context, opt Options) (err error) {
	in := opt.Instance
	for _, dir := range []string{in.State, in.Run} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return &hint.Error{Field: "--root", Value: dir, Problem: "cannot be made", Err: err, Remedy: "choose a directory on a writable disk"}
		}
	}
	objects, err := storelocal.Open(in.StoreFile(), storelocal.Options{Log: opt.Log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, objects.Close()) }()
	records, err := record.Open(in.RecordDirs())
	if err != nil {
		return err
	}
	owning, cancel := context.WithTimeout(ctx, ownPatience)
	release, err := records.Own(owning)
	cancel()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	images, err := image.Open(in.ImageDir())
	if err != nil {
		return err
	}
	plane, err := dataplane.New(dataplane.Config{Instance: in.Tag})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.Close()) }()
	addresses := ipam.NewMemory()
	engine, err := newEngine(ctx, opt, objects, records, plane, addresses)
	if err != nil {
		return err
	}
	seed, err := macSeed(in)
	if err != nil {
		return err
	}
	node := agent.New(agent.Config{
		Instance: in.Tag, Store: objects, Engine: engine, Records: records, Plane: plane, Images: images,
		NetNS: in.NetNS, VMDir: in.VMDir, SandboxID: SandboxID, Accel: opt.Accel, DNS: readResolvConf,
		OwnsNetNS: in.OwnsNetNS, NetNSDir: instance.NetNSDir, Now: time.Now, Log: opt.Log,
	})
	if err := node.Restore(ctx); err != nil {
		return err
	}
	controllers := controller.New(controller.Config{Store: objects, MACSeed: seed, Now: time.Now, Log: opt.Log})
	ctx, end := context.WithCancel(ctx)
	defer end()
	server := &Server{
		Instance: in, Info: Info{Version: version.Text, PID: os.Getpid(), Tag: in.Tag, Accel: string(opt.Accel)},
		Store: objects, Applier: &Applier{Store: objects, Validate: validate},
		Backend: &backend{Node: node, instance: in, store: objects, controllers: controllers, prune: node.PruneAll, collect: images.Collect, addresses: addresses, records: records},
		Ended:   end,
	}
	return runTasks(ctx, opt.Log, tasksOf(node, controllers, server))
}

func tasksOf(node *agent.Node, controllers *controller.Controllers, server *Server) []controller.Task {
	tasks := append(controllers.Tasks(), node, server)
	for _, source := range node.Sources() {
		tasks = append(tasks, source)
	}
	return tasks
}

func runTasks(ctx context.Context, log *slog.Logger, tasks []controller.Task) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, task := range tasks {
		group.Go(func() error {
			if err := task.Run(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", task, err)
			}
			return nil
		})
	}
	log.Info("agent runs")
	err := group.Wait()
	log.Info("agent ends")
	return err
}

// macSeed gives what tells this machine's made-up MACs from another's.
func macSeed(in instance.Instance) (string, error) {
	id, err := os.ReadFile("/etc/machine-id")
	if errors.Is(err, os.ErrNotExist) {
		name, err := os.Hostname()
		if err != nil {
			return "", fmt.Errorf("read host name: %w", err)
		}
		id = []byte(name)
	} else if err != nil {
		return "", fmt.Errorf("read machine id: %w", err)
	}
	return strings.TrimSpace(string(id)) + "/" + in.Tag, nil
}

// Resolver configurations: the machine's, and the one with the real servers
// where the machine's names only a stub of its own (systemd-resolved.service(8)).
const (
	resolvConf         = "/etc/resolv.conf"
	resolvConfUpstream = "/run/systemd/resolve/resolv.conf"
)

// readResolvConf reads the machine's resolver configuration, for guests.
func readResolvConf() (vmnet.DNS, error) { return readDNS(resolvConf, resolvConfUpstream) }

func readDNS(path, upstream string) (vmnet.DNS, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return vmnet.DNS{}, nil
	}
	if err != nil {
		return vmnet.DNS{}, fmt.Errorf("read resolver configuration: %w", err)
	}
	dns := parseResolvConf(string(content))
	// A guest cannot reach the loopback address of its host.
	dns.Nameservers = slices.DeleteFunc(dns.Nameservers, netip.Addr.IsLoopback)
	if len(dns.Nameservers) > 0 {
		return dns, nil
	}
	if content, err := os.ReadFile(upstream); err == nil {
		dns.Nameservers = parseResolvConf(string(content)).Nameservers
	}
	return dns, nil
}

// parseResolvConf reads nameserver, domain and search lines (resolv.conf(5)).
// What is malformed is left out, as a resolver does.
func parseResolvConf(content string) vmnet.DNS {
	var dns vmnet.DNS
	for line := range strings.SplitSeq(content, "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if addr, err := netip.ParseAddr(fields[1]); err == nil {
				dns.Nameservers = append(dns.Nameservers, addr.WithZone(""))
			}
		case "domain":
			dns.Domain = fields[1]
		case "search":
			dns.Search = fields[1:]
		}
	}
	return dns
}
