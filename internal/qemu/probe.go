package qemu

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctls of /dev/kvm and the sizes of what they take, on x86-64
// (include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h).
const (
	kvmCreateVM     = 0xAE01
	kvmVCPUMmapSize = 0xAE04
	kvmCreateVCPU   = 0xAE41
	kvmRun          = 0xAE80
	kvmSetMemory    = 0x4020AE46
	kvmSetRegs      = 0x4090AE82
	kvmGetSregs     = 0x8138AE83
	kvmSetSregs     = 0x4138AE84
	kvmSregsSize    = 0x138
	kvmExitHLT      = 5
	// Offsets in struct kvm_run.
	kvmRunImmediateExit = 1
	kvmRunExitReason    = 8
)

const (
	// probeNative is the most CPU time that 200,000 guest instructions may take
	// where the processor executes them: it is far below 1 ms there, and some
	// 160 ms where the kernel emulates each of them.
	probeNative = 20 * time.Millisecond
	// probeLimit ends the probe, however the kernel behaves.
	probeLimit = 2 * time.Second
	// probeRun is how long the guest may run before it is interrupted.
	probeRun = 500 * time.Millisecond
)

// probeCode, 16-bit: mov ecx, 100000; l: dec ecx; jnz l; hlt.
var probeCode = []byte{0x66, 0xb9, 0xa0, 0x86, 0x01, 0x00, 0x66, 0x49, 0x75, 0xfc, 0xf4}

// ProbeResult says which accelerator to use and why.
type ProbeResult struct {
	Accel  Accel
	Reason string
}

// Probe finds out whether /dev/kvm executes guest code on the processor, by
// running a short loop in a guest of its own: that the device opens says
// nothing, because some hosts emulate what runs there, slower than TCG. It
// takes below a millisecond or, where it says TCG, up to two seconds; callers
// keep the answer.
func Probe() ProbeResult {
	type outcome struct {
		took time.Duration
		err  error
	}
	result := make(chan outcome, 1)
	go func() {
		// The thread is thrown away with the goroutine: signals are aimed at it.
		runtime.LockOSThread()
		took, err := probeLoop("/dev/kvm", probeCode)
		result <- outcome{took, err}
	}()
	limit := time.NewTimer(probeLimit)
	defer limit.Stop()
	select {
	case <-limit.C:
		return ProbeResult{TCG, fmt.Sprintf("/dev/kvm did not finish a guest loop within %s", probeLimit)}
	case r := <-result:
		switch {
		case r.err != nil:
			return ProbeResult{TCG, r.err.Error()}
		case r.took > probeNative:
			return ProbeResult{TCG, fmt.Sprintf("/dev/kvm took %s for 200,000 instructions: they are emulated", r.took)}
		}
		return ProbeResult{KVM, fmt.Sprintf("/dev/kvm took %s for 200,000 instructions", r.took)}
	}
}

func ioctl(fd int, request uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// ioctlPointer converts the pointer in the call itself: anywhere else the
// stack it may point to could move.
func ioctlPointer(fd int, request uintptr, argument unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(argument))
	if errno != 0 {
		return errno
	}
	return nil
}

// probeLoop gives the CPU time the guest's code took on this thread until it halted.
func probeLoop(device string, code []byte) (took time.Duration, err error) {
	kvm, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", device, err)
	}
	defer unix.Close(kvm)
	vm, err := ioctl(kvm, kvmCreateVM)
	if err != nil {
		return 0, fmt.Errorf("create VM: %w", err)
	}
	defer unix.Close(vm)
	page := os.Getpagesize()
	mem, err := unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON)
	if err != nil {
		return 0, fmt.Errorf("map guest memory: %w", err)
	}
	defer func() { _ = unix.Munmap(mem) }() // the process is about to forget it anyway
	copy(mem, code)
	// struct kvm_userspace_memory_region
	region := struct {
		slot, flags         uint32
		guest, size, memory uint64
	}{0, 0, 0x1000, uint64(page), uint64(uintptr(unsafe.Pointer(&mem[0])))}
	if err := ioctlPointer(vm, kvmSetMemory, unsafe.Pointer(&region)); err != nil {
		return 0, fmt.Errorf("give the guest memory: %w", err)
	}
	vcpu, err := ioctl(vm, kvmCreateVCPU)
	if err != nil {
		return 0, fmt.Errorf("create vCPU: %w", err)
	}
	defer unix.Close(vcpu)
	size, err := ioctl(kvm, kvmVCPUMmapSize)
	if err != nil {
		return 0, fmt.Errorf("size of vCPU state: %w", err)
	}
	run, err := unix.Mmap(vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return 0, fmt.Errorf("map vCPU state: %w", err)
	}
	defer func() { _ = unix.Munmap(run) }() // likewise
	if err := probeRegisters(vcpu); err != nil {
		return 0, err
	}
	return probeTime(vcpu, run)
}

// probeRegisters makes the vCPU begin at 0000:1000, where the code is.
func probeRegisters(vcpu int) error {
	var sregs [kvmSregsSize]byte
	if err := ioctlPointer(vcpu, kvmGetSregs, unsafe.Pointer(&sregs)); err != nil {
		return fmt.Errorf("read segments: %w", err)
	}
	clear(sregs[0:8])   // cs.base
	clear(sregs[12:14]) // cs.selector
	if err := ioctlPointer(vcpu, kvmSetSregs, unsafe.Pointer(&sregs)); err != nil {
		return fmt.Errorf("set segments: %w", err)
	}
	// struct kvm_regs: 16 general registers, rip, rflags.
	var regs [18]uint64
	regs[16], regs[17] = 0x1000, 2
	if err := ioctlPointer(vcpu, kvmSetRegs, unsafe.Pointer(&regs)); err != nil {
		return fmt.Errorf("set registers: %w", err)
	}
	return nil
}

// probeTime runs the guest. CPU time is measured, not the clock's, so that a
// busy host is not taken for a slow one.
func probeTime(vcpu int, run []byte) (time.Duration, error) {
	thread := unix.Gettid()
	var late atomic.Bool
	ended, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		interrupt(ended, &late, run, thread)
	}()
	defer func() {
		close(ended)
		<-watched
	}()
	before, err := threadTime()
	if err != nil {
		return 0, err
	}
	for {
		_, err := ioctl(vcpu, kvmRun)
		if errors.Is(err, unix.EINTR) && !late.Load() {
			continue // the Go runtime's own signals
		}
		if errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("/dev/kvm did not finish 200,000 instructions in %s: they are emulated", probeRun)
		}
		if err != nil {
			return 0, fmt.Errorf("run vCPU: %w", err)
		}
		break
	}
	after, err := threadTime()
	if err != nil {
		return 0, err
	}
	if reason := *(*uint32)(unsafe.Pointer(&run[kvmRunExitReason])); reason != kvmExitHLT {
		return 0, fmt.Errorf("guest loop ended with KVM exit reason %d, want %d", reason, kvmExitHLT)
	}
	return after - before, nil
}

// interrupt makes KVM_RUN return once the guest has run for too long: the flag
// keeps it from entering the guest again, the signal takes it out.
func interrupt(ended <-chan struct{}, late *atomic.Bool, run []byte, thread int) {
	timer := time.NewTimer(probeRun)
	defer timer.Stop()
	for {
		select {
		case <-ended:
			return
		case <-timer.C:
		}
		late.Store(true)
		run[kvmRunImmediateExit] = 1
		// SIGURG is what the runtime interrupts its threads with, so it is handled.
		// A failure means the thread is gone, and so is the need.
		_ = unix.Tgkill(unix.Getpid(), thread, unix.SIGURG)
		timer.Reset(10 * time.Millisecond)
	}
}

func threadTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0, fmt.Errorf("read thread's CPU time: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
