{{/* What more than one template needs. */}}

{{- define "imds-guard.name" -}}
{{ .Values.nameOverride | default "imds-guard" }}
{{- end }}

{{/* Of every object, with a suffix for some. Not the release's name: there is one release in a cluster. */}}
{{- define "imds-guard.fullname" -}}
{{ .Values.fullnameOverride | default (include "imds-guard.name" .) }}
{{- end }}

{{/*
The labels of an object: (dict "root" $ "component" … "more" …), both optional. A component other than the agent has a name of its
own, so that nothing that selects the agents' pods selects its pods.
*/}}
{{- define "imds-guard.labels" -}}
{{- $chart := printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- $helm := dict "helm.sh/chart" $chart "app.kubernetes.io/managed-by" .root.Release.Service }}
{{- $version := dict "app.kubernetes.io/version" (.root.Chart.AppVersion | replace "+" "_" | trunc 63) }}
{{- merge (include "imds-guard.podLabels" . | fromYaml) $helm $version | toYaml }}
{{- end }}

{{/* The labels of a pod, the same without those that change with every version. */}}
{{- define "imds-guard.podLabels" -}}
{{- $component := .component | default "agent" }}
{{- $labels := include "imds-guard.selector" . | fromYaml }}
{{- $instance := dict "app.kubernetes.io/instance" .root.Release.Name "app.kubernetes.io/component" $component "app.kubernetes.io/part-of" "imds-guard" }}
{{- mergeOverwrite $instance (.root.Values.commonLabels | default dict | deepCopy) $labels (.more | default dict | deepCopy) | toYaml }}
{{- end }}

{{/* What selects a component's pods. It can't be changed in a DaemonSet that is there. */}}
{{- define "imds-guard.selector" -}}
app.kubernetes.io/name: {{ include "imds-guard.name" .root }}{{ with .component }}-{{ . }}{{ end }}
{{- end }}

{{- define "imds-guard.image" -}}
{{- $repository := .Values.image.repository }}
{{- if not $repository }}
{{- fail "image.repository is required, as there is no public image of imds-guard: build and push one (README.md, Install on a cluster), and say where it is, without a tag, such as --set image.repository=registry.example.com/imds-guard" }}
{{- end }}
{{- with (.Values.global).imageRegistry }}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "") }}
{{- end -}}
{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* Whether a part of the chart is made: not if it is turned off, but if the values are from before one could do that. */}}
{{- define "imds-guard.creates" -}}
{{- if ne (toString (. | default dict).create) "false" }}true{{ end }}
{{- end }}

{{- define "imds-guard.serviceAccountName" -}}
{{ .Values.serviceAccount.name | default (include "imds-guard.fullname" .) }}
{{- end }}

{{/* auto, on or off. YAML reads an unquoted on or off as a boolean. */}}
{{- define "imds-guard.kubernetes" -}}
{{- $v := .Values.agent.kubernetes }}
{{- if kindIs "bool" $v }}{{ ternary "on" "off" $v }}{{ else }}{{ $v }}{{ end }}
{{- end }}

{{/* on or off, the same. */}}
{{- define "imds-guard.attribution" -}}
{{- $v := .Values.agent.attribution }}
{{- if kindIs "bool" $v }}{{ ternary "on" "off" $v }}{{ else }}{{ $v | default "on" }}{{ end }}
{{- end }}

{{/* "true" if the agent asks the API server for the pods of its node, to name those that ask, and tells of them by events. */}}
{{- define "imds-guard.namesPods" -}}
{{- $seen := and (eq (include "imds-guard.attribution" .) "on") (has "cgroup" .Values.agent.layers) }}
{{- if and $seen (ne (include "imds-guard.kubernetes" .) "off") }}true{{ end }}
{{- end }}

{{/*
The agent's flags that the chart decides, which are all but --config, and what to do instead of giving them by extraArgs. A test holds
them against the program's.
*/}}
{{- define "imds-guard.decidedFlags" -}}
{{- range list "mode" "interface" "layers" "podsCgroup" "hostNetworkPods" "hostNetworkNamespaces" "attribution" "backend" "verdict"
  "resyncPeriod" "probeInterval" "kubernetes" "metricsBindAddress" "healthBindAddress" "logLevel" "logFormat" }}
{{ kebabcase . }}: set agent.{{ . }}
{{- end }}
web-config-file: set webConfig.secretName
node-name: leave it out, since the pod knows its node
kubeconfig: leave it out, since the agent has its service account
{{- end }}

{{/* "true" if the agent reads a file as well, whose settings those on the command line win over. */}}
{{- define "imds-guard.hasFile" -}}
{{- range .Values.extraArgs }}{{ if regexMatch "^--config(=|$)" . }}true{{ end }}{{ end }}
{{- end }}

{{/* enforce or audit. */}}
{{- define "imds-guard.mode" -}}
{{ .Values.agent.mode | default "enforce" }}
{{- end }}

{{/* An address, or "off". */}}
{{- define "imds-guard.metricsAddress" -}}
{{ .Values.agent.metricsBindAddress | default "off" }}
{{- end }}

{{/* Where /healthz and /readyz have an address of their own; empty if they don't. */}}
{{- define "imds-guard.healthAddress" -}}
{{- $own := .Values.agent.healthBindAddress }}
{{- if and .Values.webConfig.secretName (not $own) }}{{ $own = "127.0.0.1:9168" }}{{ end }}
{{- $own }}
{{- end }}

{{/* The two parts of an address. */}}
{{- define "imds-guard.port" -}}
{{ regexFind "[0-9]+$" . }}
{{- end }}
{{- define "imds-guard.host" -}}
{{ regexReplaceAll ":[0-9]+$" . "" | trimPrefix "[" | trimSuffix "]" }}
{{- end }}

{{/* "true" if an address can be reached only from the node itself. */}}
{{- define "imds-guard.loopback" -}}
{{- $host := include "imds-guard.host" . }}
{{- if or (hasPrefix "127." $host) (eq $host "::1") }}true{{ end }}
{{- end }}

{{/* How Prometheus asks. */}}
{{- define "imds-guard.scheme" -}}
{{ ternary "https" "http" (and (ne .Values.webConfig.secretName "") .Values.webConfig.tls) }}
{{- end }}

{{/* A probe's httpGet. Its host is the node's own address unless it says otherwise, as for every pod with hostNetwork. */}}
{{- define "imds-guard.httpGet" -}}
{{- $health := include "imds-guard.healthAddress" .root }}
{{- $address := $health | default (include "imds-guard.metricsAddress" .root) }}
{{- $host := include "imds-guard.host" $address -}}
httpGet:
  path: {{ .path }}
  port: {{ ternary "health" "metrics" (ne $health "") }}
  {{- if not (has $host (list "" "0.0.0.0" "::" "$(HOST_IP)")) }}
  host: {{ $host | quote }}
  {{- end }}
{{- end }}
