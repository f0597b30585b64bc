{{/* What more than one template needs. */}}

{{- define "imds-guard.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- with .Values.image.digest }}@{{ . }}{{ end }}
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
