package cniserver

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/record"
)

// Event is one of the API's (core/v1), about an object.
type Event struct {
	// APIVersion, Kind, Namespace, Name and UID are those of the object it is about.
	APIVersion, Kind     string
	Namespace, Name, UID string
	// Type is Normal or Warning.
	Type, Reason, Message string
	// Seed tells it from others that say the same; empty: there is one that does.
	Seed string
	// Node is where it happened.
	Node string
}

// Reasons of events, those of Multus.
const (
	addedInterface = "AddedInterface"
	noNetworkFound = "NoNetworkFound"
)

// Added is the event of what a sandbox was given: one for all its networks.
func Added(box *record.Sandbox, node string) Event {
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
	return ofPod(box.Pod, node, "Normal", addedInterface, "Add "+strings.Join(parts, ", "))
}

// Refused is the event of an ADD that failed, if it is ours to tell: of a Pod that
// names a network that does not exist. The kubelet tells of every other reason.
func Refused(pod record.Pod, node string, cause error) (Event, bool) {
	if pod.Name == "" || !errors.Is(cause, chain.ErrUnknownNetwork) {
		return Event{}, false
	}
	return ofPod(pod, node, "Warning", noNetworkFound, cause.Error()), true
}

func ofPod(pod record.Pod, node, kind, reason, message string) Event {
	return Event{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Type: kind, Reason: reason, Message: message, Node: node}
}

// Bounds of an event: of its message (k8s.io/api/core/v1, Event.Message) and of
// its name, which is that of an object (RFC 1123).
const (
	maxEvent     = 1000
	maxEventName = 253
)

// Home is the namespace it belongs to: for objects that have none, as nodes, it
// is default.
func (e Event) Home() string {
	if e.Namespace == "" {
		return "default"
	}
	return e.Namespace
}

// Object is the event as the API has it. Its name follows from what it says, so
// that the same one again is none.
func (e Event) Object(at time.Time) map[string]any {
	message := e.Message
	if len(message) > maxEvent {
		message = strings.ToValidUTF8(message[:maxEvent], "")
	}
	sum := sha256.Sum256([]byte(e.UID + e.Reason + message + e.Seed))
	suffix := "." + hex.EncodeToString(sum[:8])
	name := e.Name
	if most := maxEventName - len(suffix); len(name) > most {
		name = strings.TrimRight(name[:most], ".-") // each part ends in a letter or digit
	}
	now := at.UTC().Format(time.RFC3339)
	return map[string]any{
		"apiVersion": "v1", "kind": "Event",
		"metadata":       map[string]any{"namespace": e.Home(), "name": name + suffix},
		"involvedObject": map[string]any{"apiVersion": e.APIVersion, "kind": e.Kind, "namespace": e.Namespace, "name": e.Name, "uid": e.UID},
		"type":           e.Type, "reason": e.Reason, "message": message, "count": int64(1), "firstTimestamp": now, "lastTimestamp": now,
		"source": map[string]any{"component": "weft", "host": e.Node}, "reportingComponent": "weft", "reportingInstance": e.Node,
	}
}
