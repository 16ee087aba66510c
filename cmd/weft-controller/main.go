// Command weft-controller is weft's controller of a Kubernetes cluster. Several
// copies may run; one of them leads.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/weftnet/weft/internal/cluster"
	"github.com/weftnet/weft/internal/daemon"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/version"
)

func main() {
	host, hostErr := os.Hostname()
	flags := flag.NewFlagSet("weft-controller", flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "file with access to the cluster; without, the service account of the Pod weft-controller runs in")
	namespace := flags.String("namespace", os.Getenv("POD_NAMESPACE"), "namespace weft is installed in; without, that in POD_NAMESPACE")
	name := flags.String("name", host, "name of this copy, for people")
	web := flags.String("http-address", "", "where to serve /metrics, /healthz and /readyz, such as :10980")
	adviser := flags.String("adviser-address", "", "where nodes ask for free addresses, such as :10981; without, they choose by themselves")
	advertise := flags.String("advertise-address", os.Getenv("POD_IP"), "with --adviser-address: address of this machine that nodes reach; without, that in POD_IP")
	grace := flags.Duration("collect-after", 30*time.Second, "give back addresses whose owner ended this long ago, if its node did not")
	compare := flags.Duration("compare-every", 5*time.Minute, "how often all leases are compared with their owners")
	whereabouts := flags.String("whereabouts", "", "what to do about Whereabouts, see docs/whereabouts-migration.md: takeOver, handBack or mixed; without, who gives addresses goes on")
	whereaboutsNamespace := flags.String("whereabouts-namespace", "kube-system", "where Whereabouts keeps its objects")
	mirror := flags.Bool("whereabouts-mirror", true, "show what weft leased in Whereabouts' objects, where it was taken over")
	importedFor := flags.Duration("imported-for", 24*time.Hour, "give back addresses that Whereabouts gave to nobody knows whom after so long")
	macRange := flags.String("mac-range", "", "what VMs' NICs get MACs of that ask for none, such as 02:00:00:00:00:00-02:ff:ff:ff:ff:ff; without, they are made of the VM's UID")
	os.Exit(daemon.Main(flags, func(ctx context.Context, log *slog.Logger) error {
		if hostErr != nil && *name == "" {
			return fmt.Errorf("find this machine's name: %w", hostErr)
		}
		if *grace <= 0 || *compare <= 0 {
			return &hint.Error{
				Field: "--collect-after, --compare-every", Value: fmt.Sprintf("%v, %v", *grace, *compare), Problem: "are not above zero", Remedy: "give durations such as 30s and 5m",
			}
		}
		return cluster.Run(ctx, cluster.Options{
			Kubeconfig: *kubeconfig, Namespace: *namespace, Name: *name, Web: *web, Adviser: *adviser, Advertise: *advertise,
			Grace: *grace, Compare: *compare,
			Whereabouts: *whereabouts, WhereaboutsNamespace: *whereaboutsNamespace, Mirror: *mirror, ImportedFor: *importedFor, MACRange: *macRange,
			Version: version.Text, Log: log,
		})
	}))
}
