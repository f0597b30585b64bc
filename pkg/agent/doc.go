// Package agent runs the agent on one node: it lets a keeper enforce each layer before anything else is started, then watches
// for whatever should wake the keepers, and reports to the log, Prometheus and the cluster what they found. It also holds the
// single look of `imds-guard check`, so that agent and check can't judge a node differently.
package agent
