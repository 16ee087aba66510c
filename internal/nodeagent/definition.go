package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/kube"
)

// definer makes the kind NetworkAttachmentDefinition known to the API server if
// it is not. Others bring it, too, so what is there is never changed.
type definer struct {
	api *kube.Store
	log *slog.Logger
}

// definitionCRD is the kind as the de-facto standard v1.3 has it (section 3.1).
const definitionCRD = `{
	"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
	"metadata": {"name": "network-attachment-definitions.k8s.cni.cncf.io"},
	"spec": {
		"group": "k8s.cni.cncf.io", "scope": "Namespaced",
		"names": {
			"plural": "network-attachment-definitions", "singular": "network-attachment-definition",
			"kind": "NetworkAttachmentDefinition", "shortNames": ["net-attach-def"]
		},
		"versions": [{
			"name": "v1", "served": true, "storage": true,
			"schema": {"openAPIV3Schema": {
				"type": "object", "description": "A network that Pods can be attached to by annotation.",
				"properties": {
					"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
					"spec": {"type": "object", "properties": {
						"config": {"type": "string", "description": "A CNI configuration or list of them, as JSON; without, a file of that name on the node."}
					}}
				}
			}}
		}]
	}
}`

// definePause is how long an API server that does not answer is left alone.
const definePause = 5 * time.Second

// String names the task.
func (definer) String() string { return "maker of the kind NetworkAttachmentDefinition" }

// Run ends when the kind is there.
func (d definer) Run(ctx context.Context) error {
	crd := &store.Object{}
	if err := json.Unmarshal([]byte(definitionCRD), crd); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	told := ""
	for {
		_, err := d.api.Create(ctx, crd)
		switch {
		case err == nil:
			d.log.Info("made the kind NetworkAttachmentDefinition")
			return nil
		case errors.Is(err, store.ErrExists):
			return nil
		case err.Error() != told:
			told = err.Error()
			d.log.Warn("make the kind NetworkAttachmentDefinition", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(definePause):
		}
	}
}
