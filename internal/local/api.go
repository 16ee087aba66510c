package local

import (
	"github.com/weftnet/weft/internal/store"
)

// The agent's socket API: HTTP with JSON bodies over Instance.Socket. It is
// private to one version of weft; the CLI refuses an agent of another.
//
//	GET  /v1/info                              Info
//	POST /v1/apply     ObjectsRequest       -> ResultsReply
//	POST /v1/delete    ObjectsRequest       -> ResultsReply
//	GET  /v1/objects/KIND?namespace=&name=  -> ObjectsReply
//	GET  /v1/watch/KIND?namespace=&since=   -> one WatchEvent per line
//	GET  /v1/journeys/KIND/NS/NAME          -> JourneyReply
//	GET  /v1/addresses                      -> AddressesReply
//	GET  /v1/domxml/NS/NAME                 -> text
//	POST /v1/exec/NS/NAME  ExecRequest      -> ExecReply
//	POST /v1/vm/NS/NAME/{start,stop,restart}
//	POST /v1/down      DownRequest          -> DownReply
//
// An error is ErrorReply with a status other than 200.

// Info says who answers.
type Info struct {
	Version string `json:"version"`
	PID     int    `json:"pid"`
	Tag     string `json:"tag"`
	Accel   string `json:"accel"` // kvm or tcg
}

// ObjectsRequest names objects to apply or delete.
type ObjectsRequest struct {
	Objects []*store.Object `json:"objects"`
}

// ResultsReply has one result per object of the request.
type ResultsReply struct {
	Results []Result `json:"results"`
}

// ObjectsReply is a list and the revision a watch may go on from.
type ObjectsReply struct {
	Items    []*store.Object `json:"items"`
	Revision string          `json:"revision"`
}

// WatchEvent is one change of an object.
type WatchEvent struct {
	Type   store.EventType `json:"type"`
	Object *store.Object   `json:"object"`
}

// ExecRequest runs a program in a guest through its agent.
type ExecRequest struct {
	Command []string `json:"command"`
}

// ExecReply is what the program in the guest left.
type ExecReply struct {
	ExitCode int    `json:"exitCode"`
	Stdout   []byte `json:"stdout"`
	Stderr   []byte `json:"stderr"`
}

// DownRequest ends an instance. All deletes every object as well; what
// happens to files is the CLI's business, once the agent has ended.
type DownRequest struct {
	All bool `json:"all"`
	// Force leaves behind what plugins refuse to take back.
	Force bool `json:"force"`
}

// DownReply says what was taken down and what stayed.
type DownReply struct {
	Removed []string `json:"removed"`
	Kept    []string `json:"kept"`
}

// ErrorReply is the body of every failed call.
type ErrorReply struct {
	Error string `json:"error"`
	// NotFound lets the CLI tell "no such object" from a failure.
	NotFound bool `json:"notFound,omitempty"`
}
