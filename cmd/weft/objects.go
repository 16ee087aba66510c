package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/instance"
	"github.com/weftnet/weft/internal/local"
	"github.com/weftnet/weft/internal/store"
)

func (a *app) applyCommand() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Create or change objects and return at once", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, readErr := a.readManifests(files)
			client, _, err := a.client(cmd.Context())
			if err != nil {
				return errors.Join(readErr, err)
			}
			results, err := client.Apply(cmd.Context(), objects)
			if err != nil {
				return errors.Join(readErr, err)
			}
			return errors.Join(readErr, a.printResults(results))
		},
	}
	requireFiles(cmd, &files)
	return cmd
}

func requireFiles(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringArrayVarP(files, "filename", "f", nil, "YAML or JSON file, directory, or - for the standard input")
	_ = cmd.MarkFlagRequired("filename") // fails only for a flag that does not exist
}

func (a *app) deleteCommand() *cobra.Command {
	var files []string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "delete -f FILE | KIND NAME...",
		Short: "Delete objects and wait until their links, processes and namespaces are gone",
		RunE: func(cmd *cobra.Command, args []string) error {
			objects, readErr := a.toDelete(files, args)
			if readErr != nil {
				return readErr
			}
			client, _, err := a.client(cmd.Context())
			if err != nil {
				return err
			}
			return a.deleteObjects(cmd.Context(), client, objects, timeout)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "YAML or JSON file, directory, or - for the standard input")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "give up waiting after this time")
	return cmd
}

func (a *app) toDelete(files, args []string) ([]*store.Object, error) {
	objects, err := a.readManifests(files)
	if err != nil {
		return nil, err
	}
	if len(args) == 0 && len(files) == 0 {
		return nil, &hint.Error{Problem: "nothing to delete", Remedy: "give -f FILE, or a kind and names: weft delete pod web"}
	}
	if len(args) > 0 {
		info, err := local.KindNamed(args[0])
		if err != nil {
			return nil, err
		}
		if len(args) == 1 {
			return nil, &hint.Error{Field: "NAME", Problem: "is missing", Remedy: "name the " + info.Names[0] + " to delete"}
		}
		for _, name := range args[1:] {
			obj := &store.Object{Object: map[string]any{}}
			obj.SetGroupVersionKind(info.GVK)
			obj.SetName(name)
			if info.Namespaced {
				obj.SetNamespace(a.namespace)
			}
			objects = append(objects, obj)
		}
	}
	for i, j := 0, len(objects)-1; i < j; i, j = i+1, j-1 {
		objects[i], objects[j] = objects[j], objects[i]
	}
	return objects, nil
}

func (a *app) deleteObjects(ctx context.Context, client *local.Client, objects []*store.Object, timeout time.Duration) error {
	results, err := client.Delete(ctx, objects)
	if err != nil {
		return err
	}
	waited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var errs []error
	for i, r := range results {
		if r.Action == local.Deleted {
			if err := waitGone(waited, client, objects[i]); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		errs = append(errs, a.printResults([]local.Result{r}))
	}
	return errors.Join(errs...)
}

// waitGone waits for an object and for what goes with it: a VM is gone when its
// instance is, and a namespace when all in it is.
func waitGone(ctx context.Context, client *local.Client, obj *store.Object) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	why := "its finalizers are not done"
	for {
		left, err := stillThere(ctx, client, obj)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil && left == nil {
			return nil
		}
		if left != nil {
			if message := conditionMessage(left, "Terminating"); message != "" {
				why = message
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s %s is not gone yet: %s", strings.ToLower(obj.GetKind()), store.KeyOf(obj), why)
		case <-tick.C:
		}
	}
}

func stillThere(ctx context.Context, client *local.Client, obj *store.Object) (*store.Object, error) {
	reply, err := client.List(ctx, obj.GroupVersionKind(), store.KeyOf(obj))
	if err == nil && len(reply.Items) > 0 {
		return reply.Items[0], nil
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	switch obj.GroupVersionKind() {
	case local.Namespace:
		return anyIn(ctx, client, obj.GetName())
	case local.VM:
	default:
		return nil, nil
	}
	vmi := &store.Object{Object: map[string]any{}}
	vmi.SetGroupVersionKind(local.VMI)
	vmi.SetNamespace(obj.GetNamespace())
	vmi.SetName(obj.GetName())
	return stillThere(ctx, client, vmi)
}

// anyIn gives an object of the namespace that is not gone yet.
func anyIn(ctx context.Context, client *local.Client, namespace string) (*store.Object, error) {
	for _, kind := range local.Kinds {
		if !kind.Namespaced {
			continue
		}
		reply, err := client.List(ctx, kind.GVK, store.Key{Namespace: namespace})
		if err != nil {
			return nil, err
		}
		if len(reply.Items) > 0 {
			return reply.Items[0], nil
		}
	}
	return nil, nil
}

func (a *app) downCommand() *cobra.Command {
	var all, purge, force bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Take everything of this instance down and end its agent",
		Long: `Stop every VM and Pod, remove their links, rules, namespaces and processes, and end the agent.

VirtualMachine and NetworkAttachmentDefinition objects stay, with the addresses and MACs of those VMs, and
images: the next weft up brings the VMs back as they were. --all deletes the objects too; --all --purge also
deletes images, disks and logs: nothing is left.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.down(cmd.Context(), local.DownRequest{All: all, Force: force}, purge)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "delete every object as well")
	cmd.Flags().BoolVar(&force, "force", false, "leave behind what a plugin refuses to take back, or one that is gone")
	cmd.Flags().BoolVar(&purge, "purge", false, "with --all: delete images, disks and logs as well")
	return cmd
}

func (a *app) down(ctx context.Context, request local.DownRequest, purge bool) error {
	if purge && !request.All {
		return &hint.Error{Field: "--purge", Problem: "goes with --all only", Remedy: "write weft down --all --purge to delete everything"}
	}
	if err := requireRoot(); err != nil {
		return err
	}
	in, err := a.instance()
	if err != nil {
		return err
	}
	if _, err := os.Stat(in.StoreFile()); errors.Is(err, os.ErrNotExist) {
		a.printf("nothing to take down: %s holds no instance\n", in.State)
		return nil
	}
	// What stands may stand without an agent (killed, or after a reboot): one is
	// needed to take it down.
	if err := a.ensureAgent(ctx, in); err != nil {
		return err
	}
	client, _, err := a.client(ctx)
	if err != nil {
		return err
	}
	info, err := client.Info(ctx)
	if err != nil {
		return err
	}
	reply, err := client.Down(ctx, request)
	if err != nil {
		return err
	}
	for _, what := range reply.Removed {
		a.printf("removed %s\n", what)
	}
	if err := waitProcessGone(ctx, info.PID); err != nil {
		return err
	}
	if purge {
		if err := purgeState(in); err != nil {
			return err
		}
		a.printf("deleted %s\n", in.State)
		return nil
	}
	for _, what := range reply.Kept {
		a.printf("kept %s\n", what)
	}
	return nil
}

func waitProcessGone(ctx context.Context, pid int) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(state), ") Z ") {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for agent process %d: %w", pid, ctx.Err())
		case <-tick.C:
		}
	}
}

// purgeState deletes what the instance keeps on disk. Only files weft made are
// removed by name, so that a --root that was somebody's directory keeps theirs.
func purgeState(in instance.Instance) error {
	var errs []error
	for _, path := range append(in.OwnPaths(), in.Run) {
		errs = append(errs, os.RemoveAll(path))
	}
	// Fails if something else lies there, which is then not ours to delete.
	_ = os.Remove(in.State)
	return errors.Join(errs...)
}
