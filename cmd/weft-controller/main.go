// Command weft-controller is weft's controller of a Kubernetes cluster. Several
// copies may run; one of them leads.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/weftnet/weft/internal/cluster"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/version"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "weft-controller: "+err.Error())
		os.Exit(1)
	}
}

func run() error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find this machine's name: %w", err)
	}
	flags := flag.NewFlagSet("weft-controller", flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "file with access to the cluster; without, the service account of the Pod weft-controller runs in")
	namespace := flags.String("namespace", os.Getenv("POD_NAMESPACE"), "namespace weft is installed in; without, that in POD_NAMESPACE")
	name := flags.String("name", host, "name of this copy, for people")
	web := flags.String("http-address", "", "where to serve /metrics, /healthz and /readyz, such as :10980")
	adviser := flags.String("adviser-address", "", "where nodes ask for free addresses, such as :10981; without, they choose by themselves")
	advertise := flags.String("advertise-address", os.Getenv("POD_IP"), "with --adviser-address: address of this machine that nodes reach; without, that in POD_IP")
	grace := flags.Duration("collect-after", 30*time.Second, "give back addresses whose owner ended this long ago, if its node did not")
	compare := flags.Duration("compare-every", 5*time.Minute, "how often all leases are compared with their owners")
	level := flags.String("log-level", "info", "debug, info, warn or error")
	showVersion := flags.Bool("version", false, "print the version")
	if err := flags.Parse(os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *showVersion {
		fmt.Println("weft-controller " + version.Text)
		return nil
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *grace <= 0 || *compare <= 0 {
		return &hint.Error{
			Field: "--collect-after, --compare-every", Value: fmt.Sprintf("%v, %v", *grace, *compare), Problem: "are not above zero", Remedy: "give durations such as 30s and 5m",
		}
	}
	var logLevel slog.Level
	if err := logLevel.UnmarshalText([]byte(*level)); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return cluster.Run(ctx, cluster.Options{
		Kubeconfig: *kubeconfig, Namespace: *namespace, Name: *name, Web: *web, Adviser: *adviser, Advertise: *advertise,
		Grace: *grace, Compare: *compare, Version: version.Text,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: logLevel})),
	})
}
