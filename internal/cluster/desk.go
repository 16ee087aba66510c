package cluster

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/unary"
)

var configMapKind = schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}

const (
	// A certificate is good for so long, and used for less. Clocks may be wrong by a
	// day.
	certificateLife = 90 * 24 * time.Hour
	certificateUse  = 30 * 24 * time.Hour
	clockSkew       = 24 * time.Hour
	// publishEvery is how often it is seen to that nodes find the adviser.
	publishEvery = time.Minute
	// questionPatience is for one question.
	questionPatience = 5 * time.Second
)

// desk is where nodes ask for advice: at the leader, whose address and certificate
// stand in a ConfigMap. The certificate's key is never written anywhere: the next
// leader makes its own, as this one does in time, and nodes whose call fails look
// into the ConfigMap again.
type desk struct {
	*controller
	*state
	writer  store.Store
	callers *callers
	began   time.Time

	certificate atomic.Pointer[tls.Certificate]
}

// String names the task.
func (*desk) String() string { return "adviser" }

// Run advises until ctx ends.
func (d *desk) Run(ctx context.Context) error {
	d.began = time.Now()
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", d.Adviser)
	if err != nil {
		return fmt.Errorf("listen for nodes: %w", err)
	}
	authority, err := d.renew()
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	server := &http.Server{
		Handler:     unary.Handler(map[string]unary.Method{adviser.Method: d.counted(d.advise), adviser.KeepMethod: d.counted(d.keep)}),
		ReadTimeout: questionPatience, IdleTimeout: 10 * time.Minute, ErrorLog: slog.NewLogLogger(d.Log.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS13,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return d.certificate.Load(), nil },
		},
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // ends ServeTLS
		defer stop()
		if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve nodes: %w", err)
		}
		return nil
	})
	group.Go(func() error { return d.publish(ctx, net.JoinHostPort(d.Advertise, port), authority) })
	return group.Wait()
}

// renew makes a new certificate, and gives it as nodes read it.
func (d *desk) renew() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: adviser.ServerName}, DNSNames: []string{adviser.ServerName},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(certificateLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	d.certificate.Store(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// publish writes where we are as soon as there is something to tell, and sees to it
// that it stands there.
func (d *desk) publish(ctx context.Context, address string, authority []byte) error {
	told, renewed := "", time.Now()
	for pause := firstPause; ; {
		var err error
		if time.Since(renewed) > certificateUse {
			renewed = time.Now()
			authority, err = d.renew()
		}
		switch {
		case err != nil:
		case !d.book.Synced():
			err = errNotYet
		default:
			err = d.write(ctx, address, authority)
		}
		wait := publishEvery
		if err != nil {
			wait, pause = pause, min(2*pause, lastPause)
			if !errors.Is(err, errNotYet) && ctx.Err() == nil && err.Error() != told {
				told = err.Error()
				d.Log.Warn("nodes cannot be told where to ask for addresses; they choose by themselves", "err", err)
			}
		} else {
			pause, told = firstPause, ""
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

var errNotYet = errors.New("what is held is not known yet")

func (d *desk) write(ctx context.Context, address string, authority []byte) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	key := store.Key{Namespace: d.Namespace, Name: adviser.ConfigMap}
	want := map[string]any{"address": address, "ca.crt": string(bytes.TrimSpace(authority)) + "\n"}
	is, err := d.api.Get(ctx, configMapKind, key)
	if errors.Is(err, store.ErrNotFound) {
		is = &store.Object{}
		is.SetGroupVersionKind(configMapKind)
		is.SetNamespace(key.Namespace)
		is.SetName(key.Name)
		is.Object["data"] = want
		_, err = d.writer.Create(ctx, is)
		return err
	}
	if err != nil {
		return err
	}
	data, _ := is.Object["data"].(map[string]any)
	if data["address"] == want["address"] && data["ca.crt"] == want["ca.crt"] {
		return nil
	}
	is.Object["data"] = want
	_, err = d.writer.Update(ctx, is)
	return err
}

// counted counts the questions of a method.
func (d *desk) counted(answer unary.Method) unary.Method {
	return func(ctx context.Context, token string, message []byte) ([]byte, error) {
		began := time.Now()
		out, err := answer(ctx, token, message)
		d.count.Advised(err == nil, time.Since(began))
		return out, err
	}
}

// question reads what a node asks, and which node that is.
func (d *desk) question(ctx context.Context, token string, message []byte) (string, adviser.Question, error) {
	if !d.book.Synced() {
		return "", adviser.Question{}, &unary.Error{Code: unary.Unavailable, Err: errNotYet}
	}
	node, err := d.callers.node(ctx, token)
	if err != nil {
		return "", adviser.Question{}, err
	}
	question, err := adviser.ReadQuestion(message)
	if err != nil {
		return "", question, &unary.Error{Code: unary.InvalidArgument, Err: err}
	}
	return node, question, nil
}

// advise proposes addresses.
func (d *desk) advise(ctx context.Context, token string, message []byte) ([]byte, error) {
	node, question, err := d.question(ctx, token, message)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	for _, addr := range question.Conflicts {
		d.view.Quarantine(now, question.Scope, addr)
		d.count.Conflict()
		d.Log.Warn("a stranger uses an address", "address", addr, "scope", question.Scope, "seenBy", node)
	}
	return adviser.AnswerBytes(d.view.Candidates(now, question.Scope, question.Spans, question.Count)), nil
}

// keep says how many addresses a node may keep ahead, and which it does not have. By
// this it hands some out without asking anybody, so nothing is said that may be old.
func (d *desk) keep(ctx context.Context, token string, message []byte) ([]byte, error) {
	node, question, err := d.question(ctx, token, message)
	if err != nil {
		return nil, err
	}
	if !d.term.Lasts() {
		return nil, &unary.Error{Code: unary.Unavailable, Err: errors.New("another leads")}
	}
	ahead := d.ahead(node, question)
	if ahead.Most == 0 && ahead.Kept == 0 {
		ahead.Silent = d.silent(time.Now(), question)
	}
	return ahead.Bytes(), nil
}

// ahead says what a node may keep ahead of its Pods.
func (s *state) ahead(node string, question adviser.Question) adviser.Ahead {
	ahead := s.view.Keep(time.Now(), node, question.Scope, question.Spans, question.Keeps)
	has := s.book.keptBy(node)
	for _, addr := range question.Keeps {
		if !has[question.Scope+" "+addr.String()] {
			ahead.Back = append(ahead.Back, addr)
		}
	}
	_, _, theirs := ipam.ParseWhereaboutsScope(ipam.Scope(question.Scope))
	if s.gone.has(node) || theirs && !s.keepable.Load() || !s.epochs.open() {
		ahead.Most, ahead.Back = 0, question.Keeps
	}
	return ahead
}

// silent are the nodes that keep some of a range and do not say so.
func (d *desk) silent(now time.Time, question adviser.Question) (out []adviser.Keeps) {
	if now.Sub(d.began) < 2*adviser.Told {
		return nil // they may not know yet who leads
	}
	for node, count := range d.book.keeping(question.Scope, question.Spans) {
		if !d.view.Heard(now, node, question.Scope) {
			out = append(out, adviser.Keeps{Node: node, Count: count})
		}
	}
	slices.SortFunc(out, func(a, b adviser.Keeps) int { return cmp.Or(b.Count-a.Count, strings.Compare(a.Node, b.Node)) })
	return out[:min(len(out), mostWaiting)]
}
