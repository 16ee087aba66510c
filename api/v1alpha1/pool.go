package v1alpha1

import (
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// AddressPoolKind is the kind of AddressPool.
var AddressPoolKind = GroupVersion.WithKind("AddressPool")

// AddressPool tells how full a range is that networks give addresses of. It is
// cluster-scoped and has a status only; the controller makes, writes and deletes it, and
// nobody decides anything by it.
type AddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Status AddressPoolStatus `json:"status"`
}

// AddressPoolStatus is what is told. Numbers are of addresses.
type AddressPoolStatus struct {
	// Scope is where an address is held once, see ipam.Scope; Range what is given, and
	// Networks who gives it.
	Scope    string   `json:"scope"`
	Range    string   `json:"range"`
	Networks []string `json:"networks"`
	// Used are on an attachment, Reserved held for somebody who has none at the
	// moment, Conflicts in use by a stranger. Size and Free are at most MostCounted.
	Size      int64 `json:"size"`
	Used      int64 `json:"used"`
	Reserved  int64 `json:"reserved"`
	Conflicts int64 `json:"conflicts"`
	Free      int64 `json:"free"`
	// Full is how much of it is not free, in percent, rounded up.
	Full int64 `json:"full"`
	// Overlaps are the problems with pools that could give the same address again.
	Overlaps []string `json:"overlaps,omitempty"`
	// Ended are addresses whose owners ended, and that are not given back yet: the
	// first MostEnded of them.
	Ended []EndedAddress `json:"ended,omitempty"`
}

// EndedAddress is one whose owner was seen to have ended.
type EndedAddress struct {
	IP    netip.Addr `json:"ip"`
	Owner string     `json:"owner"`
	Node  string     `json:"node"`
	// Since is when that was seen first, and NodeGone that its node is gone. Until is
	// when a grace ends for which Reason has it kept.
	Since    *metav1.Time `json:"since,omitempty"`
	NodeGone *metav1.Time `json:"nodeGone,omitempty"`
	Until    *metav1.Time `json:"until,omitempty"`
	// Reason is one of package garbage's.
	Reason string `json:"reason"`
}

const (
	// MostCounted bounds the numbers of an AddressPool: the most that JSON's numbers
	// tell exactly (RFC 8259, section 6).
	MostCounted = 1<<53 - 1
	// MostEnded bounds how many addresses an AddressPool lists.
	MostEnded = 50
)

// Counted gives a number as an AddressPool tells it.
func Counted(count *big.Int) int64 {
	if !count.IsInt64() || count.Int64() > MostCounted {
		return MostCounted
	}
	return max(0, count.Int64())
}

// FullOf gives how much of size is not free, in percent, rounded up; of a pool that
// gives nothing, all.
func FullOf(free, size int64) int64 {
	if size <= 0 {
		return 100
	}
	return int64(math.Ceil(100 * (1 - float64(free)/float64(size))))
}

// PoolFromObject reads a pool.
func PoolFromObject(obj *unstructured.Unstructured) (*AddressPool, error) {
	text, err := json.Marshal(obj.Object["status"])
	if err != nil {
		return nil, fmt.Errorf("read address pool %s: %w", obj.GetName(), err)
	}
	var pool AddressPool
	if err := json.Unmarshal(text, &pool.Status); err != nil {
		return nil, fmt.Errorf("read address pool %s: %w", obj.GetName(), err)
	}
	pool.Name, pool.UID, pool.ResourceVersion = obj.GetName(), obj.GetUID(), obj.GetResourceVersion()
	return &pool, nil
}

// Object gives the pool as a document.
func (p *AddressPool) Object() (*unstructured.Unstructured, error) {
	text, err := json.Marshal(p.Status)
	if err != nil {
		return nil, fmt.Errorf("write address pool %s: %w", p.Name, err)
	}
	status := map[string]any{}
	if err := json.Unmarshal(text, &status); err != nil {
		return nil, fmt.Errorf("write address pool %s: %w", p.Name, err)
	}
	obj := &unstructured.Unstructured{Object: map[string]any{"status": status}}
	obj.SetGroupVersionKind(AddressPoolKind)
	obj.SetName(p.Name)
	obj.SetUID(p.UID)
	obj.SetResourceVersion(p.ResourceVersion)
	return obj, nil
}
