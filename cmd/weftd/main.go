// Command weftd is the agent of one machine: it holds the objects, makes the
// Pods' networks, runs the guests' DHCP servers and watches over the VMs. With
// --node it is the agent of a Kubernetes node and answers its runtime's CNI
// calls.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/weftnet/weft/internal/install"
	"github.com/weftnet/weft/internal/local"
	"github.com/weftnet/weft/internal/nodeagent"
	"github.com/weftnet/weft/internal/qemu"
	"github.com/weftnet/weft/internal/version"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "weftd: "+err.Error())
		os.Exit(1)
	}
}

func run() error {
	flags := flag.NewFlagSet("weftd", flag.ContinueOnError)
	root := flags.String("root", os.Getenv("WEFT_ROOT"), "keep a whole instance apart under this directory")
	binDirs := flags.String("cni-bin-dirs", "/opt/cni/bin:/usr/lib/cni", "directories with CNI plugins, colon-separated")
	node := flags.String("node", os.Getenv("NODE_NAME"), "be the agent of this node of a Kubernetes cluster")
	kubeconfig := flags.String("kubeconfig", "", "file with access to the cluster; without, the service account of the Pod weftd runs in")
	installs := flags.Bool("install", false, "with --node: keep weft's CNI programs in the first of --cni-bin-dirs, and its configuration in --cni-conf-dir")
	confDir := flags.String("cni-conf-dir", "/etc/cni/net.d", "directory with the CNI configurations of the container runtime")
	settings := flags.String("cni-settings", "", "with --install: file with keys for the configuration, such as one made for Multus")
	hostRoot := flags.String("host-root", "", "with --node: where the node's files are, if weftd runs in a container; foreign CNI plugins run there")
	kubeletDir := flags.String("kubelet-dir", "/var/lib/kubelet", "with --node: directory of the node's kubelet (its --root-dir), which is asked for the devices of Pods")
	criSocket := flags.String("cri-socket", "", "with --node: socket of the container runtime, which is asked for its sandboxes; without, where containerd, CRI-O and the like have it")
	collectAfter := flags.Duration("collect-after", 0, "with --node: take back what a Pod's sandbox has that the container runtime has not known for this long (default 6m)")
	web := flags.String("http-address", "", "with --node: where to serve /metrics, /healthz and /readyz, such as :10970")
	profiles := flags.Bool("pprof", false, "with --http-address: serve /debug/pprof to 127.0.0.1")
	level := flags.String("log-level", "info", "debug, info, warn or error")
	showVersion := flags.Bool("version", false, "print the version")
	if err := flags.Parse(os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *showVersion {
		fmt.Println("weftd " + version.Text)
		return nil
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	var logLevel slog.Level
	if err := logLevel.UnmarshalText([]byte(*level)); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	in, err := local.NewInstance(*root)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: logLevel}))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dirs := strings.Split(*binDirs, ":")
	if *node == "" {
		return local.Run(ctx, local.Options{Instance: in, BinDirs: dirs, Accel: accel(log), Log: log})
	}
	opt := nodeagent.Options{
		Kubeconfig: *kubeconfig, Node: *node, Instance: in.Tag, State: in.State, Run: in.Run, BinDirs: dirs, KubeletDir: *kubeletDir, CRISocket: *criSocket, CollectAfter: *collectAfter, HostRoot: *hostRoot, Web: *web, Profiles: *profiles, Version: version.Text, Log: log,
	}
	if *installs {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find weft's programs: %w", err)
		}
		opt.Install = &install.Installer{From: filepath.Dir(self), BinDir: dirs[0], ConfDir: *confDir, HostRoot: *hostRoot, Settings: *settings, Log: log}
	}
	return nodeagent.Run(ctx, opt)
}

// accel decides what executes guests: WEFT_ACCEL, or what a probe finds.
func accel(log *slog.Logger) qemu.Accel {
	if forced := os.Getenv("WEFT_ACCEL"); forced == string(qemu.KVM) || forced == string(qemu.TCG) {
		return qemu.Accel(forced)
	}
	result := qemu.Probe()
	log.Info("accelerator", "accel", result.Accel, "reason", result.Reason)
	return result.Accel
}
