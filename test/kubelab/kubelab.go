// Package kubelab gives tests a real Kubernetes cluster: etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler, and nodes with kubelet,
// containerd and runc, each in namespaces of its own. Nothing is downloaded but
// Go modules: build.sh builds the programs once for each machine, and the
// images are packed from programs of this machine.
//
// A whole cluster lives in one set of namespaces (PID, mount, network) that
// ends with the test, even if that is killed: no process, link, mount or cgroup
// is left. So several clusters run side by side with the same addresses and
// ports.
//
// It needs root and the cgroup v1 controllers of the machine. A node sees the
// machine's files, has the paths where nodes keep things for itself
// (scripts/node.sh has the list), and what it writes into /etc, /opt and /var
// stays its own: manifests and installers meant for a real node fit.
package kubelab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// Patience bounds each wait for the cluster. When nothing is wrong nobody waits
// for it.
const Patience = 4 * time.Minute

// Options say what a cluster has besides its control plane.
type Options struct {
	Nodes int  // how many to start with, at most 9
	Proxy bool // kube-proxy on the nodes, for the addresses of Services
	// APIOnly leaves out the controller manager and the scheduler: a quiet API,
	// whose objects nobody touches but the test.
	APIOnly bool
	// CNI is the nodes' CNI configuration list, where POD_CIDR becomes the range
	// of the node's Pods; empty: the reference bridge plugin with host-local.
	// "none" leaves /etc/cni/net.d empty.
	CNI string
	// Images are more OCI archives to load into every node; Pods must not pull.
	Images []string
}

// Require skips the test unless cluster tests are asked for; asked for, a test
// that cannot run fails.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv("WEFT_KUBE") == "" {
		t.Skip("set WEFT_KUBE=1 to run tests on a real Kubernetes cluster (the first builds it: 15 minutes)")
	}
	if os.Geteuid() != 0 {
		t.Fatal("tests on a Kubernetes cluster need root")
	}
	for _, program := range []string{"go", "ip", "nsenter", "unshare", "busybox", "dash", "runc", "curl", "sysctl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("tests on a Kubernetes cluster need %s; run scripts/setup.sh", program)
		}
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory/cgroup.procs"); err != nil {
		t.Fatalf("tests on a Kubernetes cluster need cgroup v1 controllers in /sys/fs/cgroup: %v", err)
	}
}

// New starts a cluster that ends with the test.
func New(t testing.TB, opt Options) *Cluster {
	t.Helper()
	Require(t)
	began := time.Now()
	c, err := start(opt)
	if err != nil {
		t.Fatalf("start a cluster: %v", err)
	}
	t.Logf("cluster with %d nodes ready after %v", opt.Nodes, time.Since(began).Round(100*time.Millisecond))
	t.Cleanup(func() {
		if t.Failed() {
			c.logs(t.Logf)
		}
		if err := c.Close(); err != nil {
			t.Errorf("end the cluster: %v", err)
		}
	})
	return c
}

// shared is the one cluster that the tests of a package share.
var shared struct {
	mu      sync.Mutex // guards the fields below
	main    bool       // Main runs, so there is an end
	cluster *Cluster
	err     error
}

// Main is TestMain of a package that uses Shared.
func Main(m *testing.M) {
	shared.mu.Lock()
	shared.main = true
	shared.mu.Unlock()
	code := m.Run()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.cluster != nil {
		if code != 0 {
			shared.cluster.logs(func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) })
		}
		if err := shared.cluster.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "end the cluster:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// Shared gives the cluster of this test binary, with a control plane and
// whatever nodes other tests have added. The first caller starts it.
func Shared(t testing.TB) *Cluster {
	t.Helper()
	Require(t)
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if !shared.main {
		t.Fatal("kubelab.Shared needs: func TestMain(m *testing.M) { kubelab.Main(m) }")
	}
	if shared.cluster == nil && shared.err == nil {
		shared.cluster, shared.err = start(Options{})
	}
	if shared.err != nil {
		t.Fatalf("start a cluster: %v", shared.err)
	}
	return shared.cluster
}

// LeaseKind makes the kind AddressLease known to the API server, as deploy/weft.yaml
// has it.
func (c *Cluster) LeaseKind(t testing.TB) {
	t.Helper()
	manifest, err := os.ReadFile(filepath.Join(here(), "..", "..", "deploy", "weft.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	for document := range strings.SplitSeq(string(manifest), "\n---\n") {
		if !strings.Contains(document, "kind: CustomResourceDefinition\n") {
			continue
		}
		if out, err := c.Kubectl(ctx, document, "apply", "-f", "-"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if out, err := c.Kubectl(ctx, "", "wait", "--for=condition=Established", "--timeout=1m", "crd/addressleases.weft.network"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// here is the folder of this package's sources.
func here() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(file)
}

// build runs build.sh once per process and gives the folders of programs; the
// script does nothing if nothing changed.
var build = sync.OnceValues(func() ([]string, error) {
	cmd := exec.Command(filepath.Join(here(), "build.sh"))
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("build the cluster's programs: %w\n%s", err, problems.String())
	}
	return strings.Fields(out.String()), nil
})

// poll calls cond until it gives no error, and gives the last one after
// Patience.
func poll(what string, cond func() error) error {
	deadline := time.Now().Add(Patience)
	for {
		err := cond()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v: %w", what, Patience, err)
		}
		var final *finalError
		if errors.As(err, &final) {
			return fmt.Errorf("%s: %w", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// finalError ends a poll: it does not get better.
type finalError struct{ error }

func (e *finalError) Unwrap() error { return e.error }
