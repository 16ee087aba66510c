// Package seed reads the NoCloud data source of cloud-init, an honest subset:
//
//   - meta-data: local-hostname, hostname
//   - user-data: a script that starts with #!, or #cloud-config with hostname,
//     fqdn, bootcmd, runcmd and write_files (encoding b64 or none)
//   - network-config version 1 (physical, nameserver) and 2 (ethernets):
//     match by MAC or name, addresses, gateways, routes, DNS, MTU, DHCP
//
// What it does not know is named in Seed.Ignored, so that the console says it.
// It reads text only; what is done with it is weft-guest's.
package seed

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Seed is what a cidata volume asks for.
type Seed struct {
	Hostname string
	// BootCommands run before the network is set up, Commands after.
	BootCommands, Commands []Command
	// Script is user-data that is a program, run after the network is up.
	Script  string
	Files   []File
	NICs    []NIC
	DNS     []string
	Search  []string
	Ignored []string
}

// Command is a program with arguments, or one line for the shell.
type Command []string

// File is written before the network is set up.
type File struct {
	Path    string
	Content []byte
	Mode    string // octal; empty: 0644
	Append  bool
}

// Parse reads the three files of the volume; a file that is not there is empty.
func Parse(metaData, userData, networkConfig []byte) (Seed, error) {
	var s Seed
	if err := s.readMeta(metaData); err != nil {
		return s, fmt.Errorf("meta-data: %w", err)
	}
	if err := s.readUser(userData); err != nil {
		return s, fmt.Errorf("user-data: %w", err)
	}
	if err := s.readNetwork(networkConfig); err != nil {
		return s, fmt.Errorf("network-config: %w", err)
	}
	return s, nil
}

func (s *Seed) readMeta(raw []byte) error {
	var meta struct {
		LocalHostname string `json:"local-hostname"`
		Hostname      string `json:"hostname"`
	}
	if err := yaml.Unmarshal(raw, &meta); err != nil {
		return err
	}
	s.Hostname = meta.LocalHostname
	if s.Hostname == "" {
		s.Hostname = meta.Hostname
	}
	return nil
}

// userData is the part of #cloud-config that is understood.
type userData struct {
	Hostname   string      `json:"hostname"`
	FQDN       string      `json:"fqdn"`
	BootCmd    []any       `json:"bootcmd"`
	RunCmd     []any       `json:"runcmd"`
	WriteFiles []writeFile `json:"write_files"`
}

type writeFile struct {
	Path        string `json:"path"`
	Content     string `json:"content"`
	Encoding    string `json:"encoding"`
	Permissions string `json:"permissions"`
	Append      bool   `json:"append"`
}

func (s *Seed) readUser(raw []byte) error {
	text := strings.TrimLeft(string(raw), "\ufeff\r\n\t ")
	switch {
	case text == "":
		return nil
	case strings.HasPrefix(text, "#!"):
		s.Script = text
		return nil
	case !strings.HasPrefix(text, "#cloud-config"):
		first, _, _ := strings.Cut(text, "\n")
		s.Ignored = append(s.Ignored, fmt.Sprintf("user-data that starts with %q", first))
		return nil
	}
	var data userData
	if err := yaml.Unmarshal([]byte(text), &data); err != nil {
		return err
	}
	var keys map[string]any
	if err := yaml.Unmarshal([]byte(text), &keys); err != nil {
		return err
	}
	known := []string{"hostname", "fqdn", "bootcmd", "runcmd", "write_files"}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if !slices.Contains(known, key) {
			s.Ignored = append(s.Ignored, "user-data key "+key)
		}
	}
	if name := data.Hostname; name != "" {
		s.Hostname = name
	} else if data.FQDN != "" {
		s.Hostname, _, _ = strings.Cut(data.FQDN, ".")
	}
	var err error
	if s.BootCommands, err = commands("bootcmd", data.BootCmd); err != nil {
		return err
	}
	if s.Commands, err = commands("runcmd", data.RunCmd); err != nil {
		return err
	}
	return s.readFiles(data.WriteFiles)
}

// commands reads a list of shell lines and argument lists.
func commands(field string, raw []any) ([]Command, error) {
	var out []Command
	for i, item := range raw {
		switch item := item.(type) {
		case string:
			out = append(out, Command{"/bin/sh", "-c", item})
		case []any:
			command := Command{}
			for _, word := range item {
				command = append(command, fmt.Sprint(word))
			}
			if len(command) > 0 {
				out = append(out, command)
			}
		default:
			return nil, fmt.Errorf("%s[%d]: want a line or a list, have %v", field, i, item)
		}
	}
	return out, nil
}

func (s *Seed) readFiles(raw []writeFile) error {
	for i, f := range raw {
		if !strings.HasPrefix(f.Path, "/") {
			return fmt.Errorf("write_files[%d].path: %q is not absolute", i, f.Path)
		}
		content := []byte(f.Content)
		switch f.Encoding {
		case "", "text/plain":
		case "b64", "base64":
			decoded, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(f.Content), ""))
			if err != nil {
				return fmt.Errorf("write_files[%d].content: %w", i, err)
			}
			content = decoded
		default:
			return fmt.Errorf("write_files[%d].encoding: %q is not supported", i, f.Encoding)
		}
		s.Files = append(s.Files, File{Path: f.Path, Content: content, Mode: f.Permissions, Append: f.Append})
	}
	return nil
}
