package nodeagent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

var (
	eventKind = schema.GroupVersionKind{Version: "v1", Kind: "Event"}
	nodeKind  = schema.GroupVersionKind{Version: "v1", Kind: "Node"}
)

// Reasons of events, those of Multus.
const (
	addedInterface = "AddedInterface"
	noNetworkFound = "NoNetworkFound"
)

// configIgnored is the reason of events of a NetworkAttachmentDefinition, for who
// describes it: something in it has no effect.
const configIgnored = "ConfigIgnored"

// notCalled is the reason of events of the node, for who looks why Pods lack
// networks.
const notCalled = "WeftNotCalled"

// tellAttached writes one event for all that a Pod has.
func (a *agent) tellAttached(ctx context.Context, pod *store.Object, box *record.Sandbox) {
	var parts []string
	for _, attachment := range box.Attachments {
		result, err := chain.Result(attachment)
		if attachment.Stage != record.Attached || err != nil || result == nil {
			continue
		}
		var ips []string
		for _, ip := range result.IPs {
			ips = append(ips, ip.Address.String())
		}
		parts = append(parts, fmt.Sprintf("%s [%s] from %s", attachment.Interface, strings.Join(ips, " "), attachment.Network))
	}
	a.tell(ctx, store.KeyOf(pod), string(pod.GetUID()), "Normal", addedInterface, "Add "+strings.Join(parts, ", "))
}

// refused tells of a Pod that names a network that does not exist; the kubelet
// tells of every other reason.
func (a *agent) refused(pod record.Pod, cause error) {
	if pod.Name == "" || !errors.Is(cause, chain.ErrUnknownNetwork) {
		return
	}
	go func() { // the runtime's answer does not wait for it
		ctx, cancel := context.WithTimeout(context.Background(), eventPatience)
		defer cancel()
		a.tell(ctx, store.Key{Namespace: pod.Namespace, Name: pod.Name}, pod.UID, "Warning", noNetworkFound, cause.Error())
	}()
}

const eventPatience = 10 * time.Second

// maxEvent bounds the text of an event (k8s.io/api/core/v1, Event.Message).
const maxEvent = 1000

// tell writes an event. The same one again is none: its name follows from what
// it says.
func (a *agent) tell(ctx context.Context, pod store.Key, uid, kind, reason, message string) {
	a.write(ctx, involved{podKind, pod, uid}, kind, reason, message, "")
}

// tellChange writes an event of something that may happen again.
func (a *agent) tellChange(ctx context.Context, pod *store.Object, kind, reason, message string) {
	a.write(ctx, involved{podKind, store.KeyOf(pod), string(pod.GetUID())}, kind, reason, message, time.Now().String())
}

// tellRival writes an event of our node: the runtime does not call us.
func (a *agent) tellRival(problem string) {
	go func() { // whoever tells us goes on looking
		ctx, cancel := context.WithTimeout(context.Background(), eventPatience)
		defer cancel()
		// By its name, as the kubelet has it, so that describing the node shows it.
		a.write(ctx, involved{nodeKind, store.Key{Name: a.node}, a.node}, "Warning", notCalled, problem, "")
	}()
}

// warned writes an event of a network whose configuration has something that has
// no effect. All nodes write the same one, so there is one.
func (a *agent) warned(network, warning string) {
	namespace, name, ok := strings.Cut(network, "/")
	if !ok {
		return // a configuration of the node: the log has it
	}
	go func() { // the runtime's answer does not wait for it
		ctx, cancel := context.WithTimeout(context.Background(), eventPatience)
		defer cancel()
		key := store.Key{Namespace: namespace, Name: name}
		nad, err := a.cache.Get(ctx, networks.DefinitionKind, key)
		if err != nil {
			return // it is gone meanwhile
		}
		a.write(ctx, involved{networks.DefinitionKind, key, string(nad.GetUID())}, "Warning", configIgnored, warning, "")
	}()
}

// involved is what an event is about.
type involved struct {
	kind schema.GroupVersionKind
	key  store.Key
	uid  string
}

// namespace is where the event belongs: those of nodes into default.
func (i involved) namespace() string {
	if i.key.Namespace == "" {
		return "default"
	}
	return i.key.Namespace
}

// write writes an event, unless there is one that says the same with the same
// seed.
func (a *agent) write(ctx context.Context, about involved, kind, reason, message, seed string) {
	if len(message) > maxEvent {
		message = strings.ToValidUTF8(message[:maxEvent], "")
	}
	sum := sha256.Sum256([]byte(about.uid + reason + message + seed))
	now := time.Now().UTC().Format(time.RFC3339)
	event := &store.Object{Object: map[string]any{
		"apiVersion": "v1", "kind": eventKind.Kind,
		"metadata":       map[string]any{"namespace": about.namespace(), "name": about.key.Name + "." + hex.EncodeToString(sum[:8])},
		"involvedObject": map[string]any{"apiVersion": about.kind.GroupVersion().String(), "kind": about.kind.Kind, "namespace": about.key.Namespace, "name": about.key.Name, "uid": about.uid},
		"type":           kind, "reason": reason, "message": message, "count": int64(1), "firstTimestamp": now, "lastTimestamp": now,
		"source": map[string]any{"component": "weft", "host": a.node}, "reportingComponent": "weft", "reportingInstance": a.node,
	}}
	if _, err := a.api.Create(ctx, event); err != nil && !errors.Is(err, store.ErrExists) {
		a.log.Debug("write event", "about", about.key.String(), "reason", reason, "err", err)
	}
}
