{{/* What pods have in common: those of the agent and of the cleanup, which both edit the node's iptables, and those of the test. */}}

{{- define "imds-guard.placement" -}}
# The rules belong into the node's network namespace, not into the pod's.
hostNetwork: true
{{- with .Values.priorityClassName }}
# Scheduled ahead of other pods and evicted after them: without the agent
# nobody puts a lost rule back. Allowed in every namespace.
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.tolerations }}
# Pods reach the metadata service from tainted and from not yet ready nodes
# as well.
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{ include "imds-guard.nodes" (dict "root" .) | trim }}
{{- end }}

{{/* On which nodes imds-guard is, and how they get its image: (dict "root" $ "labels" …), the labels of the nodes, further ones, optional. */}}
{{- define "imds-guard.nodes" -}}
{{- with merge (.labels | default dict) (.root.Values.nodeSelector | default dict | deepCopy) -}}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{ end }}
{{- with .root.Values.affinity -}}
# Fargate nodes run no DaemonSets. Their taint would say so, but the agent
# tolerates it, and its pods would stay Pending for ever. Hybrid nodes are not in
# EC2, and have no metadata service.
affinity:
  {{- toYaml . | nindent 2 }}
{{ end }}
{{- with concat (.root.Values.imagePullSecrets | default list) (.root.Values.image.pullSecrets | default list) -}}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{ end }}
{{- end }}

{{- define "imds-guard.addresses" -}}
# Both the node's, unless something (an admission webhook) has taken
# hostNetwork from this pod. Rules would protect nobody then: the agent
# says so, and is not ready; the cleanup fails.
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: HOST_IP
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
{{- end }}

{{- define "imds-guard.securityContext" -}}
{{- if .Values.hardened -}}
# Rules need NET_ADMIN; the sockets by which iptables-legacy reads and writes
# its tables, NET_RAW. Without `privileged`, a host where SELinux confines
# containers (Bottlerocket, RHEL) denies the node's files mounted below; and
# without SYS_MODULE and /lib/modules, iptables-legacy works only where ip_tables
# and ip6_tables are loaded already.
{{- if has "cgroup" .Values.agent.layers }}
# The layer cgroup loads BPF programs, which takes BPF.
{{- end }}
privileged: false
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
  add: [NET_ADMIN, NET_RAW{{ if has "cgroup" .Values.agent.layers }}, BPF{{ end }}]
seccompProfile:
  type: RuntimeDefault
{{- else -}}
# Rules need NET_ADMIN and NET_RAW, the kernel modules of
# iptables-legacy SYS_MODULE; and where SELinux confines containers,
# only a privileged one may write the node's files mounted below.
privileged: true
{{- end }}
# It writes nothing but the mounts below.
readOnlyRootFilesystem: true
{{- end }}

{{/* For a container that touches nothing on the node. */}}
{{- define "imds-guard.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65535
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "imds-guard.volumeMounts" -}}
- name: xtables-lock
  mountPath: /run/xtables.lock
{{- if not .Values.hardened }}
- name: lib-modules
  mountPath: /lib/modules
  readOnly: true
{{- end }}
- name: state
  mountPath: /run/imds-guard
{{- end }}

{{- define "imds-guard.volumes" -}}
# The lock that every iptables on the node takes (kube-proxy, CNI). Each
# on a lock of its own, they would overwrite each other's changes.
# FileOrCreate: were it missing, a directory would be made in its place,
# and iptables would fail on the whole node.
- name: xtables-lock
  hostPath:
    path: /run/xtables.lock
    type: FileOrCreate
{{- if not .Values.hardened }}
# For modprobe: iptables-legacy loads ip_tables or ip6_tables where nobody
# has used them yet.
- name: lib-modules
  hostPath:
    path: /lib/modules
{{- end }}
# The record of what was installed, so that `imds-guard cleanup` can undo
# all of it, also what was installed with other flags; and the lock by which
# it knows that an agent still runs. Like the rules themselves, /run does not
# outlive a reboot.
- name: state
  hostPath:
    path: /run/imds-guard
    type: DirectoryOrCreate
{{- end }}

{{- define "imds-guard.bpffsMount" -}}
- name: bpffs
  mountPath: /host/sys/fs/bpf
{{- end }}

{{- define "imds-guard.bpffs" -}}
# Where the programs of the layer cgroup are pinned, which have to outlive the
# pod.
- name: bpffs
  hostPath:
    path: /sys/fs/bpf
{{- end }}
