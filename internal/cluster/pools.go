package cluster

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/metrics"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
)

// pools are the ranges that networks give addresses of, for metrics. What a network
// leaves to a file on each node is not known here.
type pools struct {
	*controller

	// mu guards list.
	mu   sync.Mutex
	list []pool
}

// pool is one range of a network.
type pool struct {
	network, text, scope string
	spans                []ipam.Span
}

// String names the task.
func (*pools) String() string { return "reader of ranges" }

// Run reads the networks now and then until ctx ends.
func (p *pools) Run(ctx context.Context) error {
	for {
		p.read(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(p.Compare):
		}
	}
}

func (p *pools) read(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	var list []pool
	_, err := each(ctx, p.api, networks.DefinitionKind, func(obj *store.Object) { list = append(list, poolsOf(obj)...) })
	if err != nil {
		p.Log.Debug("networks cannot be read; their ranges are as they were", "err", err) // the kind may not be there
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list = list
}

// poolsOf gives the ranges of a network whose addresses are unique in the cluster.
// One that cannot be read is the business of whoever attaches it.
func poolsOf(obj *store.Object) (list []pool) {
	definition, err := netattach.FromObject(obj.Object)
	if err != nil {
		return nil
	}
	conf, err := netattach.ParseConfig([]byte(definition.Config), obj.GetName())
	if err != nil {
		return nil
	}
	for _, plugin := range conf.Plugins {
		if !ipam.Supported(plugin.IPAMType) {
			continue
		}
		config, err := ipam.Parse(plugin.Bytes, "")
		if err != nil || !config.ClusterWide {
			continue
		}
		for _, set := range config.Sets {
			for _, r := range set.Ranges {
				spans := r.Usable()
				texts := make([]string, 0, len(spans))
				for _, span := range spans {
					texts = append(texts, span.String())
				}
				text := strings.Join(texts, ",")
				if len(texts) > 1 { // exclusions
					text = r.Subnet.String()
				}
				list = append(list, pool{definition.FullName(), text, string(set.Scope), spans})
			}
		}
	}
	return list
}

// usage tells how much of each range is in use.
func (p *pools) usage(s *state) []metrics.Pool {
	p.mu.Lock()
	list := p.list
	p.mu.Unlock()
	reserved := s.book.Reserved()
	now := time.Now()
	told := map[[2]string]bool{}
	var out []metrics.Pool
	for _, is := range list {
		if told[[2]string{is.network, is.text}] { // a range that is asked for twice
			continue
		}
		told[[2]string{is.network, is.text}] = true
		usage := s.view.Usage(now, is.scope, is.spans)
		one := metrics.Pool{Network: is.network, Range: is.text, Conflicts: float64(usage.Conflicts)}
		for _, addr := range reserved[is.scope] {
			for _, span := range is.spans {
				if span.Contains(addr) {
					one.Reserved++
				}
			}
		}
		one.Used = max(0, float64(usage.Held)-one.Reserved)
		one.Free = max(0, usage.Size-float64(usage.Held)-one.Conflicts)
		out = append(out, one)
	}
	return out
}
