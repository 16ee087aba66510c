package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/inventory"
)

const ipLong = `Tell who holds which address, why it is not given back, and how full ranges are.

With --kubeconfig, or KUBECONFIG set, of that cluster, whose addresses are AddressLease objects; else of this
machine, whose agent is asked. --kubeconfig "" is this machine whatever KUBECONFIG says.`

// ipOptions are what the commands about addresses share.
type ipOptions struct {
	kubeconfig string
	output     string
}

func (a *app) ipCommand() *cobra.Command {
	options := &ipOptions{}
	cmd := group("ip", "Tell who holds which address, and why")
	cmd.Long = ipLong
	cmd.PersistentFlags().StringVar(&options.kubeconfig, "kubeconfig", "", "the cluster that this file names (default: KUBECONFIG, else this machine)")
	cmd.AddCommand(a.ipListCommand(options), a.ipShowCommand(options), a.ipWhyCommand(options), a.ipFreeCommand(options), a.ipPoolsCommand(options))
	return cmd
}

func outputFlag(cmd *cobra.Command, options *ipOptions) {
	cmd.Flags().StringVarP(&options.output, "output", "o", "table", "table, wide, json or yaml")
}

// readLedger reads all there is. What could not be read of it is told beside.
func (a *app) readLedger(cmd *cobra.Command, options *ipOptions) (ledger, *inventory.Known, error) {
	switch options.output {
	case "", "table", "wide", "json", "yaml":
	default:
		return nil, nil, &hint.Error{Field: "-o", Value: options.output, Problem: "is no output form", Remedy: "use table, wide, json or yaml"}
	}
	ctx := cmd.Context()
	from, err := a.openLedger(ctx, options.kubeconfig, cmd.Flags().Changed("kubeconfig"))
	if err != nil {
		return nil, nil, err
	}
	known, err := from.read(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, problem := range known.Problems {
		fmt.Fprintln(a.errOut, "weft: warning: "+problem)
	}
	return from, known, nil
}

func parseAddress(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, &hint.Error{Field: "ADDRESS", Value: text, Problem: "is not an IP address", Remedy: "write it like 10.1.2.3 or fd00::3"}
	}
	return addr.Unmap(), nil
}

// ipFilter picks of what is held.
type ipFilter struct {
	network, pool, node string
	prefix              netip.Prefix
}

func (f *ipFilter) parse(namespace string) error {
	if f.network != "" && !strings.Contains(f.network, "/") {
		f.network = namespace + "/" + f.network
	}
	if f.pool == "" {
		return nil
	}
	prefix, err := netip.ParsePrefix(f.pool)
	if err != nil {
		return &hint.Error{Field: "--pool", Value: f.pool, Problem: "is not in CIDR notation", Remedy: "write it like 10.1.2.0/24; weft ip pools lists those there are"}
	}
	f.prefix = prefix.Masked()
	return nil
}

func (f *ipFilter) picks(is inventory.Holding) bool {
	return (f.network == "" || is.Network == f.network) && (f.node == "" || is.Node == f.node || slices.ContainsFunc(is.Holders, func(h v1alpha1.LeaseHolder) bool { return h.Node == f.node })) &&
		(!f.prefix.IsValid() || f.prefix.Contains(is.Address))
}

func (a *app) ipListCommand(options *ipOptions) *cobra.Command {
	var filter ipFilter
	cmd := &cobra.Command{
		Use: "ls", Short: "List the addresses that are held, and by whom", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := filter.parse(a.namespace); err != nil {
				return err
			}
			_, known, err := a.readLedger(cmd, options)
			if err != nil {
				return err
			}
			list := []inventory.Holding{}
			for _, is := range known.Held {
				if filter.picks(is) {
					list = append(list, is)
				}
			}
			return a.printHoldings(list, options.output)
		},
	}
	cmd.Flags().StringVar(&filter.network, "network", "", "addresses of this network only: NAMESPACE/NAME, or a NAME of the namespace")
	cmd.Flags().StringVar(&filter.pool, "pool", "", "addresses of this subnet only, such as 10.1.2.0/24")
	cmd.Flags().StringVar(&filter.node, "node", "", "addresses of this node only")
	outputFlag(cmd, options)
	return cmd
}

func (a *app) ipShowCommand(options *ipOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use: "show ADDRESS", Short: "Tell who holds an address, in every scope", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := parseAddress(args[0])
			if err != nil {
				return err
			}
			_, known, err := a.readLedger(cmd, options)
			if err != nil {
				return err
			}
			list := known.Of(addr)
			if len(list) == 0 {
				return &hint.Error{Field: "address", Value: addr.String(), Problem: "is held by nobody", Remedy: "weft ip why " + addr.String() + " tells whether it can be given"}
			}
			if options.output != "table" {
				return a.printHoldings(list, options.output)
			}
			for _, is := range list {
				a.printf("%s", holdingText(is, time.Now()))
			}
			return nil
		},
	}
	outputFlag(cmd, options)
	return cmd
}

func (a *app) ipWhyCommand(options *ipOptions) *cobra.Command {
	return &cobra.Command{
		Use: "why ADDRESS", Short: "Tell why an address is held still, and what has it given back; or whether it is free, and if not, why", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := parseAddress(args[0])
			if err != nil {
				return err
			}
			from, known, err := a.readLedger(cmd, options)
			if err != nil {
				return err
			}
			a.printWhy(cmd.Context(), from, known, addr)
			return nil
		},
	}
}

const ipFreeLong = `Give an address back that nobody has.

It is nobody's by the rules of the controller: its owner must have ended for a grace, and its node be gone, or
heard from since. That is waited for. Of an owner's addresses only this one is given back. On one machine there
is nothing to give back by hand: addresses go with what has them.

--force asks nobody: if the owner does have the address, another may be given the same, and both lose packets.`

func (a *app) ipFreeCommand(options *ipOptions) *cobra.Command {
	var network string
	var force bool
	var grace time.Duration
	cmd := &cobra.Command{
		Use: "free ADDRESS", Short: "Give an address back that nobody has", Long: ipFreeLong, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := parseAddress(args[0])
			if err != nil {
				return err
			}
			filter := ipFilter{network: network}
			if err := filter.parse(a.namespace); err != nil {
				return err
			}
			from, known, err := a.readLedger(cmd, options)
			if err != nil {
				return err
			}
			is, err := oneOf(known.Of(addr), filter, addr)
			if err != nil {
				return err
			}
			return a.freeOne(cmd.Context(), from, is, grace, force)
		},
	}
	cmd.Flags().StringVar(&network, "network", "", "the network that has it, if several do: NAMESPACE/NAME, or a NAME of the namespace")
	cmd.Flags().BoolVar(&force, "force", false, "give it back whoever has it")
	cmd.Flags().DurationVar(&grace, "after", 30*time.Second, "how long its owner must have ended")
	return cmd
}

// oneOf gives the one that is meant.
func oneOf(list []inventory.Holding, filter ipFilter, addr netip.Addr) (inventory.Holding, error) {
	var names []string
	var picked []inventory.Holding
	for _, is := range list {
		names = append(names, orNone(is.Network))
		if filter.picks(is) {
			picked = append(picked, is)
		}
	}
	switch {
	case len(picked) == 1:
		return picked[0], nil
	case len(picked) == 0:
		return inventory.Holding{}, &hint.Error{Field: "address", Value: addr.String(), Problem: "is held by nobody", Remedy: "weft ip why " + addr.String() + " tells whether it can be given"}
	}
	return inventory.Holding{}, &hint.Error{
		Field: "address", Value: addr.String(), Problem: "is held in several scopes, of networks " + strings.Join(names, ", "), Remedy: "name one by --network",
	}
}

func (a *app) freeOne(ctx context.Context, from ledger, is inventory.Holding, grace time.Duration, force bool) error {
	var err error
	if force {
		err = from.force(ctx, is)
	} else {
		err = from.free(ctx, is, grace, func(text string) { a.printf("%s\n", text) })
	}
	if err != nil {
		return err
	}
	a.printf("%s was given back\n", is.Address)
	if force {
		a.printf("if %s has it, another may be given the same: see that it is gone\n", is.OwnerName())
	}
	return nil
}

func (a *app) ipPoolsCommand(options *ipOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use: "pools", Short: "Tell how full the ranges are that networks give addresses of", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, known, err := a.readLedger(cmd, options)
			if err != nil {
				return err
			}
			return a.printPools(known.Usage(), options.output)
		},
	}
	outputFlag(cmd, options)
	return cmd
}

// printData prints a value as JSON or YAML.
func (a *app) printData(value any, output string) error {
	text, err := json.MarshalIndent(value, "", "    ")
	if err == nil && output == "yaml" {
		text, err = yaml.JSONToYAML(text)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", output, err)
	}
	a.printf("%s\n", strings.TrimRight(string(text), "\n"))
	return nil
}
