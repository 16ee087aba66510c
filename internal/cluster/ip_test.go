package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

const definitionsPath = "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions"

// weft runs the CLI on the cluster.
func (l *lab) weft(args ...string) (string, error) {
	l.t.Helper()
	args = append([]string{"ip", "--kubeconfig=" + l.Kubeconfig()}, args...)
	out, err := l.Command(l.t.Context(), filepath.Join(l.dir, "weft"), args...).CombinedOutput()
	return string(out), err
}

// says runs the CLI, which has to say all of want; with an exclamation mark in front
// of the arguments it has to fail.
func (l *lab) says(args string, want ...string) {
	l.t.Helper()
	fields, fails := strings.CutPrefix(args, "!")
	out, err := l.weft(strings.Fields(fields)...)
	if (err != nil) != fails {
		l.t.Errorf("weft ip %s: %v\n%s", fields, err, out)
	}
	plain := strings.Join(strings.Fields(out), " ")
	for _, text := range want {
		if !strings.Contains(plain, text) {
			l.t.Errorf("weft ip %s does not say %q:\n%s", fields, text, out)
		}
	}
}

// lend makes a lease for the Pod of a UID.
func (l *lab) lend(addr, pod, uid string) {
	l.t.Helper()
	l.create(leasesPath, fmt.Sprintf(`{"apiVersion":"weft.network/v1alpha1","kind":"AddressLease","metadata":{"name":%q},
		"spec":{"ip":%q,"scope":"whereabouts:","pool":"10.9.0.0/29","network":"default/lan","interface":"net1","node":"n1","sandbox":"s","owner":{"kind":"Pod","namespace":"default","name":%q,"uid":%q}}}`, addr, addr, pod, uid))
}

// beats has the node's kubelet be heard from until it is stopped.
func (l *lab) beats() (stop func()) {
	ctx, cancel := context.WithCancel(l.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			l.beat()
			time.Sleep(100 * time.Millisecond) // a heart's beat
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// addressesAlone: weft ip on a cluster without a controller, as one who may do all.
func (l *lab) addressesAlone() {
	l.t.Helper()
	l.says("ls", "no address is held")
	l.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition",
		"metadata":{"name":"network-attachment-definitions.k8s.cni.cncf.io"},"spec":{"group":"k8s.cni.cncf.io","scope":"Namespaced",
		"names":{"plural":"network-attachment-definitions","singular":"network-attachment-definition","kind":"NetworkAttachmentDefinition","listKind":"NetworkAttachmentDefinitionList"},
		"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`)
	l.create(definitionsPath, `{"apiVersion":"k8s.cni.cncf.io/v1","kind":"NetworkAttachmentDefinition","metadata":{"name":"lan"},
		"spec":{"config":"{\"type\":\"bridge\",\"ipam\":{\"type\":\"whereabouts\",\"range\":\"10.9.0.0/29\",\"gateway\":\"10.9.0.6\"}}"}}`)
	l.lend("10.9.0.5", "gone", "0b7d3c1e-0000-4000-8000-000000000001")
	stop := l.beats()
	l.says("why 10.9.0.5", "10.9.0.5 is held by Pod default/gone on net1 of node n1, network default/lan", "because Pod default/gone has ended, not for long enough",
		"to free wait until weft-controller gives it back; if it does not, see that weft-controller runs")
	l.says("ls -o wide --node n1 --network lan --pool 10.9.0.0/29", "10.9.0.5 default/lan Pod default/gone net1 n1", "10.9.0.0/29 whereabouts: used s 10.9.0.5")
	l.says("ls --node n2", "no address is held")
	l.says("pools", "10.9.0.0/29 5 1 0 0 4 20% default/lan")
	l.says("free 10.9.0.5 --after 1s", "Pod default/gone seems to have ended; whether that stays so is looked at until", "10.9.0.5 was given back")
	stop()
	l.says("!show 10.9.0.5", "is held by nobody")
	l.says("why 10.9.0.5", "10.9.0.5 is free: network default/lan gives it, of 10.9.0.0/29")
	l.says("why 10.9.0.6", "10.9.0.6 is not given by network default/lan: it is the gateway of 10.9.0.0/29")
	l.says("why 10.8.0.1", "is in no range of a network")
}

// addressesLed: how full ranges are is told in AddressPools, and why an address of a
// silent node is kept.
func (l *lab) addressesLed() {
	l.t.Helper()
	l.eventually("pools are told", func() error {
		got := strings.Join(strings.Fields(l.kubectl("", "get", "addresspools")), " ")
		const want = `NAME RANGE SIZE USED RESERVED CONFLICTS FREE FULL% NETWORKS 10.9.0.1-10.9.0.5 10.9.0.0/29 5 3 0 0 2 60 ["default/lan"]`
		if got != want {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
	l.says("why 10.9.0.1", "10.9.0.1 is held by Pod default/x", "because Pod default/x is there", "to free delete Pod default/x")
	l.says("!free 10.9.0.1", `address "10.9.0.1": is not free: Pod default/x is there; delete Pod default/x; or give --force`)
	l.lend("10.9.0.5", "gone", "0b7d3c1e-0000-4000-8000-000000000002")
	l.eventually("the node's silence is told", func() error {
		out, err := l.weft("why", "10.9.0.5")
		if err != nil || !strings.Contains(out, "so it may run there still") || !strings.Contains(out, "delete its Node or taint it node.kubernetes.io/out-of-service") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	l.says("show 10.9.0.5 -o json", `"lease": "10.9.0.5"`, `"uid": "0b7d3c1e-0000-4000-8000-000000000002"`)
	l.says("free 10.9.0.5 --force", "10.9.0.5 was given back", "if Pod default/gone has it, another may be given the same")
	l.says("!free 10.9.0.5 --force", "is held by nobody")
	l.ask("DELETE", definitionsPath+"/lan", "", nil)
	l.eventually("the pool goes with its network", func() error {
		if got := l.kubectl("", "get", "addresspools"); got != "" && !strings.Contains(got, "No resources") {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
}
