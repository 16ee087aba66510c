package kube

import "slices"

// Observe is told of each request that was answered, and with code 0 of each that
// was not. Watches have method WATCH.
type Observe func(method, resource string, code int)

// named are the resources that agents ask for; the others have one name together.
var named = []string{"pods", "pods/status", "events", "nodes", "network-attachment-definitions", "ipamclaims", "customresourcedefinitions", "discovery"}

func labelOf(resource string) string {
	if slices.Contains(named, resource) {
		return resource
	}
	return "other"
}
