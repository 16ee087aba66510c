package metrics

import (
	"log/slog"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Controller are the metrics of the cluster's controller.
type Controller struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec
	freed     *prometheus.CounterVec
	conflicts prometheus.Counter
	advice    *prometheus.HistogramVec
}

// ControllerFacts are what is asked for each time somebody looks.
type ControllerFacts struct {
	Leading bool
	// Known says that all leases are known; there are Leases, and Unreadable ones.
	Known              bool
	Leases, Unreadable int
	Pools              []Pool
	// Waiting are addresses whose owners ended and that are not given back yet, by
	// reason.
	Waiting map[string]int
	// MACCollisions are MACs that several stations have on one network.
	MACCollisions float64
	// Disagreements are in what Whereabouts gave, as it was imported.
	Disagreements float64
}

// Pool is how much of a network's range is in use, in addresses.
type Pool struct {
	Network, Range string
	// Used are on an attachment, Reserved held for somebody who has none at the
	// moment, Conflicts in use by a stranger. The rest is Free.
	Used, Reserved, Conflicts, Free float64
}

// maxPools bounds how many ranges have series of their own.
const maxPools = 2000

// Nodes find strangers, and tell the adviser of some.
const (
	conflictsName = "weft_address_conflicts_total"
	conflictsHelp = "Addresses that a stranger was found to use."
)

// NewController makes the metrics of a controller of that version.
func NewController(version string, facts func() ControllerFacts) *Controller {
	m := &Controller{registry: prometheus.NewRegistry()}
	m.requests = newRequests()
	m.freed = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "weft_leases_collected_total", Help: "Addresses given back that nobody had any more, by reason.",
	}, []string{"reason"})
	m.conflicts = prometheus.NewCounter(prometheus.CounterOpts{
		Name: conflictsName, Help: conflictsHelp,
	})
	m.advice = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "weft_advice_duration_seconds", Buckets: append([]float64{0.0001, 0.00025, 0.0005}, seconds...),
		Help: "How long it takes to tell a node which addresses are free, by whether it was told.",
	}, []string{"told"})
	m.registry.MustRegister(m.requests, m.freed, m.conflicts, m.advice, build(version), controllerPresent{facts},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func newRequests() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "weft_api_requests_total", Help: "Requests to the Kubernetes API, by HTTP method, resource and status code; code 0: no answer.",
	}, []string{"method", "resource", "code"})
}

func build(version string) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "weft_build_info", Help: "Always 1; the labels say which program this is.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	}, func() float64 { return 1 })
}

// Requested counts a request to the API server.
func (m *Controller) Requested(method, resource string, code int) {
	m.requests.WithLabelValues(method, resource, strconv.Itoa(code)).Inc()
}

// Freed counts an address that was given back.
func (m *Controller) Freed(reason string) { m.freed.WithLabelValues(reason).Inc() }

// Conflict counts an address that a stranger uses.
func (m *Controller) Conflict() { m.conflicts.Inc() }

// Advised counts a question of a node.
func (m *Controller) Advised(told bool, took time.Duration) {
	m.advice.WithLabelValues(strconv.FormatBool(told)).Observe(took.Seconds())
}

// Handler answers Prometheus.
func (m *Controller) Handler(log *slog.Logger) http.Handler { return handler(m.registry, log) }

func handler(registry *prometheus.Registry, log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), MaxRequestsInFlight: 2,
	})
}

// controllerPresent is what is there at the moment.
type controllerPresent struct{ facts func() ControllerFacts }

var (
	leadingDesc = prometheus.NewDesc("weft_controller_leading", "Whether this copy of the controller leads.", nil, nil)
	leasesDesc  = prometheus.NewDesc("weft_leases", "Addresses held in the cluster, as the leader knows them, by whether their lease can be read.", []string{"readable"}, nil)
	waitingDesc = prometheus.NewDesc("weft_leases_waiting", "Addresses whose owners ended and that are not given back yet, by reason: grace, node-silent (it was not heard from since), node-keeps (its agent gives it back), unanswered.", []string{"reason"}, nil)
	importDesc  = prometheus.NewDesc("weft_import_disagreements", "What did not fit together in the objects of Whereabouts when they were imported.", nil, nil)
	macsDesc    = prometheus.NewDesc("weft_mac_collisions", "MACs that several Pods or VMs that run have on one network; events MACCollision name them.", nil, nil)
	poolDesc    = prometheus.NewDesc("weft_pool_addresses", "Addresses of a network's range, by state: free, used, reserved (held for somebody who has none at the moment), conflict (a stranger uses it).", []string{"network", "range", "state"}, nil)
)

// Describe is a prometheus.Collector's.
func (controllerPresent) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{leadingDesc, leasesDesc, waitingDesc, importDesc, macsDesc, poolDesc} {
		to <- desc
	}
}

// Collect is a prometheus.Collector's.
func (p controllerPresent) Collect(to chan<- prometheus.Metric) {
	facts := p.facts()
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	leading := 0.0
	if facts.Leading {
		leading = 1
	}
	gauge(leadingDesc, leading)
	if !facts.Known {
		return
	}
	gauge(leasesDesc, float64(facts.Leases), "true")
	gauge(leasesDesc, float64(facts.Unreadable), "false")
	for reason, count := range facts.Waiting {
		gauge(waitingDesc, float64(count), reason)
	}
	gauge(importDesc, facts.Disagreements)
	gauge(macsDesc, facts.MACCollisions)
	for _, pool := range facts.Pools[:min(len(facts.Pools), maxPools)] {
		gauge(poolDesc, pool.Free, pool.Network, pool.Range, "free")
		gauge(poolDesc, pool.Used, pool.Network, pool.Range, "used")
		gauge(poolDesc, pool.Reserved, pool.Network, pool.Range, "reserved")
		gauge(poolDesc, pool.Conflicts, pool.Network, pool.Range, "conflict")
	}
}
