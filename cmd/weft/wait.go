package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/local"
	"github.com/weftnet/weft/internal/store"
)

// waiter waits for objects to become ready and shows what it waits for.
type waiter struct {
	client *local.Client
	out    io.Writer
	only   map[string]bool // kind/namespace/name; nil: everything
	last   string
	// failing are the failures that stand, by object name.
	failing map[string]failure
}

// failure is one that the agent goes on trying to get over by itself.
type failure struct {
	why string
	// counts is from when on it is told as final.
	counts time.Time
}

// A failure counts once it has stood for some tries: what it collided with may
// just be going away. One that stood before this call, which may have brought
// what was missing, has to stand for longer than the agent waits between tries.
const (
	settleAfter = time.Second
	retryAfter  = 12 * time.Second
)

func newWaiter(client *local.Client, out io.Writer, applied []*store.Object, everything bool) *waiter {
	w := &waiter{client: client, out: out, failing: map[string]failure{}}
	if everything {
		return w
	}
	w.only = map[string]bool{}
	for _, obj := range applied {
		w.only[obj.GetKind()+"/"+store.KeyOf(obj).String()] = true
	}
	return w
}

// before notes what has failed already. Call it before anything is applied.
func (w *waiter) before(ctx context.Context) error {
	states, err := w.look(ctx)
	if err != nil {
		return err
	}
	w.note(states, retryAfter)
	return nil
}

// note keeps failing up with states; new failures count after delay.
func (w *waiter) note(states []readiness, delay time.Duration) {
	for _, s := range states {
		switch known, found := w.failing[s.name]; {
		case !s.failed:
			delete(w.failing, s.name)
		case !found || known.why != s.why:
			w.failing[s.name] = failure{why: s.why, counts: time.Now().Add(delay)}
		}
	}
}

// settled says whether nothing will change any more by itself.
func (w *waiter) settled(states []readiness) bool {
	w.note(states, settleAfter)
	return !slices.ContainsFunc(states, func(r readiness) bool {
		return !r.ready && (!r.failed || time.Now().Before(w.failing[r.name].counts))
	})
}

// state of one object: pending with a reason, ready, or failed.
type readiness struct {
	name   string
	ready  bool
	failed bool
	why    string
}

func (w *waiter) wait(ctx context.Context, timeout time.Duration) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var states []readiness
	for {
		now, err := w.look(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil {
			states = now
			w.progress(states)
			if w.settled(states) {
				return notReady(states, "failed")
			}
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return notReady(states, fmt.Sprintf("not ready after %s", timeout))
			}
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func notReady(states []readiness, verdict string) error {
	var errs []error
	for _, s := range states {
		if !s.ready {
			errs = append(errs, eachLine(s.name+" "+verdict+": ", s.why))
		}
	}
	return errors.Join(errs...)
}

// progress prints a line whenever what is waited for changes.
func (w *waiter) progress(states []readiness) {
	var pending []string
	ready := 0
	for _, s := range states {
		if s.ready {
			ready++
		} else {
			pending = append(pending, s.name+" ("+s.why+")")
		}
	}
	line := fmt.Sprintf("%d/%d ready", ready, len(states))
	if len(pending) > 0 {
		line += ", waiting for " + strings.Join(pending, ", ")
	}
	if line != w.last && len(states) > 0 {
		fmt.Fprintln(w.out, line) // progress only
		w.last = line
	}
}

func (w *waiter) look(ctx context.Context) ([]readiness, error) {
	var states []readiness
	instances := map[string]readiness{} // by the UID of their VM
	for _, kind := range []struct {
		gvk   schema.GroupVersionKind
		judge func(*store.Object) readiness
	}{{local.Pod, judgePod}, {local.VMI, judgeVMI}, {local.VM, func(vm *store.Object) readiness { return judgeVM(vm, instances) }}} {
		reply, err := w.client.List(ctx, kind.gvk, store.Key{})
		if err != nil {
			return nil, err
		}
		for _, obj := range reply.Items {
			r := kind.judge(obj)
			if kind.gvk == local.VMI {
				for _, owner := range obj.GetOwnerReferences() {
					instances[string(owner.UID)] = r
				}
			}
			if !w.counts(obj) {
				continue
			}
			r.name = strings.ToLower(obj.GetKind()) + " " + store.KeyOf(obj).String()
			states = append(states, r)
		}
	}
	return states, nil
}

// counts leaves out what others own: their owner speaks for them.
func (w *waiter) counts(obj *store.Object) bool {
	if w.only != nil {
		return w.only[obj.GetKind()+"/"+store.KeyOf(obj).String()]
	}
	return len(obj.GetOwnerReferences()) == 0
}

func judgePod(obj *store.Object) readiness {
	r := judgeCondition(obj, "PodReadyToStartContainers")
	if local.ConditionReason(obj, "PodReadyToStartContainers") == "" && len(obj.GetFinalizers()) > 0 {
		r.why = "its networks are being attached" // the agent has taken it up
	}
	return r
}

func judgeVMI(obj *store.Object) readiness {
	phase, _, _ := unstructured.NestedString(obj.Object, "status", "phase")
	r := judgeCondition(obj, "GuestNetworkReady")
	switch phase {
	case "Running":
		return r
	case "Failed", "Succeeded":
		return readiness{failed: true, why: "phase " + phase + ": " + conditionMessage(obj, "Ready")}
	}
	r = judgeCondition(obj, "Ready")
	r.ready = false // not before it runs
	return r
}

// judgeVM: a VM is as ready as its instance, once the controller has seen what
// the VM is to be.
func judgeVM(obj *store.Object, instances map[string]readiness) readiness {
	status, _, _ := unstructured.NestedString(obj.Object, "status", "printableStatus")
	observed, _, _ := unstructured.NestedInt64(obj.Object, "status", "observedGeneration") // none: not seen yet
	if observed != obj.GetGeneration() {
		return readiness{why: "not begun"}
	}
	if status == "Stopped" {
		return readiness{ready: true}
	}
	r := judgeCondition(obj, "Ready")
	if instance, ok := instances[string(obj.GetUID())]; ok && r.ready {
		return instance
	}
	return r
}

// judgeCondition: True is ready; False with a reason that ends in Failed or is
// Invalid waits for the user, so it is failed; all else is on its way.
func judgeCondition(obj *store.Object, condition string) readiness {
	status, message := local.Condition(obj, condition)
	reason := local.ConditionReason(obj, condition)
	if message == "" {
		message = "not begun"
	}
	return readiness{
		ready:  status == "True",
		failed: status == "False" && (reason == "Invalid" || strings.HasSuffix(reason, "Failed")),
		why:    message,
	}
}

func conditionMessage(obj *store.Object, condition string) string {
	_, message := local.Condition(obj, condition)
	return message
}
