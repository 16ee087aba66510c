package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
)

// definer makes the kind IPAMClaim known to the API server if it is not. Others bring
// it, too, so what is there is never changed.
type definer struct {
	writer store.Store
	log    *slog.Logger
}

// String names the task.
func (definer) String() string { return "maker of the kind IPAMClaim" }

// Run ends when the kind is there.
func (d definer) Run(ctx context.Context) error {
	crd := &store.Object{}
	if err := json.Unmarshal([]byte(networks.ClaimCRD), crd); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	told := ""
	for {
		_, err := d.writer.Create(ctx, crd)
		switch {
		case err == nil:
			d.log.Info("made the kind IPAMClaim")
			return nil
		case errors.Is(err, store.ErrExists):
			return nil
		case err.Error() != told && ctx.Err() == nil:
			told = err.Error()
			d.log.Warn("make the kind IPAMClaim", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lastPause):
		}
	}
}
