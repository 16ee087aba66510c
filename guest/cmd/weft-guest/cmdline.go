package main

import (
	"strconv"
	"strings"

	"github.com/weftnet/weft/guest/echo"
)

// cmdline is what the kernel's command line asks of the guest.
type cmdline struct {
	run          string
	end          string
	hostname     string
	serve        []int
	mcast        []echo.Group
	unconfigured []string
}

// parseCmdline reads the weft.* words; what is wrong with one is printed.
func parseCmdline(text string) cmdline {
	var args cmdline
	for _, word := range fields(text) {
		key, value, ok := strings.Cut(word, "=")
		name, ours := strings.CutPrefix(key, "weft.")
		if !ok || !ours {
			continue
		}
		switch name {
		case "run":
			args.run = value
		case "end":
			args.end = value
		case "hostname":
			args.hostname = value
		case "unconfigured":
			args.unconfigured = strings.Split(value, ",")
		case "serve":
			for _, item := range strings.Split(value, ",") {
				port, err := strconv.ParseUint(item, 10, 16)
				if err != nil {
					say("weft.serve: %q is no port", item)
					continue
				}
				args.serve = append(args.serve, int(port))
			}
		case "mcast":
			for _, item := range strings.Split(value, ",") {
				group, err := parseGroup(item)
				if err != nil {
					say("weft.mcast: %v", err)
					continue
				}
				args.mcast = append(args.mcast, group)
			}
		default:
			say("unknown argument %s", key)
		}
	}
	return args
}

// fields splits at blanks outside double quotes and drops the quotes, as the
// kernel does (lib/cmdline.c, next_arg).
func fields(text string) []string {
	var out []string
	var word strings.Builder
	quoted, some := false, false
	for _, r := range text {
		switch {
		case r == '"':
			quoted, some = !quoted, true
		case !quoted && (r == ' ' || r == '\n' || r == '\t'):
			if some {
				out = append(out, word.String())
			}
			word.Reset()
			some = false
		default:
			word.WriteRune(r)
			some = true
		}
	}
	if some {
		out = append(out, word.String())
	}
	return out
}
