package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// config is what this program reads of the network configuration; the agent
// reads the rest.
type config struct {
	// Socket of the agent.
	Socket string `json:"socket"`
	// AgentWait is how long ADD waits for an agent that is away, as Go writes
	// durations.
	AgentWait string `json:"agentWait"`
	// Queue is the directory where DELs wait for the agent.
	Queue string `json:"queue"`
	// Thin is the program that does a call without an agent.
	Thin string `json:"thin"`
	// DefaultNetworks are attached to every Pod: none is plain then.
	DefaultNetworks []string `json:"defaultNetworks"`
	RuntimeConfig   struct {
		// Annotations of the Pod, from runtimes that are asked for them by the
		// capability of that name; nil if they were not sent.
		Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	} `json:"runtimeConfig"`

	agentWait time.Duration
}

// Defaults.
const (
	defaultSocket = "/run/weft/cni.sock"
	defaultQueue  = "/var/lib/weft/dels"
	defaultWait   = 20 * time.Second
	thinProgram   = "weft-cni-thin"
)

func readConfig(data []byte) (config, error) {
	var c config
	if err := json.Unmarshal(data, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "the network configuration cannot be read", err.Error())
	}
	c.agentWait = defaultWait
	if c.AgentWait != "" {
		wait, err := time.ParseDuration(c.AgentWait)
		if err != nil || wait < 0 {
			return c, types.NewError(types.ErrInvalidNetworkConfig, "agentWait \""+c.AgentWait+"\" is no duration", "write it like 20s")
		}
		c.agentWait = wait
	}
	return c, nil
}

func (c config) wait() time.Duration { return c.agentWait }

func (c config) socket() string { return or(c.Socket, defaultSocket) }

func (c config) queue() string { return or(c.Queue, defaultQueue) }

// thin is the program beside this one, if the config names none.
func (c config) thin() string {
	if c.Thin != "" {
		return c.Thin
	}
	self, err := os.Executable()
	if err != nil {
		return thinProgram // not found then, which is told
	}
	return filepath.Join(filepath.Dir(self), thinProgram)
}

// Annotations by which a Pod asks for more than its default network.
const (
	networksAnnotation       = "k8s.v1.cni.cncf.io/networks"
	defaultNetworkAnnotation = "v1.multus-cni.io/default-network"
)

// plain says whether it is known that the Pod asks for nothing beyond its
// default network.
func (c config) plain() bool {
	annotations := c.RuntimeConfig.Annotations
	return annotations != nil && annotations[networksAnnotation] == "" && annotations[defaultNetworkAnnotation] == "" && len(c.DefaultNetworks) == 0
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
