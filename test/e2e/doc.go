// Package e2e proves imds-guard on a real Kubernetes node: its components are built from source and run in namespaces of
// their own on this machine. `make e2e` builds what is needed and runs all tests; README.md says how to work with them.
//
// The tests share one node and run one after the other. Each begins and leaves without imds-guard, see begin.
package e2e
