package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/linux"
)

// node is one Kubernetes node, without a kubelet: a host namespace, sandboxes,
// and what attaches them. The benchmark makes the calls of its runtime.
type node struct {
	tb      testing.TB
	name    string
	api     *kubeAPI
	bin     programs
	dir     string
	world   *world
	boxes   []string // paths of the sandboxes' namespaces
	serial  int      // of sandboxes' ids
	program string   // that the runtime calls
	// conf is the configuration the runtime gives it.
	conf func(primary string, pod kubePod) object
	// start starts the agent, if there is one.
	start func()
	agent *exec.Cmd
	// server is where the agent finds the API.
	server string
}

// Primary networks: one weft has natively, and a foreign one.
const (
	nativePrimary  = "bridge"
	foreignPrimary = "ptp"
)

// mostBoxes is how many sandboxes a node may have.
const mostBoxes = 100

// newNode makes a node whose eth0 is the uplink of networks, and whose api0 leads to the API.
func newNode(tb testing.TB, api *kubeAPI, bin programs, name string, number int) *node {
	tb.Helper()
	n := &node{tb: tb, name: name, api: api, bin: bin, dir: filepath.Join(api.cluster.Dir, name), world: newWorld(tb), server: api.cluster.Server}
	host := n.world.host
	run(tb, host, "ip", "link", "add", "api0", "type", "veth", "peer", "name", "api-"+name, "netns", api.cluster.NetNS())
	run(tb, host, "ip", "addr", "add", fmt.Sprintf("10.99.0.%d/24", 100+number), "dev", "api0")
	run(tb, host, "ip", "link", "set", "api0", "up")
	cluster, err := linux.OpenNS(api.cluster.NetNS())
	if err != nil {
		tb.Fatal(err)
	}
	defer cluster.Close()
	run(tb, cluster, "ip", "link", "set", "api-"+name, "master", "br0", "up")
	dir := filepath.Join(n.dir, "ns")
	tb.Cleanup(func() {
		for _, path := range n.boxes {
			if err := linux.DeleteNS(path); err != nil {
				tb.Error(err)
			}
		}
		if err := linux.ReleaseNSDir(dir); err != nil {
			tb.Error(err)
		}
	})
	for i := range mostBoxes + 1 { // one more is the neighbour's
		path := filepath.Join(dir, strconv.Itoa(i))
		if err := linux.CreateNS(path); err != nil {
			tb.Fatal(err)
		}
		n.boxes = append(n.boxes, path)
	}
	for kind, more := range map[string]string{nativePrimary: `"bridge": "cni0", "isGateway": true`, foreignPrimary: `"mtu": 1500`} {
		// No list: Multus v4.3.0 loses what plugins of lists need for DEL.
		n.write(kind+".conf", fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "primary-%s", "type": %q, %s,
			"ipam": {"type": "host-local", "dataDir": %q, "subnet": "10.60.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}}`,
			kind, kind, more, filepath.Join(n.dir, "addresses")))
	}
	return n
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *node) write(name, text string) {
	n.tb.Helper()
	if err := os.WriteFile(n.path(name), []byte(text), 0o600); err != nil {
		n.tb.Fatal(err)
	}
}

// weftNode has weft-node and weft-cni.
func weftNode(tb testing.TB, api *kubeAPI, bin programs, number int) *node {
	tb.Helper()
	n := newNode(tb, api, bin, "weft", number)
	n.program = filepath.Join(bin.weft, "weft-cni")
	socket := n.path("state/run/cni.sock")
	n.conf = func(primary string, pod kubePod) object {
		return object{ // as weft-node --install writes it, but for the paths
			"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", "clusterNetwork": n.path(primary + ".conf"),
			"socket": socket, "queue": n.path("state/dels"),
			"runtimeConfig": object{"io.kubernetes.cri.pod-annotations": object{"k8s.v1.cni.cncf.io/networks": pod.networks}},
		}
	}
	n.start = func() {
		n.run(socket, filepath.Join(bin.weft, "weft-node"), "--node", n.name, "--root", n.path("state"), "--cni-bin-dirs", bin.plugins)
	}
	return n
}

// thickNode has multus-daemon and multus-shim.
func thickNode(tb testing.TB, api *kubeAPI, bin programs, number int) *node {
	tb.Helper()
	n := newNode(tb, api, bin, "thick", number)
	n.program = filepath.Join(bin.multus, "multus-shim")
	n.conf = func(primary string, _ kubePod) object {
		return object{ // as its auto configuration is, but for the paths
			"cniVersion": "1.0.0", "name": "multus-cni-network", "type": "multus-shim",
			"clusterNetwork": n.path(primary + ".conf"), "daemonSocketDir": n.path("run"), "logLevel": "error",
		}
	}
	n.start = func() {
		daemon, err := json.Marshal(object{
			"logLevel": "error", "logToStderr": true, "socketDir": n.path("run"), "cniDir": n.path("cache"), "binDir": bin.plugins,
			"cniVersion": "1.0.0", "multusConfigFile": "auto", "multusAutoconfigDir": n.path(""), "cniConfigDir": n.path("net.d"),
		})
		if err == nil {
			err = os.MkdirAll(n.path("net.d"), 0o755)
		}
		if err != nil {
			tb.Fatal(err)
		}
		n.write("daemon.json", string(daemon))
		n.run(n.path("run/multus.sock"), filepath.Join(bin.multus, "multus-daemon"), "-config", n.path("daemon.json"))
	}
	return n
}

// thinNode has multus alone.
func thinNode(tb testing.TB, api *kubeAPI, bin programs, number int) *node {
	tb.Helper()
	n := newNode(tb, api, bin, "thin", number)
	n.program = filepath.Join(bin.multus, "multus")
	n.conf = func(primary string, _ kubePod) object {
		return object{
			"cniVersion": "1.0.0", "name": "multus-cni-network", "type": "multus", "clusterNetwork": n.path(primary + ".conf"),
			"kubeconfig": n.path("kubeconfig"), "cniDir": n.path("cache"), "binDir": bin.plugins, "logLevel": "error",
		}
	}
	n.start = func() { api.kubeconfig(n.path("kubeconfig"), n.server) }
	return n
}

// agentScript starts an agent as a DaemonSet's Pod does: in the host's network,
// with a service account.
const agentScript = `mount -t tmpfs tmpfs /var/run
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
cp "$SECRETS"/* /var/run/secrets/kubernetes.io/serviceaccount
exec nsenter --net="$HOST_NETNS" -- "$@"`

// run starts an agent and waits for its socket.
func (n *node) run(socket string, program string, args ...string) {
	n.tb.Helper()
	host, port, err := net.SplitHostPort(strings.TrimPrefix(n.server, "https://"))
	if err != nil {
		n.tb.Fatal(err)
	}
	log, err := os.OpenFile(n.path("agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.tb.Fatal(err)
	}
	defer log.Close()
	enter := []string{"--mount", "--propagation", "slave", "--", "sh", "-ec", agentScript, "agent", program}
	n.agent = exec.Command("unshare", append(enter, args...)...) //nolint:noctx // ended by stop
	n.agent.Env = append(os.Environ(), "SECRETS="+n.api.secrets, "HOST_NETNS="+n.world.host.Path(),
		"KUBERNETES_SERVICE_HOST="+host, "KUBERNETES_SERVICE_PORT="+port, "MULTUS_NODE_NAME="+n.name)
	n.agent.Stdout, n.agent.Stderr = log, log
	if err := n.agent.Start(); err != nil {
		n.tb.Fatal(err)
	}
	n.tb.Cleanup(n.stop)
	eventually(n.tb, n.name+"'s agent", func() error {
		if n.agent.ProcessState != nil {
			return nil
		}
		conn, err := net.Dial("unix", socket) //nolint:noctx // local
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

// stop ends the agent.
func (n *node) stop() {
	if n.agent == nil {
		return
	}
	_ = n.agent.Process.Signal(syscall.SIGTERM) // it may be gone
	timer := time.AfterFunc(2*time.Second, func() { _ = n.agent.Process.Kill() })
	_ = n.agent.Wait() // Multus waits ten seconds; it is killed
	timer.Stop()
	if n.tb.Failed() {
		text, _ := os.ReadFile(n.path("agent.log"))
		n.tb.Logf("%s: %s", n.name, text[max(0, len(text)-4000):])
	}
	n.agent = nil
}

// sandbox is one Pod's on a node.
type sandbox struct {
	kubePod
	id, netns, primary string
}

// sandboxes gives one for each Pod.
func (n *node) sandboxes(primary string, pods []kubePod) []sandbox {
	var list []sandbox
	for i, pod := range pods {
		n.serial++
		list = append(list, sandbox{pod, fmt.Sprintf("%s%040x", n.name[:4], n.serial), n.boxes[i], primary})
	}
	return list
}

// call makes the call a runtime makes, and gives how long it took and what
// processor time the program and those it started needed.
func (n *node) call(command string, box sandbox) (took, cpu time.Duration, err error) {
	stdin, err := json.Marshal(n.conf(box.primary, box.kubePod))
	if err != nil {
		return 0, 0, err
	}
	cmd := exec.Command(n.program) //nolint:noctx // bounded by the program
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=" + command, "CNI_CONTAINERID=" + box.id, "CNI_NETNS=" + box.netns,
		"CNI_IFNAME=eth0", "CNI_PATH=" + n.bin.plugins,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=" + podsNamespace + ";K8S_POD_NAME=" + box.name + ";K8S_POD_INFRA_CONTAINER_ID=" + box.id + ";K8S_POD_UID=" + box.uid,
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err = n.world.host.Do(cmd.Run)
	took = time.Since(began)
	if err != nil {
		err = fmt.Errorf("%s of %s: %w: %s%s", command, n.name, err, stdout.Bytes(), stderr.Bytes())
	}
	if state := cmd.ProcessState; state != nil {
		cpu = state.UserTime() + state.SystemTime()
	}
	return took, cpu, err
}
