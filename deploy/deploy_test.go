// Package deploy_test holds the plain manifest to the chart it is made from, and
// both to the types of the Kubernetes API.
package deploy_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"

	admission "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	extensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/internal/adviser"
)

var update = flag.Bool("update", false, "write weft.yaml from the chart")

const head = `# weft for kubectl apply -f, into kube-system. Made from the chart beside it:
# go test ./deploy -update
---
`

// render does what helm does with our chart: its template uses nothing of helm
// but the values and toJson.
func render(t *testing.T, change func(values map[string]any)) string {
	t.Helper()
	var values, chart map[string]any
	for file, to := range map[string]*map[string]any{"values.yaml": &values, "Chart.yaml": &chart} {
		text, err := os.ReadFile(filepath.Join("chart/weft", file))
		if err == nil {
			err = yaml.Unmarshal(text, to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	change(values)
	functions := template.FuncMap{"toJson": func(value any) (string, error) {
		text, err := json.Marshal(value)
		return string(text), err
	}}
	parsed, err := template.New("weft.yaml").Funcs(functions).Option("missingkey=error").ParseFiles("chart/weft/templates/weft.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = parsed.Execute(&out, map[string]any{
		"Values": values, "Chart": map[string]any{"AppVersion": chart["appVersion"]}, "Release": map[string]any{"Namespace": "kube-system"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return head + out.String()
}

func TestManifestIsTheChart(t *testing.T) {
	want := render(t, func(map[string]any) {})
	if *update {
		if err := os.WriteFile("weft.yaml", []byte(want), 0o644); err != nil { //nolint:gosec // everybody reads it
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("weft.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("weft.yaml is not what the chart gives; go test ./deploy -update writes it")
	}
}

// objects decodes a manifest, and knows every field in it.
func objects(t *testing.T, manifest string) map[string]any {
	t.Helper()
	found := map[string]any{}
	for document := range strings.SplitSeq(manifest, "\n---\n") {
		var kind struct {
			Kind     string `json:"kind"`
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		}
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if kind.Kind == "" {
			continue // the comment on top
		}
		object, ok := map[string]any{
			"ServiceAccount": &core.ServiceAccount{}, "ConfigMap": &core.ConfigMap{}, "DaemonSet": &apps.DaemonSet{},
			"ClusterRole": &rbac.ClusterRole{}, "ClusterRoleBinding": &rbac.ClusterRoleBinding{},
			"ValidatingAdmissionPolicy": &admission.ValidatingAdmissionPolicy{}, "ValidatingAdmissionPolicyBinding": &admission.ValidatingAdmissionPolicyBinding{},
			"Deployment": &apps.Deployment{}, "Role": &rbac.Role{}, "RoleBinding": &rbac.RoleBinding{}, "PrometheusRule": &prometheusRule{},
			"PodMonitor": &podMonitor{}, "CustomResourceDefinition": &extensions.CustomResourceDefinition{},
		}[kind.Kind]
		if !ok {
			t.Fatalf("kind %q is not looked at", kind.Kind)
		}
		if err := yaml.UnmarshalStrict([]byte(document), object); err != nil {
			t.Errorf("%s %s: %v", kind.Kind, kind.Metadata.Name, err)
		}
		found[kind.Kind+" "+kind.Metadata.Name] = object
	}
	return found
}

// podMonitor is what we write of the Prometheus operator's kind.
type podMonitor struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		Selector            meta.LabelSelector `json:"selector"`
		PodMetricsEndpoints []struct {
			Port     string `json:"port"`
			Path     string `json:"path"`
			Interval string `json:"interval"`
		} `json:"podMetricsEndpoints"`
	} `json:"spec"`
}

// prometheusRule is what we write of that kind.
type prometheusRule struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []struct {
				Alert       string            `json:"alert"`
				Expr        string            `json:"expr"`
				For         string            `json:"for"`
				Labels      map[string]string `json:"labels"`
				Annotations map[string]string `json:"annotations"`
			} `json:"rules"`
		} `json:"groups"`
	} `json:"spec"`
}

// TestAlerts: rules ask for metrics that there are.
func TestAlerts(t *testing.T) {
	all := objects(t, render(t, func(values map[string]any) {
		values["alerts"] = map[string]any{"enabled": true, "labels": map[string]any{}}
	}))
	program, err := os.ReadFile("../internal/metrics/controller.go")
	if err != nil {
		t.Fatal(err)
	}
	rules := all["PrometheusRule weft"].(*prometheusRule).Spec.Groups[0].Rules //nolint:forcetypeassert // objects made it
	for _, rule := range rules {
		names := regexp.MustCompile(`weft_[a-z_]+`).FindAllString(rule.Expr, -1)
		for _, name := range names {
			if !strings.Contains(string(program), `"`+name+`"`) {
				t.Errorf("%s asks for %s, which nobody counts", rule.Alert, name)
			}
		}
		if len(names) == 0 || rule.Annotations["summary"] == "" {
			t.Errorf("%s: %+v", rule.Alert, rule)
		}
	}
	if summary := rules[0].Annotations["summary"]; !strings.Contains(summary, "{{ $labels.range }}") {
		t.Errorf("the first summary is %q", summary)
	}
}

// TestAdviserIsAsked: the agent is told of a file, in which the kubelet puts the token
// that the adviser wants to see.
func TestAdviserIsAsked(t *testing.T) {
	all := objects(t, render(t, func(map[string]any) {}))
	spec := all["DaemonSet weft"].(*apps.DaemonSet).Spec.Template.Spec //nolint:forcetypeassert // objects made it
	file := ""
	for _, volume := range spec.Volumes {
		if volume.Projected == nil || volume.Projected.Sources[0].ServiceAccountToken.Audience != adviser.Audience {
			continue
		}
		for _, mount := range spec.Containers[0].VolumeMounts {
			if mount.Name == volume.Name {
				file = mount.MountPath + "/" + volume.Projected.Sources[0].ServiceAccountToken.Path
			}
		}
	}
	if file == "" || !slices.Contains(spec.Containers[0].Command, "--adviser-token="+file) {
		t.Errorf("the token is in %q, and the command is %v", file, spec.Containers[0].Command)
	}
	role := all["Role weft"].(*rbac.Role) //nolint:forcetypeassert // objects made it
	if !slices.Contains(role.Rules[0].ResourceNames, adviser.ConfigMap) {
		t.Errorf("the agent may not read %s: %v", adviser.ConfigMap, role.Rules)
	}
}

func TestValues(t *testing.T) {
	const settings = `{"agentWait":"60s","globalNamespaces":"it's: \"x\""}`
	all := objects(t, render(t, func(values map[string]any) {
		values["cni"] = map[string]any{"binDir": "/opt/b", "confDir": "/etc/c"}
		values["image"] = map[string]any{"repository": "r", "tag": "t", "pullPolicy": "Never"}
		values["criSocket"] = "/run/x.sock"
		values["http"] = map[string]any{"port": 1234, "pprof": true}
		values["macs"] = map[string]any{"range": "02:00:00:00:00:00-02:00:00:00:ff:ff", "refuseDuplicates": true}
		values["podMonitor"] = map[string]any{"enabled": true, "interval": "5s", "labels": map[string]any{"release": "prometheus"}}
		values["settings"] = map[string]any{"agentWait": "60s", "globalNamespaces": `it's: "x"`}
	}))
	if got := strings.TrimSpace(all["ConfigMap weft"].(*core.ConfigMap).Data["cni.json"]); got != settings { //nolint:forcetypeassert // objects made it
		t.Errorf("the settings are %s, want %s", got, settings)
	}
	spec := all["DaemonSet weft"].(*apps.DaemonSet).Spec.Template.Spec //nolint:forcetypeassert // objects made it
	container := spec.Containers[0]
	if container.Image != "r:t" || container.ImagePullPolicy != core.PullNever {
		t.Errorf("image %s, %s", container.Image, container.ImagePullPolicy)
	}
	for _, want := range []string{"--cni-conf-dir=/etc/c", "--http-address=:1234", "--pprof", "--cri-socket=/run/x.sock", "--refuse-duplicate-macs"} {
		if !slices.Contains(container.Command, want) {
			t.Errorf("the command lacks %s: %v", want, container.Command)
		}
	}
	control := all["Deployment weft-controller"].(*apps.Deployment).Spec.Template.Spec.Containers[0].Command //nolint:forcetypeassert // objects made it
	if want := "--mac-range=02:00:00:00:00:00-02:00:00:00:ff:ff"; !slices.Contains(control, want) {
		t.Errorf("the controller's command lacks %s: %v", want, control)
	}
	monitor := all["PodMonitor weft"].(*podMonitor) //nolint:forcetypeassert // objects made it
	if port := container.Ports[0]; port.ContainerPort != 1234 || port.Name != monitor.Spec.PodMetricsEndpoints[0].Port || monitor.Labels["release"] != "prometheus" {
		t.Errorf("port %+v, monitor %+v", port, monitor)
	}
	for _, probe := range []*core.Probe{container.ReadinessProbe, container.LivenessProbe} {
		if probe.Exec == nil || probe.Exec.Command[0] != container.Command[0] {
			t.Errorf("a probe is %+v, which a port that is taken may fail", probe.ProbeHandler)
		}
	}
	// What the runtime names must be there by the same name.
	on := map[string]string{}
	for _, volume := range spec.Volumes {
		if volume.HostPath != nil {
			on[volume.Name] = volume.HostPath.Path
		}
	}
	for _, mount := range container.VolumeMounts {
		if path, ok := on[mount.Name]; ok && mount.Name != "host" && path != mount.MountPath {
			t.Errorf("volume %s is %s on the node and %s in the container", mount.Name, path, mount.MountPath)
		}
	}
	if context := container.SecurityContext; context.Privileged != nil {
		t.Error("the agent is privileged")
	}
}
