package nodeagent

import (
	"context"
	"errors"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/cniserver"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

var (
	eventKind = schema.GroupVersionKind{Version: "v1", Kind: "Event"}
	nodeKind  = schema.GroupVersionKind{Version: "v1", Kind: "Node"}
)

// configIgnored is the reason of events of a NetworkAttachmentDefinition, for who
// describes it: something in it has no effect.
const configIgnored = "ConfigIgnored"

// notCalled is the reason of events of the node, for who looks why Pods lack
// networks.
const notCalled = "WeftNotCalled"

// tellAttached writes one event for all that a Pod has.
func (a *agent) tellAttached(ctx context.Context, pod *store.Object, box *record.Sandbox) {
	event := cniserver.Added(box, a.node)
	event.UID = string(pod.GetUID()) // the runtime knows another of a static Pod
	a.write(ctx, event)
}

// refused tells of a Pod that names a network that does not exist.
func (a *agent) refused(pod record.Pod, cause error) {
	if event, ours := cniserver.Refused(pod, a.node, cause); ours {
		a.writeLater(event)
	}
}

// tellChange writes an event of something that may happen again.
func (a *agent) tellChange(ctx context.Context, pod *store.Object, kind, reason, message string) {
	event := a.about(podKind, store.KeyOf(pod), string(pod.GetUID()))
	event.Type, event.Reason, event.Message, event.Seed = kind, reason, message, time.Now().String()
	a.write(ctx, event)
}

// tellRival writes an event of our node: the runtime does not call us.
func (a *agent) tellRival(problem string) {
	// By its name, as the kubelet has it, so that describing the node shows it.
	event := a.about(nodeKind, store.Key{Name: a.node}, a.node)
	event.Type, event.Reason, event.Message = "Warning", notCalled, problem
	a.writeLater(event)
}

// warned writes an event of a network whose configuration has something that has
// no effect. All nodes write the same one, so there is one.
func (a *agent) warned(network, warning string) {
	namespace, name, ok := strings.Cut(network, "/")
	if !ok {
		return // a configuration of the node: the log has it
	}
	key := store.Key{Namespace: namespace, Name: name}
	nad, err := a.cache.Get(context.Background(), networks.DefinitionKind, key) // from memory
	if err != nil {
		return // it is gone meanwhile
	}
	event := a.about(networks.DefinitionKind, key, string(nad.GetUID()))
	event.Type, event.Reason, event.Message = "Warning", configIgnored, warning
	a.writeLater(event)
}

func (a *agent) about(kind schema.GroupVersionKind, key store.Key, uid string) cniserver.Event {
	return cniserver.Event{APIVersion: kind.GroupVersion().String(), Kind: kind.Kind, Namespace: key.Namespace, Name: key.Name, UID: uid, Node: a.node}
}

const eventPatience = 10 * time.Second

// writeLater writes an event, for whoever must not wait.
func (a *agent) writeLater(event cniserver.Event) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), eventPatience)
		defer cancel()
		a.write(ctx, event)
	}()
}

// write writes an event, unless there is one that says the same.
func (a *agent) write(ctx context.Context, event cniserver.Event) {
	if _, err := a.api.Create(ctx, &store.Object{Object: event.Object(time.Now())}); err != nil && !errors.Is(err, store.ErrExists) {
		a.log.Debug("write event", "about", event.Namespace+"/"+event.Name, "reason", event.Reason, "err", err)
	}
}
