package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/internal/store"
)

var eventKind = schema.GroupVersionKind{Version: "v1", Kind: "Event"}

// maxMessage is the longest an event's message may be (k8s.io/kubernetes
// pkg/apis/core/validation, NoteLengthLimit).
const maxMessage = 1024

// about is an object that an event is about.
type about struct {
	gvk schema.GroupVersionKind
	key store.Key
	uid types.UID
}

// warn writes an event. All leaders write the same one, so there is one.
func warn(ctx context.Context, writer store.Store, is about, reason, message string) error {
	sum := sha256.Sum256([]byte(reason + message + string(is.uid)))
	now := time.Now().UTC().Format(time.RFC3339)
	obj := &store.Object{Object: map[string]any{
		"involvedObject": map[string]any{
			"apiVersion": is.gvk.GroupVersion().String(), "kind": is.gvk.Kind, "namespace": is.key.Namespace, "name": is.key.Name, "uid": string(is.uid),
		},
		"type": "Warning", "reason": reason, "message": message[:min(len(message), maxMessage)], "source": map[string]any{"component": "weft-controller"},
		"count": int64(1), "firstTimestamp": now, "lastTimestamp": now,
	}}
	obj.SetGroupVersionKind(eventKind)
	obj.SetNamespace(is.key.Namespace)
	obj.SetName(is.key.Name + "." + hex.EncodeToString(sum[:8]))
	_, err := writer.Create(ctx, obj)
	if errors.Is(err, store.ErrExists) { // an earlier leader told it
		return nil
	}
	return err
}
