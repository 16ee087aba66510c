package chain

import (
	"slices"
	"strings"
	"sync"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/kind"
)

// maxParsed bounds how many configs are remembered.
const maxParsed = 256

// parsedConfigs remembers what network configs say: many Pods are attached to
// few networks, and to read a config takes longer than to plan from it. What is
// remembered is shared and never changed. nil remembers nothing.
type parsedConfigs struct {
	mu     sync.Mutex // guards what follows
	byText map[configText]*parsedConfig
	byConf map[*netattach.NetConf]*parsedConfig
}

// configText is the whole config as written, and the name it gets if it has none.
type configText struct{ config, name string }

type parsedConfig struct {
	conf *netattach.NetConf
	// native is what the kind made of the first plugin for a Pod that asks for
	// nothing of its own; nil: nobody asked yet.
	native kind.Conf
}

func newParsedConfigs() *parsedConfigs {
	p := &parsedConfigs{}
	p.forget()
	return p
}

func (p *parsedConfigs) forget() {
	p.byText, p.byConf = map[configText]*parsedConfig{}, map[*netattach.NetConf]*parsedConfig{}
}

// config is netattach.ParseConfig.
func (p *parsedConfigs) config(text, name string) (*netattach.NetConf, error) {
	if p == nil {
		return netattach.ParseConfig([]byte(text), name)
	}
	p.mu.Lock()
	known := p.byText[configText{text, name}]
	p.mu.Unlock()
	if known != nil {
		return known.conf, nil
	}
	conf, err := netattach.ParseConfig([]byte(text), name)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.byText) >= maxParsed {
		p.forget()
	}
	entry := &parsedConfig{conf: conf}
	p.byText[configText{text, name}], p.byConf[conf] = entry, entry
	return conf, nil
}

// asks says whether an argument is more than who the Pod is.
func asks(arg [2]string) bool {
	return arg[0] != "IgnoreUnknown" && !strings.HasPrefix(arg[0], "K8S_")
}

// native is parseNative.
func (p *parsedConfigs) native(k kind.Kind, d *Delegate) (kind.Conf, error) {
	if p == nil || d.IPAM != "" || len(d.CapabilityArgs) > 0 || slices.ContainsFunc(d.CNIArgs, asks) {
		return parseNative(k, d)
	}
	p.mu.Lock()
	entry := p.byConf[d.Conf]
	if entry != nil && entry.native != nil {
		defer p.mu.Unlock()
		return entry.native, nil
	}
	p.mu.Unlock()
	native, err := parseNative(k, d)
	if err == nil && entry != nil {
		p.mu.Lock()
		entry.native = native
		p.mu.Unlock()
	}
	return native, err
}
