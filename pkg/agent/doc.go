// Package agent is the life of the agent on one node: it lets a keeper enforce each layer before anything else is tried, then
// watches what may wake them, and tells the log, Prometheus and the cluster what they saw. It also holds the single look of
// `imds-guard check`, so that the two can't judge a node differently.
package agent
