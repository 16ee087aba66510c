package chain

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// Restore puts things right after a restart, before anything else is asked of
// the engine: attachments that were being made or unmade are undone; after a
// reboot everything is, foreign plugins by DEL with the config they were called
// with, and several sandboxes at a time; and whatever on the host bears our mark without a record goes. Records
// that could not be read are in the error. One that resists is told of in the
// error as well and stays; the others are dealt with all the same.
func (e *Engine) Restore(ctx context.Context) error {
	ids, err := e.Records.IDs()
	if err != nil {
		return err
	}
	var errs []error
	unread := map[string]bool{}
	for i, err := range several(ids, func(id string) error { return e.restore(ctx, id) }) {
		if errors.Is(err, errKilled) {
			return err
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("restore sandbox %s: %w", ids[i], err))
			unread[ids[i]] = true
		}
	}
	if err := e.sweep(ctx, unread); err != nil {
		errs = append(errs, err)
	}
	damaged, err := e.Records.Damaged()
	if err != nil {
		errs = append(errs, err)
	}
	for _, path := range damaged {
		e.Log.Warn("a damaged record lies aside: see what it tells, then remove it", "path", path)
	}
	return errors.Join(errs...)
}

func (e *Engine) restore(ctx context.Context, id string) error {
	unlock, err := e.Records.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	box, err := e.load1(ctx, id)
	if box == nil || err != nil {
		return err
	}
	if box.BootID != e.BootID {
		e.Log.Info("undoing a sandbox of an earlier boot", "sandbox", id)
		return e.undoAll(ctx, box, false)
	}
	var half []*record.Attachment
	for _, a := range box.Attachments {
		if a.Stage != record.Attached {
			half = append(half, a)
		}
	}
	if len(half) == 0 {
		return nil
	}
	e.Log.Info("undoing half-made attachments", "sandbox", id, "count", len(half))
	if err := e.undo(ctx, box, half); err != nil {
		return err
	}
	if len(box.Attachments) == 0 || namespaceGone(box.NetNS) {
		return nil
	}
	if err := e.resteer(ctx, box); err != nil {
		return err
	}
	return e.save(box)
}

// sweep removes what bears this instance's mark on the host and belongs to no
// record: left by a crash before the record or after it. keepIDs are sandboxes
// whose record is there and could not be dealt with.
func (e *Engine) sweep(ctx context.Context, keepIDs map[string]bool) error {
	if err := e.step("sweep"); err != nil {
		return err
	}
	ids, err := e.Records.IDs()
	if err != nil {
		return err
	}
	blind := false // a record is there that nobody could read
	for _, id := range ids {
		keepIDs[id] = true
		blind = blind || !e.claims.knows(id)
	}
	e.claims.kernel.Lock()
	gone, err := e.Dataplane.Prune(ctx, func(owner string) bool {
		shared := owner == ownerMasquerade || strings.HasPrefix(owner, ownerShared)
		return shared && blind || e.keeps(owner, keepIDs)
	})
	e.claims.kernel.Unlock()
	if len(gone) > 0 {
		e.Log.Warn("removed what belongs to no sandbox", "removed", gone)
	}
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	if blind {
		return nil
	}
	return e.syncMasquerade(ctx)
}

// keeps says whether the owner in a mark still has a record. Owners that are
// not the engine's are somebody else's to prune.
func (e *Engine) keeps(owner string, ids map[string]bool) bool {
	if rest, ok := strings.CutPrefix(owner, ownerAttachment); ok {
		id, _, _ := strings.Cut(rest, "/")
		return ids[id]
	}
	if name, ok := strings.CutPrefix(owner, ownerShared); ok {
		return e.claims.claimsShared(name)
	}
	return owner != ownerMasquerade || len(e.claims.masquerade()) > 0
}

// MarkedFor says for which sandbox of an instance a link is marked, or that it is
// one that sandboxes share.
func MarkedFor(instance, alias string) (id string, shared bool) {
	in, owner, ok := netstate.ParseAlias(alias)
	if !ok || in != instance {
		return "", false
	}
	if rest, ok := strings.CutPrefix(owner, ownerAttachment); ok {
		id, _, _ = strings.Cut(rest, "/")
	}
	return id, strings.HasPrefix(owner, ownerShared)
}
