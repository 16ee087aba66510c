// Package cniserver answers the calls of a container runtime that weft-cni
// passes on: ADD, DEL, CHECK, STATUS and GC over a unix socket.
package cniserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	cni "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/cniwire"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// Pods tells what is known of a Pod.
type Pods interface {
	// Annotations of a Pod. uid is the runtime's word for which one of that name;
	// it may be empty.
	Annotations(ctx context.Context, namespace, name, uid string) (map[string]string, error)
}

// Config is what a Server is made from; all are required that are not said to be optional.
type Config struct {
	// Socket is where weft-cni finds us, Queue where it leaves DELs meanwhile.
	Socket, Queue string
	Engine        *chain.Engine
	Pods          Pods
	// BinDirs are where plugins are found without an Engine; optional.
	BinDirs []string
	// HostRoot is where the node's files are, if this is a container; optional.
	HostRoot string
	// Live gives the ids of the sandboxes the runtime has, and CollectAfter is for how
	// long it must not have one that is taken back; both optional.
	Live         func(ctx context.Context) (map[string]bool, error)
	CollectAfter time.Duration
	// Attached is told of every sandbox that was attached, after the runtime's
	// answer is known and before it is given: it must not wait for anything.
	// Optional.
	Attached func(box *record.Sandbox)
	// Refused is told of every ADD that failed, as Attached is; optional.
	Refused func(pod record.Pod, cause error)
	// Observe is told how long calls wait for their turn and take, Failed of each
	// that failed; both optional.
	Observe func(chain.Phase)
	Failed  func(verb string, cause error)
	Log     *slog.Logger
}

// Server answers CNI calls.
type Server struct {
	cfg   Config
	files files
	// slots bounds the calls worked on at once. There are more than a node has
	// Pods, so that those whose plugin hangs do not hold up others; the engine
	// bounds the processes.
	slots chan struct{}

	// collecting guards missing, since when the runtime does not know a sandbox,
	// and silence, why it did not tell at the last look.
	collecting sync.Mutex
	missing    map[string]time.Time
	silence    string

	// undone says of the DELs that were left why the last try failed, by path; only
	// drain uses it.
	undone map[string]string

	// mu guards the fields below it.
	mu      sync.Mutex
	told    map[string]bool // what need not be said again
	waiting int
	began   map[*turn]time.Time
	kept    int
}

// Bounds.
const (
	maxCalls = 256
	// callLimit is how long one call may take; runtimes wait four minutes at most.
	callLimit = 200 * time.Second
	// readLimit is how long a caller may take to say what it wants.
	readLimit = 10 * time.Second
	// headStart is how long calls wait at the start for the DELs that were left,
	// which free addresses; one that hangs must not keep the node from starting Pods.
	headStart = 3 * time.Second
)

// ErrTryAgain is in errors that pass by themselves: the runtime is answered with
// code 11 (CNI specification 1.1, section 5).
var ErrTryAgain = errors.New("try again later")

// New makes a server.
func New(cfg Config) *Server {
	if cfg.Attached == nil {
		cfg.Attached = func(*record.Sandbox) {}
	}
	if cfg.Refused == nil {
		cfg.Refused = func(record.Pod, error) {}
	}
	if cfg.Failed == nil {
		cfg.Failed = func(string, error) {}
	}
	if cfg.CollectAfter == 0 {
		cfg.CollectAfter = collectAfter
	}
	return &Server{cfg: cfg, files: files{cfg.HostRoot}, slots: make(chan struct{}, maxCalls), told: map[string]bool{}, began: map[*turn]time.Time{}}
}

// Working is how many calls are being worked on.
func (s *Server) Working() int { return len(s.slots) }

// String names the task.
func (s *Server) String() string { return "CNI server on " + s.cfg.Socket }

// Run begins with the DELs that were left for us, and answers calls until ctx
// ends; calls under way are finished.
func (s *Server) Run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(s.cfg.Socket), 0o755); err != nil {
		return fmt.Errorf("make directory of CNI socket: %w", err)
	}
	if err := os.Remove(s.cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old CNI socket: %w", err)
	}
	var calls sync.WaitGroup
	defer calls.Wait()
	ctx, end := context.WithCancel(ctx)
	defer end()
	tidied := make(chan struct{})
	calls.Go(func() { s.watch(ctx, tidied) })
	select {
	case <-tidied:
	case <-time.After(headStart):
	case <-ctx.Done():
		return nil
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "unix", s.cfg.Socket)
	if err != nil {
		return fmt.Errorf("listen for CNI calls: %w", err)
	}
	if err := os.Chmod(s.cfg.Socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("guard CNI socket: %w", err), listener.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() }) // ends Accept
	defer stop()
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept CNI call: %w", err)
		}
		calls.Go(func() { s.serve(context.WithoutCancel(ctx), conn) })
	}
}

// serve answers one call.
func (s *Server) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var request cniwire.Request
	err := conn.SetReadDeadline(time.Now().Add(readLimit))
	if err == nil {
		err = cniwire.Read(conn, &request)
	}
	if err != nil {
		s.cfg.Log.Warn("a CNI call cannot be read", "err", err)
		return
	}
	leave := s.enter(request.Command)
	began := time.Now()
	response := s.answer(ctx, request)
	leave()
	log := s.cfg.Log.With("verb", request.Command, "sandbox", request.ContainerID, "took", time.Since(began).Round(time.Microsecond))
	if response.Error != nil {
		log.Warn("CNI call failed", "err", response.Error)
	} else {
		log.Debug("CNI call")
	}
	if err := cniwire.Write(conn, response); err != nil {
		log.Warn("the runtime did not wait for the answer", "err", err)
	}
}

// answer does what is asked. A panic in it would be a bug; it costs its own call
// and no other.
func (s *Server) answer(ctx context.Context, request cniwire.Request) (response cniwire.Response) {
	defer func() {
		if r := recover(); r != nil {
			s.cfg.Log.Error("panic in a CNI call; please report it", "verb", request.Command, "sandbox", request.ContainerID, "panic", r, "stack", string(debug.Stack()))
			response = cniwire.Response{Error: failure(fmt.Errorf("internal error: %v", r))}
		}
	}()
	var result json.RawMessage
	conf, unknown, err := readConfig(request.Config)
	s.warn(unknown)
	if err != nil && request.Command == "DEL" {
		s.cfg.Log.Warn("DEL goes by the record alone", "err", err)
		conf, err = netConf{}, nil
	}
	if err == nil {
		result, err = s.do(ctx, request, conf)
	}
	if err != nil {
		s.cfg.Failed(knownVerb(request.Command), err)
		return cniwire.Response{Error: failure(err)}
	}
	return cniwire.Response{Result: result}
}

func (s *Server) do(ctx context.Context, request cniwire.Request, conf netConf) (json.RawMessage, error) {
	if request.Command == "STATUS" {
		return nil, s.status(ctx, conf)
	}
	engine, err := conf.patience(s.cfg.Engine)
	if request.Command == "DEL" {
		return nil, engine.Del(ctx, request.ContainerID)
	}
	if err != nil {
		return nil, err
	}
	switch request.Command {
	case "ADD":
		return s.add(ctx, engine, request, conf)
	case "CHECK":
		return nil, engine.Check(ctx, request.ContainerID)
	case "GC":
		return nil, s.collect(ctx)
	default:
		return nil, fmt.Errorf("unknown CNI command %q", request.Command)
	}
}

func (s *Server) add(ctx context.Context, engine *chain.Engine, request cniwire.Request, conf netConf) (json.RawMessage, error) {
	if err := s.ready(conf); err != nil {
		return nil, err
	}
	args := parseArgs(request.Args)
	annotations, told := conf.annotations()
	if !told && args.name != "" {
		var err error
		asked := s.measure("ADD", "annotations")
		if annotations, err = s.cfg.Pods.Annotations(ctx, args.namespace, args.name, args.uid); err != nil {
			return nil, err
		}
		asked()
	}
	network, err := conf.defaultNetwork(s.files)
	if err != nil {
		return nil, err
	}
	everywhere, err := conf.everywhere(s.files, args.namespace)
	if err != nil {
		return nil, err
	}
	box, err := engine.Add(ctx, chain.Request{
		ID: request.ContainerID, NetNS: request.NetNS, IfName: netstate.IfName(request.IfName), Annotations: annotations,
		Pod: record.Pod{Namespace: args.namespace, Name: args.name, UID: args.uid}, DefaultNamespace: conf.namespace(), ConfDir: conf.confDir(),
		Default: network, Everywhere: everywhere, Isolation: conf.isolation(), RuntimeConfig: conf.RuntimeConfig, CNIArgs: args.all,
	})
	if err != nil {
		s.cfg.Refused(record.Pod{Namespace: args.namespace, Name: args.name, UID: args.uid}, err)
		return nil, err
	}
	s.cfg.Attached(box)
	return primaryResult(box, conf.CNIVersion)
}

// primaryResult is the runtime's answer: the default network's result, in the
// version the runtime speaks.
func primaryResult(box *record.Sandbox, version string) (json.RawMessage, error) {
	result := &cni.Result{}
	i := slices.IndexFunc(box.Attachments, func(a *record.Attachment) bool { return a.Default })
	if i >= 0 {
		made, err := chain.Result(box.Attachments[i])
		if err != nil {
			return nil, err
		}
		if made != nil {
			result = made
		}
	}
	asked, err := result.GetAsVersion(version)
	if err != nil {
		return nil, fmt.Errorf("give the result in CNI version %s: %w", version, err)
	}
	text, err := json.Marshal(asked)
	if err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return text, nil
}

// status says whether Pods can be attached: whether the primary network says so.
func (s *Server) status(ctx context.Context, conf netConf) error {
	if err := s.ready(conf); err != nil {
		return err
	}
	network, err := conf.defaultNetwork(s.files)
	switch {
	case err != nil || network == nil:
		return err
	case s.cfg.Engine != nil:
		return s.cfg.Engine.Status(ctx, chain.Request{Default: network, ConfDir: conf.confDir()})
	case len(network.Config) > 0:
		return chain.PluginStatus(ctx, network.Config, s.cfg.BinDirs)
	}
	return nil // of a network that only the API knows
}

// ready says whether the primary network's plugin has started.
func (s *Server) ready(conf netConf) error {
	if path := conf.ReadinessIndicatorFile; path != "" {
		if !s.files.there(path) {
			return &hint.Error{
				Field: "readinessindicatorfile", Value: path, Problem: "is not there: the primary network is not ready",
				Remedy: "see why the primary network plugin has not started on this node", Err: ErrTryAgain,
			}
		}
	}
	return nil
}

// drainEvery is how often DELs are looked for that weft-cni kept: one that failed,
// or one whose answer it did not get.
const drainEvery = time.Second

// watch drains and collects until ctx ends, the first time before it closes tidied.
func (s *Server) watch(ctx context.Context, tidied chan<- struct{}) {
	look := func() {
		if err := s.collect(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("collect", "err", err)
		}
	}
	s.drain(ctx)
	look()
	close(tidied)
	drain, collect := time.NewTicker(drainEvery), time.NewTicker(collectEvery)
	defer drain.Stop()
	defer collect.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-drain.C:
			s.drain(ctx)
		case <-collect.C:
			look()
		}
	}
}

// drain does the DELs that weft-cni kept for us. One that fails stays and is told
// of once.
func (s *Server) drain(ctx context.Context) {
	files, err := filepath.Glob(filepath.Join(s.cfg.Queue, "*.json"))
	if err != nil {
		s.cfg.Log.Error("look for DELs that were left", "err", err)
	}
	s.keptAre(len(files))
	undone := map[string]string{}
	failed := func(path string, err error) {
		if undone[path] = err.Error(); undone[path] != s.undone[path] && ctx.Err() == nil {
			s.cfg.Log.Error("a DEL that was left while no agent ran; it is tried again", "path", path, "err", err)
		}
	}
	var paths, ids []string
	for _, path := range files {
		id, err := keptDel(path)
		if err != nil {
			failed(path, err)
			continue
		}
		paths, ids = append(paths, path), append(ids, id)
	}
	for i, err := range s.cfg.Engine.DelAll(ctx, ids) {
		if err == nil {
			err = os.Remove(paths[i])
		}
		if err != nil {
			failed(paths[i], err)
			continue
		}
		s.cfg.Log.Info("did a DEL that was left while no agent ran", "sandbox", ids[i])
	}
	s.undone = undone
	s.keptAre(len(undone))
}

func (s *Server) keptAre(count int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = count
}

// keptDel reads which sandbox a DEL that was left is about.
func keptDel(path string) (id string, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read: %w", err)
	}
	var request cniwire.Request
	if err := json.Unmarshal(text, &request); err != nil {
		return "", fmt.Errorf("decode: %w", err)
	}
	if request.Command != "DEL" || request.ContainerID == "" {
		return "", fmt.Errorf("is a %q of sandbox %q, not a DEL", request.Command, request.ContainerID)
	}
	return request.ContainerID, nil
}

// warn names unknown keys, each once.
func (s *Server) warn(unknown []string) {
	for _, key := range unknown {
		if s.first("key " + key) {
			s.cfg.Log.Warn("unknown key in the network configuration is ignored", "key", key)
		}
	}
}

// first says whether text was not told before.
func (s *Server) first(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	told := s.told[text]
	s.told[text] = true
	return !told
}

// maxMessage keeps an error below the 600 bytes that survive a kubelet event. What
// is wrong stands first and what to do last, so the middle goes.
const (
	maxMessage = 560
	maxRemedy  = 180
)

// failure gives an error as CNI has it.
func failure(err error) *cniwire.Error {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage-maxRemedy], "") + " ... " + strings.ToValidUTF8(text[len(text)-maxRemedy:], "")
	}
	return &cniwire.Error{Code: cniError(err), Msg: text}
}
