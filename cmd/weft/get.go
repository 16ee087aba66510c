package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/local"
	"github.com/weftnet/weft/internal/store"
)

type getOptions struct {
	all    bool
	output string
	watch  bool
}

func (a *app) getCommand() *cobra.Command {
	var options getOptions
	cmd := &cobra.Command{
		Use:   "get KIND [NAME]",
		Short: "Show objects: vmi, vm, pod, nad, namespace, nicidentity",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			return a.get(cmd.Context(), args[0], name, options)
		},
	}
	cmd.Flags().BoolVarP(&options.all, "all-namespaces", "A", false, "objects of every namespace")
	cmd.Flags().StringVarP(&options.output, "output", "o", "table", "table, wide, json or yaml")
	cmd.Flags().BoolVarP(&options.watch, "watch", "w", false, "go on and show every change")
	return cmd
}

func (a *app) get(ctx context.Context, kind, name string, options getOptions) error {
	info, err := local.KindNamed(kind)
	if err != nil {
		return err
	}
	switch options.output {
	case "table", "wide", "json", "yaml":
	default:
		return &hint.Error{Field: "-o", Value: options.output, Problem: "is no output form", Remedy: "use table, wide, json or yaml"}
	}
	client, _, err := a.client(ctx)
	if err != nil {
		return err
	}
	key := store.Key{Namespace: a.namespace, Name: name}
	if options.all {
		if name != "" {
			return &hint.Error{Field: "-A", Problem: "does not go with a name", Remedy: "give -n NAMESPACE instead"}
		}
		key.Namespace = ""
	}
	if !info.Namespaced {
		key.Namespace = ""
	}
	reply, err := client.List(ctx, info.GVK, key)
	if errors.Is(err, store.ErrNotFound) {
		return a.notFound(ctx, client, info, key)
	}
	if err != nil {
		return err
	}
	if err := a.printObjects(info.GVK, reply.Items, name != "", options.output); err != nil {
		return err
	}
	if !options.watch {
		return nil
	}
	err = client.Watch(ctx, info.GVK, key.Namespace, reply.Revision, func(event local.WatchEvent) error {
		if name != "" && event.Object.GetName() != name {
			return nil
		}
		if event.Type == store.Deleted {
			a.printf("%s %s deleted\n", info.Names[0], store.KeyOf(event.Object))
			return nil
		}
		return a.printObjects(info.GVK, []*store.Object{event.Object}, true, options.output)
	})
	if ctx.Err() != nil {
		return nil // the user has seen enough
	}
	return err
}

// notFound says where an object of that name does exist.
func (a *app) notFound(ctx context.Context, client *local.Client, info local.KindInfo, key store.Key) error {
	remedy := "weft get " + info.Names[0] + " -A shows all there are"
	everywhere, err := client.List(ctx, info.GVK, store.Key{})
	if err != nil {
		return err
	}
	for _, obj := range everywhere.Items {
		if obj.GetName() == key.Name {
			remedy = "it exists in namespace " + obj.GetNamespace() + ": add -n " + obj.GetNamespace()
		}
	}
	return &hint.Error{Field: info.Names[0], Value: key.String(), Problem: "does not exist", Remedy: remedy}
}

func (a *app) printObjects(gvk schema.GroupVersionKind, objects []*store.Object, single bool, output string) error {
	switch output {
	case "json", "yaml":
		return a.printDocuments(objects, single, output)
	}
	if len(objects) == 0 {
		a.printf("no %s\n", strings.ToLower(gvk.Kind))
		return nil
	}
	header, row := columnsOf(gvk, output == "wide")
	t := table{header: header}
	for _, obj := range objects {
		t.rows = append(t.rows, row(obj))
	}
	a.printf("%s", t)
	return nil
}

func (a *app) printDocuments(objects []*store.Object, single bool, output string) error {
	var value any
	if single && len(objects) == 1 {
		value = objects[0].Object
	} else {
		items := make([]any, 0, len(objects))
		for _, obj := range objects {
			items = append(items, obj.Object)
		}
		value = map[string]any{"apiVersion": "v1", "kind": "List", "items": items}
	}
	if output == "yaml" {
		text, err := yaml.Marshal(value)
		if err != nil {
			return fmt.Errorf("write YAML: %w", err)
		}
		a.printf("%s", text)
		return nil
	}
	text, err := json.MarshalIndent(value, "", "    ")
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	a.printf("%s\n", text)
	return nil
}
