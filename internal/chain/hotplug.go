package chain

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// locked gives the record of a sandbox that is there, for this caller alone until
// unlock.
func (e *Engine) locked(ctx context.Context, id string) (box *record.Sandbox, unlock func(), err error) {
	if unlock, err = e.Records.Lock(ctx, id); err != nil {
		return nil, nil, err
	}
	if box, err = e.Records.LoadLocked(id); err != nil {
		unlock()
		return nil, nil, err
	}
	return box, unlock, nil
}

// Attach adds one network to a sandbox that is attached: hotplug. An interface
// of that name on that network is success.
func (e *Engine) Attach(ctx context.Context, id string, selection netattach.Selection) (*record.Sandbox, error) {
	box, unlock, err := e.locked(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if selection.Field == "" {
		selection.Field = "network selection"
	}
	if err := isolated(box.Isolation, box.Pod.Namespace, []netattach.Selection{selection}); err != nil {
		return nil, err
	}
	if there := box.Find(netstate.IfName(selection.Interface)); there != nil && there.Network == selection.FullName() {
		if there.Stage == record.Attached {
			return box, nil
		}
		if err := e.undo(ctx, box, []*record.Attachment{there}); err != nil {
			return nil, err
		}
	}
	q := Question{
		Sandbox: id, Pod: box.Pod, Selections: []netattach.Selection{selection}, First: freeNumber(box),
		Present: box.Attachments, Kinds: e.Kinds, FlatFile: readFlatFile, DeviceFiles: e.deviceFiles, parsed: e.parsed,
	}
	if err := e.lookUp(ctx, &q, box.ConfDir); err != nil {
		return nil, err
	}
	if err := e.lookUpDevices(ctx, &q); err != nil {
		return nil, err
	}
	delegates, err := e.answer(ctx, q, box.VM)
	if err != nil {
		return nil, err
	}
	eyes := e.look(box.NetNS)
	defer eyes.close()
	if err := e.attach(ctx, eyes, box, delegates, nil); err != nil {
		return nil, err
	}
	return box, nil
}

// freeNumber is the lowest N from the number of attachments on for which net<N>
// is free, so that a name is seldom used twice in the life of a sandbox.
func freeNumber(box *record.Sandbox) int {
	n := max(len(box.Attachments), 1)
	for box.Find(netstate.IfName(fmt.Sprintf("net%d", n))) != nil {
		n++
	}
	return n
}

// Detach takes one interface off a sandbox. One that is not there is success.
func (e *Engine) Detach(ctx context.Context, id string, ifName netstate.IfName) (*record.Sandbox, error) {
	box, unlock, err := e.locked(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	a := box.Find(ifName)
	if a == nil {
		return box, nil
	}
	if err := e.undo(ctx, box, []*record.Attachment{a}); err != nil {
		return nil, err
	}
	if len(box.Attachments) == 0 {
		return box, nil
	}
	if err := e.resteer(ctx, box); err != nil {
		return nil, err
	}
	return box, e.save(box)
}

// SetMoved notes that addresses of an interface are about to be taken off the
// link for a guest to have (bridge binding), or none any more. Call it before
// they are, so that CHECK and DEL know.
func (e *Engine) SetMoved(ctx context.Context, id string, moved map[netstate.IfName][]netip.Prefix) (*record.Sandbox, error) {
	box, unlock, err := e.locked(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for name, addrs := range moved {
		a := box.Find(name)
		if a == nil {
			return nil, fmt.Errorf("note moved addresses of sandbox %s: no interface %s", id, name)
		}
		a.Moved = slices.Clone(addrs)
	}
	return box, e.save(box)
}
