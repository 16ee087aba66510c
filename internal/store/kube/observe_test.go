package kube

import "testing"

func TestLabelOf(t *testing.T) {
	for resource, want := range map[string]string{
		"discovery": "discovery", "pods": "pods", "pods/status": "pods/status", "network-attachment-definitions": "network-attachment-definitions",
		"whatever-somebody-makes-up": "other", "nodes": "nodes", "nodes/status": "other",
	} {
		if got := labelOf(resource); got != want {
			t.Errorf("%s: got %s, want %s", resource, got, want)
		}
	}
}
