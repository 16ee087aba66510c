// Command recorder is a CNI plugin for tests. It writes down every call, keeps
// one file of state per attachment from ADD to DEL, and misbehaves on request:
//
//	"dir":    where to write: calls (one line each), and state/<sandbox>-<ifname>
//	"describes": what ADD says of the device, in the file that runtimeConfig names
//	"behave": {"ADD": "hang" | "crash" | "garbage" | "null" | "fail" | "fork" | "silent"}
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

type config struct {
	CNIVersion    string            `json:"cniVersion"`
	Name          string            `json:"name"`
	Dir           string            `json:"dir"`
	Behave        map[string]string `json:"behave"`
	Gives         json.RawMessage   `json:"gives"`
	Describes     json.RawMessage   `json:"describes"`
	PrevResult    json.RawMessage   `json:"prevResult"`
	RuntimeConfig json.RawMessage   `json:"runtimeConfig"`
	Args          json.RawMessage   `json:"args"`
	IPAM          struct {
		Dir    string            `json:"dir"`
		Gives  json.RawMessage   `json:"gives"`
		Behave map[string]string `json:"behave"`
	} `json:"ipam"`
}

func main() {
	stdin, err := io.ReadAll(os.Stdin)
	must(err)
	var c config
	must(json.Unmarshal(stdin, &c))
	if c.Dir == "" { // called as an IPAM plugin
		c.Dir, c.Gives, c.Behave = c.IPAM.Dir, c.IPAM.Gives, c.IPAM.Behave
	}
	verb, sandbox, ifName := os.Getenv("CNI_COMMAND"), os.Getenv("CNI_CONTAINERID"), os.Getenv("CNI_IFNAME")
	who := filepath.Base(os.Args[0])
	line := map[string]any{"verb": verb, "plugin": who, "ifname": ifName, "netns": os.Getenv("CNI_NETNS"), "args": os.Getenv("CNI_ARGS"), "name": c.Name, "runtimeConfig": c.RuntimeConfig, "prevResult": len(c.PrevResult) > 0, "config": c.Args}
	text, err := json.Marshal(line)
	must(err)
	log, err := os.OpenFile(filepath.Join(c.Dir, "calls"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	must(err)
	_, err = log.Write(append(text, '\n'))
	must(err)
	must(log.Close())

	state := filepath.Join(c.Dir, "state", sandbox+"-"+ifName+"-"+who)
	switch verb {
	case "ADD":
		must(os.MkdirAll(filepath.Dir(state), 0o700))
		must(os.WriteFile(state, stdin, 0o600))
		if len(c.Describes) > 0 {
			var told struct{ CNIDeviceInfoFile string }
			must(json.Unmarshal(c.RuntimeConfig, &told))
			must(os.WriteFile(told.CNIDeviceInfoFile, c.Describes, 0o600))
		}
	case "DEL":
		if err := os.Remove(state); err != nil && !os.IsNotExist(err) {
			must(err)
		}
	}
	behave(c.Behave[verb])
	if verb != "ADD" {
		return
	}
	switch {
	case len(c.Gives) > 0:
		fmt.Println(strings.ReplaceAll(string(c.Gives), "NETNS", os.Getenv("CNI_NETNS")))
	case len(c.PrevResult) > 0:
		fmt.Println(string(c.PrevResult))
	default:
		fmt.Printf(`{"cniVersion":%q}`, c.CNIVersion)
	}
}

func behave(how string) {
	switch how {
	case "hang":
		time.Sleep(time.Hour)
	case "fork": // a child that keeps the output open, and dies with the group only
		child := exec.Command("sleep", "3600")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		must(child.Start())
		time.Sleep(time.Hour)
	case "crash":
		fmt.Fprintln(os.Stderr, "about to crash")
		must(syscall.Kill(os.Getpid(), syscall.SIGKILL))
		time.Sleep(time.Minute)
	case "garbage":
		fmt.Println("<html>not today</html>")
		os.Exit(0)
	case "null":
		fmt.Println("null")
		os.Exit(0)
	case "fail":
		fmt.Println(`{"cniVersion":"1.0.0","code":7,"msg":"no luck today","details":"the stars"}`)
		os.Exit(1)
	case "silent":
		os.Exit(3)
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "recorder:", err)
		os.Exit(2)
	}
}
