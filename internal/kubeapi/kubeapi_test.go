package kubeapi

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/hint"
)

// server answers with what it was asked and by whom.
func server(t *testing.T) (address string, ca []byte) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := r.Header.Get("Authorization")
		if len(r.TLS.PeerCertificates) > 0 {
			who = "certificate"
		}
		code := http.StatusOK
		if _, err := fmt.Sscanf(r.URL.Path, "/code/%d", &code); err == nil {
			w.WriteHeader(code)
			fmt.Fprintf(w, `{"kind":"Status","message":%q,"reason":%q,"details":{"causes":[{"field":"metadata.uid"}]}}`, "said "+strings.Repeat("much ", 100), filepath.Base(r.URL.Path))
			return
		}
		fmt.Fprintf(w, `{"path":%q,"who":%q}`, r.URL.Path, who)
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func keyPair(t *testing.T) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: text})
}

const file = `apiVersion: v1
kind: Config
current-context: here
contexts:
- {name: elsewhere, context: {cluster: x, user: x}}
- {name: here, context: {cluster: c, user: u, namespace: n}}
clusters:
- {name: c, cluster: {server: %q, %s}}
users:
- {name: u, user: {%s}}
`

func TestOpen(t *testing.T) {
	address, ca := server(t)
	cert, key := keyPair(t)
	dir := t.TempDir()
	for name, content := range map[string][]byte{"ca.crt": ca, "cert": cert, "key": key, "token": []byte("from-file\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data := base64.StdEncoding.EncodeToString
	path := filepath.Join(dir, "kubeconfig")
	const beside = "certificate-authority: ca.crt"
	for _, tt := range []struct {
		name, address, cluster, user string
		who                          string // who the server sees
		want                         string // or the error
	}{
		{name: "token", cluster: beside, user: "token: abc", who: "Bearer abc"},
		{name: "token file beside", cluster: beside, user: "tokenFile: token", who: "Bearer from-file"},
		{name: "data", cluster: "certificate-authority-data: " + data(ca), user: "client-certificate-data: " + data(cert) + ", client-key-data: " + data(key), who: "certificate"},
		{name: "files", cluster: "certificate-authority: " + dir + "/ca.crt", user: "client-certificate: cert, client-key: key", who: "certificate"},
		{name: "insecure", cluster: "insecure-skip-tls-verify: true", user: "", who: ""},
		{name: "another name", cluster: beside + ", tls-server-name: example.com", user: "token: abc", who: "Bearer abc"},
		{name: "no address", address: "10.0.0.1", want: `cluster.server "10.0.0.1": is no address of an API server; write it like`},
		{name: "proxy", cluster: "proxy-url: p", want: `cluster.proxy-url "p": is no address of a proxy`},
		{name: "no CA", cluster: "certificate-authority: key", want: "cluster.certificate-authority: has no certificate"},
		{name: "CA that is not there", cluster: "certificate-authority: gone", want: `cluster.certificate-authority "` + dir + `/gone": cannot be read`},
		{name: "CA no base64", cluster: "certificate-authority-data: '%'", want: "cluster.certificate-authority-data: is no base64"},
		{name: "exec", cluster: beside, user: "exec: {command: aws}", want: "user.exec: is not supported by weft; use a token"},
		{name: "password", cluster: beside, user: "username: me", want: "user.username: is not supported"},
		{name: "certificate without key", cluster: beside, user: "client-certificate: cert", want: "user.client-certificate: does not go with its key"},
		{name: "no token file", cluster: beside, user: "tokenFile: gone", want: `user.tokenFile "` + dir + `/gone": cannot be read`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.address == "" {
				tt.address = address
			}
			if err := os.WriteFile(path, fmt.Appendf(nil, file, tt.address, tt.cluster, tt.user), 0o600); err != nil {
				t.Fatal(err)
			}
			client, err := Open(path, Options{})
			if tt.want != "" {
				wantHint(t, err, "kubeconfig "+path+": "+tt.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got struct{ Path, Who string }
			if err := client.Get(t.Context(), "/api/v1/namespaces/a/pods/b", nil, &got); err != nil {
				t.Fatal(err)
			}
			if got.Who != tt.who || got.Path != "/api/v1/namespaces/a/pods/b" {
				t.Errorf("the server was asked for %s by %q, want %q", got.Path, got.Who, tt.who)
			}
		})
	}
	for text, want := range map[string]string{
		"- a": "is no kubeconfig", "current-context: x": `current-context "x": is no context of the file`,
		"current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]":                        `clusters "c": is not there`,
		"current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\nclusters: [{name: c}]": `users "u": is not there`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path, Options{})
		wantHint(t, err, "kubeconfig "+path+": "+want)
	}
	_, err := Open(filepath.Join(dir, "nothing"), Options{})
	wantHint(t, err, "kubeconfig "+dir+"/nothing: cannot be read")
}

func wantHint(t *testing.T, err error, want string) {
	t.Helper()
	h, ok := errors.AsType[*hint.Error](err)
	if !ok || h.Remedy == "" || !strings.HasPrefix(strings.ReplaceAll(err.Error(), ": : ", ": "), want) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestAnswers(t *testing.T) {
	address, ca := server(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(path, fmt.Appendf(nil, file, address, "certificate-authority-data: "+base64.StdEncoding.EncodeToString(ca), "token: abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for code, want := range map[int]error{404: ErrNotFound, 409: ErrUnanswered, 422: ErrConflict, 429: ErrUnanswered, 500: ErrUnanswered, 503: ErrUnanswered} {
		if err := client.Patch(t.Context(), fmt.Sprintf("/code/%d", code), map[string]any{}); !errors.Is(err, want) || len(err.Error()) > 400 {
			t.Errorf("%d is %v, want %v", code, err, want)
		}
	}
	for at, want := range map[string]error{"/code/409/AlreadyExists": nil, "/code/409/Conflict": ErrUnanswered, "/code/201/": nil, "/code/404/": ErrNotFound} {
		if err := client.Create(t.Context(), at, map[string]any{}); !errors.Is(err, want) {
			t.Errorf("create at %s is %v, want %v", at, err, want)
		}
	}
	for _, code := range []int{401, 403} {
		err := client.Get(t.Context(), fmt.Sprintf("/code/%d", code), nil, nil)
		if h, ok := errors.AsType[*hint.Error](err); !ok || h.Remedy == "" {
			t.Errorf("%d is %v, want a hint", code, err)
		}
	}
	away := fmt.Appendf(nil, file, "https://127.0.0.1:1", "insecure-skip-tls-verify: true", "")
	if err := os.WriteFile(path, away, 0o600); err != nil {
		t.Fatal(err)
	}
	if client, err = Open(path, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := client.Get(t.Context(), "/", nil, nil); !errors.Is(err, ErrUnanswered) {
		t.Errorf("a server that is away gives %v", err)
	}
}
