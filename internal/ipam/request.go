package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/internal/hint"
)

// requests are the addresses asked for, by where they were asked.
type requests struct {
	runtime, args, env []Request
	gateways           []netip.Addr // CNI_ARGS GATEWAY
}

func readRequests(doc document, cniArgs string) (requests, error) {
	var (
		r    requests
		errs []error
		err  error
	)
	r.runtime, err = parseRequests("runtimeConfig.ips", doc.RuntimeConfig.IPs)
	errs = append(errs, err)
	var argsErr, envErr, gwErr error
	r.args, argsErr = parseRequests("args.cni.ips", doc.Args.CNI.IPs)
	r.env, envErr = parseRequests("CNI_ARGS.IP", splitList(cniArg(cniArgs, "IP")))
	errs = append(errs, argsErr, envErr)
	for i, text := range splitList(cniArg(cniArgs, "GATEWAY")) {
		var gw netip.Addr
		gw, gwErr = parseAddr(fmt.Sprintf("CNI_ARGS.GATEWAY[%d]", i), text)
		r.gateways, errs = append(r.gateways, gw), append(errs, gwErr)
	}
	return r, errors.Join(errs...)
}

// cniArg gives the last value of a key of CNI_ARGS, which is K=V;K=V.
func cniArg(cniArgs, key string) string {
	var found string
	for pair := range strings.SplitSeq(cniArgs, ";") {
		if name, value, ok := strings.Cut(pair, "="); ok && strings.TrimSpace(name) == key {
			found = value
		}
	}
	return found
}

func splitList(text string) []string {
	var items []string
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

func parseRequests(field string, texts []string) ([]Request, error) {
	var (
		out  []Request
		errs []error
	)
	for i, text := range texts {
		at := fmt.Sprintf("%s[%d]", field, i)
		r := Request{Bits: -1, Field: at}
		if strings.Contains(text, "/") {
			p, err := parsePrefix(at, text)
			r.Addr, r.Bits, errs = p.Addr(), p.Bits(), append(errs, err)
		} else {
			a, err := parseAddr(at, text)
			r.Addr, errs = a, append(errs, err)
		}
		out = append(out, r)
	}
	return out, errors.Join(errs...)
}

// all gives every request once; the same address is often passed two ways.
func (r requests) all() []Request {
	var out []Request
	seen := map[netip.Addr]bool{}
	for _, list := range [][]Request{r.env, r.args, r.runtime} {
		for _, q := range list {
			if !seen[q.Addr] {
				seen[q.Addr] = true
				out = append(out, q)
			}
		}
	}
	return out
}

// refuseAll refuses requests made of a network without IPAM.
func (r requests) refuseAll() error {
	var errs []error
	for _, q := range r.all() {
		errs = append(errs, &hint.Error{
			Field: q.Field, Value: q.Addr.String(), Problem: "this network has no ipam, so nobody can give the address",
			Remedy: `add "ipam": {"type": "static"} to the network's config, or drop the request`, Err: ErrRefused,
		})
	}
	return errors.Join(errs...)
}
