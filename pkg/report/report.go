// Package report is what is said of who asks for the endpoint: the words of one node's agent, what follows from many nodes', and what to
// do about each workload.
package report

import (
	"time"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// Node is what the agent of one node knows.
type Node struct {
	Node    string `json:"node"`
	Version string `json:"version"`
	// Mode is enforce or audit.
	Mode string `json:"mode"`
	// Protected and Degraded are as in `imds-guard check`, and Condition says why, in the words of the node's condition IMDSProtected.
	Protected bool    `json:"protected"`
	Degraded  bool    `json:"degraded"`
	Condition string  `json:"condition"`
	Layers    []Layer `json:"layers"`
	// Since is when the counts began: with the first agent since the node has booted that counted.
	Since time.Time `json:"since"`
	// Incomplete says why attempts are missing from the counts, or pods are without a name; empty if neither is so.
	Incomplete string     `json:"incomplete,omitempty"`
	Workloads  []Workload `json:"workloads"`
}

// Layer is the state of one layer in one family.
type Layer struct {
	Family imds.Family `json:"family"`
	Layer  string      `json:"layer"`
	State  string      `json:"state"`
	Detail string      `json:"detail,omitempty"`
}

// Workload is who asks: the controller of pods, or a bare pod.
type Workload struct {
	Namespace string `json:"namespace"`
	// Kind is the controller's, such as Deployment; Pod for a bare one; empty as long as the API server has not named the pod, whose
	// UID is the Name then.
	Kind        string `json:"kind"`
	Name        string `json:"name"`
	HostNetwork bool   `json:"hostNetwork,omitempty"`
	// Pods is how many of its pods have asked.
	Pods int `json:"pods"`
	// Blocked and Audited are how many socket calls were refused, and how many were let through that would be refused.
	Blocked uint64    `json:"blocked"`
	Audited uint64    `json:"audited"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	// Commands are the names of processes that asked (comm, at most 15 bytes), sorted.
	Commands []string `json:"commands,omitempty"`
	// Requests are what was asked for. They are looked at in audit mode alone: a socket that is refused sends none.
	Requests []Request `json:"requests,omitempty"`
}

// Request is one kind of request.
type Request struct {
	// Version is IMDSv1 or IMDSv2, or unknown if too little of the request was seen: see pkg/request.
	Version string `json:"version"`
	// Document is what kind of document: see pkg/request.
	Document string `json:"document"`
	// Agent is the client's User-Agent, its first product alone, such as Boto3/1.26.0; empty if there is none.
	Agent string `json:"agent,omitempty"`
	Count uint64 `json:"count"`
}
