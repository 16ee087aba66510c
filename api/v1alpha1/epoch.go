package v1alpha1

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// AddressEpochKind is the kind of AddressEpoch.
var AddressEpochKind = GroupVersion.WithKind("AddressEpoch")

// AddressEpoch tells whether what the cluster knows of addresses may be believed. One,
// of the name ClusterEpoch, is the controller's; each node has one of its own. An epoch
// ends when the API server's store was replaced by an older copy: leases that were made
// since that copy are lost then, and their addresses free for whoever asks.
type AddressEpoch struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec AddressEpochSpec `json:"spec"`
}

// AddressEpochSpec is the content of both.
type AddressEpochSpec struct {
	// Epoch counts from 1. Stage is how far the cluster, or the node, is in it.
	Epoch int64      `json:"epoch"`
	Stage EpochStage `json:"stage,omitempty"`
	// Beats are the controller's last signs of life in this store, the newest last: a
	// number and something that nobody guesses. Who remembers one that is not there
	// knows that the store is an older copy.
	Beats []string `json:"beats,omitempty"`
	// Waiting are nodes that have not reached the stage.
	Waiting []string `json:"waiting,omitempty"`
	// Node is whose it is, and Lost the epoch in which it saw the store go back.
	Node string `json:"node,omitempty"`
	Lost int64  `json:"lost,omitempty"`
}

// Has says whether a beat is there. One that is older than all of them may have been.
func (s *AddressEpochSpec) Has(beat string) bool {
	return beat == "" || slices.Contains(s.Beats, beat) || len(s.Beats) > 0 && beatNumber(beat) < beatNumber(s.Beats[0])
}

// Newest gives the last beat.
func (s *AddressEpochSpec) Newest() string {
	if len(s.Beats) == 0 {
		return ""
	}
	return s.Beats[len(s.Beats)-1]
}

// Beat adds one, made of something that nobody guesses, and forgets all but the newest.
func (s *AddressEpochSpec) Beat(unique string) {
	const kept = 60
	s.Beats = append(slices.Clone(s.Beats), fmt.Sprintf("%d-%s", beatNumber(s.Newest())+1, unique))
	s.Beats = s.Beats[max(0, len(s.Beats)-kept):]
}

func beatNumber(beat string) int64 {
	text, _, _ := strings.Cut(beat, "-")
	n, _ := strconv.ParseInt(text, 10, 64) // none: zero
	return n
}

// EpochStage is how far an epoch is.
type EpochStage string

// Stages of an epoch. In one that is not open no node takes a new address.
//
//	Cleaning   nodes give back what the older copy says they have and nobody there uses
//	Asserting  nodes take anew what is used there and the older copy does not have
//	Open       all have
const (
	EpochCleaning  EpochStage = "Cleaning"
	EpochAsserting EpochStage = "Asserting"
	EpochOpen      EpochStage = "Open"
)

// ClusterEpoch is the name of the cluster's, and NodeEpoch gives that of a node's.
const ClusterEpoch = "cluster"

// NodeEpoch gives the name of a node's.
func NodeEpoch(node string) string { return "node." + node }

// ForceEpoch is the annotation of the cluster's by which people open an epoch, which is
// its value, without the nodes that are still waited for.
const ForceEpoch = "weft.network/force-epoch"

// EpochLabel is on the cluster's, so that nodes watch that one alone.
const EpochLabel = "weft.network/epoch"

// EpochFromObject reads one.
func EpochFromObject(obj *unstructured.Unstructured) (*AddressEpoch, error) {
	var epoch AddressEpoch
	text, err := json.Marshal(obj.Object["spec"])
	if err == nil {
		err = json.Unmarshal(text, &epoch.Spec)
	}
	if err != nil {
		return nil, fmt.Errorf("read address epoch %s: %w", obj.GetName(), err)
	}
	epoch.Name, epoch.UID, epoch.ResourceVersion = obj.GetName(), obj.GetUID(), obj.GetResourceVersion()
	epoch.Labels, epoch.Annotations = obj.GetLabels(), obj.GetAnnotations()
	return &epoch, nil
}

// Object gives it as a document.
func (e *AddressEpoch) Object() *unstructured.Unstructured {
	spec, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&e.Spec)
	if err != nil {
		spec = nil // never: it is of texts and numbers
	}
	obj := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	obj.SetGroupVersionKind(AddressEpochKind)
	obj.SetName(e.Name)
	obj.SetUID(e.UID)
	obj.SetResourceVersion(e.ResourceVersion)
	obj.SetLabels(e.Labels)
	obj.SetAnnotations(e.Annotations)
	return obj
}
