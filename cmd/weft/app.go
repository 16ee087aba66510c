//go:generate go test -run TestReference -update .

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/instance"
	"github.com/weftnet/weft/internal/local"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/version"
)

// app is what the commands share.
type app struct {
	in          io.Reader
	out, errOut io.Writer
	getenv      func(string) string

	root      string
	namespace string
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "weft",
		Short:         "Many networks for Pods and virtual machines, from the YAML you have",
		Version:       version.Text,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(a.out)
	root.SetErr(a.errOut)
	root.PersistentFlags().StringVar(&a.root, "root", "", "keep a whole instance (state, sockets, link and namespace names) apart under this directory (default: WEFT_ROOT, else /var/lib/weft and /run/weft)")
	root.PersistentFlags().StringVarP(&a.namespace, "namespace", "n", "default", "namespace")
	root.AddCommand(
		a.upCommand(), a.applyCommand(), a.deleteCommand(), a.downCommand(),
		a.getCommand(), a.describeCommand(),
		a.execCommand(), a.consoleCommand(), a.logsCommand(), a.vmCommand(),
		a.imageCommand(), a.ipCommand(), a.versionCommand(),
	)
	return root
}

// group is a command that is nothing by itself; cobra would take a subcommand
// it does not know for a question about the group.
func group(use, short string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs, DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
}

func (a *app) instance() (instance.Instance, error) {
	root := a.root
	if root == "" {
		root = a.getenv("WEFT_ROOT")
	}
	return instance.New(root)
}

// client gives a client whose agent answers, and is of this version.
func (a *app) client(ctx context.Context) (*local.Client, instance.Instance, error) {
	in, err := a.instance()
	if err != nil {
		return nil, in, err
	}
	if err := requireRoot(); err != nil {
		return nil, in, err
	}
	client := local.NewClient(in)
	info, err := client.Info(ctx)
	if errors.Is(err, local.ErrNoAgent) {
		return nil, in, &hint.Error{Field: in.Socket(), Problem: "no agent answers here", Remedy: "start it with weft up"}
	}
	if err != nil {
		return nil, in, err
	}
	if info.Version != version.Text {
		return nil, in, &hint.Error{
			Field: "agent", Value: info.Version, Problem: "is of another version than this weft (" + version.Text + ")",
			Remedy: "run weft down with the old weft, or stop process " + fmt.Sprint(info.PID) + "; VMs and Pods keep running; then weft up",
		}
	}
	return client, in, nil
}

func requireRoot() error {
	if os.Geteuid() == 0 {
		return nil
	}
	return &hint.Error{Field: "uid", Value: fmt.Sprint(os.Geteuid()), Problem: "weft makes links and namespaces, which only root may", Remedy: "run it as root (sudo weft ...)"}
}

// readManifests reads all files; "-" is the standard input. What is right comes
// back beside the error for what is wrong.
func (a *app) readManifests(files []string) ([]*store.Object, error) {
	var objects []*store.Object
	var errs []error
	for _, file := range files {
		found, err := a.readManifest(file)
		objects = append(objects, found...)
		errs = append(errs, err)
	}
	local.SortForApply(objects)
	return objects, errors.Join(errs...)
}

func (a *app) readManifest(file string) ([]*store.Object, error) {
	if file == "-" {
		return local.ReadManifest("stdin", a.in, a.namespace)
	}
	info, err := os.Stat(file)
	if err == nil && info.IsDir() {
		return a.readDirectory(file)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, &hint.Error{Field: "-f", Value: file, Problem: "cannot be read", Err: errors.Unwrap(err), Remedy: "give the path of a YAML file, or - for the standard input"}
	}
	defer f.Close() // read only
	return local.ReadManifest(file, f, a.namespace)
}

func (a *app) readDirectory(dir string) ([]*store.Object, error) {
	var objects []*store.Object
	var errs []error
	for _, pattern := range []string{"*.yaml", "*.yml", "*.json"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", dir, err)
		}
		for _, file := range files {
			found, err := a.readManifest(file)
			objects = append(objects, found...)
			errs = append(errs, err)
		}
	}
	if len(objects) == 0 && errors.Join(errs...) == nil {
		errs = append(errs, &hint.Error{Field: "-f", Value: dir, Problem: "the directory has no .yaml, .yml or .json file", Remedy: "give a file"})
	}
	return objects, errors.Join(errs...)
}

// printError prints one line per error, however they are joined.
func (a *app) printError(err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintln(a.errOut, "weft: "+line) // nowhere left to report to
	}
}

func (a *app) printf(format string, args ...any) {
	fmt.Fprintf(a.out, format, args...) // a closed terminal is not our failure
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of weft and of the running agent", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.printf("weft %s\n", version.Text)
			in, err := a.instance()
			if err != nil {
				return err
			}
			info, err := local.NewClient(in).Info(cmd.Context())
			if errors.Is(err, local.ErrNoAgent) {
				a.printf("agent: none runs\n")
				return nil
			}
			if err != nil {
				return err
			}
			a.printf("agent %s, process %d, instance %s, accelerator %s\n", info.Version, info.PID, info.Tag, info.Accel)
			return nil
		},
	}
}
