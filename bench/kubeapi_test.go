package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/test/kubelab"
)

// kubeAPI is a real API server, and nothing else that would touch its objects.
type kubeAPI struct {
	tb      testing.TB
	cluster *kubelab.Cluster
	client  *http.Client
	// secrets is the directory a Pod's service account is in.
	secrets, token string
}

const (
	netsNamespace = "nets" // of the NADs
	podsNamespace = "pods"
)

func newKubeAPI(tb testing.TB) *kubeAPI {
	tb.Helper()
	cluster := kubelab.New(tb, kubelab.Options{APIOnly: true})
	config, err := cluster.TLS()
	if err != nil {
		tb.Fatal(err)
	}
	a := &kubeAPI{
		tb: tb, cluster: cluster, secrets: filepath.Join(cluster.Dir, "serviceaccount"),
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: config, DialContext: cluster.Dial, ForceAttemptHTTP2: true}, Timeout: 30 * time.Second},
	}
	for _, name := range []string{netsNamespace, podsNamespace} {
		a.must(http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": name}})
		a.must(http.MethodPost, "/api/v1/namespaces/"+name+"/serviceaccounts", object{"metadata": object{"name": "default"}})
	}
	a.must(http.MethodPost, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", object{
		"metadata": object{"name": "agents"},
		"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
		"subjects": []object{{"kind": "ServiceAccount", "namespace": netsNamespace, "name": "default"}},
	})
	a.account()
	a.definitions()
	return a
}

type object = map[string]any

// call makes a request as one who may do everything.
func (a *kubeAPI) call(method, path string, body any) ([]byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(a.tb.Context(), method, a.cluster.Server+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := a.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, response.Status, answer)
	}
	return answer, err
}

func (a *kubeAPI) must(method, path string, body any) []byte {
	a.tb.Helper()
	answer, err := a.call(method, path, body)
	if err != nil {
		a.tb.Fatal(err)
	}
	return answer
}

// account writes what a Pod of the service account has in its file system.
func (a *kubeAPI) account() {
	a.tb.Helper()
	var token struct{ Status struct{ Token string } }
	answer := a.must(http.MethodPost, "/api/v1/namespaces/"+netsNamespace+"/serviceaccounts/default/token",
		object{"spec": object{"expirationSeconds": 7200}})
	err := json.Unmarshal(answer, &token)
	a.token = token.Status.Token
	ca, readErr := os.ReadFile(filepath.Join(a.cluster.Dir, "ca.crt"))
	err = errors.Join(err, readErr, os.MkdirAll(a.secrets, 0o755))
	for name, text := range map[string][]byte{"token": []byte(a.token), "ca.crt": ca, "namespace": []byte(netsNamespace)} {
		err = errors.Join(err, os.WriteFile(filepath.Join(a.secrets, name), text, 0o600))
	}
	if err != nil {
		a.tb.Fatal(err)
	}
}

// kubeconfig writes a file for the service account.
func (a *kubeAPI) kubeconfig(path, server string) {
	a.tb.Helper()
	text, err := json.Marshal(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": []object{{"name": "c", "cluster": object{"server": server, "certificate-authority": filepath.Join(a.cluster.Dir, "ca.crt")}}},
		"users":    []object{{"name": "c", "user": object{"token": a.token}}},
		"contexts": []object{{"name": "c", "context": object{"cluster": "c", "user": "c"}}},
	})
	if err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		a.tb.Fatal(err)
	}
}

const definitionsPath = "/apis/k8s.cni.cncf.io/v1/namespaces/" + netsNamespace + "/network-attachment-definitions"

// definitions makes the kind and the networks, those of networkConfs.
func (a *kubeAPI) definitions() {
	a.tb.Helper()
	a.must(http.MethodPost, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", object{
		"metadata": object{"name": "network-attachment-definitions.k8s.cni.cncf.io"},
		"spec": object{
			"group": "k8s.cni.cncf.io", "scope": "Namespaced",
			"names": object{"plural": "network-attachment-definitions", "singular": "network-attachment-definition", "kind": "NetworkAttachmentDefinition"},
			"versions": []object{{"name": "v1", "served": true, "storage": true, "schema": object{"openAPIV3Schema": object{
				"type": "object", "properties": object{"spec": object{"type": "object", "properties": object{"config": object{"type": "string"}}}},
			}}}},
		},
	})
	eventually(a.tb, "networks can be made", func() error {
		_, err := a.call(http.MethodGet, definitionsPath, nil)
		return err
	})
	for _, kind := range kinds {
		for i, conf := range networkConfs(kind, filepath.Join(a.cluster.Dir, "addresses")) {
			a.must(http.MethodPost, definitionsPath, object{
				"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
				"metadata": object{"name": fmt.Sprintf("%s-%d", kind, i)}, "spec": object{"config": conf},
			})
		}
	}
}

// kubePod is a Pod of the API, not on any node's disk.
type kubePod struct {
	name, uid, networks string
}

// pods makes Pods on a node, with the first n networks of a kind.
func (a *kubeAPI) pods(node, kind string, n, count int) []kubePod {
	a.tb.Helper()
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("%s/%s-%d", netsNamespace, kind, i))
	}
	networks := strings.Join(names, ",")
	made := make([]kubePod, count)
	each(count, 8, func(i int) {
		var pod struct{ Metadata struct{ Name, UID string } }
		answer, err := a.call(http.MethodPost, "/api/v1/namespaces/"+podsNamespace+"/pods", object{
			"metadata": object{"generateName": node + "-", "annotations": object{"k8s.v1.cni.cncf.io/networks": networks}},
			"spec": object{
				"nodeName": node, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
				"containers": []object{{"name": "c", "image": "i"}}, "tolerations": []object{{"operator": "Exists"}},
			},
		})
		if err == nil {
			err = json.Unmarshal(answer, &pod)
		}
		if err != nil {
			a.tb.Error(err)
			return
		}
		made[i] = kubePod{pod.Metadata.Name, pod.Metadata.UID, networks}
	})
	if a.tb.Failed() {
		a.tb.FailNow()
	}
	return made
}

// told waits until the network-status of all Pods is written, with so many
// interfaces.
func (a *kubeAPI) told(pods []kubePod, interfaces int) {
	a.tb.Helper()
	for _, pod := range pods {
		eventually(a.tb, "network-status of "+pod.name, func() error {
			var got struct {
				Metadata struct{ Annotations map[string]string }
			}
			answer, err := a.call(http.MethodGet, "/api/v1/namespaces/"+podsNamespace+"/pods/"+pod.name, nil)
			if err == nil {
				err = json.Unmarshal(answer, &got)
			}
			text := got.Metadata.Annotations["k8s.v1.cni.cncf.io/network-status"]
			if have := strings.Count(text, `"interface"`); err == nil && have != interfaces {
				err = fmt.Errorf("%d interfaces, want %d: %s", have, interfaces, text)
			}
			return err
		})
	}
}

// forget deletes Pods.
func (a *kubeAPI) forget(pods []kubePod) {
	a.tb.Helper()
	each(len(pods), 8, func(i int) {
		_, err := a.call(http.MethodDelete, "/api/v1/namespaces/"+podsNamespace+"/pods/"+pods[i].name, object{"gracePeriodSeconds": 0})
		if err != nil {
			a.tb.Error(err)
		}
	})
}

// each calls f for each number below n, so many at once.
func each(n, atOnce int, f func(i int)) {
	var group sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range n {
		slots <- struct{}{}
		group.Go(func() {
			f(i)
			<-slots
		})
	}
	group.Wait()
}

// eventually waits until f gives no error.
func eventually(tb testing.TB, what string, f func() error) {
	tb.Helper()
	for deadline := time.Now().Add(kubelab.Patience); ; time.Sleep(3 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%s: not within %v: %v", what, kubelab.Patience, err)
		}
	}
}
