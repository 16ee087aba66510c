package qemu

import (
	"os"
	"runtime"
	"testing"
	"time"
)

// TestProbe cannot know the answer, but it must come soon and with a reason.
func TestProbe(t *testing.T) {
	begin := time.Now()
	got := Probe()
	took := time.Since(begin)
	t.Logf("%s in %s: %s", got.Accel, took, got.Reason)
	if got.Reason == "" || got.Accel != KVM && got.Accel != TCG {
		t.Errorf("got %+v", got)
	}
	if took > probeLimit+time.Second {
		t.Errorf("took %s", took)
	}
	if _, err := os.Stat("/dev/kvm"); err != nil && got.Accel != TCG {
		t.Errorf("%s without /dev/kvm", got.Accel)
	}
}

func TestProbeNoDevice(t *testing.T) {
	for _, device := range []string{"/nonexistent/kvm", "/dev/null"} {
		if took, err := probeLoop(device, probeCode); err == nil {
			t.Errorf("%s ran the loop in %s", device, took)
		}
	}
}

// TestProbeEndless runs a guest that never ends: it is taken out.
func TestProbeEndless(t *testing.T) {
	file, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		// Without the device nothing can be endless: guests are emulated.
		if got := Probe(); got.Accel != TCG {
			t.Errorf("without /dev/kvm (%v) the probe says %+v", err, got)
		}
		return
	}
	file.Close()
	begin := time.Now()
	jumpToItself := []byte{0xeb, 0xfe}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		_, err := probeLoop("/dev/kvm", jumpToItself)
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil {
			t.Error("an endless loop ended")
		}
		t.Logf("after %s: %v", time.Since(begin), err)
	case <-time.After(10 * time.Second):
		t.Fatal("the guest was not interrupted")
	}
}
