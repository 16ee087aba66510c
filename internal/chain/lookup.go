package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/record"
)

// resolve looks everything up that Resolve wants to know.
func (e *Engine) resolve(ctx context.Context, req Request) ([]Delegate, error) {
	networks, networksErr := netattach.ParseNetworks(req.Annotations[netattach.NetworksAnnotation], req.Pod.Namespace)
	namespace := req.DefaultNamespace
	if namespace == "" {
		namespace = "kube-system"
	}
	chosen, chosenErr := netattach.ParseDefaultNetwork(req.Annotations[netattach.DefaultNetworkAnnotation], namespace)
	if err := errors.Join(networksErr, chosenErr); err != nil {
		return nil, err
	}
	all := networks
	if chosen != nil {
		all = append(slices.Clone(networks), *chosen)
	}
	if err := isolated(req.Isolation, req.Pod.Namespace, all); err != nil {
		return nil, err
	}
	if err := ofPrimary(chosen); err != nil {
		return nil, err
	}
	q := Question{
		Sandbox: req.ID, Pod: req.Pod, IfName: req.IfName, RuntimeConfig: req.RuntimeConfig, CNIArgs: req.CNIArgs,
		Selections: networks, First: 1, Kinds: e.Kinds, FlatFile: readFlatFile, DeviceFiles: e.deviceFiles, parsed: e.parsed,
	}
	if q.IfName == "" {
		q.IfName = "eth0"
	}
	if err := e.defaultNetwork(ctx, req, chosen, &q); err != nil {
		return nil, err
	}
	if err := errors.Join(e.everywhere(ctx, req, &q), e.lookUp(ctx, &q, req.ConfDir)); err != nil {
		return nil, err
	}
	if err := e.lookUpDevices(ctx, &q); err != nil {
		return nil, err
	}
	return e.answer(ctx, q, req.vm())
}

// answer is Resolve, with what this engine says of types of IPAM, of MACs and of claims.
func (e *Engine) answer(ctx context.Context, q Question, vm string) ([]Delegate, error) {
	var err error
	if q.Selections, err = e.withMACs(ctx, q, vm); err != nil {
		return nil, err
	}
	var failed func() error
	q.ForeignIPAM, failed = e.foreignIPAM(ctx)
	delegates, err := Resolve(q)
	if problem := failed(); problem != nil {
		return nil, problem
	}
	if err != nil {
		return nil, err
	}
	return delegates, e.claim(ctx, q.Pod, vm, delegates)
}

// defaultNetwork finds the config of the default network: the Pod's own choice,
// the caller's, the engine's.
func (e *Engine) defaultNetwork(ctx context.Context, req Request, chosen *netattach.Selection, q *Question) error {
	network := e.Default
	if req.Default != nil {
		network = *req.Default
	}
	if chosen == nil && len(network.Config) > 0 {
		conf, err := e.parsed.config(string(network.Config), "default")
		if err != nil {
			return ofNetwork("default", err)
		}
		q.Default, q.DefaultName = conf, conf.Name
		return nil
	}
	selection := chosen
	if selection == nil {
		if network.Name == "" {
			return nil
		}
		selection = &netattach.Selection{Namespace: network.Namespace, Name: network.Name, Field: "default network"}
	}
	found, err := e.definition(ctx, selection, req.ConfDir, chosen == nil)
	if err != nil {
		return err
	}
	q.Default, q.DefaultName, q.DefaultResource, q.DefaultSelection = found.Conf, found.Name, found.Resource, chosen
	return nil
}

// definition looks one network up and reads its config. One that the node's own
// configuration names may be a file of that name instead.
func (e *Engine) definition(ctx context.Context, s *netattach.Selection, confDir string, orFile bool) (Everywhere, error) {
	nad, err := e.defined(ctx, s.Namespace, s.Name, confDir)
	if err != nil {
		return Everywhere{}, fmt.Errorf("look up %s %s: %w", s.Field, s.FullName(), err)
	}
	if nad == nil && orFile {
		if text, err := e.configFile(confDir, s.Name); err == nil {
			conf, err := e.parsed.config(text, s.Name)
			return Everywhere{Name: s.Name, Conf: conf}, ofNetwork(s.Name, err)
		}
	}
	if nad == nil {
		elsewhere, err := e.Networks.Namespaces(ctx, s.Name)
		if err != nil {
			return Everywhere{}, fmt.Errorf("look up %s %s: %w", s.Field, s.FullName(), err)
		}
		return Everywhere{}, unknown(s, elsewhere)
	}
	conf, err := e.parsed.config(nad.Config, nad.Name)
	return Everywhere{Name: nad.FullName(), Conf: conf, Resource: nad.ResourceName()}, ofNetwork(nad.FullName(), err)
}

// defined gives a definition with its config; nil if there is none.
func (e *Engine) defined(ctx context.Context, namespace, name, confDir string) (*netattach.NetworkAttachmentDefinition, error) {
	nad, err := e.Networks.Definition(ctx, namespace, name)
	if err != nil || nad == nil || confDir == "" || strings.TrimSpace(nad.Config) != "" {
		return nad, err
	}
	whole := *nad
	if whole.Config, err = e.configFile(confDir, name); err != nil {
		return nil, ofNetwork(nad.FullName(), err)
	}
	return &whole, nil
}

// everywhere finds the configs of the networks every sandbox gets.
func (e *Engine) everywhere(ctx context.Context, req Request, q *Question) error {
	for i, network := range req.Everywhere {
		field := fmt.Sprintf("default networks[%d]", i)
		if len(network.Config) > 0 {
			conf, err := netattach.ParseConfig(network.Config, "")
			if err != nil {
				return ofNetwork(field, err)
			}
			q.Everywhere = append(q.Everywhere, Everywhere{Name: conf.Name, Conf: conf})
			continue
		}
		found, err := e.definition(ctx, &netattach.Selection{Namespace: network.Namespace, Name: network.Name, Field: field}, req.ConfDir, true)
		if err != nil {
			return err
		}
		q.Everywhere = append(q.Everywhere, found)
	}
	return nil
}

// isolated refuses networks of namespaces a Pod may not use, the one it would
// have as its default network included.
func isolated(isolation *record.Isolation, namespace string, all []netattach.Selection) error {
	if isolation == nil {
		return nil
	}
	var errs []error
	for _, s := range all {
		if s.Namespace != namespace && !slices.Contains(isolation.Namespaces, s.Namespace) {
			errs = append(errs, &hint.Error{
				Field: s.Field + ".namespace", Value: s.Namespace, Problem: "networks are isolated by namespace, and the Pod is in " + namespace,
				Remedy: "use a network of namespace " + namespace + ", or have the namespace added to globalNamespaces",
			})
		}
	}
	return errors.Join(errs...)
}

// lookUp fills in the definitions of all selections.
func (e *Engine) lookUp(ctx context.Context, q *Question, confDir string) error {
	q.Definitions = map[string]*netattach.NetworkAttachmentDefinition{}
	q.Elsewhere = map[string][]string{}
	for i := range q.Selections {
		s := &q.Selections[i]
		if _, known := q.Definitions[s.FullName()]; known {
			continue
		}
		nad, err := e.defined(ctx, s.Namespace, s.Name, confDir)
		if err != nil {
			return fmt.Errorf("look up network %s: %w", s.FullName(), err)
		}
		q.Definitions[s.FullName()] = nad
		if nad != nil {
			continue
		}
		if q.Elsewhere[s.Name], err = e.Networks.Namespaces(ctx, s.Name); err != nil {
			return fmt.Errorf("look up network %s: %w", s.FullName(), err)
		}
	}
	return nil
}
