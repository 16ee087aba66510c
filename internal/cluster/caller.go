package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/unary"
)

var tokenReviewKind = schema.GroupVersionKind{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenReview"}

// nodeNameKey is where the API server says which node a token is bound to
// (k8s.io/apiserver, serviceaccount.NodeNameKey).
const nodeNameKey = "authentication.kubernetes.io/node-name"

const (
	// What the API server said of a token is believed for so long: yes and no.
	trustFor, distrustFor = 10 * time.Minute, 10 * time.Second
	// maxCallers bounds how many tokens are remembered.
	maxCallers = 20_000
)

// callers knows the nodes that ask, by the tokens they show.
type callers struct {
	api  store.Store
	user string // the agents'

	// mu guards known, by the hash of a token.
	mu    sync.Mutex
	known map[[sha256.Size]byte]caller
}

type caller struct {
	node  string
	err   error
	until time.Time
}

func newCallers(api store.Store, namespace, account string) *callers {
	return &callers{api: api, user: "system:serviceaccount:" + namespace + ":" + account, known: map[[sha256.Size]byte]caller{}}
}

// node gives the node whose agent shows a token.
func (c *callers) node(ctx context.Context, token string) (string, error) {
	if token == "" {
		return "", &unary.Error{Code: unary.Unauthenticated, Err: errors.New("no token was shown")}
	}
	hash := sha256.Sum256([]byte(token))
	c.mu.Lock()
	is, ok := c.known[hash]
	c.mu.Unlock()
	if ok && time.Now().Before(is.until) {
		return is.node, is.err
	}
	node, err := c.review(ctx, token)
	if unavailable, ok := errors.AsType[*unary.Error](err); ok && unavailable.Code == unary.Unavailable {
		if is.node != "" { // it was good, and the API server does not say that it is not
			return is.node, nil
		}
		return "", err
	}
	is = caller{node, err, time.Now().Add(trustFor)}
	if err != nil {
		is.until = time.Now().Add(distrustFor)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= maxCallers {
		maps.DeleteFunc(c.known, func(_ [sha256.Size]byte, is caller) bool { return time.Now().After(is.until) })
	}
	if len(c.known) >= maxCallers {
		clear(c.known)
	}
	c.known[hash] = is
	return node, err
}

// review asks the API server whose a token is.
func (c *callers) review(ctx context.Context, token string) (string, error) {
	ask := &store.Object{Object: map[string]any{
		"metadata": map[string]any{"name": "adviser"},
		"spec":     map[string]any{"token": token, "audiences": []any{adviser.Audience}},
	}}
	ask.SetGroupVersionKind(tokenReviewKind)
	said, err := c.api.Create(ctx, ask)
	if err != nil {
		return "", &unary.Error{Code: unary.Unavailable, Err: fmt.Errorf("ask whose the token is: %w", err)}
	}
	status, _ := said.Object["status"].(map[string]any)
	user, _ := status["user"].(map[string]any)
	if status["authenticated"] != true {
		return "", &unary.Error{Code: unary.Unauthenticated, Err: fmt.Errorf("the token is not good: %v", status["error"])}
	}
	extra, _ := user["extra"].(map[string]any)
	nodes, _ := extra[nodeNameKey].([]any)
	if user["username"] != c.user || len(nodes) != 1 {
		return "", &unary.Error{Code: unary.PermissionDenied, Err: fmt.Errorf("%v is not weft's agent of a node", user["username"])}
	}
	return fmt.Sprint(nodes[0]), nil
}
