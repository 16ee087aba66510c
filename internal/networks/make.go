package networks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/weftnet/weft/internal/store"
)

// Maker makes a kind known to the API server if it is not. Others bring it, too, so
// what is there is never changed.
type Maker struct {
	// API is where its CustomResourceDefinition, CRD, is made.
	API store.Store
	CRD string
	// Kind is what it makes, for people.
	Kind string
	Log  *slog.Logger
}

// makePause is how long an API server that does not answer is left alone.
const makePause = 5 * time.Second

// String names the task.
func (m Maker) String() string { return "maker of the kind " + m.Kind }

// Run ends when the kind is there.
func (m Maker) Run(ctx context.Context) error {
	crd := &store.Object{}
	if err := json.Unmarshal([]byte(m.CRD), crd); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	told := ""
	for {
		_, err := m.API.Create(ctx, crd)
		switch {
		case err == nil:
			m.Log.Info("made the kind", "kind", m.Kind)
			return nil
		case errors.Is(err, store.ErrExists):
			return nil
		case err.Error() != told && ctx.Err() == nil:
			told = err.Error()
			m.Log.Warn("make the kind", "kind", m.Kind, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(makePause):
		}
	}
}
