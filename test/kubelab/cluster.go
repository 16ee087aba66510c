package kubelab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/linux"
)

// Addresses inside the cluster's namespaces; node N is 10.99.0.1N, its Pods
// are 10.244.N.0/24.
const (
	controlPlane = "10.99.0.1"
	server       = "https://" + controlPlane + ":6443"
	services     = "10.96.0.0/16"
	firstService = "10.96.0.1"
)

// Names of the programs of the control plane, as Kill takes them.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
)

// Cluster is one running cluster.
type Cluster struct {
	// Dir holds everything of the cluster: admin.kubeconfig and ca.crt, logs, a
	// folder for each node.
	Dir string
	// Server is the API server's address inside the cluster's namespaces; Dial
	// reaches it from the test.
	Server string

	opt     Options
	id      string // prefix of the cgroups
	path    string // PATH of programs in the cluster
	sandbox *exec.Cmd
	hold    io.Closer // the sandbox lives as long as it is open
	netns   string
	ca      *authority
	client  *http.Client

	// mu guards nodes and running.
	mu      sync.Mutex
	nodes   []*Node
	running []*exec.Cmd // started in the sandbox; they end with it
}

// start gives a cluster whose API server answers and whose nodes are Ready.
func start(opt Options) (*Cluster, error) {
	folders, err := build()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "weft-kubelab-")
	if err != nil {
		return nil, err
	}
	for _, overlaid := range []string{"/etc/", "/opt/", "/var/", "/usr/libexec/"} {
		if strings.HasPrefix(dir, overlaid) {
			return nil, errors.Join(fmt.Errorf("%s: a node has overlays over %s; set TMPDIR to a folder elsewhere", dir, overlaid), os.Remove(dir))
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil { // Pods of other users have files in it
		return nil, err
	}
	c := &Cluster{
		Dir: dir, Server: server, opt: opt, id: filepath.Base(dir),
		path: strings.Join(append(folders, os.Getenv("PATH"), "/usr/local/sbin:/usr/sbin:/sbin"), ":"),
	}
	if err := c.boot(); err != nil {
		c.logs(func(format string, args ...any) { err = fmt.Errorf("%w\n"+format, append([]any{err}, args...)...) })
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Cluster) boot() error {
	if err := os.CopyFS(filepath.Join(c.Dir, "scripts"), os.DirFS(filepath.Join(here(), "scripts"))); err != nil {
		return err
	}
	if err := c.enclose(); err != nil {
		return err
	}
	if err := c.certify(); err != nil {
		return err
	}
	if err := c.startControlPlane(); err != nil {
		return err
	}
	if c.opt.Nodes == 0 {
		return nil
	}
	for range c.opt.Nodes {
		if _, err := c.startNode(); err != nil {
			return err
		}
	}
	for _, n := range c.nodes {
		if err := n.ready(); err != nil {
			return err
		}
	}
	return nil
}

// enclose starts the first process of the cluster's namespaces.
func (c *Cluster) enclose() error {
	cmd := exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount", "--net", "--uts", "--ipc",
		filepath.Join(c.Dir, "scripts/sandbox.sh"), c.Dir, c.id)
	cmd.Env = append(os.Environ(), "PATH="+c.path)
	hold, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	c.sandbox, c.hold = cmd, hold
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		return fmt.Errorf("the cluster's namespaces were not made: %q: %w", line, err)
	}
	children := fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", cmd.Process.Pid)
	data, err := os.ReadFile(children)
	if err != nil {
		return err
	}
	c.netns = "/proc/" + strings.TrimSpace(string(data)) + "/ns/net"
	return nil
}

// NetNS is the path of the control plane's network namespace, for programs that
// are to live in it and nowhere else of the cluster; in it, Nodes are behind the
// bridge br0.
func (c *Cluster) NetNS() string { return c.netns }

// first gives the id of the first process of the cluster's namespaces.
func (c *Cluster) first() string { return filepath.Base(filepath.Dir(filepath.Dir(c.netns))) }

func (c *Cluster) certify() error {
	ca, err := newAuthority(c.Dir)
	if err != nil {
		return err
	}
	c.ca = ca
	hosts := []string{
		"127.0.0.1", controlPlane, firstService,
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
	}
	for _, id := range []identity{
		{file: "apiserver", name: APIServer, hosts: hosts},
		{file: "kubelet-client", name: "apiserver-kubelet-client", groups: []string{"system:masters"}},
		{file: "admin", name: "admin", groups: []string{"system:masters"}},
		{file: ControllerManager, name: "system:kube-controller-manager"},
		{file: Scheduler, name: "system:kube-scheduler"},
		{file: "proxy", name: "system:kube-proxy"},
	} {
		if err := ca.issue(id); err != nil {
			return err
		}
		if err := ca.kubeconfig(id.file); err != nil {
			return err
		}
	}
	config, err := c.TLS()
	if err != nil {
		return err
	}
	c.client = &http.Client{Transport: &http.Transport{TLSClientConfig: config, DialContext: c.Dial}, Timeout: 30 * time.Second}
	return ca.serviceAccountKey()
}

// TLS is the configuration of a client that may do everything.
func (c *Cluster) TLS() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(c.Dir, "admin.crt"), filepath.Join(c.Dir, "admin.key"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.ca.cert)
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

// Dial connects to an address inside the cluster's network, such as the host
// and port of Server.
func (c *Cluster) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := linux.InNS(c.netns, func() error {
		var err error
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Kubeconfig is the file of a client that may do everything, for programs run
// by Command.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.Dir, "admin.kubeconfig") }

func (c *Cluster) startControlPlane() error {
	file := func(name string) string { return filepath.Join(c.Dir, name) }
	client, peer := "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	for _, command := range [][]string{
		{
			Etcd, "--data-dir", file("etcd"), "--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer,
			"--log-level", "warn", "--unsafe-no-fsync",
		},
		{
			APIServer, "--etcd-servers", client, "--bind-address", "0.0.0.0", "--advertise-address", controlPlane,
			"--service-cluster-ip-range", services, "--allow-privileged",
			"--tls-cert-file", file("apiserver.crt"), "--tls-private-key-file", file("apiserver.key"), "--client-ca-file", file("ca.crt"),
			"--kubelet-client-certificate", file("kubelet-client.crt"), "--kubelet-client-key", file("kubelet-client.key"),
			"--kubelet-preferred-address-types", "InternalIP",
			"--service-account-key-file", file("sa.pub"), "--service-account-signing-key-file", file("sa.key"),
			"--service-account-issuer", "https://kubernetes.default.svc", "--authorization-mode", "Node,RBAC",
			"--enable-admission-plugins", "NodeRestriction", "--max-requests-inflight", "1600", "--max-mutating-requests-inflight", "800",
		},
		{
			ControllerManager, "--kubeconfig", file(ControllerManager + ".kubeconfig"), "--leader-elect=false", "--bind-address", "127.0.0.1",
			"--service-account-private-key-file", file("sa.key"), "--root-ca-file", file("ca.crt"), "--use-service-account-credentials",
			"--cluster-signing-cert-file", file("ca.crt"), "--cluster-signing-key-file", file("ca.key"),
			"--service-cluster-ip-range", services, "--allocate-node-cidrs=false",
		},
		{Scheduler, "--kubeconfig", file(Scheduler + ".kubeconfig"), "--leader-elect=false", "--bind-address", "127.0.0.1"},
	} {
		if c.opt.APIOnly && command[0] != Etcd && command[0] != APIServer {
			continue
		}
		if err := c.keep(command...); err != nil {
			return err
		}
		if command[0] == APIServer { // the others would only fail until then
			if err := c.WaitAPI(); err != nil {
				return err
			}
		}
	}
	return nil
}

// WaitAPI waits until the API server is ready to serve.
func (c *Cluster) WaitAPI() error {
	return poll("API server", func() error { return c.get("/readyz") })
}

// get says whether the API server answers a path with success.
func (c *Cluster) get(path string) error {
	if err := c.alive(); err != nil {
		return err
	}
	resp, err := c.client.Get(c.Server + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %.300s", path, resp.Status, body)
	}
	return nil
}

func (c *Cluster) alive() error {
	if _, err := os.Stat(c.netns); err != nil {
		return &finalError{fmt.Errorf("the cluster's namespaces are gone: %w", err)}
	}
	return nil
}

// keep starts a program in the sandbox that is started again when it ends.
func (c *Cluster) keep(command ...string) error {
	args := append([]string{filepath.Join(c.Dir, "scripts/keep.sh"), c.Dir, command[0]}, command...)
	return c.background(c.Command(context.Background(), args[0], args[1:]...))
}

// background starts cmd, which ends with the sandbox at the latest.
func (c *Cluster) background(cmd *exec.Cmd) error {
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = append(c.running, cmd)
	return nil
}

// Command is a program that runs in the control plane's namespaces, with
// KUBECONFIG set and kubectl and ctr in its PATH. Its end does not end what it
// started; the cluster's does.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{"--target", c.first(), "--mount", "--uts", "--ipc", "--net", "--pid", "--", name}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "PATH=") || strings.HasPrefix(v, "KUBECONFIG=")
	})
	cmd.Env = append(cmd.Env, "PATH="+c.path, "KUBECONFIG="+c.Kubeconfig())
	return cmd
}

// Kubectl runs kubectl with that standard input and gives what it prints.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := c.Command(ctx, "kubectl", args...)
	cmd.Stdin = strings.NewReader(stdin)
	return output(cmd)
}

// output gives what cmd prints; its errors are part of the error.
func output(cmd *exec.Cmd) (string, error) {
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	// What it leaves running may hold the pipes.
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, out.String(), problems.String())
	}
	return out.String(), nil
}

// Kill ends a program of the control plane as a crash would. It is started
// again; Kill returns when it has a new process.
func (c *Cluster) Kill(program string) error {
	return kill(filepath.Join(c.Dir, program+".pid"), func(args ...string) error {
		_, err := output(c.Command(context.Background(), args[0], args[1:]...))
		return err
	})
}

// Hold ends a program of the control plane as a crash would, and keeps it from being
// started again until Release.
func (c *Cluster) Hold(program string) error {
	file := filepath.Join(c.Dir, program)
	pid, err := os.ReadFile(file + ".pid")
	if err != nil {
		return fmt.Errorf("no such program here: %w", err)
	}
	if err := os.WriteFile(file+".hold", nil, 0o600); err != nil {
		return err
	}
	signal := func(flag string) error {
		_, err := output(c.Command(context.Background(), "kill", flag, strings.TrimSpace(string(pid))))
		return err
	}
	if err := signal("-9"); err != nil {
		return err
	}
	return poll("end of "+program, func() error {
		if signal("-0") == nil {
			return errors.New("it runs")
		}
		return nil
	})
}

// Release has a program started again that was held.
func (c *Cluster) Release(program string) error {
	return os.Remove(filepath.Join(c.Dir, program+".hold"))
}

// kill ends the process whose id stands in file, where run gets at it, and
// waits for its successor.
func kill(file string, run func(args ...string) error) error {
	pid, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("no such program here: %w", err)
	}
	old := strings.TrimSpace(string(pid))
	if _, err := strconv.Atoi(old); err != nil {
		return err
	}
	if err := run("kill", "-9", old); err != nil {
		return err
	}
	return poll("restart after "+file, func() error {
		now, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(now)) == old {
			err = errors.New("the old process is the last one")
		}
		return err
	})
}

// Close ends the cluster and everything of it.
func (c *Cluster) Close() error {
	if c.sandbox == nil {
		return os.RemoveAll(c.Dir)
	}
	err := c.hold.Close()
	timer := time.AfterFunc(Patience, func() { _ = c.sandbox.Process.Kill() }) // it may be gone by now
	defer timer.Stop()
	err = errors.Join(err, c.sandbox.Wait())
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cmd := range c.running {
		_ = cmd.Wait() // killed with the sandbox
	}
	return errors.Join(err, os.RemoveAll(c.Dir))
}

// logs prints the end of every log.
func (c *Cluster) logs(print func(format string, args ...any)) {
	const most = 1500
	for _, pattern := range []string{"*.log", "*/*.log"} {
		files, err := filepath.Glob(filepath.Join(c.Dir, pattern))
		if err != nil {
			print("%v", err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				print("%v", err)
			}
			print("--- %s\n%s", file, data[max(0, len(data)-most):])
		}
	}
}
