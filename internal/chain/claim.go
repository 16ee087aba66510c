package chain

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
)

// Claims looks IPAMClaims up.
type Claims interface {
	// Claim reads one; nil: there is none. ErrNoClaims: there are none at all.
	Claim(ctx context.Context, namespace, name string) (*netattach.IPAMClaim, error)
	// Settle makes a claim this machine's, whose addresses are unique here only. The
	// error says which other's it is.
	Settle(ctx context.Context, claim *netattach.IPAMClaim) error
	// Refused is told why a claim's addresses could not be taken. It must not wait.
	Refused(claim *netattach.IPAMClaim, reason string, cause error)
}

// ErrNoClaims says that the cluster has no kind IPAMClaim.
var ErrNoClaims = errors.New("there is no kind IPAMClaim")

// ErrNoClaim says that the claim or the identity of a VM's NIC is not there. It passes
// by itself.
var ErrNoClaim = errors.New("nothing is kept of the NIC yet")

// domainAnnotation names, on a launcher Pod of KubeVirt, the virtual machine
// (kubevirt.io/api v1.9.0, core/v1 DomainAnnotation).
const domainAnnotation = "kubevirt.io/domain"

// vm gives the virtual machine whose launcher the Pod is; empty: it is none.
func (r *Request) vm() string { return r.Annotations[domainAnnotation] }

// ofPrimary refuses a claim for the default network: claims are of secondary networks
// (de-facto standard v1.3, section 8).
func ofPrimary(chosen *netattach.Selection) error {
	if chosen == nil || chosen.IPAMClaimReference == "" {
		return nil
	}
	return &hint.Error{
		Field: chosen.Field + ".ipam-claim-reference", Value: chosen.IPAMClaimReference, Problem: "is asked of the default network, and claims are for further networks only",
		Remedy: "drop the reference, or attach the network by the annotation " + netattach.NetworksAnnotation,
	}
}

// claim finds the IPAMClaims of attachments: those that the annotation names, and
// those of a VM's NICs, which weft-controller makes.
func (e *Engine) claim(ctx context.Context, pod record.Pod, vm string, delegates []Delegate) error {
	namespace := pod.Namespace
	var errs []error
	for i := range delegates {
		d := &delegates[i]
		if d.Selection == nil || d.Default {
			continue
		}
		var err error
		if d.Selection.IPAMClaimReference != "" {
			err = e.claimNamed(ctx, namespace, d)
		} else if vm != "" {
			err = e.claimOfVM(ctx, namespace, vm, d)
		} else {
			d.Sticky, err = e.sticky(ctx, pod, d)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// claimNamed refuses references to claims that do not exist: nobody would say when
// their addresses come free.
func (e *Engine) claimNamed(ctx context.Context, namespace string, d *Delegate) error {
	name := d.Selection.IPAMClaimReference
	if e.Claims == nil {
		d.Claim = &netattach.IPAMClaim{Namespace: namespace, Name: name}
		return nil
	}
	claim, err := e.Claims.Claim(ctx, namespace, name)
	if err != nil && !errors.Is(err, ErrNoClaims) {
		return err
	}
	field := d.Selection.Field + ".ipam-claim-reference"
	switch {
	case claim == nil:
		return &hint.Error{
			Field: field, Value: name, Problem: "there is no IPAMClaim " + namespace + "/" + name, Remedy: "create it (k8s.cni.cncf.io/v1alpha1), or drop the reference",
		}
	case claim.Deleting:
		return &hint.Error{
			Field: field, Value: name, Problem: "is being deleted: IPAMClaim " + namespace + "/" + name + " goes when no Pod has its addresses any more",
			Remedy: "delete the Pods that have them, and create the claim anew",
		}
	}
	d.Claim = claim
	return nil
}

// claimOfVM finds the claim of a VM's NIC. One that is not there yet is waited for: an
// address that nobody keeps would change with the next Pod.
func (e *Engine) claimOfVM(ctx context.Context, namespace, vm string, d *Delegate) error {
	if e.Claims == nil || len(d.Selection.IPs) > 0 || !d.Conf.PersistentIPs() {
		return nil
	}
	if leased, err := e.leased(ctx, d); err != nil || !leased {
		return err
	}
	name := netattach.ClaimOfVM(vm, string(d.Interface))
	claim, err := e.Claims.Claim(ctx, namespace, name)
	if errors.Is(err, ErrNoClaims) {
		return nil
	}
	if err != nil {
		return err
	}
	if claim == nil || claim.Deleting {
		problem := "is not there yet"
		if claim != nil {
			problem = "is being deleted"
		}
		return &hint.Error{
			Field: "IPAMClaim " + namespace + "/" + name, Problem: fmt.Sprintf("%s, which keeps the addresses of interface %s of VM %s", problem, d.Interface, vm),
			Remedy: "see that weft-controller runs, which makes it; the runtime tries again", Err: ErrNoClaim,
		}
	}
	d.Claim = claim
	return nil
}

// settleClaims binds claims to this machine whose addresses are unique here only.
func (t *attaching) settleClaims(ctx context.Context) error {
	var errs []error
	for _, w := range t.work {
		if w.Claim != nil && !w.rec.Leased && t.Claims != nil {
			errs = append(errs, t.Claims.Settle(ctx, w.Claim))
		}
	}
	return errors.Join(errs...)
}

// withClaim asks for the addresses that a claim has.
func (t *attaching) withClaim(ctx context.Context, w *attachment, config ipam.Config) (ipam.Config, error) {
	field := "IPAMClaim " + w.Claim.Namespace + "/" + w.Claim.Name
	if len(config.Requests) > 0 {
		return config, &hint.Error{
			Field: config.Requests[0].Field, Value: config.Requests[0].Addr.String(), Problem: "stands beside the " + field + ", and both say which addresses", Remedy: "keep one of the two",
		}
	}
	for i, text := range w.Claim.IPs {
		addr, bits, err := parseClaimIP(text)
		if err != nil {
			return config, &hint.Error{Field: fmt.Sprintf("%s: status.ips[%d]", field, i), Value: text, Problem: "is no address", Remedy: "delete the claim and create it anew", Err: err}
		}
		config.Requests = append(config.Requests, ipam.Request{Addr: addr, Bits: bits, Field: fmt.Sprintf("%s: status.ips[%d]", field, i)})
	}
	if len(config.Requests) == 0 && w.rec.Leased {
		held, err := t.Leases.Claimed(ctx, w.owner)
		if err != nil {
			return config, err
		}
		for _, lease := range held {
			config.Requests = append(config.Requests, ipam.Request{Addr: lease.Addr, Bits: -1, Field: field})
		}
	}
	config.Requests = slices.DeleteFunc(config.Requests, func(q ipam.Request) bool {
		return slices.ContainsFunc(config.Static, func(s ipam.StaticAddress) bool { return s.Prefix.Addr() == q.Addr })
	})
	return config, nil
}

// ordinal is how the names of Pods end that come again, as a StatefulSet's do.
var ordinal = regexp.MustCompile(`-(0|[1-9][0-9]*)$`)

// sticky says whether a Pod's name keeps the addresses of an attachment.
func (e *Engine) sticky(ctx context.Context, pod record.Pod, d *Delegate) (bool, error) {
	if !e.clusterWide(d) || d.Native.IPAM().StickyFor == 0 || len(d.Native.IPAM().Requests) > 0 || !ordinal.MatchString(pod.Name) {
		return false, nil
	}
	return e.leased(ctx, d)
}

// withSticky asks for the addresses that a Pod's name has, as far as the network has
// them still.
func (t *attaching) withSticky(ctx context.Context, w *attachment, config ipam.Config) (ipam.Config, error) {
	held, err := t.Leases.Claimed(ctx, w.owner)
	if err != nil {
		return config, err
	}
	for i, lease := range held {
		fits := func(set ipam.Set) bool {
			return set.Scope == lease.Scope && slices.ContainsFunc(set.Ranges, func(r ipam.Range) bool { return r.Contains(lease.Addr) })
		}
		if slices.ContainsFunc(config.Sets, fits) && len(config.Requests) < len(config.Sets) {
			config.Requests = append(config.Requests, ipam.Request{Addr: held[i].Addr, Bits: -1, Field: "address of Pod name " + t.box.Pod.String()})
		}
	}
	return config, nil
}

// parseClaimIP reads an address of status.ips, which others write without a length.
func parseClaimIP(text string) (addr netip.Addr, bits int, err error) {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return prefix.Addr().Unmap(), prefix.Bits(), nil
	}
	addr, err = netip.ParseAddr(text)
	return addr.Unmap(), -1, err
}

// tellClaim tells a claim why its addresses could not be taken.
func (t *attaching) tellClaim(w *attachment, err error) {
	if w.Claim == nil || t.Claims == nil || errors.Is(err, ipam.ErrUnanswered) {
		return
	}
	reason := netattach.ClaimFailed
	switch {
	case errors.Is(err, ipam.ErrExhausted):
		reason = netattach.ClaimExhausted
	case errors.Is(err, ipam.ErrTaken), errors.Is(err, ipam.ErrRefused):
		reason = netattach.ClaimIPConflict
	}
	t.Claims.Refused(w.Claim, reason, err)
}

// leaveClaims takes the sandbox off the holders of claims' addresses.
func (u *undoing) leaveClaims(ctx context.Context, list []*record.Attachment) error {
	var errs []error
	for _, a := range list {
		switch {
		case a.ClaimOwner == "":
		case len(a.Leases) > 0:
			errs = append(errs, u.Leases.Leave(ctx, u.box.ID, leasesOf(a)...))
		default: // we died while they were taken
			errs = append(errs, u.Leases.LeaveAll(ctx, u.box.ID, ipam.Owner(a.ClaimOwner)))
		}
	}
	return errors.Join(errs...)
}

func leasesOf(a *record.Attachment) []ipam.Lease {
	var out []ipam.Lease
	for _, l := range a.Leases {
		out = append(out, leaseOf(l))
	}
	return out
}
