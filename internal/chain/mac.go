package chain

import (
	"context"
	"errors"
	"slices"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/record"
)

// MACs knows what MACs VMs' NICs keep, and whose others are.
type MACs interface {
	// OfVM gives that of a VM's NIC, by the interface that its launchers have for it.
	// Empty: nobody keeps any.
	OfVM(ctx context.Context, namespace, vm, ifName string) (string, error)
	// Asked says why a Pod must not have the MAC that it asks for; nil: it may.
	Asked(ctx context.Context, pod record.Pod, vm string, s netattach.Selection) error
}

// withMACs gives selections with the MACs that a VM's NICs keep, where the annotation
// asks for none. One that is not there yet is waited for, as a claim is: the VM would
// have another with its next Pod.
func (e *Engine) withMACs(ctx context.Context, q Question, vm string) ([]netattach.Selection, error) {
	if e.MACs == nil {
		return q.Selections, nil
	}
	list := slices.Clone(q.Selections)
	var errs []error
	for i := range list {
		s := &list[i]
		switch {
		case !e.takesMAC(q.Definitions[s.FullName()]):
		case s.MAC != "":
			errs = append(errs, e.MACs.Asked(ctx, q.Pod, vm, *s))
		case vm != "" && s.Interface != "":
			mac, err := e.MACs.OfVM(ctx, q.Pod.Namespace, vm, s.Interface)
			s.MAC = mac
			errs = append(errs, err)
		}
	}
	return list, errors.Join(errs...)
}

// takesMAC says whether a NIC on a network gets the MAC that is asked for.
func (e *Engine) takesMAC(nad *netattach.NetworkAttachmentDefinition) bool {
	if nad == nil {
		return false // which is told where it is resolved
	}
	conf, err := e.parsed.config(nad.Config, nad.Name)
	if err != nil {
		return false
	}
	_, native := e.Kinds(conf.Plugins[0].Type)
	return conf.TakesMAC(native)
}
