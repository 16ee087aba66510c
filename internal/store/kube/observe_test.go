package kube

import "testing"

func TestResourceIn(t *testing.T) {
	for path, want := range map[string]string{
		"/api/v1": "discovery", "/apis/k8s.cni.cncf.io/v1": "discovery", "/": "discovery",
		"/api/v1/pods": "pods", "/api/v1/namespaces/a/pods/b": "pods", "/api/v1/namespaces/a/pods/b/status": "pods/status",
		"/api/v1/namespaces/a/events":                                            "events",
		"/apis/k8s.cni.cncf.io/v1/network-attachment-definitions":                "network-attachment-definitions",
		"/apis/k8s.cni.cncf.io/v1/namespaces/a/network-attachment-definitions/b": "network-attachment-definitions",
		"/apis/apiextensions.k8s.io/v1/customresourcedefinitions":                "customresourcedefinitions",
		"/apis/example.com/v1/namespaces/a/whatever-somebody-makes-up/b":         "other",
		"/api/v1/namespaces/a":                                                   "other", "/api/v1/nodes/n1": "nodes",
	} {
		if got := resourceIn(path); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
}
