package kube

import (
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weftnet/weft/internal/hint"
)

// Requests a second, and in a burst: so many that a burst of Pods writes its
// status without waiting here; the API server has limits of its own.
const (
	queriesPerSecond = 100
	queryBurst       = 200
)

// Connect gives the store of the cluster that a kubeconfig file names; empty:
// that of the service account of the Pod this process runs in. program is how it
// calls itself to the API server. observe may be nil.
func Connect(kubeconfig, program string, observe Observe) (*Store, error) {
	config, err := configOf(kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst, config.UserAgent = queriesPerSecond, queryBurst, program
	if observe != nil {
		observed(config, observe)
	}
	return New(config)
}

func configOf(path string) (*rest.Config, error) {
	if path == "" {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, &hint.Error{Field: "--kubeconfig", Problem: "is missing, and this is no Pod with a service account", Err: err, Remedy: "name a kubeconfig file"}
		}
		return config, nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, &hint.Error{Field: "--kubeconfig", Value: path, Problem: "cannot be used", Err: err, Remedy: "name a kubeconfig file of this cluster"}
	}
	return config, nil
}
