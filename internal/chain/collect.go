package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/weftnet/weft/internal/record"
)

// Collect takes back what sandboxes have whose network namespace is gone, and those
// of strays, for runtimes that ended without a DEL. It gives their ids.
func (e *Engine) Collect(ctx context.Context, strays map[string]bool) ([]string, error) {
	ids, err := e.Records.IDs()
	if err != nil {
		return nil, err
	}
	var ending, gone []string
	var errs []error
	for _, id := range ids {
		box, err := e.Records.Load(id)
		switch {
		case errors.Is(err, record.ErrNotFound):
		case err != nil:
			errs = append(errs, fmt.Errorf("collect sandbox %s: %w", id, err))
		case deserted(box.NetNS) || strays[id]:
			ending = append(ending, id)
		}
	}
	for i, err := range e.DelAll(ctx, ending) {
		if err != nil {
			errs = append(errs, fmt.Errorf("collect sandbox %s: %w", ending[i], err))
			continue
		}
		gone = append(gone, ending[i])
	}
	return gone, errors.Join(errs...)
}

// deserted says that a namespace's path is certainly gone: its directory is
// there and it is not. A plain file in its place may be a mount this process
// does not see.
func deserted(netns string) bool {
	if _, err := os.Stat(filepath.Dir(netns)); err != nil {
		return false
	}
	_, err := os.Lstat(netns)
	return errors.Is(err, os.ErrNotExist)
}

// PodSandboxes are the ids of the sandboxes that a container runtime made for Pods:
// it told the Pods' UIDs.
func (e *Engine) PodSandboxes() []string { return e.claims.podSandboxes() }
