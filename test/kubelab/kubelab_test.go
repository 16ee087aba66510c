package kubelab

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
      - name: web
        image: lab.local/toolbox:1
        imagePullPolicy: Never
        command: [/bin/busybox, sh, -c, "mkdir /www; hostname > /www/index.html; exec /bin/busybox httpd -f -p 8080 -h /www"]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`

// TestCluster takes one cluster of two nodes through what tests want of it.
func TestCluster(t *testing.T) {
	Require(t)
	before := machineSettings(t)
	c := New(t, Options{Nodes: 2, Proxy: true, Images: []string{pack(t, "first")}})
	if after := machineSettings(t); after != before {
		t.Errorf("the cluster changed settings of this machine: got %s, want %s", after, before)
	}
	kubectl := func(t *testing.T, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), Patience)
		defer cancel()
		out, err := c.Kubectl(ctx, deployment, args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	kubectl(t, "apply", "-f", "-")
	kubectl(t, "rollout", "status", "deployment/web", "--timeout=3m")
	lines := strings.Fields(kubectl(t, "get", "pods", "-l", "app=web", "-o", `jsonpath={range .items[*]}{.metadata.name}={.spec.nodeName}={.status.podIP}{"\n"}{end}`))
	if len(lines) != 2 {
		t.Fatalf("got Pods %q, want two", lines)
	}
	var names, ips []string
	on := map[string]bool{}
	for _, line := range lines {
		parts := strings.Split(line, "=")
		names, ips, on[parts[1]] = append(names, parts[0]), append(ips, parts[2]), true
		if want := "10.244." + strings.TrimPrefix(parts[1], "n") + "."; !strings.HasPrefix(parts[2], want) {
			t.Errorf("Pod on %s: got address %s, want one in %s0/24 of the bridge plugin", parts[1], parts[2], want)
		}
	}
	if !on["n1"] || !on["n2"] {
		t.Errorf("the Pods are on %v, want one on each node", on)
	}

	t.Run("Pod to Pod", func(t *testing.T) {
		got := kubectl(t, "exec", names[0], "--", "curl", "-sS", "-m", "10", "http://"+ips[1]+":8080/")
		if got != names[1] {
			t.Errorf("asked %s from %s: got %q, want its name", names[1], names[0], got)
		}
	})
	t.Run("Service", func(t *testing.T) {
		vip := kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
		err := poll("an answer of the Service", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), Patience)
			defer cancel()
			got, err := c.Kubectl(ctx, "", "exec", names[0], "--", "curl", "-sS", "-m", "10", "http://"+vip+"/")
			if err == nil && !strings.Contains(strings.Join(names, " "), strings.TrimSpace(got)) {
				err = fmt.Errorf("got %q, want the name of one of %v", got, names)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("own files and processes", func(t *testing.T) {
		for _, test := range []struct{ command, want string }{
			{"hostname", "n1"},
			{"cat /proc/sys/kernel/panic_on_oops", "1"}, // what the kubelet wrote, if only for the node
			{"ls /etc/cni/net.d", "10-primary.conflist"},
			{"for d in /etc /opt /var/lib /usr/libexec; do echo $d >$d/weft-kubelab-probe; cat $d/weft-kubelab-probe; done | wc -l", "4"},
		} {
			got, err := c.Nodes()[0].Exec(t.Context(), "sh", "-c", test.command)
			if err != nil || strings.TrimSpace(got) != test.want {
				t.Errorf("%s on n1: got %q, error %v, want %q", test.command, got, err, test.want)
			}
		}
		for _, dir := range []string{"/etc", "/opt", "/var/lib", "/usr/libexec"} {
			if _, err := os.Stat(filepath.Join(dir, "weft-kubelab-probe")); err == nil {
				t.Errorf("what n1 wrote into %s is on this machine", dir)
			}
		}
	})
	t.Run("own images", func(t *testing.T) { ownImages(t, c, kubectl) })
	t.Run("proxy", func(t *testing.T) { spoiltRequests(t, c) })
	t.Run("kill and reboot", func(t *testing.T) { killAndReboot(t, c, kubectl) })
}

// pack gives an archive with the image lab.local/NAME:1, which says its name.
func pack(t *testing.T, name string) string {
	t.Helper()
	root := t.TempDir()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), name+".tar")
	if err := Pack(archive, "lab.local/"+name+":1", root, "/busybox", "echo", name); err != nil {
		t.Fatal(err)
	}
	return archive
}

// ownImages: images packed from a folder run as they say, whether the nodes had
// them from the start or got them later.
func ownImages(t *testing.T, c *Cluster, kubectl func(t *testing.T, args ...string) string) {
	if err := c.Load(pack(t, "later")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"first", "later"} {
		kubectl(t, "run", name, "--image=lab.local/"+name+":1", "--image-pull-policy=Never", "--restart=Never")
	}
	for _, name := range []string{"first", "later"} {
		kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/"+name, "--timeout=3m")
		if got := kubectl(t, "logs", name); got != name {
			t.Errorf("log of the Pod: got %q, want %q", got, name)
		}
	}
	kubectl(t, "delete", "pod", "first", "later", "--now")
}

// spoiltRequests: the proxy keeps who asks, and does what it is told.
func spoiltRequests(t *testing.T, c *Cluster) {
	p := c.Proxy(t)
	node, err := p.Kubeconfig(filepath.Join(c.Dir, "n1", "kubelet.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), Patience)
		defer cancel()
		return c.Kubectl(ctx, "", append([]string{"--kubeconfig", node}, args...)...)
	}
	if got, err := ask("auth", "whoami", "-o", "jsonpath={.status.userInfo}"); err != nil || !strings.Contains(got, "system:node:n1") || !strings.Contains(got, "system:nodes") {
		t.Errorf("who asks: got %s, error %v, want node n1", got, err)
	}
	if got, err := ask("label", "node", "n2", "a=b"); err == nil || !strings.Contains(err.Error(), "only its own Node") {
		t.Errorf("node n1 labels n2: got %s, error %v, want a refusal", got, err)
	}
	p.Take()
	if _, err := ask("get", "--raw", "/api/v1/nodes/n1"); err != nil {
		t.Error(err)
	}
	if got := p.Take(); len(got) != 1 || got[0].Method != "GET" || got[0].Path != "/api/v1/nodes/n1" || got[0].User != "system:node:n1" {
		t.Errorf("requests: got %+v, want one GET of n1 by n1", got)
	}
	for _, test := range []struct {
		fault Fault
		want  string
	}{
		{Fault{Status: 500}, "InternalError"},
		{Fault{Status: 403}, "Forbidden"},
		{Fault{Status: 409}, "Conflict"},
		{Fault{Away: true}, "EOF"},
	} {
		p.Spoil(func(*http.Request) Fault { return test.fault })
		if _, err := ask("get", "--raw", "/api/v1/nodes/n1"); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: got error %v, want %s", test.fault, err, test.want)
		}
	}
	const delay = 300 * time.Millisecond
	p.Spoil(func(*http.Request) Fault { return Fault{Delay: delay} })
	began := time.Now()
	if _, err := ask("get", "--raw", "/api/v1/nodes/n1"); err != nil || time.Since(began) < delay {
		t.Errorf("slow API server: error %v after %v, want success after %v", err, time.Since(began), delay)
	}
}

// machineSettings gives what a kubelet likes to set for the whole machine.
func machineSettings(t *testing.T) string {
	t.Helper()
	all := ""
	for _, key := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/random/boot_id"} {
		value, err := os.ReadFile(filepath.Join("/proc/sys", key))
		if err != nil {
			t.Fatal(err)
		}
		all += key + "=" + strings.TrimSpace(string(value)) + " "
	}
	return all
}

// killAndReboot: crashes leave running Pods alone, a reboot does not.
func killAndReboot(t *testing.T, c *Cluster, kubectl func(t *testing.T, args ...string) string) {
	node := c.Nodes()[1]
	pod := func() string {
		return kubectl(t, "get", "pods", "-l", "app=web", "--field-selector=spec.nodeName=n2", "-o",
			`jsonpath={.items[0].metadata.uid}={.items[0].status.containerStatuses[0].restartCount}`)
	}
	before := pod()
	for _, program := range []string{Containerd, Kubelet} {
		if err := node.Kill(program); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{Etcd, APIServer} {
		if err := c.Kill(program); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.WaitAPI(); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "wait", "--for=condition=Ready", "node/n2", "--timeout=3m")
	if after := pod(); after != before {
		t.Errorf("after the crash of all programs of n2: got Pod and restarts %s, want %s as before", after, before)
	}
	if err := node.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	err := poll("restart of the Pod", func() error {
		if after := pod(); after == before {
			return fmt.Errorf("after a reboot: got Pod and restarts %s, want another number", after)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	kubectl(t, "rollout", "status", "deployment/web", "--timeout=3m")
	added, err := c.AddNode()
	if err != nil {
		t.Fatal(err)
	}
	if added.Name != "n3" {
		t.Errorf("added node: got name %s, want n3", added.Name)
	}
}

const helper = "WEFT_KUBELAB_HELPER"

// TestNothingIsLeft: neither an ended nor a killed test leaves anything, and
// two clusters run side by side.
func TestNothingIsLeft(t *testing.T) {
	Require(t)
	if os.Getenv(helper) != "" {
		c, err := start(Options{Nodes: 1})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("cluster", c.Dir)
		select {} // until killed
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestNothingIsLeft$")
	cmd.Env = append(os.Environ(), helper+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	c, err := start(Options{Nodes: 1})
	if err != nil {
		t.Error(err)
	}
	killed := ""
	for line := range lines {
		if dir, ok := strings.CutPrefix(line, "cluster "); ok {
			killed = dir
			break
		}
		t.Log(line)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed
	if killed == "" {
		t.Error("the second cluster did not start")
	}
	if c != nil {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if got := left(c.Dir); got != "" {
			t.Errorf("left after Close: %s", got)
		}
	}
	deadline := time.Now().Add(Patience)
	for left(killed) != "" {
		if time.Now().After(deadline) {
			t.Fatalf("left by a killed test: %s", left(killed))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// left says what is still there of the cluster in dir.
func left(dir string) string {
	var found []string
	if _, err := os.Stat(dir); err == nil {
		found = append(found, dir)
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(dir) + "*") // the pattern is well-formed
	found = append(found, groups...)
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, process := range processes {
		command, _ := os.ReadFile(filepath.Join(process, "cmdline")) // it may be gone by now
		mounts, _ := os.ReadFile(filepath.Join(process, "mountinfo"))
		if strings.Contains(string(command), dir) || strings.Contains(string(mounts), dir) {
			found = append(found, process+" "+strings.ReplaceAll(string(command), "\x00", " "))
		}
	}
	return strings.Join(found, "\n")
}
