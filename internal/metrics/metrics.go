// Package metrics counts what the agent of a node and the controller of a cluster
// do, for Prometheus. Who is counted knows nothing of it: it calls functions that
// are given to it.
//
// It keeps the number of series bounded: no label has the name of a Pod, a
// network or a node, and plugins beyond the first ones share a name.
package metrics

import (
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// maxPlugins bounds how many plugins have a name of their own.
const maxPlugins = 20

// otherPlugins is the name of all further ones.
const otherPlugins = "other"

// seconds are the histogram's buckets: from a link made in process to a plugin
// that hangs.
var seconds = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60}

// Metrics are those of one agent.
type Metrics struct {
	registry *prometheus.Registry
	phases   *prometheus.HistogramVec
	failures *prometheus.CounterVec
	requests *prometheus.CounterVec
	changes  prometheus.Counter
	repairs  prometheus.Counter
	taking   *prometheus.HistogramVec
	// conflicts are addresses that others use.
	conflicts prometheus.Counter

	// mu guards plugins: those that have a name.
	mu      sync.Mutex
	plugins map[string]bool
}

// Facts are what is asked for each time somebody looks.
type Facts struct {
	// Working and Waiting are CNI calls, Kept the DELs that weft-cni left on disk.
	Working, Waiting, Kept int
	// Attachments by the stage they are in.
	Attachments map[string]int
	// Changed is how many Pods have networks that are not as they were made.
	Changed int
	// Leases are addresses of the cluster by their state.
	Leases map[string]int
}

// New makes the metrics of a program of that version. facts is asked when
// somebody looks.
func New(version string, facts func() Facts) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), plugins: map[string]bool{}}
	m.phases = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "weft_cni_duration_seconds", Buckets: seconds,
		Help: "How long CNI calls take, by verb: all of a call (phase total), and its phases, with the plugin's name where one did it.",
	}, []string{"verb", "plugin", "phase"})
	m.failures = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "weft_cni_failures_total", Help: "CNI calls that failed, by verb and cause.",
	}, []string{"verb", "cause"})
	m.requests = newRequests()
	m.changes = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "weft_network_changes_total", Help: "How often a Pod's networks were found to be not as they were made.",
	})
	m.repairs = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "weft_network_repairs_total", Help: "Attachments that were put right.",
	})
	m.conflicts = prometheus.NewCounter(prometheus.CounterOpts{
		Name: conflictsName, Help: conflictsHelp,
	})
	m.taking = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "weft_address_duration_seconds", Buckets: append([]float64{0.0001, 0.00025, 0.0005}, seconds...),
		Help: "How long it takes to hold an address in the cluster, by result: given, exhausted, taken (it was asked for, and is another's), unanswered (by the API server), refused.",
	}, []string{"result"})
	m.registry.MustRegister(m.phases, m.taking, m.failures, m.requests, m.changes, m.repairs, m.conflicts, build(version), present{facts},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Phase counts a phase of a call; without a plugin it was in process.
func (m *Metrics) Phase(verb, plugin, phase string, took time.Duration) {
	m.phases.WithLabelValues(verb, m.named(plugin), phase).Observe(took.Seconds())
}

// named gives the label for a plugin.
func (m *Metrics) named(plugin string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case plugin == "" || m.plugins[plugin]:
		return plugin
	case len(m.plugins) < maxPlugins:
		m.plugins[plugin] = true
		return plugin
	}
	return otherPlugins
}

// AddressTaken counts an address of the cluster that was asked for.
func (m *Metrics) AddressTaken(result string, took time.Duration) {
	m.taking.WithLabelValues(result).Observe(took.Seconds())
}

// Failed counts a CNI call that failed.
func (m *Metrics) Failed(verb, cause string) { m.failures.WithLabelValues(verb, cause).Inc() }

// Requested counts a request to the API server.
func (m *Metrics) Requested(method, resource string, code int) {
	m.requests.WithLabelValues(method, resource, strconv.Itoa(code)).Inc()
}

// Changed counts a Pod whose networks changed by themselves.
func (m *Metrics) Changed() { m.changes.Inc() }

// Conflict counts an address that was found in use by somebody who has no lease of it.
func (m *Metrics) Conflict() { m.conflicts.Inc() }

// Repaired counts attachments that were put right.
func (m *Metrics) Repaired(count int) { m.repairs.Add(float64(count)) }

// Handler answers Prometheus.
func (m *Metrics) Handler(log *slog.Logger) http.Handler { return handler(m.registry, log) }

// present is what is there at the moment.
type present struct{ facts func() Facts }

var (
	callsDesc       = prometheus.NewDesc("weft_cni_calls", "CNI calls at the moment: worked on, or waiting for their turn.", []string{"state"}, nil)
	keptDesc        = prometheus.NewDesc("weft_cni_kept_dels", "DELs that weft-cni left on disk for the agent and that are not done yet.", nil, nil)
	attachmentsDesc = prometheus.NewDesc("weft_attachments", "Attachments of Pods to networks, by stage.", []string{"stage"}, nil)
	heldDesc        = prometheus.NewDesc("weft_address_leases", "Addresses of the cluster on this node, by state.", []string{"state"}, nil)
	changedDesc     = prometheus.NewDesc("weft_pods_changed", "Pods with networks that are not as they were made.", nil, nil)
)

// Describe is a prometheus.Collector's.
func (present) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{callsDesc, keptDesc, attachmentsDesc, heldDesc, changedDesc} {
		to <- desc
	}
}

// Collect is a prometheus.Collector's.
func (p present) Collect(to chan<- prometheus.Metric) {
	facts := p.facts()
	gauge := func(desc *prometheus.Desc, value int, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
	}
	gauge(callsDesc, facts.Working, "working")
	gauge(callsDesc, facts.Waiting, "waiting")
	gauge(keptDesc, facts.Kept)
	gauge(changedDesc, facts.Changed)
	for stage, count := range facts.Attachments {
		gauge(attachmentsDesc, count, stage)
	}
	for state, count := range facts.Leases {
		gauge(heldDesc, count, state)
	}
}
