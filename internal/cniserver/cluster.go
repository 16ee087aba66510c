package cniserver

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/cniwire"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/record"
)

// How long one question to the API server may take, the writing of
// network-status with all its tries, and the one try of an event.
const (
	questionPatience = 15 * time.Second
	statusPatience   = 5 * time.Second
	eventPatience    = 2 * time.Second
	statusPause      = 200 * time.Millisecond
)

// cluster asks the API server on behalf of one call. What the call will want is
// asked for before the records are owned, so that calls do not wait for each
// other's questions.
type cluster struct {
	client *kubeapi.Client
	log    *slog.Logger

	// mu guards what has been answered.
	mu          sync.Mutex
	annotations map[string]string
	definitions map[string]answer
}

type answer struct {
	nad *netattach.NetworkAttachmentDefinition
	err error
}

var (
	_ Pods           = (*cluster)(nil)
	_ chain.Networks = (*cluster)(nil)
	_ chain.Claims   = (*cluster)(nil)
)

func newCluster(client *kubeapi.Client, log *slog.Logger) *cluster {
	return &cluster{client: client, log: log, definitions: map[string]answer{}}
}

// ask asks for all that an ADD will want. What is wrong with the configuration
// or the annotations is for the ADD to tell.
func (c *cluster) ask(ctx context.Context, request cniwire.Request) error {
	conf, _, err := readConfig(request.Config)
	if err != nil {
		return nil //nolint:nilerr // the ADD reads it again, and says so
	}
	args := parseArgs(request.Args)
	annotations, told := conf.annotations()
	if !told && args.name != "" {
		if annotations, err = c.Annotations(ctx, args.namespace, args.name, args.uid); err != nil {
			return err
		}
	}
	wanted, _ := netattach.ParseNetworks(annotations[netattach.NetworksAnnotation], args.namespace)
	if text := annotations[netattach.DefaultNetworkAnnotation]; text != "" {
		if chosen, err := netattach.ParseDefaultNetwork(text, conf.namespace()); err == nil && chosen != nil {
			wanted = append(wanted, *chosen)
		}
	}
	network, _ := conf.defaultNetwork(files{})
	list, _ := conf.everywhere(files{}, args.namespace)
	if network != nil {
		list = append(list, *network)
	}
	for _, one := range list {
		if one.Name != "" {
			wanted = append(wanted, netattach.Selection{Namespace: one.Namespace, Name: one.Name})
		}
	}
	var group sync.WaitGroup
	asked := map[string]bool{}
	for _, s := range wanted {
		if !asked[s.FullName()] {
			asked[s.FullName()] = true
			group.Go(func() { _, _ = c.Definition(ctx, s.Namespace, s.Name) }) // the ADD asks again, and gets what came
		}
	}
	group.Wait()
	return nil
}

// Annotations of a Pod.
func (c *cluster) Annotations(ctx context.Context, namespace, name, uid string) (map[string]string, error) {
	c.mu.Lock()
	known := c.annotations
	c.mu.Unlock()
	if known != nil {
		return known, nil
	}
	var pod struct {
		Metadata struct {
			UID         string            `json:"uid"`
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	asking, cancel := context.WithTimeout(ctx, questionPatience)
	defer cancel()
	if err := c.client.Get(asking, podPath(namespace, name), nil, &pod); err != nil {
		return nil, unanswered(err)
	}
	const mirrored = "kubernetes.io/config.mirror" // the kubelet's own UID of a static Pod (k8s.io/kubernetes/pkg/kubelet/types)
	if meta := pod.Metadata; uid != "" && meta.UID != uid && meta.Annotations[mirrored] != uid {
		return nil, &hint.Error{
			Field: "Pod " + namespace + "/" + name, Value: uid, Problem: "has been replaced by one with UID " + meta.UID,
			Remedy: "nothing: the runtime ends the old one's sandbox", Err: ErrTryAgain,
		}
	}
	if pod.Metadata.Annotations == nil {
		pod.Metadata.Annotations = map[string]string{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.annotations = pod.Metadata.Annotations
	return c.annotations, nil
}

// Definition gives a network, or nil if there is none.
func (c *cluster) Definition(ctx context.Context, namespace, name string) (*netattach.NetworkAttachmentDefinition, error) {
	key := namespace + "/" + name
	c.mu.Lock()
	known, ok := c.definitions[key]
	c.mu.Unlock()
	if ok {
		return known.nad, known.err
	}
	var got answer
	var obj map[string]any
	asking, cancel := context.WithTimeout(ctx, questionPatience)
	defer cancel()
	err := c.client.Get(asking, networkPath(namespace)+"/"+url.PathEscape(name), nil, &obj)
	switch {
	case errors.Is(err, kubeapi.ErrNotFound):
	case err != nil:
		got.err = unanswered(err)
	default:
		got.nad, got.err = netattach.FromObject(obj)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.definitions[key] = got
	return got.nad, got.err
}

// Namespaces lists where networks of that name are, for a better remedy: none if
// the user may not look.
func (c *cluster) Namespaces(ctx context.Context, name string) ([]string, error) {
	var list struct {
		Items []struct {
			Metadata struct {
				Namespace string `json:"namespace"`
			} `json:"metadata"`
		} `json:"items"`
	}
	asking, cancel := context.WithTimeout(ctx, questionPatience)
	defer cancel()
	query := url.Values{"fieldSelector": {"metadata.name=" + name}}
	if err := c.client.Get(asking, networkPath(""), query, &list); err != nil {
		return nil, nil //nolint:nilerr // the caller says already that there is no such network
	}
	var namespaces []string
	for _, item := range list.Items {
		namespaces = append(namespaces, item.Metadata.Namespace)
	}
	return namespaces, nil
}

// Claim refuses: nobody would keep the addresses of a claim when its Pod ends.
func (c *cluster) Claim(_ context.Context, namespace, name string) (*netattach.IPAMClaim, error) {
	return nil, &hint.Error{
		Field: "ipam-claim-reference", Value: namespace + "/" + name, Problem: "cannot be kept by the thin plugin", Remedy: "run the node agent, or drop the reference",
	}
}

// Settle and Refused are of claims that there are none of here.
func (*cluster) Settle(context.Context, *netattach.IPAMClaim) error { return nil }
func (*cluster) Refused(*netattach.IPAMClaim, string, error)        {}

// writeStatus tells in the Pod's network-status what it has. That it could not
// is no reason to fail a Pod that works.
func (c *cluster) writeStatus(ctx context.Context, box *record.Sandbox) {
	if box.Pod.Name == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	statuses, err := chain.Status(box)
	var text string
	if err == nil {
		text, err = netattach.MarshalStatus(statuses)
	}
	if err == nil {
		metadata := map[string]any{"annotations": map[string]string{netattach.StatusAnnotation: text}}
		if box.Pod.UID != "" {
			metadata["uid"] = box.Pod.UID
		}
		err = c.patch(ctx, podPath(box.Pod.Namespace, box.Pod.Name), map[string]any{"metadata": metadata})
	}
	if err != nil {
		c.log.Warn("network-status could not be written; the Pod has its networks all the same", "pod", box.Pod.String(), "err", err)
	}
}

// tell writes an event; what cannot be told is no reason to fail a Pod.
func (c *cluster) tell(ctx context.Context, event Event) {
	ctx, cancel := context.WithTimeout(ctx, eventPatience)
	defer cancel()
	if err := c.client.Create(ctx, "/api/v1/namespaces/"+url.PathEscape(event.Home())+"/events", event.Object(time.Now())); err != nil {
		c.log.Warn("an event could not be written", "about", event.Namespace+"/"+event.Name, "reason", event.Reason, "err", err)
	}
}

// patch tries until ctx ends, if another time may help.
func (c *cluster) patch(ctx context.Context, path string, changes any) error {
	for pause := statusPause; ; pause *= 2 {
		err := c.client.Patch(ctx, path, changes)
		if !errors.Is(err, kubeapi.ErrUnanswered) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

func podPath(namespace, name string) string {
	return "/api/v1/namespaces/" + url.PathEscape(namespace) + "/pods/" + url.PathEscape(name)
}

// networkPath is where the networks of a namespace are; of all, if it is empty.
func networkPath(namespace string) string {
	const group = "/apis/k8s.cni.cncf.io/v1"
	if namespace == "" {
		return group + "/network-attachment-definitions"
	}
	return group + "/namespaces/" + url.PathEscape(namespace) + "/network-attachment-definitions"
}

// unanswered gives an error of the client as Unanswered does.
func unanswered(err error) error { return Unanswered(err, errors.Is(err, kubeapi.ErrNotFound)) }
