package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/unary"
)

func logTo(t testing.TB) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// Paths of the API.
const (
	beats      = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
	leasesPath = "/apis/weft.network/v1alpha1/addressleases"
)

// try makes a request as one who may do everything, or as another user.
func (l *lab) try(ctx context.Context, method, path, body, as string) ([]byte, int, error) {
	return l.request(ctx, l.client, method, path, body, map[string]string{"Impersonate-User": as})
}

// showing makes a request as whose token it is.
func (l *lab) showing(token, method, path, body string) ([]byte, int, error) {
	l.t.Helper()
	config, err := l.TLS()
	if err != nil {
		l.t.Fatal(err)
	}
	config.Certificates = nil
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DialContext: l.Dial}}
	defer client.CloseIdleConnections()
	return l.request(l.t.Context(), client, method, path, body, map[string]string{"Authorization": "Bearer " + token})
}

func (l *lab) request(ctx context.Context, client *http.Client, method, path, body string, headers map[string]string) ([]byte, int, error) {
	request, err := http.NewRequestWithContext(ctx, method, l.Server+path, strings.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	for name, value := range headers {
		if value != "" {
			request.Header.Set(name, value)
		}
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, 0, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	return answer, response.StatusCode, err
}

// ask makes a request and reads the answer, unless there is no such object.
func (l *lab) ask(method, path, body string, into any) {
	l.t.Helper()
	answer, code, err := l.try(l.t.Context(), method, path, body, "")
	if err == nil && code < 300 && into != nil {
		err = json.Unmarshal(answer, into)
	}
	if err != nil || code >= 300 && code != http.StatusNotFound {
		l.t.Fatalf("%s %s: %d, %v\n%s", method, path, code, err, answer)
	}
}

// create makes an object, as soon as what it needs is there, and gives its UID.
func (l *lab) create(path, body string) (uid types.UID) {
	l.t.Helper()
	l.eventually("create in "+path, func() error {
		answer, code, err := l.try(l.t.Context(), "POST", path, body, "")
		var made struct {
			Metadata struct {
				UID types.UID `json:"uid"`
			} `json:"metadata"`
		}
		if err == nil && code >= 300 && code != http.StatusConflict {
			err = fmt.Errorf("%d: %s", code, answer)
		}
		if err == nil {
			err = json.Unmarshal(answer, &made)
		}
		uid = made.Metadata.UID
		return err
	})
	return uid
}

// token gives one of a ServiceAccount, with what the spec of the request has.
func (l *lab) token(account, spec string) string {
	l.t.Helper()
	var made struct {
		Status struct {
			Token string `json:"token"`
		} `json:"status"`
	}
	l.ask("POST", "/api/v1/namespaces/kube-system/serviceaccounts/"+account+"/token", `{"spec":{`+spec+`}}`, &made)
	return made.Status.Token
}

// Get reads a ConfigMap, as an agent may.
func (l *lab) Get(ctx context.Context, _ schema.GroupVersionKind, key store.Key) (*store.Object, error) {
	answer, code, err := l.try(ctx, "GET", "/api/v1/namespaces/"+key.Namespace+"/configmaps/"+key.Name, "", "system:serviceaccount:kube-system:weft")
	if err == nil && code >= 300 {
		err = fmt.Errorf("%d: %s", code, answer)
	}
	obj := &store.Object{}
	if err == nil {
		err = json.Unmarshal(answer, &obj.Object)
	}
	return obj, err
}

// asking gives a client that shows a token.
func (l *lab) asking(token string) *unary.Client {
	l.t.Helper()
	config, err := l.Get(l.t.Context(), configMapKind, store.Key{Namespace: "kube-system", Name: adviser.ConfigMap})
	if err != nil {
		l.t.Fatal(err)
	}
	data, _ := config.Object["data"].(map[string]any)
	trusted := x509.NewCertPool()
	if authority, _ := data["ca.crt"].(string); !trusted.AppendCertsFromPEM([]byte(authority)) {
		l.t.Fatalf("no certificate in %v", data)
	}
	address, _ := data["address"].(string)
	client := unary.NewClient(unary.Service{
		Address: address, Dial: l.Dial, Token: func() (string, error) { return token, nil },
		TLS: &tls.Config{RootCAs: trusted, ServerName: adviser.ServerName, MinVersion: tls.VersionTLS13},
	})
	l.t.Cleanup(client.Close)
	return client
}

// strangers ask without being weft's agent of a node.
func (l *lab) strangers() {
	l.t.Helper()
	const bound, audience = `"boundObjectRef":{"apiVersion":"v1","kind":"Pod","name":"agent"}`, `"audiences":["weft-adviser"]`
	for name, tt := range map[string]struct{ token, want string }{
		"nobody":             {"", "status 16: no token"},
		"garbage":            {"abc", "status 16: the token is not good"},
		"another audience":   {l.token("weft", bound), "status 16"},
		"no node":            {l.token("weft", audience), "status 7"},
		"another account":    {l.token("weft-controller", audience), "status 7"},
		"an agent of a node": {l.token("weft", audience+","+bound), ""},
	} {
		_, err := l.asking(tt.token).Call(l.t.Context(), adviser.Method, adviser.Question{Scope: "other", Spans: wide}.Bytes())
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			l.t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	// An agent tells of an address that a stranger uses.
	answer, err := l.asking(l.token("weft", audience+","+bound)).Call(l.t.Context(), adviser.Method, adviser.Question{
		Scope: "third", Spans: wide, Conflicts: []netip.Addr{wide[0].First},
	}.Bytes())
	if err != nil {
		l.t.Fatal(err)
	}
	if got, err := adviser.ReadAnswer(answer); err != nil || len(got) != 1 || got[0] != wide[0].First.Next() {
		l.t.Errorf("beside a stranger: got %v, %v", got, err)
	}
}

// agentsTellOfTheirNode: how far a node is in an epoch is written by the agent of that
// node, whose token says which one it is, and by nobody's else; the cluster's by the
// controller.
func (l *lab) agentsTellOfTheirNode() {
	l.t.Helper()
	epoch := func(name, node string) string {
		return fmt.Sprintf(`{"apiVersion":"weft.network/v1alpha1","kind":"AddressEpoch","metadata":{"name":%q},"spec":{"epoch":1,"stage":"Open","node":%q}}`, name, node)
	}
	const bound = `"boundObjectRef":{"apiVersion":"v1","kind":"Pod","name":"agent"}`
	const ofNode = `weft's agent of node "n1" may write the AddressEpoch of that node only`
	l.create("/api/v1/namespaces/kube-system/serviceaccounts", `{"metadata":{"name":"another"}}`)
	agent, unbound, another := l.token("weft", bound), l.token("weft", ""), l.token("another", "")
	l.attempts("AddressEpoch", epochsPath, []attempt{
		{"another node's", agent, "POST", "", epoch("node.n2", "n2"), ofNode},
		{"another node's, by its own name", agent, "POST", "", epoch("node.n1", "n2"), ofNode},
		{"its own, by another name", agent, "POST", "", epoch("node.n2", "n1"), ofNode},
		{"the cluster's", agent, "PATCH", "/cluster", `{"spec":{"epoch":7}}`, "cannot patch"},
		{"its own", agent, "POST", "", epoch("node.n1", "n1"), ""},
		{"its own, made another's", agent, "PUT", "/node.n1", epoch("node.n1", "n2"), ofNode},
		{"the cluster's, whole", agent, "PUT", "/cluster", epoch("cluster", ""), ofNode},
		{"its own to be gone", agent, "DELETE", "/node.n1", "", "cannot delete"},
		{"of no node", unbound, "POST", "", epoch("node.n3", "n3"), `weft's agent of node "" may write`},
		{"another account", another, "POST", "", epoch("node.n1", "n1"), `kube-system:another" cannot create`},
	})
	l.ask("DELETE", epochsPath+"/node.n1", "", nil)
}

// attempt is a request, and what the error says; empty: there is none.
type attempt struct{ who, token, method, path, body, want string }

// attempts makes requests for objects of a kind.
func (l *lab) attempts(kind, base string, list []attempt) {
	l.t.Helper()
	for _, tt := range list {
		l.eventually(kind+", "+tt.who, func() error { // a policy takes effect some time after it was made
			body := tt.body
			if tt.method == "PUT" {
				answer, _, err := l.try(l.t.Context(), "GET", base+tt.path, "", "")
				var is struct {
					Metadata struct {
						ResourceVersion string `json:"resourceVersion"`
					} `json:"metadata"`
				}
				if err = errors.Join(err, json.Unmarshal(answer, &is)); err != nil {
					return err
				}
				body = strings.Replace(body, `"metadata":{`, fmt.Sprintf(`"metadata":{"resourceVersion":%q,`, is.Metadata.ResourceVersion), 1)
			}
			answer, code, err := l.showing(tt.token, tt.method, base+tt.path, body)
			var said struct {
				Message string `json:"message"`
			}
			if err = errors.Join(err, json.Unmarshal(answer, &said)); err != nil {
				return err
			}
			if allowed := code < 300; allowed != (tt.want == "") || !strings.Contains(said.Message, tt.want) {
				return fmt.Errorf("got %d, %q, want %q", code, said.Message, tt.want)
			}
			return nil
		})
	}
}

// agentsOfClaims: the address of a claim is put in quarantine by the agent of the node
// whose Pod is the first to have it, and by nobody later.
func (l *lab) agentsOfClaims() {
	l.t.Helper()
	lease := func(name, more string) string {
		return fmt.Sprintf(`{"apiVersion":"weft.network/v1alpha1","kind":"AddressLease","metadata":{"name":%q},"spec":{"ip":%[1]q,"scope":"claims",%s}}`, name, more)
	}
	claims := func(node string) string {
		return fmt.Sprintf(`"owner":{"kind":"IPAMClaim","namespace":"a","name":"c"},"holders":[{"node":%q,"sandbox":"s"}]`, node)
	}
	stranger := func(node string) string {
		return fmt.Sprintf(`"owner":{"kind":"Quarantine","name":"02:00:00:00:00:99"},"node":%q`, node)
	}
	const untried, ofNode = `"untried":true,`, `weft's agent of node "n1" may hold AddressLeases of that node only`
	agent := l.token("weft", `"boundObjectRef":{"apiVersion":"v1","kind":"Pod","name":"agent"}`)
	const one, two, others = "10.200.0.1", "10.200.0.2", "10.200.0.3"
	l.create(leasesPath, lease(others, untried+claims("n2")))
	l.attempts("AddressLease", leasesPath, []attempt{
		{"of a claim", agent, "POST", "", lease(one, untried+claims("n1")), ""},
		{"of another claim", agent, "POST", "", lease(two, untried+claims("n1")), ""},
		{"tried", agent, "PUT", "/" + two, lease(two, claims("n1")), ""},
		{"tried, a stranger's", agent, "PUT", "/" + two, lease(two, stranger("n1")), ofNode},
		{"untried, a stranger's of another node", agent, "PUT", "/" + one, lease(one, stranger("n2")), ofNode},
		{"untried, another claim's", agent, "PUT", "/" + one, lease(one, strings.Replace(untried+claims("n1"), `"c"`, `"d"`, 1)), ofNode},
		{"untried, and another node's Pod has it", agent, "PUT", "/" + others, lease(others, stranger("n1")), ofNode},
		{"untried, a stranger's", agent, "PUT", "/" + one, lease(one, stranger("n1")), ""},
	})
	for _, name := range []string{one, two, others} {
		l.ask("DELETE", leasesPath+"/"+name, "", nil)
	}
}
