package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
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
	request, err := http.NewRequestWithContext(ctx, method, l.Server+path, strings.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	if as != "" {
		request.Header.Set("Impersonate-User", as)
	}
	response, err := l.client.Do(request)
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
