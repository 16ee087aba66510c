package nodeagent

import (
	"context"
	"log/slog"
	"time"

	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/store"
)

// newsPause is how long news are gathered before Pods are looked at: a Pod may
// change its links as often as it likes, and we while we detach it.
const newsPause = 250 * time.Millisecond

// newsRest is for how long news are left to the kernel after some were read: each
// attachment makes a dozen, and to be woken by each costs more than to read it.
const newsRest = 10 * time.Millisecond

// news wakes up looks at Pods whose link in the node's namespace changes: the host
// end of a veth goes and loses its carrier with the one in the Pod. What cannot be
// seen from there, and what was missed, the next look finds.
type news struct {
	instance string
	// ns is the node's namespace; nil: that of this process.
	ns *linux.NS
	// pods gives the Pods that have been attached, or the one that has that sandbox.
	pods func(sandbox string) []store.Key
	look func(store.Key)
	log  *slog.Logger
}

// String names the task.
func (news) String() string { return "news of links" }

// Run ends when ctx does, or at once if the kernel tells nothing.
func (n news) Run(ctx context.Context) error {
	links, err := linux.OpenLinkNews(n.ns)
	if err != nil {
		n.log.Warn("changes of Pods' links are found a little later", "err", err)
		return nil
	}
	changed := make(chan []linux.LinkChange)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			changes, err := links.Next()
			if err != nil {
				if ctx.Err() == nil {
					n.log.Warn("changes of Pods' links are found a little later", "err", err)
				}
				return
			}
			select {
			case changed <- changes:
			case <-ctx.Done():
				return
			}
			select {
			case <-time.After(newsRest):
			case <-ctx.Done():
				return
			}
		}
	}()
	n.gather(ctx, changed)
	err = links.Close()
	<-ended
	return err
}

// gather wakes up looks once for all that changed in a while.
func (n news) gather(ctx context.Context, changed <-chan []linux.LinkChange) {
	pods, bridges := map[store.Key]bool{}, map[string]bool{}
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case changes := <-changed:
			asked := map[string]bool{} // sandboxes; each of their links changes several times
			for _, change := range changes {
				id, shared := chain.MarkedFor(n.instance, change.Alias)
				switch {
				case id != "" && !asked[id]:
					asked[id] = true
					for _, key := range n.pods(id) { // none while it is being attached
						pods[key] = true
					}
				case shared && change.Gone: // by us, or its ports tell of it, too
					delete(bridges, change.Alias)
				case shared && change.Down: // it changes with each port; this is what Pods lack
					bridges[change.Alias] = true
				}
			}
			if due == nil && len(pods)+len(bridges) > 0 {
				due = time.After(newsPause)
			}
		case <-due:
			if len(bridges) > 0 {
				for _, key := range n.pods("") {
					pods[key] = true
				}
			}
			for key := range pods {
				n.look(key)
			}
			clear(pods)
			clear(bridges)
			due = nil
		}
	}
}
