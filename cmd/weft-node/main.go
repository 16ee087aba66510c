// Command weft-node is the agent of one Kubernetes node: it answers the CNI calls
// of the node's container runtime. It is a program of its own, beside weftd, so
// that what only a machine without Kubernetes needs takes no node's memory.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/weftnet/weft/internal/daemon"
	"github.com/weftnet/weft/internal/install"
	"github.com/weftnet/weft/internal/instance"
	"github.com/weftnet/weft/internal/nodeagent"
	"github.com/weftnet/weft/internal/version"
)

func main() {
	flags := flag.NewFlagSet("weft-node", flag.ContinueOnError)
	node := flags.String("node", os.Getenv("NODE_NAME"), "name of this node in the cluster; without, that in NODE_NAME")
	kubeconfig := flags.String("kubeconfig", "", "file with access to the cluster; without, the service account of the Pod weft-node runs in")
	root := flags.String("root", os.Getenv("WEFT_ROOT"), "keep a whole instance apart under this directory")
	binDirs := flags.String("cni-bin-dirs", "/opt/cni/bin:/usr/lib/cni", "directories with CNI plugins, colon-separated")
	installs := flags.Bool("install", false, "keep weft's CNI programs in the first of --cni-bin-dirs, and its configuration in --cni-conf-dir")
	confDir := flags.String("cni-conf-dir", "/etc/cni/net.d", "directory with the CNI configurations of the container runtime")
	settings := flags.String("cni-settings", "", "with --install: file with keys for the configuration, such as one made for Multus")
	hostRoot := flags.String("host-root", "", "where the node's files are, if weft-node runs in a container; foreign CNI plugins run there")
	kubeletDir := flags.String("kubelet-dir", "/var/lib/kubelet", "directory of the node's kubelet (its --root-dir), which is asked for the devices of Pods")
	criSocket := flags.String("cri-socket", "", "socket of the container runtime, which is asked for its sandboxes; without, where containerd, CRI-O and the like have it, all that are there")
	collectAfter := flags.Duration("collect-after", 0, "take back what a Pod's sandbox has that the container runtime has not known for this long (default 6m)")
	web := flags.String("http-address", "", "where to serve /metrics, /healthz and /readyz, such as :10970; without, nowhere")
	probe := flags.String("probe", "", "ask the agent that runs here whether it is ready (readyz) or alive (healthz), and end")
	adviser := flags.String("adviser-token", "", "file with a token to ask weft-controller's adviser with, which is found in the namespace in POD_NAMESPACE; without, addresses are chosen here")
	refuseMACs := flags.Bool("refuse-duplicate-macs", false, "do not attach a Pod that asks for a MAC that is another's on the network; without, events tell of it")
	profiles := flags.Bool("pprof", false, "with --http-address: serve /debug/pprof to 127.0.0.1")
	os.Exit(daemon.Main(flags, func(ctx context.Context, log *slog.Logger) error {
		if !*profiles {
			runtime.MemProfileRate = 0 // its tables take a megabyte of every node
		}
		in, err := instance.New(*root)
		if err != nil {
			return err
		}
		if *probe != "" {
			return nodeagent.Probe(ctx, in.Run, *probe)
		}
		dirs := strings.Split(*binDirs, ":")
		opt := nodeagent.Options{
			Kubeconfig: *kubeconfig, Node: *node, Instance: in.Tag, State: in.State, Run: in.Run, BinDirs: dirs, KubeletDir: *kubeletDir, CRISocket: *criSocket, CollectAfter: *collectAfter, HostRoot: *hostRoot, Web: *web, AdviserToken: *adviser, Namespace: os.Getenv("POD_NAMESPACE"), Profiles: *profiles, RefuseMACs: *refuseMACs, Version: version.Text, Log: log,
		}
		if *installs {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find weft's programs: %w", err)
			}
			opt.Install = &install.Installer{From: filepath.Dir(self), BinDir: dirs[0], ConfDir: *confDir, HostRoot: *hostRoot, Settings: *settings, Log: log}
		}
		return nodeagent.Run(ctx, opt)
	}))
}
