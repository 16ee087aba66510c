package kube

import (
	"net/http"
	"slices"
	"strings"

	"k8s.io/client-go/rest"
)

// Observe is told of each request that was answered, and with code 0 of each that
// was not. Watches have method WATCH.
type Observe func(method, resource string, code int)

// observed has what a client of config asks counted.
func observed(config *rest.Config, observe Observe) {
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return counting{next, observe} })
}

type counting struct {
	next    http.RoundTripper
	observe Observe
}

var _ http.RoundTripper = counting{}

// RoundTrip asks, and tells.
func (c counting) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := c.next.RoundTrip(request)
	method, code := request.Method, 0
	if request.URL.Query().Get("watch") == "true" {
		method = "WATCH"
	}
	if err == nil {
		code = response.StatusCode
	}
	c.observe(method, resourceIn(request.URL.Path), code)
	return response, err
}

// named are the resources that agents ask for; the others have one name together.
var named = []string{"pods", "pods/status", "events", "nodes", "network-attachment-definitions", "ipamclaims", "customresourcedefinitions"}

// resourceIn finds the resource in the path of a request
// (/api/v1/namespaces/NS/RESOURCE/NAME/SUBRESOURCE, /apis/GROUP/VERSION/...).
func resourceIn(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	skip := 2
	if parts[0] == "apis" {
		skip = 3
	}
	if len(parts) <= skip {
		return "discovery"
	}
	if parts = parts[skip:]; parts[0] == "namespaces" && len(parts) > 2 {
		parts = parts[2:]
	}
	resource := parts[0]
	if len(parts) > 2 {
		resource += "/" + parts[2]
	}
	if !slices.Contains(named, resource) {
		return "other"
	}
	return resource
}
