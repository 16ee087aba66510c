package device

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/api/netattach"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// TestFiles is the life of a file in a container that has the node's files under
// another root, where /var/run is a link as on a node.
func TestFiles(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "var"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/run", filepath.Join(root, "var/run")); err != nil {
		t.Fatal(err)
	}
	f := Files{Root: root}
	devinfo := filepath.Join(root, "run/k8s.cni.cncf.io/devinfo")
	write(t, filepath.Join(devinfo, "dp/example.com-nic-0000:03:02.1-device.json"),
		`{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:03:02.1","rdma-device":"mlx5_2","pf-pci-address":"0000:03:00.0","representor-device":"eth3"}}`)
	file := f.Of("demo/fast", "box1", "net1")
	if want := "/var/run/k8s.cni.cncf.io/devinfo/cni/demo-fast-box1_net1"; file != want {
		t.Fatalf("plugins get %s, want %s", file, want)
	}
	here := filepath.Join(devinfo, "cni/demo-fast-box1_net1")
	if err := f.Describe("example.com/nic", "0000:03:02.1", file); err != nil || !exists(here) {
		t.Fatalf("described: %v, file %v", err, exists(here))
	}
	got, err := f.Read(file)
	want := &netattach.DeviceInfo{Type: "pci", Version: "1.1.0", PCI: &netattach.PCIDevice{
		PCIAddress: "0000:03:02.1", RDMADevice: "mlx5_2", PFPCIAddress: "0000:03:00.0", RepresentorDevice: "eth3",
	}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("read (-want +got): %v\n%s", err, diff)
	}
	// Another sandbox's file stays.
	other := f.Of("demo/fast", "box2", "net1")
	write(t, f.here(other), `{"type":"memif","memif":{"role":"master","path":"/run/m.sock","mode":"ethernet"}}`)
	for range 2 { // gone already is success
		if err := f.Remove(file); err != nil || exists(here) {
			t.Errorf("removed: %v, file %v", err, exists(here))
		}
	}
	if err := f.RemoveAll("box1"); err != nil || !exists(f.here(other)) {
		t.Errorf("removed another's: %v", err)
	}
	if err := f.RemoveAll("box2"); err != nil || exists(f.here(other)) {
		t.Errorf("the other's is there: %v", err)
	}
}

func TestNoFile(t *testing.T) {
	f := Files{Dir: t.TempDir()}
	file := f.Of("demo/fast", "box1", "net1")
	// Nobody says anything of the device: there is room for plugins to do so.
	if err := f.Describe("example.com/nic", "d0", file); err != nil || !exists(filepath.Dir(file)) || exists(file) {
		t.Errorf("%v, directory %v, file %v", err, exists(filepath.Dir(file)), exists(file))
	}
	if info, err := f.Read(file); info != nil || err != nil {
		t.Errorf("read %v, %v", info, err)
	}
	write(t, file, "{")
	if info, err := f.Read(file); info != nil || err == nil {
		t.Errorf("half a file says %v, %v", info, err)
	}
}
