package dataplane

import (
	"context"
	"slices"
	"testing"
)

func TestBridgeAttachment(t *testing.T) {
	l := newLab(t)
	want := bridgePlan()
	facts := l.apply(t, want)
	t.Log(facts)
	l.holds(t, want)
	t.Log("\n" + l.text(t, want))
	if err := l.Delete(context.Background(), l.pod, want); err != nil {
		t.Fatal(err)
	}
	if got := links(t, l.pod); len(got) > 0 {
		t.Errorf("the Pod still has %v", got)
	}
	if got := links(t, l.host); !slices.Equal(got, []string{"br0"}) {
		t.Errorf("the host has %v, want br0 alone", got)
	}
}
