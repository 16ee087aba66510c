package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// How often a Pod is looked at, on average, and how soon again when it differs:
// the first time it may have been in the middle of a change. A look at four
// networks costs a millisecond of CPU. The kernel's news of the node's links bring
// a look forward; of those in a Pod there are none, since a socket in each Pod's
// namespace would keep that from going, and one for all wants CAP_NET_BROADCAST.
const (
	lookEvery    = 15 * time.Second
	lookAgain    = time.Second
	lookPatience = 5 * time.Second
)

// Reasons of the condition and of events.
const (
	asMade           = "AsMade"
	networksChanged  = "NetworksChanged"
	networksRewired  = "Rewired"
	networksRestored = "NetworksRestored"
	networkRepaired  = "NetworkRepaired"
)

// repairAnnotation on a NetworkAttachmentDefinition, "true", has weft put right
// what was changed on its attachments.
const repairAnnotation = "weft.network/repair"

// launcherAnnotation is on Pods whose launcher rewires what they have (KubeVirt,
// pkg/virt-controller/services).
const launcherAnnotation = "kubevirt.io/domain"

// watched is what is known of a Pod that is looked at.
type watched struct {
	uid types.UID
	// suspect: it differed when last looked at.
	suspect bool
	// told is the condition that was written last; the cache may be behind.
	told condition
	// changed: its networks are not as they were made. The agent's mu guards it.
	changed bool
}

// watchOver compares what a Pod has with what it was given, tells of differences
// once by a condition and an event, and repairs what may be repaired.
func (a *agent) watchOver(ctx context.Context, key store.Key) (time.Duration, error) {
	pod, id, err := a.served(ctx, key)
	if err != nil {
		return 0, err
	}
	if id == "" {
		a.forgetWatched(key)
		return 0, nil
	}
	next := lookEvery/2 + rand.N(lookEvery)
	seen, isNew := a.watchedOf(key, pod.GetUID())
	if isNew && !gated(pod) { // which waits to be told
		return next, nil
	}
	box, found, err := a.inspect(ctx, id)
	switch {
	case errors.Is(err, chain.ErrChanged), errors.Is(err, record.ErrNotFound), errors.Is(err, context.DeadlineExceeded):
		return next, nil // it is ending, or being worked on
	case err != nil:
		return 0, err
	case ending(box), !isPod(pod, box.Pod.UID):
		return next, nil // in the latter case another Pod of that name had it
	}
	differs := lacking(found) != ""
	if differs && !seen.suspect {
		seen.suspect = true
		return lookAgain, nil
	}
	seen.suspect = differs
	if differs {
		if found, err = a.repair(ctx, pod, box, found); err != nil {
			return 0, err
		}
	}
	a.mu.Lock()
	seen.changed = lacking(found) != ""
	a.mu.Unlock()
	return next, a.writeCondition(ctx, pod, conditionOf(found), seen)
}

// served gives a Pod that runs, and its sandbox with us; empty: none.
func (a *agent) served(ctx context.Context, key store.Key) (pod *store.Object, id string, err error) {
	pod, err = a.cache.Get(ctx, podKind, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("read Pod %s: %w", key, err)
	}
	if pod.GetDeletionTimestamp() != nil || ended(pod) {
		return nil, "", nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return pod, a.boxes[key], nil
}

func (a *agent) inspect(ctx context.Context, id string) (*record.Sandbox, []chain.Finding, error) {
	ctx, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	return a.engine.Inspect(ctx, id)
}

func lacking(found []chain.Finding) string {
	var text []string
	for _, f := range found {
		if len(f.Lacks) > 0 {
			text = append(text, f.String())
		}
	}
	return strings.Join(text, "; ")
}

// repair puts right what its network's owner wants put right, and looks again.
func (a *agent) repair(ctx context.Context, pod *store.Object, box *record.Sandbox, found []chain.Finding) ([]chain.Finding, error) {
	if _, launcher := pod.GetAnnotations()[launcherAnnotation]; launcher {
		return found, nil
	}
	may := func(attachment *record.Attachment) bool { return a.repairs(ctx, attachment.Network) }
	if !slices.ContainsFunc(box.Attachments, may) {
		return found, nil
	}
	done, err := a.engine.Repair(ctx, box.ID, may)
	if err != nil && !errors.Is(err, chain.ErrNotOurs) {
		a.log.Warn("repair", "pod", store.KeyOf(pod).String(), "err", err)
	}
	if len(done) == 0 {
		return found, nil
	}
	a.count.Repaired(len(done))
	a.log.Info("repaired", "pod", store.KeyOf(pod).String(), "was", lacking(done))
	a.tellChange(ctx, pod, "Normal", networkRepaired, "Put right: "+lacking(done))
	_, found, err = a.inspect(ctx, box.ID)
	return found, err
}

// repairs says whether a network's definition asks for repairs.
func (a *agent) repairs(ctx context.Context, network string) bool {
	namespace, name, ok := strings.Cut(network, "/")
	if !ok {
		return false // a configuration of the node
	}
	nad, err := a.cache.Get(ctx, networks.DefinitionKind, store.Key{Namespace: namespace, Name: name})
	return err == nil && nad.GetAnnotations()[repairAnnotation] == "true"
}

// watches says whether a Pod is looked at.
func (a *agent) watches(key store.Key, uid types.UID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	seen := a.watched[key]
	return seen != nil && seen.uid == uid
}

// watchedOf gives what is known of a Pod, and whether that has just begun. A Pod
// is worked on by one at a time, who may change it.
func (a *agent) watchedOf(key store.Key, uid types.UID) (*watched, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	seen := a.watched[key]
	if seen == nil || seen.uid != uid {
		seen = &watched{uid: uid}
		a.watched[key] = seen
		return seen, true
	}
	return seen, false
}

func (a *agent) forgetWatched(key store.Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.watched, key)
}

// attachedPods gives the Pods that have a sandbox: that one, if it is not empty, and
// was not attached just now, which is what its links tell of.
func (a *agent) attachedPods(sandbox string) []store.Key {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []store.Key
	for key, id := range a.boxes {
		if _, isFresh := a.fresh[key]; sandbox == "" || id == sandbox && !isFresh {
			out = append(out, key)
		}
	}
	return out
}
