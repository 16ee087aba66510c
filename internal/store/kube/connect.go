package kube

import (
	"net/http"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/kubeapi"
)

// Connect gives the store of the cluster that a kubeconfig file names; empty:
// that of the service account of the Pod this process runs in. program is how it
// calls itself to the API server. observe may be nil.
func Connect(kubeconfig, program string, observe Observe) (*Store, error) {
	opt := kubeapi.Options{Agent: program, Proxy: http.ProxyFromEnvironment}
	if observe != nil {
		opt.Observe = func(method, resource string, code int) { observe(method, labelOf(resource), code) }
	}
	if kubeconfig != "" {
		client, err := kubeapi.Open(kubeconfig, opt)
		if err != nil {
			return nil, err
		}
		return New(client), nil
	}
	client, err := kubeapi.InCluster(opt)
	if err != nil {
		return nil, &hint.Error{Field: "--kubeconfig", Problem: "is missing, and this is no Pod with a service account", Err: err, Remedy: "name a kubeconfig file"}
	}
	return New(client), nil
}
