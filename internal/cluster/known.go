package cluster

import (
	"reflect"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/internal/store"
)

// known follows a kind: it has what is read of each object there is.
type known[T any] struct {
	// read gives what is to be known of an object; ok is false if that is nothing.
	read func(obj *store.Object) (is T, ok bool)
	// poke is told that something has changed.
	poke func()

	// mu guards what follows.
	mu     sync.Mutex
	list   map[types.UID]seen[T]
	round  uint32
	synced bool
}

type seen[T any] struct {
	is    T
	round uint32
}

func newKnown[T any](read func(*store.Object) (T, bool), poke func()) *known[T] {
	return &known[T]{read: read, poke: poke, list: map[types.UID]seen[T]{}}
}

// Begin begins a list.
func (k *known[T]) Begin() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.round++
}

// Put takes note of an object.
func (k *known[T]) Put(obj *store.Object) {
	is, ok := k.read(obj)
	if !ok {
		k.Gone(obj)
		return
	}
	k.mu.Lock()
	old, there := k.list[obj.GetUID()]
	k.list[obj.GetUID()] = seen[T]{is, k.round}
	k.mu.Unlock()
	if !there || !reflect.DeepEqual(old.is, is) {
		k.poke()
	}
}

// Gone takes note that an object is no more.
func (k *known[T]) Gone(obj *store.Object) {
	k.mu.Lock()
	_, there := k.list[obj.GetUID()]
	delete(k.list, obj.GetUID())
	k.mu.Unlock()
	if there {
		k.poke()
	}
}

// Complete ends a list: what did not come is not there.
func (k *known[T]) Complete() {
	k.mu.Lock()
	for uid, one := range k.list {
		if one.round != k.round {
			delete(k.list, uid)
		}
	}
	k.synced = true
	k.mu.Unlock()
	k.poke()
}

// all gives what there is; ok is false as long as that is not known.
func (k *known[T]) all() (list []T, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, one := range k.list {
		list = append(list, one.is)
	}
	return list, k.synced
}

// several tells each of some followers.
type several []follower

// Begin begins a list.
func (s several) Begin() {
	for _, to := range s {
		to.Begin()
	}
}

// Put tells of an object.
func (s several) Put(obj *store.Object) {
	for _, to := range s {
		to.Put(obj)
	}
}

// Gone tells that an object is no more.
func (s several) Gone(obj *store.Object) {
	for _, to := range s {
		to.Gone(obj)
	}
}

// Complete ends a list.
func (s several) Complete() {
	for _, to := range s {
		to.Complete()
	}
}
