// Command weft-guest is what the small guest consists of beside a kernel,
// busybox and qemu-ga: it configures every NIC that comes, over DHCPv4, DHCPv6
// and NoCloud data, answers the power button and serves reachability tests.
// What it takes from the kernel's command line is listed in guest/README.md.
package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/weftnet/weft/guest/echo"
)

func main() {
	if len(os.Args) > 1 {
		if err := command(os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "weft-guest:", err)
			os.Exit(1)
		}
		return
	}
	boot(context.Background())
}

// say prints one line on the console.
func say(format string, args ...any) { fmt.Printf("weft-guest: "+format+"\n", args...) }

// command is what others in the guest call.
func command(name string, args []string) error {
	switch name {
	case "poweroff":
		return powerOff(false)
	case "reboot":
		return powerOff(true)
	case "mcast-send":
		if len(args) != 2 {
			return fmt.Errorf("usage: weft-guest mcast-send GROUP:PORT@LINK TEXT")
		}
		group, err := parseGroup(args[0])
		if err != nil {
			return err
		}
		return group.Send(args[1])
	case "mcast-listen":
		if len(args) != 1 {
			return fmt.Errorf("usage: weft-guest mcast-listen GROUP:PORT@LINK")
		}
		group, err := parseGroup(args[0])
		if err != nil {
			return err
		}
		say("joining %s on %s", group.Addr, group.Link)
		return group.Listen(context.Background(), func(from net.Addr, payload string) { say("from %s: %s", from, payload) })
	}
	return fmt.Errorf("unknown command %q: want poweroff, reboot, mcast-send or mcast-listen", name)
}

// boot runs until the machine is off.
func boot(ctx context.Context) {
	if err := seedRandom(); err != nil {
		say("%v", err)
	}
	raw, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		say("%v", err)
	}
	args := parseCmdline(string(raw))
	for _, dir := range []string{"/run/resolv", "/run/lease", "/run/configured", "/run/log"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			say("%v", err)
		}
	}
	setHostname(args.hostname)
	data := loadSeed()
	prepare(data)

	go watchPowerButton()
	nics := newNetwork(data.NICs, args.unconfigured)
	writeResolv("seed", data.DNS, data.Search)
	go func() {
		for {
			if err := nics.run(ctx); err != nil {
				say("%v", err)
			}
			time.Sleep(time.Second)
		}
	}()
	go runAgent(ctx)
	serve(ctx, args)

	nics.waitConfigured(ctx)
	say("ready %s, up %ss", hostname(), uptime())
	runSeed(data)
	if args.run != "" {
		say("run ended, exit %d", runLogged("run", "/bin/sh", "-c", args.run))
	}
	if args.end == "off" {
		if err := powerOff(false); err != nil {
			say("%v", err)
		}
	}
	<-ctx.Done()
}

// uptime gives the seconds since the kernel started, as text.
func uptime() string {
	raw, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return "?"
	}
	up, _, _ := strings.Cut(string(raw), " ")
	return up
}

// serve starts the servers asked for.
func serve(ctx context.Context, args cmdline) {
	for _, port := range args.serve {
		server := echo.Server{Port: port, Name: hostname}
		go func() { say("serve tcp %d: %v", port, server.RunTCP(ctx)) }()
		go func() { say("serve udp %d: %v", port, server.RunUDP(ctx)) }()
	}
	for _, group := range args.mcast {
		go listenGroup(ctx, group)
	}
}

// qemu-ga's port, as QEMU names it (docs/interop/qemu-ga.rst).
const agentPort = "org.qemu.guest_agent.0"

// runAgent keeps qemu-ga running once its port is there.
func runAgent(ctx context.Context) {
	for ; ; time.Sleep(time.Second) {
		device := agentDevice()
		if device == "" {
			continue
		}
		log, err := os.Create("/run/log/qemu-ga")
		if err != nil {
			say("%v", err)
			continue
		}
		agent := exec.CommandContext(ctx, "/bin/qemu-ga", "-m", "virtio-serial", "-p", device, "-t", "/run", "-f", "/run/qemu-ga.pid")
		agent.Stdout, agent.Stderr, agent.Dir = log, log, "/"
		say("qemu-ga ended: %v", agent.Run())
		log.Close() // a log
	}
}

func agentDevice() string {
	ports, err := os.ReadDir("/sys/class/virtio-ports")
	if err != nil {
		return "" // no such device yet
	}
	for _, port := range ports {
		name, err := os.ReadFile("/sys/class/virtio-ports/" + port.Name() + "/name")
		if err == nil && strings.TrimSpace(string(name)) == agentPort {
			return "/dev/" + port.Name()
		}
	}
	return ""
}

// listenGroup prints what comes for a group, and joins again when the link
// comes late or goes.
func listenGroup(ctx context.Context, group echo.Group) {
	for ; ; time.Sleep(200 * time.Millisecond) {
		iface := "/run/configured/" + group.Link
		if _, err := os.Stat(iface); err != nil {
			continue
		}
		say("joined %s on %s", group.Addr, group.Link)
		err := group.Listen(ctx, func(from net.Addr, payload string) {
			say("mcast %s %s from %s: %s", group.Link, group.Addr, from, payload)
		})
		say("%v", err)
	}
}

// parseGroup reads GROUP:PORT@LINK.
func parseGroup(text string) (echo.Group, error) {
	at, link, ok := strings.Cut(text, "@")
	addr, err := netip.ParseAddrPort(at)
	if err != nil || !ok || !addr.Addr().IsMulticast() {
		return echo.Group{}, fmt.Errorf("%q: want GROUP:PORT@LINK with a multicast group", text)
	}
	return echo.Group{Addr: addr, Link: link}, nil
}

// runLogged runs a program with its output on the console, line by line, and
// gives its exit code.
func runLogged(label, name string, args ...string) int {
	child := exec.Command(name, args...)
	out := &lineWriter{prefix: "weft-guest: " + label + ": "}
	child.Stdout, child.Stderr = out, out
	err := child.Run()
	out.flush()
	if child.ProcessState == nil {
		say("%s: %v", label, err)
		return 127 // as a shell has it
	}
	return child.ProcessState.ExitCode()
}

// lineWriter puts a prefix before each line, so that lines of several programs
// can be told apart.
type lineWriter struct {
	prefix, rest string
}

// Write implements io.Writer.
func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest += string(p)
	for {
		line, rest, ok := strings.Cut(w.rest, "\n")
		if !ok {
			return len(p), nil
		}
		fmt.Println(w.prefix + line)
		w.rest = rest
	}
}

func (w *lineWriter) flush() {
	if w.rest != "" {
		fmt.Println(w.prefix + w.rest)
	}
}
