// Command weftd is the agent of one machine: it holds the objects, makes the
// Pods' networks, runs the guests' DHCP servers and watches over the VMs. The
// agent of a Kubernetes node is weft-node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/weftnet/weft/internal/instance"
	"github.com/weftnet/weft/internal/local"
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
	in, err := instance.New(*root)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: logLevel}))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return local.Run(ctx, local.Options{Instance: in, BinDirs: strings.Split(*binDirs, ":"), Accel: accel(log), Log: log})
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
