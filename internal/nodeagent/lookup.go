package nodeagent

import (
	"context"
	"errors"
	"time"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/cniserver"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
)

// How long an ADD waits for the API server where memory does not do, and how
// long a background write may take. The runtime asks again after an error.
const (
	cachePatience = time.Second // for the first list of a kind after the agent's start
	apiPatience   = 15 * time.Second
	writePatience = 30 * time.Second
)

// definitions looks networks up in memory, and what is not there at the API
// server: a network may have been made a moment before the Pod.
type definitions struct{ cached, live networks.Definitions }

var _ chain.Networks = definitions{}

// Definition gives one, or nil if there is none.
func (d definitions) Definition(ctx context.Context, namespace, name string) (*netattach.NetworkAttachmentDefinition, error) {
	waiting, cancel := context.WithTimeout(ctx, cachePatience)
	defer cancel()
	if nad, err := d.cached.Definition(waiting, namespace, name); err == nil && nad != nil {
		return nad, nil
	}
	asking, cancel := context.WithTimeout(ctx, apiPatience)
	defer cancel()
	nad, err := d.live.Definition(asking, namespace, name)
	return nad, unanswered(err)
}

// Namespaces lists where definitions of that name are, for a better remedy: none
// as long as memory is empty.
func (d definitions) Namespaces(ctx context.Context, name string) ([]string, error) {
	waiting, cancel := context.WithTimeout(ctx, cachePatience)
	defer cancel()
	namespaces, err := d.cached.Namespaces(waiting, name)
	if waiting.Err() != nil {
		return nil, nil
	}
	return namespaces, err
}

// unanswered gives an error of the store as cniserver.Unanswered does.
func unanswered(err error) error { return cniserver.Unanswered(err, errors.Is(err, store.ErrNotFound)) }
