package kubeapi

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/internal/hint"
)

// kubeconfig is what is read of such a file (kubernetes.io, "kubeconfig (v1)").
type kubeconfig struct {
	CurrentContext string `json:"current-context"`
	Clusters       []struct {
		Name    string  `json:"name"`
		Cluster cluster `json:"cluster"`
	} `json:"clusters"`
	Users []struct {
		Name string `json:"name"`
		User user   `json:"user"`
	} `json:"users"`
	Contexts []struct {
		Name    string `json:"name"`
		Context struct {
			Cluster string `json:"cluster"`
			User    string `json:"user"`
		} `json:"context"`
	} `json:"contexts"`
}

type cluster struct {
	Server     string `json:"server"`
	ServerName string `json:"tls-server-name"`
	Insecure   bool   `json:"insecure-skip-tls-verify"`
	CAFile     string `json:"certificate-authority"`
	CAData     string `json:"certificate-authority-data"`
	ProxyURL   string `json:"proxy-url"`
}

type user struct {
	Token        string         `json:"token"`
	TokenFile    string         `json:"tokenFile"`
	CertFile     string         `json:"client-certificate"`
	CertData     string         `json:"client-certificate-data"`
	KeyFile      string         `json:"client-key"`
	KeyData      string         `json:"client-key-data"`
	Username     string         `json:"username"`
	Exec         map[string]any `json:"exec"`
	AuthProvider map[string]any `json:"auth-provider"`
	As           string         `json:"as"`
}

// Open gives the client of the cluster that a kubeconfig file names.
func Open(path string) (*Client, error) {
	client, err := open(path)
	if err != nil {
		return nil, hint.At("kubeconfig "+path+": ", err)
	}
	return client, nil
}

func open(path string) (*Client, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, &hint.Error{Problem: "cannot be read", Err: err, Remedy: "name a kubeconfig file that root can read"}
	}
	var file kubeconfig
	if err := yaml.Unmarshal(data, &file); err != nil {
		return nil, &hint.Error{Problem: "is no kubeconfig", Err: err, Remedy: "name a kubeconfig file of this cluster"}
	}
	where, who, err := file.current()
	if err != nil {
		return nil, err
	}
	at := reader{filepath.Dir(path)}
	transport, server, err := where.connect(at)
	if err != nil {
		return nil, err
	}
	token, err := who.identify(at, transport.TLSClientConfig)
	if err != nil {
		return nil, err
	}
	return &Client{server: server, token: token, http: &http.Client{Transport: transport}}, nil
}

// current gives cluster and user of the current context.
func (k kubeconfig) current() (where cluster, who user, err error) {
	const remedy = "choose one with kubectl config use-context"
	for _, c := range k.Contexts {
		if c.Name != k.CurrentContext {
			continue
		}
		found := false
		for _, one := range k.Clusters {
			if one.Name == c.Context.Cluster {
				where, found = one.Cluster, true
			}
		}
		if !found {
			return where, who, &hint.Error{Field: "clusters", Value: c.Context.Cluster, Problem: "is not there, and the current context names it", Remedy: remedy}
		}
		for _, one := range k.Users {
			if one.Name == c.Context.User {
				return where, one.User, nil
			}
		}
		return where, who, &hint.Error{Field: "users", Value: c.Context.User, Problem: "is not there, and the current context names it", Remedy: remedy}
	}
	return where, who, &hint.Error{Field: "current-context", Value: k.CurrentContext, Problem: "is no context of the file", Remedy: remedy}
}

// connect gives the transport to a cluster and its address.
func (c cluster) connect(at reader) (*http.Transport, *url.URL, error) {
	server, err := url.Parse(c.Server)
	if err != nil || server.Host == "" || server.Scheme != "https" && server.Scheme != "http" {
		return nil, nil, &hint.Error{Field: "cluster.server", Value: c.Server, Problem: "is no address of an API server", Remedy: "write it like https://10.0.0.1:6443"}
	}
	if c.ProxyURL != "" {
		return nil, nil, &hint.Error{Field: "cluster.proxy-url", Value: c.ProxyURL, Problem: "is not supported by the thin plugin", Remedy: "name a server that is reached directly, or run the node agent"}
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName, InsecureSkipVerify: c.Insecure} //nolint:gosec // the file's owner asks for it, by a name that says what it is
	ca, err := at.read("cluster.certificate-authority", c.CAFile, c.CAData)
	if err != nil {
		return nil, nil, err
	}
	if len(ca) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(ca) {
			return nil, nil, &hint.Error{Field: "cluster.certificate-authority", Problem: "has no certificate", Remedy: "put the cluster's CA there, in PEM"}
		}
	}
	return &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}, server, nil
}

// identify puts a certificate into config, or gives a token.
func (u user) identify(at reader, config *tls.Config) (token string, err error) {
	const remedy = "use a token, a tokenFile or a client certificate here, or run the node agent"
	for field, used := range map[string]bool{"exec": u.Exec != nil, "auth-provider": u.AuthProvider != nil, "username": u.Username != "", "as": u.As != ""} {
		if used {
			return "", &hint.Error{Field: "user." + field, Problem: "is not supported by the thin plugin", Remedy: remedy}
		}
	}
	cert, certErr := at.read("user.client-certificate", u.CertFile, u.CertData)
	key, keyErr := at.read("user.client-key", u.KeyFile, u.KeyData)
	if err := errors.Join(certErr, keyErr); err != nil {
		return "", err
	}
	if len(cert) > 0 || len(key) > 0 {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return "", &hint.Error{Field: "user.client-certificate", Problem: "does not go with its key", Err: err, Remedy: remedy}
		}
		config.Certificates = []tls.Certificate{pair}
	}
	if u.TokenFile == "" {
		return u.Token, nil
	}
	text, err := at.read("user.tokenFile", u.TokenFile, "")
	return strings.TrimSpace(string(text)), err
}

// reader reads files that a kubeconfig names: relative ones beside it.
type reader struct{ dir string }

// read gives what is in data, base64, or else in the file.
func (r reader) read(field, file, data string) ([]byte, error) {
	if data != "" {
		text, err := base64.StdEncoding.DecodeString(data)
		if err != nil {
			return nil, &hint.Error{Field: field + "-data", Problem: "is no base64", Err: err, Remedy: "make the kubeconfig anew"}
		}
		return text, nil
	}
	if file == "" {
		return nil, nil
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(r.dir, file)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, &hint.Error{Field: field, Value: file, Problem: "cannot be read", Err: err, Remedy: fmt.Sprintf("put the file there, or use %s-data", field)}
	}
	return text, nil
}
