package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Listener says who listens on a TCP port in the process's own namespace: by name
// and PID, or by user if its files may not be looked at. Empty: nobody is found.
func Listener(port uint16) string {
	inode, uid := listening(port)
	if inode == "" {
		return ""
	}
	const socket = "socket:["
	descriptors, _ := filepath.Glob("/proc/[0-9]*/fd/*") // a pattern that is right
	for _, path := range descriptors {
		if to, err := os.Readlink(path); err != nil || to != socket+inode+"]" {
			continue
		}
		process := filepath.Dir(filepath.Dir(path))
		name, err := os.ReadFile(filepath.Join(process, "comm"))
		if err != nil {
			continue // it ended this moment
		}
		return fmt.Sprintf("%s (PID %s)", strings.TrimSpace(string(name)), filepath.Base(process))
	}
	return "a process of user " + uid
}

// listening gives inode and user of the socket that listens on a port
// (Documentation/networking/proc_net_tcp.rst of the kernel), in this thread's
// namespace: /proc/net is about the first thread, which may visit a Pod's.
func listening(port uint16) (inode, uid string) {
	const (
		local, state, user, node = 1, 3, 7, 9 // columns
		listens                  = "0A"       // TCP_LISTEN
	)
	for _, table := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			continue // a kernel without IPv6
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) <= node || fields[state] != listens {
				continue
			}
			_, at, _ := strings.Cut(fields[local], ":")
			if number, err := strconv.ParseUint(at, 16, 16); err == nil && uint16(number) == port {
				return fields[node], fields[user]
			}
		}
	}
	return "", ""
}
