package kubeapi

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

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
	AsGroups     []string       `json:"as-groups"`
}

// Open gives the client of the cluster that a kubeconfig file names.
func Open(path string, opt Options) (*Client, error) {
	return open(opt, func() (*session, error) {
		s, err := read(path, opt)
		if err != nil {
			return nil, hint.At("kubeconfig "+path+": ", err)
		}
		return s, nil
	})
}

// accountDir is where a Pod has its service account (kubernetes.io, "Accessing
// the Kubernetes API from a Pod").
const accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// InCluster gives the client of the cluster that this process is a Pod of, as the
// Pod's service account.
func InCluster(opt Options) (*Client, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, &hint.Error{Field: "KUBERNETES_SERVICE_HOST", Problem: "is not set, so this is no Pod", Remedy: "name a kubeconfig file"}
	}
	where := cluster{Server: "https://" + net.JoinHostPort(host, port), CAFile: filepath.Join(accountDir, "ca.crt")}
	who := user{TokenFile: filepath.Join(accountDir, "token")}
	return open(opt, func() (*session, error) { return newSession(where, who, files{accountDir}, opt) })
}

// open gives a client that has been able to read its files.
func open(opt Options, access func() (*session, error)) (*Client, error) {
	s, err := access()
	if err != nil {
		return nil, err
	}
	return &Client{access: access, opt: opt, session: s}, nil
}

func read(path string, opt Options) (*session, error) {
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
	return newSession(where, who, files{filepath.Dir(path)}, opt)
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

// newSession reads what a cluster and a user say, and the files they name.
func newSession(where cluster, who user, at files, opt Options) (*session, error) {
	s := &session{transport: newTransport(opt), header: http.Header{"Accept": {JSON}, "User-Agent": {opt.Agent}}, read: time.Now()}
	if err := s.connect(where, at); err != nil {
		return nil, err
	}
	if err := s.identify(who, at); err != nil {
		return nil, err
	}
	if opt.As != "" && who.As == "" {
		s.header.Set("Impersonate-User", opt.As)
	}
	return s, nil
}

// connect says how a cluster is reached.
func (s *session) connect(c cluster, at files) error {
	server, err := url.Parse(c.Server)
	if err != nil || server.Host == "" || server.Scheme != "https" && server.Scheme != "http" {
		return &hint.Error{Field: "cluster.server", Value: c.Server, Problem: "is no address of an API server", Remedy: "write it like https://10.0.0.1:6443"}
	}
	server.Path = strings.TrimSuffix(server.Path, "/")
	if c.ProxyURL != "" {
		proxy, err := url.Parse(c.ProxyURL)
		if err != nil || proxy.Host == "" {
			return &hint.Error{Field: "cluster.proxy-url", Value: c.ProxyURL, Problem: "is no address of a proxy", Remedy: "write it like http://10.0.0.1:3128"}
		}
		s.transport.Proxy = http.ProxyURL(proxy)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName, InsecureSkipVerify: c.Insecure} //nolint:gosec // the file's owner asks for it, by a name that says what it is
	ca, err := at.read("cluster.certificate-authority", c.CAFile, c.CAData)
	if err != nil {
		return err
	}
	if len(ca) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(ca) {
			return &hint.Error{Field: "cluster.certificate-authority", Problem: "has no certificate", Remedy: "put the cluster's CA there, in PEM"}
		}
	}
	s.server, s.transport.TLSClientConfig = server, config
	return nil
}

// identify says who asks, by a certificate or a token.
func (s *session) identify(u user, at files) error {
	const remedy = "use a token, a tokenFile or a client certificate here"
	for field, used := range map[string]bool{"exec": u.Exec != nil, "auth-provider": u.AuthProvider != nil, "username": u.Username != ""} {
		if used {
			return &hint.Error{Field: "user." + field, Problem: "is not supported by weft", Remedy: remedy}
		}
	}
	cert, certErr := at.read("user.client-certificate", u.CertFile, u.CertData)
	key, keyErr := at.read("user.client-key", u.KeyFile, u.KeyData)
	token, tokenErr := at.read("user.tokenFile", u.TokenFile, "")
	if err := errors.Join(certErr, keyErr, tokenErr); err != nil {
		return err
	}
	if len(cert) > 0 || len(key) > 0 {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return &hint.Error{Field: "user.client-certificate", Problem: "does not go with its key", Err: err, Remedy: remedy}
		}
		s.transport.TLSClientConfig.Certificates = []tls.Certificate{pair}
	}
	if u.TokenFile != "" {
		u.Token, s.tokenFile = strings.TrimSpace(string(token)), at.path(u.TokenFile)
	}
	if u.Token != "" {
		s.header.Set("Authorization", "Bearer "+u.Token)
	}
	if u.As != "" {
		s.header.Set("Impersonate-User", u.As)
		s.header["Impersonate-Group"] = u.AsGroups
	}
	return nil
}

// files are those that a kubeconfig names: relative ones are in dir.
type files struct{ dir string }

func (f files) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(f.dir, name)
}

// read gives what is in data, base64, or else in the file.
func (f files) read(field, file, data string) ([]byte, error) {
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
	file = f.path(file)
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, &hint.Error{Field: field, Value: file, Problem: "cannot be read", Err: err, Remedy: fmt.Sprintf("put the file there, or use %s-data", field)}
	}
	return text, nil
}
