package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/instance"
	"github.com/weftnet/weft/internal/status"
	"github.com/weftnet/weft/internal/store"
)

// Backend is what the socket API needs beside the store.
type Backend interface {
	Journey(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (status.Journey, error)
	Addresses(ctx context.Context) (AddressesReply, error)
	DomainXML(ctx context.Context, key store.Key) (string, error)
	GuestExec(ctx context.Context, key store.Key, command []string) (ExecReply, error)
	VMAction(ctx context.Context, key store.Key, action string) error
	Down(ctx context.Context, request DownRequest) (DownReply, error)
}

// Server answers the CLI on the instance's socket.
type Server struct {
	Instance instance.Instance
	Info     Info
	Store    store.Store
	Applier  *Applier
	Backend  Backend
	// Ended is called once a Down has been answered.
	Ended func()
}

// Run listens until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	path := s.Instance.Socket()
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return fmt.Errorf("make socket directory: %w", err)
	}
	// The store's lock is held: whoever made this socket is gone.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old socket: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(fmt.Errorf("restrict %s: %w", path, err), listener.Close())
	}
	server := &http.Server{Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", path, err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := server.Shutdown(grace); err != nil { // watches never end by themselves
		return server.Close()
	}
	return nil
}

// String names the task.
func (s *Server) String() string { return "socket API" }

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, fn func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := fn(w, r); err != nil {
				writeError(w, err)
			}
		})
	}
	handle("GET /v1/info", func(w http.ResponseWriter, _ *http.Request) error { return writeJSON(w, s.Info) })
	handle("POST /v1/apply", s.apply)
	handle("POST /v1/delete", s.delete)
	handle("GET /v1/objects/{kind}", s.objects)
	handle("GET /v1/watch/{kind}", s.watch)
	handle("GET /v1/journeys/{kind}/{namespace}/{name}", s.journey)
	handle("GET /v1/addresses", func(w http.ResponseWriter, r *http.Request) error {
		reply, err := s.Backend.Addresses(r.Context())
		if err != nil {
			return err
		}
		return writeJSON(w, reply)
	})
	handle("GET /v1/domxml/{namespace}/{name}", s.domainXML)
	handle("POST /v1/exec/{namespace}/{name}", s.exec)
	handle("POST /v1/vm/{namespace}/{name}/{action}", func(w http.ResponseWriter, r *http.Request) error {
		if err := s.Backend.VMAction(r.Context(), keyOfPath(r), r.PathValue("action")); err != nil {
			return err
		}
		return writeJSON(w, struct{}{})
	})
	handle("POST /v1/down", s.down)
	return mux
}

func (s *Server) apply(w http.ResponseWriter, r *http.Request) error {
	objects, err := readObjects(r)
	if err != nil {
		return err
	}
	var reply ResultsReply
	for _, obj := range objects {
		reply.Results = append(reply.Results, s.Applier.Apply(r.Context(), obj))
	}
	return writeJSON(w, reply)
}

func (s *Server) delete(w http.ResponseWriter, r *http.Request) error {
	objects, err := readObjects(r)
	if err != nil {
		return err
	}
	var reply ResultsReply
	for _, obj := range objects {
		reply.Results = append(reply.Results, s.Applier.Delete(r.Context(), obj.GroupVersionKind(), store.KeyOf(obj)))
	}
	return writeJSON(w, reply)
}

func (s *Server) objects(w http.ResponseWriter, r *http.Request) error {
	info, err := KindNamed(r.PathValue("kind"))
	if err != nil {
		return err
	}
	query := r.URL.Query()
	if name := query.Get("name"); name != "" {
		key := store.Key{Namespace: query.Get("namespace"), Name: name}
		if !info.Namespaced {
			key.Namespace = ""
		}
		obj, err := s.Store.Get(r.Context(), info.GVK, key)
		if err != nil {
			return fmt.Errorf("%s %s: %w", info.Names[0], key, err)
		}
		return writeJSON(w, ObjectsReply{Items: []*store.Object{obj}, Revision: obj.GetResourceVersion()})
	}
	items, revision, err := s.Store.List(r.Context(), info.GVK, store.Selector{Namespace: query.Get("namespace")})
	if err != nil {
		return err
	}
	return writeJSON(w, ObjectsReply{Items: items, Revision: revision})
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request) error {
	info, err := KindNamed(r.PathValue("kind"))
	if err != nil {
		return err
	}
	query := r.URL.Query()
	events, err := s.Store.Watch(r.Context(), info.GVK, store.Selector{Namespace: query.Get("namespace")}, query.Get("since"))
	if err != nil {
		return err
	}
	control := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	encoder := json.NewEncoder(w)
	for event := range events {
		if encoder.Encode(WatchEvent{Type: event.Type, Object: event.Object}) != nil || control.Flush() != nil {
			return nil // the reader is gone
		}
	}
	return nil
}

func (s *Server) journey(w http.ResponseWriter, r *http.Request) error {
	info, err := KindNamed(r.PathValue("kind"))
	if err != nil {
		return err
	}
	journey, err := s.Backend.Journey(r.Context(), info.GVK, keyOfPath(r))
	if err != nil {
		return err
	}
	return writeJSON(w, journey)
}

func (s *Server) domainXML(w http.ResponseWriter, r *http.Request) error {
	text, err := s.Backend.DomainXML(r.Context(), keyOfPath(r))
	if err != nil {
		return err
	}
	_, err = w.Write([]byte(text))
	return err
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) error {
	var request ExecRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	reply, err := s.Backend.GuestExec(r.Context(), keyOfPath(r), request.Command)
	if err != nil {
		return err
	}
	return writeJSON(w, reply)
}

func (s *Server) down(w http.ResponseWriter, r *http.Request) error {
	var request DownRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	reply, err := s.Backend.Down(r.Context(), request)
	if err != nil {
		return err
	}
	if err := writeJSON(w, reply); err != nil {
		return err
	}
	s.Ended()
	return nil
}

func keyOfPath(r *http.Request) store.Key {
	return store.Key{Namespace: r.PathValue("namespace"), Name: r.PathValue("name")}
}

func readObjects(r *http.Request) ([]*store.Object, error) {
	var request ObjectsRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	return request.Objects, nil
}

func writeJSON(w http.ResponseWriter, value any) error {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	return nil
}

func writeError(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnprocessableEntity)
	// An encoder error means the caller is gone; there is nobody left to tell.
	_ = json.NewEncoder(w).Encode(ErrorReply{Error: err.Error(), NotFound: errors.Is(err, store.ErrNotFound)})
}
