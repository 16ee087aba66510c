package kubelab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Names of the programs of a node, as Kill takes them.
const (
	Containerd = "containerd"
	Kubelet    = "kubelet"
	KubeProxy  = "kube-proxy"
)

// referencePlugins is where Debian keeps them.
const referencePlugins = "/usr/lib/cni"

const bridgeList = `{"cniVersion":"1.0.0","name":"cluster","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,
  "ipam":{"type":"host-local","ranges":[[{"subnet":"POD_CIDR"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}
`

// Node is one node of a cluster.
type Node struct {
	// Name is its name in Kubernetes.
	Name string
	// IP is its address in the cluster's network.
	IP string
	// Dir holds its logs and, under fs/, what it keeps in its own standard paths.
	Dir string

	c      *Cluster
	number int
	cmd    *exec.Cmd // its namespaces end with it
}

// Pack writes the folder root as an OCI archive with the image called name, for
// Options.Images and Load.
func Pack(archive, name, root string, entrypoint ...string) error {
	command, err := json.Marshal(append([]string{}, entrypoint...))
	if err != nil {
		return err
	}
	_, err = output(exec.Command(filepath.Join(here(), "scripts/pack.sh"), archive, name, root, "", string(command)))
	return err
}

// Load imports the images of an OCI archive into every node there is.
func (c *Cluster) Load(archive string) error {
	for _, n := range c.Nodes() {
		if _, err := n.Exec(context.Background(), "ctr", "-n", "k8s.io", "images", "import", "--local", archive); err != nil {
			return err
		}
	}
	return nil
}

// Nodes gives the nodes in the order of their names.
func (c *Cluster) Nodes() []*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*Node(nil), c.nodes...)
}

// AddNode starts one more node and waits until it is Ready.
func (c *Cluster) AddNode() (*Node, error) {
	n, err := c.startNode()
	if err != nil {
		return nil, err
	}
	return n, n.ready()
}

// startNode starts one more node.
func (c *Cluster) startNode() (*Node, error) {
	c.mu.Lock()
	number := len(c.nodes) + 1
	n := &Node{
		Name: fmt.Sprint("n", number), IP: fmt.Sprint(controlPlane, number), Dir: filepath.Join(c.Dir, fmt.Sprint("n", number)),
		c: c, number: number,
	}
	c.nodes = append(c.nodes, n)
	c.mu.Unlock()
	if number > 9 {
		return nil, errors.New("a cluster has at most nine nodes")
	}
	if number == 1 {
		if err := c.prepareNodes(); err != nil {
			return nil, err
		}
	}
	if err := n.prepare(); err != nil {
		return nil, err
	}
	return n, n.start()
}

// prepareNodes makes what all nodes need.
func (c *Cluster) prepareNodes() error {
	images := filepath.Join(c.Dir, "images")
	if err := os.Mkdir(images, 0o755); err != nil {
		return err
	}
	if _, err := output(exec.Command(filepath.Join(c.Dir, "scripts/images.sh"), images)); err != nil {
		return err
	}
	for i, image := range c.opt.Images {
		image, err := filepath.Abs(image)
		if err != nil {
			return err
		}
		if err := os.Symlink(image, filepath.Join(images, fmt.Sprintf("extra-%d.tar", i))); err != nil {
			return err
		}
	}
	ctx := context.Background()
	if _, err := c.Kubectl(ctx, "", "create", "clusterrolebinding", "kubelab-proxy", "--clusterrole=system:node-proxier", "--user=system:kube-proxy"); err != nil {
		return err
	}
	// Without it no Pod is admitted.
	return poll("default service account", func() error { return c.get("/api/v1/namespaces/default/serviceaccounts/default") })
}

// prepare writes the node's configuration.
func (n *Node) prepare() error {
	if err := os.Mkdir(n.Dir, 0o755); err != nil {
		return err
	}
	for _, id := range []identity{
		{file: n.Name + "/kubelet", name: "system:node:" + n.Name, groups: []string{"system:nodes"}},
		{file: n.Name + "/serving", name: n.Name, hosts: []string{n.IP, n.Name}},
	} {
		if err := n.c.ca.issue(id); err != nil {
			return err
		}
	}
	if err := n.c.ca.kubeconfig(n.Name + "/kubelet"); err != nil {
		return err
	}
	list := n.c.opt.CNI
	switch list {
	case "":
		list = bridgeList
	case "none":
		list = ""
	}
	list = strings.ReplaceAll(list, "POD_CIDR", fmt.Sprintf("10.244.%d.0/24", n.number))
	if err := os.WriteFile(filepath.Join(n.Dir, "cni.conflist"), []byte(list), 0o600); err != nil {
		return err
	}
	for _, file := range []string{"containerd.toml", "kubelet.yaml"} {
		data, err := os.ReadFile(filepath.Join(n.c.Dir, "scripts", file))
		if err != nil {
			return err
		}
		text := strings.NewReplacer("CLUSTER", n.c.Dir, "NODE", n.Name).Replace(string(data))
		if err := os.WriteFile(filepath.Join(n.Dir, file), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// start runs the node's first process.
func (n *Node) start() error {
	log, err := os.OpenFile(filepath.Join(n.Dir, "node.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	proxy := "0"
	if n.c.opt.Proxy {
		proxy = "1"
	}
	cmd := n.c.Command(context.Background(), filepath.Join(n.c.Dir, "scripts/node.sh"), "outer")
	cmd.Env = append(cmd.Env, "CLUSTER="+n.c.Dir, "ID="+n.c.id, fmt.Sprint("N=", n.number), "PROXY="+proxy, "CNI_BIN="+referencePlugins)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	n.cmd = cmd
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.c.running = append(n.c.running, cmd)
	return nil
}

// ready waits until Kubernetes calls the node Ready, after its last start.
func (n *Node) ready() error {
	return poll("node "+n.Name, func() error {
		if err := n.c.alive(); err != nil {
			return err
		}
		boot, err := os.ReadFile(filepath.Join(n.Dir, "boot_id"))
		if err != nil {
			return err
		}
		const path = `jsonpath={.status.nodeInfo.bootID}={.status.conditions[?(@.type=="Ready")].status}`
		got, err := n.c.Kubectl(context.Background(), "", "get", "node", n.Name, "-o", path)
		if err != nil {
			return err
		}
		if want := strings.TrimSpace(string(boot)) + "=True"; got != want {
			return fmt.Errorf("boot id and Ready: got %s, want %s", got, want)
		}
		return nil
	})
}

// Command is a program that runs on the node: in all its namespaces and its
// cgroups, with its files.
func (n *Node) Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	pid, err := n.first()
	if err != nil {
		return nil, err
	}
	const join = `for group in /sys/fs/cgroup/*/"$0"; do echo 0 >"$group/cgroup.procs"; done; exec nsenter "$@"`
	enter := []string{
		"-c", join, n.c.id + "-" + n.Name,
		"--target", pid, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", name,
	}
	return n.c.Command(ctx, "sh", append(enter, args...)...), nil
}

// first gives the id, in the cluster's namespaces, of the node's first process.
func (n *Node) first() (string, error) {
	data, err := os.ReadFile(filepath.Join(n.Dir, "init.pid"))
	if err != nil {
		return "", fmt.Errorf("node %s does not run: %w", n.Name, err)
	}
	return strings.TrimSpace(string(data)), nil
}

// Exec runs a program on the node and gives what it prints.
func (n *Node) Exec(ctx context.Context, name string, args ...string) (string, error) {
	cmd, err := n.Command(ctx, name, args...)
	if err != nil {
		return "", err
	}
	return output(cmd)
}

// Kill ends a program of the node as a crash would. It is started again; Kill
// returns when it has a new process.
func (n *Node) Kill(program string) error {
	return kill(filepath.Join(n.Dir, program+".pid"), func(args ...string) error {
		_, err := n.Exec(context.Background(), args[0], args[1:]...)
		return err
	})
}

// Stop takes the node's power: all its processes, links and mounts, what it
// keeps in /run. Its disk stays.
func (n *Node) Stop() error {
	pid, err := n.first()
	if err != nil {
		return err
	}
	if _, err := output(n.c.Command(context.Background(), "kill", "-9", pid)); err != nil {
		return err
	}
	_ = n.cmd.Wait() // killed
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	for i, cmd := range n.c.running {
		if cmd == n.cmd {
			n.c.running = append(n.c.running[:i], n.c.running[i+1:]...)
			break
		}
	}
	return os.Remove(filepath.Join(n.Dir, "init.pid"))
}

// Start boots a node that was stopped, with its disk and a new boot id, and
// waits until it is Ready.
func (n *Node) Start() error {
	if err := os.Remove(filepath.Join(n.Dir, "boot_id")); err != nil {
		return err
	}
	if err := n.start(); err != nil {
		return err
	}
	return n.ready()
}
