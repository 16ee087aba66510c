// Package whereabouts holds the objects in which whereabouts keeps its
// addresses (whereabouts.cni.cncf.io/v1alpha1), and the names and keys in them:
// what import and mirror need. It does no I/O and decides nothing.
//
// A document that is read and written again keeps the fields nobody here knows.
package whereabouts

import (
	"encoding/json"
	"fmt"
	"maps"
)

// APIVersion of all three kinds.
const APIVersion = "whereabouts.cni.cncf.io/v1alpha1"

// Kinds.
const (
	IPPoolKind        = "IPPool"
	ReservationKind   = "OverlappingRangeIPReservation"
	NodeSlicePoolKind = "NodeSlicePool"
)

// Meta is what all kinds have.
type Meta struct {
	Namespace, Name     string
	Labels, Annotations map[string]string
	Finalizers          []string
	// UID and Revision as read; empty in a new object.
	UID, Revision string
	// Deleting: the object goes when its finalizers have.
	Deleting bool

	doc map[string]any // as read
}

// IPPool is the addresses of one range that are taken.
type IPPool struct {
	Meta
	// Range in CIDR notation.
	Range string
	// Allocations by offset (Offset, AddrAt).
	Allocations map[string]Allocation
}

// Allocation is one address of a pool.
type Allocation struct {
	ContainerID string `json:"id"`
	// PodRef is namespace/name.
	PodRef string `json:"podref"`
	IfName string `json:"ifname,omitempty"`
}

// Reservation (OverlappingRangeIPReservation) is one address that is taken in all ranges
// of its network; which one, its name says (ParseReservationName).
type Reservation struct {
	Meta
	PodRef, IfName, ContainerID string
}

// NodeSlicePool is a range that is cut into one slice for each node.
type NodeSlicePool struct {
	Meta
	Range, SliceSize string
	Slices           []Slice
}

// Slice is a node's part of a range; Node is empty if it is nobody's.
type Slice struct {
	Node  string `json:"nodeName"`
	Range string `json:"sliceRange"`
}

// document is the form of all kinds on the wire.
type document struct {
	Metadata struct {
		Namespace         string            `json:"namespace"`
		Name              string            `json:"name"`
		Labels            map[string]string `json:"labels"`
		Annotations       map[string]string `json:"annotations"`
		Finalizers        []string          `json:"finalizers"`
		UID               string            `json:"uid"`
		ResourceVersion   string            `json:"resourceVersion"`
		DeletionTimestamp string            `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		Range       string                `json:"range"`
		Allocations map[string]Allocation `json:"allocations"`
		PodRef      string                `json:"podref"`
		IfName      string                `json:"ifname"`
		ContainerID string                `json:"containerid"`
		SliceSize   string                `json:"sliceSize"`
	} `json:"spec"`
	Status struct {
		Allocations []Slice `json:"allocations"`
	} `json:"status"`
}

func read(kind string, obj map[string]any) (document, Meta, error) {
	var doc document
	text, err := json.Marshal(obj)
	if err != nil {
		return doc, Meta{}, fmt.Errorf("read %s: %w", kind, err)
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return doc, Meta{}, fmt.Errorf("read %s %s: %w", kind, doc.Metadata.Name, err)
	}
	m := doc.Metadata
	return doc, Meta{
		Namespace: m.Namespace, Name: m.Name, Labels: m.Labels, Annotations: m.Annotations, Finalizers: m.Finalizers,
		UID: m.UID, Revision: m.ResourceVersion, Deleting: m.DeletionTimestamp != "", doc: obj,
	}, nil
}

// IPPoolFromObject reads a pool.
func IPPoolFromObject(obj map[string]any) (*IPPool, error) {
	doc, meta, err := read(IPPoolKind, obj)
	if err != nil {
		return nil, err
	}
	return &IPPool{Meta: meta, Range: doc.Spec.Range, Allocations: doc.Spec.Allocations}, nil
}

// ReservationFromObject reads an OverlappingRangeIPReservation.
func ReservationFromObject(obj map[string]any) (*Reservation, error) {
	doc, meta, err := read(ReservationKind, obj)
	if err != nil {
		return nil, err
	}
	return &Reservation{Meta: meta, PodRef: doc.Spec.PodRef, IfName: doc.Spec.IfName, ContainerID: doc.Spec.ContainerID}, nil
}

// NodeSlicePoolFromObject reads a NodeSlicePool.
func NodeSlicePoolFromObject(obj map[string]any) (*NodeSlicePool, error) {
	doc, meta, err := read(NodeSlicePoolKind, obj)
	if err != nil {
		return nil, err
	}
	return &NodeSlicePool{Meta: meta, Range: doc.Spec.Range, SliceSize: doc.Spec.SliceSize, Slices: doc.Status.Allocations}, nil
}

// Object gives the pool as a document.
func (p *IPPool) Object() map[string]any {
	obj, spec := p.object(IPPoolKind)
	old, _ := spec["allocations"].(map[string]any)
	taken := map[string]any{}
	for offset, a := range p.Allocations {
		entry := child(old, offset)
		set(entry, map[string]string{"ifname": a.IfName})
		entry["id"], entry["podref"] = a.ContainerID, a.PodRef // both required
		taken[offset] = entry
	}
	spec["range"], spec["allocations"] = p.Range, taken
	return obj
}

// Object gives the reservation as a document.
func (r *Reservation) Object() map[string]any {
	obj, spec := r.object(ReservationKind)
	set(spec, map[string]string{"ifname": r.IfName, "containerid": r.ContainerID})
	spec["podref"] = r.PodRef // required
	return obj
}

// object gives the document that was read, with a copy of all that may be
// changed in it, and its spec.
func (m *Meta) object(kind string) (obj, spec map[string]any) {
	obj = maps.Clone(m.doc)
	if obj == nil {
		obj = map[string]any{}
	}
	metadata := child(obj, "metadata")
	set(metadata, map[string]string{"namespace": m.Namespace, "name": m.Name, "uid": m.UID, "resourceVersion": m.Revision})
	setMap(metadata, "labels", m.Labels)
	setMap(metadata, "annotations", m.Annotations)
	delete(metadata, "finalizers")
	if len(m.Finalizers) > 0 {
		var list []any
		for _, f := range m.Finalizers {
			list = append(list, f)
		}
		metadata["finalizers"] = list
	}
	spec = child(obj, "spec")
	obj["apiVersion"], obj["kind"], obj["metadata"], obj["spec"] = APIVersion, kind, metadata, spec
	return obj, spec
}

// child gives a copy of the object at key; an empty one if there is none.
func child(parent map[string]any, key string) map[string]any {
	if have, ok := parent[key].(map[string]any); ok {
		return maps.Clone(have)
	}
	return map[string]any{}
}

func set(fields map[string]any, values map[string]string) {
	for key, value := range values {
		if value == "" {
			delete(fields, key)
		} else {
			fields[key] = value
		}
	}
}

func setMap(fields map[string]any, key string, values map[string]string) {
	delete(fields, key)
	if len(values) == 0 {
		return
	}
	out := map[string]any{}
	for name, value := range values {
		out[name] = value
	}
	fields[key] = out
}
