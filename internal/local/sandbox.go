// Package local runs weft on one Linux machine without Kubernetes: how YAML
// becomes objects, the agent's socket API for the CLI, and the few duties a
// kubelet has for a Pod that is only a network sandbox.
package local

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
)

// SandboxID is the container id of a Pod's sandbox: one per Pod object, so that
// a Pod deleted and made again under its name is another sandbox.
func SandboxID(podUID string) string {
	sum := sha256.Sum256([]byte("weft sandbox " + podUID))
	return hex.EncodeToString(sum[:])
}

// ErrNoAgent means that nobody listens on the instance's socket.
var ErrNoAgent = errors.New("no agent runs for this root")
