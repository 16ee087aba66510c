package kubelab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs the certificates of one cluster.
type authority struct {
	dir  string // where files go
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// identity is whom a certificate names: a user and its groups, or a server and
// its addresses.
type identity struct {
	file   string // without .crt and .key
	name   string
	groups []string
	hosts  []string // set for a server
}

func newAuthority(dir string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &authority{dir: dir, key: key}
	template := template("kubelab")
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	if err := a.write("ca.key", "EC PRIVATE KEY", key); err != nil {
		return nil, err
	}
	return a, a.writePEM("ca.crt", "CERTIFICATE", der)
}

func template(name string, groups ...string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // the kernel's randomness does not fail
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name, Organization: groups},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
}

// issue writes FILE.crt and FILE.key for id.
func (a *authority) issue(id identity) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := template(id.name, id.groups...)
	template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(id.hosts) > 0 {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, host := range id.hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("certificate of %s: %w", id.name, err)
	}
	if err := a.write(id.file+".key", "EC PRIVATE KEY", key); err != nil {
		return err
	}
	return a.writePEM(id.file+".crt", "CERTIFICATE", der)
}

// serviceAccountKey writes the pair that signs service account tokens.
func (a *authority) serviceAccountKey() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := a.writePEM("sa.pub", "PUBLIC KEY", public); err != nil {
		return err
	}
	return a.write("sa.key", "EC PRIVATE KEY", key)
}

func (a *authority) write(file, kind string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return a.writePEM(file, kind, der)
}

func (a *authority) writePEM(file, kind string, der []byte) error {
	return os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// kubeconfig writes FILE.kubeconfig for the identity issued as file.
func (a *authority) kubeconfig(file string) error {
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: kubelab, cluster: {server: "%[1]s", certificate-authority: "%[2]s/ca.crt"}}]
users: [{name: me, user: {client-certificate: "%[2]s/%[3]s.crt", client-key: "%[2]s/%[3]s.key"}}]
contexts: [{name: kubelab, context: {cluster: kubelab, user: me}}]
current-context: kubelab
`, server, a.dir, file)
	return os.WriteFile(filepath.Join(a.dir, file+".kubeconfig"), []byte(text), 0o600)
}
