package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/store"
)

// networksReady is our condition of Pods. It is written when there is something
// to tell: what a Pod lacks, that it is whole again, that it rewires what it has;
// and always for a Pod that has it among its readinessGates.
const networksReady = "weft.network/NetworksReady"

// condition is networksReady without its time.
type condition struct{ status, reason, message string }

// maxCondition bounds the message, which is in every copy of the Pod.
const maxCondition = 1000

func conditionOf(found []chain.Finding) condition {
	if lacks := lacking(found); lacks != "" {
		return condition{"False", networksChanged, shortened(lacks)}
	}
	var rewired []string
	for _, f := range found {
		if f.Rewired != "" {
			rewired = append(rewired, fmt.Sprintf("%s is %s now", f.Interface, f.Rewired))
		}
	}
	if len(rewired) > 0 {
		return condition{"True", networksRewired, shortened("the Pod rewires its links: " + strings.Join(rewired, ", "))}
	}
	return condition{"True", asMade, ""}
}

func shortened(text string) string {
	if len(text) > maxCondition {
		return strings.ToValidUTF8(text[:maxCondition], "") + "..."
	}
	return text
}

// conditionIn reads the condition of a Pod; the zero value: it has none.
func conditionIn(pod *store.Object) condition {
	status, _ := pod.Object["status"].(map[string]any)
	list, _ := status["conditions"].([]any)
	for _, item := range list {
		if c, ok := item.(map[string]any); ok && c["type"] == networksReady {
			text := func(field string) string { value, _ := c[field].(string); return value }
			return condition{text("status"), text("reason"), text("message")}
		}
	}
	return condition{}
}

// gated says whether a Pod waits for the condition.
func gated(pod *store.Object) bool {
	spec, _ := pod.Object["spec"].(map[string]any)
	gates, _ := spec["readinessGates"].([]any)
	return slices.ContainsFunc(gates, func(item any) bool {
		gate, ok := item.(map[string]any)
		return ok && gate["conditionType"] == networksReady
	})
}

// ended says whether a Pod's containers have ended for good.
func ended(pod *store.Object) bool {
	status, _ := pod.Object["status"].(map[string]any)
	return status["phase"] == "Succeeded" || status["phase"] == "Failed"
}

// writeCondition writes the condition if it says anything new, and an event of
// it: one for each change.
func (a *agent) writeCondition(ctx context.Context, pod *store.Object, want condition, seen *watched) error {
	have := seen.told
	if have == (condition{}) {
		have = conditionIn(pod) // of an agent before this one
	}
	if want == have || have == (condition{}) && want.reason == asMade && !gated(pod) {
		return nil
	}
	changes := map[string]any{"status": map[string]any{"conditions": []any{map[string]any{
		"type": networksReady, "status": want.status, "reason": want.reason, "message": want.message,
		"lastTransitionTime": time.Now().UTC().Format(time.RFC3339),
	}}}}
	_, err := a.api.PatchLists(ctx, podKind, store.KeyOf(pod), changes, store.Precondition{UID: pod.GetUID()}, "status")
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrConflict) {
		return nil // that Pod is gone
	}
	if err != nil {
		return fmt.Errorf("write condition of Pod %s: %w", store.KeyOf(pod), err)
	}
	seen.told = want
	switch {
	case want.status == "False":
		a.count.Changed()
		a.log.Warn("a Pod's networks are not as they were made", "pod", store.KeyOf(pod).String(), "found", want.message)
		a.tellChange(ctx, pod, "Warning", networksChanged, want.message)
	case have.status == "False":
		a.log.Info("a Pod's networks are as they were made again", "pod", store.KeyOf(pod).String())
		a.tellChange(ctx, pod, "Normal", networksRestored, "all networks are as they were made")
	}
	return nil
}
