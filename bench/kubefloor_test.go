package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/weftnet/weft/internal/cniwire"
	"github.com/weftnet/weft/internal/linux"
)

const floorName = "floor"

// floorNode is the least a node could do: the CNI program, and behind its socket
// bare netlink that makes the same links, or the foreign primary plugin and
// nothing else. It asks no API, decides nothing and remembers nothing.
func floorNode(tb testing.TB, api *kubeAPI, bin programs, number int) *node {
	tb.Helper()
	n := newNode(tb, api, bin, floorName, number)
	n.program = filepath.Join(bin.weft, "weft-cni")
	socket := n.path("cni.sock")
	n.conf = func(primary string, pod kubePod) object {
		return object{"cniVersion": "1.0.0", "name": primary, "type": "weft-cni", "socket": socket, "networks": pod.networks}
	}
	n.start = func() {
		f := &floor{node: n, pods: map[string]map[string]*bareWay{}}
		bridges := []string{"cni0"}
		for i := range most {
			bridges = append(bridges, fmt.Sprintf("br%d", i))
		}
		for _, name := range bridges {
			run(tb, n.world.host, "ip", "link", "add", name, "up", "type", "bridge")
		}
		for i, path := range n.boxes {
			ns, err := linux.OpenNS(path)
			if err != nil {
				tb.Fatal(err)
			}
			tb.Cleanup(func() { _ = ns.Close() })
			f.pods[path] = map[string]*bareWay{
				"bridge":  newBareWay(tb, "bridge", n.world.host, ns, bridges),
				"macvlan": newBareWay(tb, "macvlan", n.world.host, ns, nil),
			}
			f.pods[path]["bridge"].own(i)
			f.pods[path]["macvlan"].own(i)
			f.pods[path]["macvlan"].first = 1
		}
		listener, err := net.Listen("unix", socket) //nolint:noctx // local
		if err != nil {
			tb.Fatal(err)
		}
		var calls sync.WaitGroup
		calls.Go(func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				calls.Go(func() { f.serve(conn) })
			}
		})
		tb.Cleanup(func() {
			_ = listener.Close()
			calls.Wait()
		})
	}
	return n
}

// own gives the links of a Pod names of their own.
func (w *bareWay) own(i int) {
	w.hostEnd, w.groupOfLinks = fmt.Sprintf("vethbare%03d", i), uint32(5000+i)
}

// floor answers calls.
type floor struct {
	node *node
	pods map[string]map[string]*bareWay // by the namespace's path
}

func (f *floor) serve(conn net.Conn) {
	defer conn.Close()
	var request cniwire.Request
	if err := cniwire.Read(conn, &request); err != nil {
		return // it was no call
	}
	response := cniwire.Response{Result: json.RawMessage(`{"cniVersion":"1.0.0"}`)}
	if err := f.do(request); err != nil {
		response.Error = &cniwire.Error{Code: 100, Msg: err.Error()}
	}
	if err := cniwire.Write(conn, response); err != nil {
		f.node.tb.Error(err)
	}
}

func (f *floor) do(request cniwire.Request) error {
	var conf struct{ Name, Networks string }
	if err := json.Unmarshal(request.Config, &conf); err != nil {
		return err
	}
	if conf.Name == foreignPrimary {
		return f.foreign(request)
	}
	ways := f.pods[request.NetNS]
	bridges, macvlans := strings.Count(conf.Networks, "/bridge-"), strings.Count(conf.Networks, "/macvlan-")
	ctx := context.Background()
	if request.Command == "ADD" {
		err := ways["bridge"].attach(ctx, 1+bridges)
		if macvlans > 0 {
			err = errors.Join(err, ways["macvlan"].attach(ctx, macvlans))
		}
		return err
	}
	err := ways["bridge"].detach(ctx, 1+bridges)
	if macvlans > 0 {
		err = errors.Join(err, ways["macvlan"].detach(ctx, macvlans))
	}
	return err
}

// foreign runs the foreign primary plugin.
func (f *floor) foreign(request cniwire.Request) error {
	conf, err := os.ReadFile(f.node.path(foreignPrimary + ".conf"))
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(f.node.bin.plugins, foreignPrimary)) //nolint:noctx // bounded by the program
	cmd.Stdin = bytes.NewReader(conf)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=" + request.Command, "CNI_CONTAINERID=" + request.ContainerID, "CNI_NETNS=" + request.NetNS,
		"CNI_IFNAME=eth0", "CNI_PATH=" + f.node.bin.plugins,
	}
	var out []byte
	err = f.node.world.host.Do(func() error {
		var err error
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
