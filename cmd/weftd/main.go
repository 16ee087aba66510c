// Command weftd is the agent of one machine: it holds the objects, makes the
// Pods' networks, runs the guests' DHCP servers and watches over the VMs. The
// agent of a Kubernetes node is weft-node.
package main

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"strings"

	"github.com/weftnet/weft/internal/daemon"
	"github.com/weftnet/weft/internal/instance"
	"github.com/weftnet/weft/internal/local"
	"github.com/weftnet/weft/internal/qemu"
)

func main() {
	flags := flag.NewFlagSet("weftd", flag.ContinueOnError)
	root := flags.String("root", os.Getenv("WEFT_ROOT"), "keep a whole instance apart under this directory")
	binDirs := flags.String("cni-bin-dirs", "/opt/cni/bin:/usr/lib/cni", "directories with CNI plugins, colon-separated")
	os.Exit(daemon.Main(flags, func(ctx context.Context, log *slog.Logger) error {
		in, err := instance.New(*root)
		if err != nil {
			return err
		}
		return local.Run(ctx, local.Options{Instance: in, BinDirs: strings.Split(*binDirs, ":"), Accel: accel(log), Log: log})
	}))
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
