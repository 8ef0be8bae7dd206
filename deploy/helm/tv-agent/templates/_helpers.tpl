{{- define "tv-agent.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "tv-agent.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "tv-agent.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tv-agent.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tv-agent.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "tv-agent.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tv-agent.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Of objects that belong to no namespace: two releases may have one name. */}}
{{- define "tv-agent.clusterName" -}}
{{- printf "%s-%s" (include "tv-agent.namespace" .) (include "tv-agent.fullname" .) -}}
{{- end -}}

{{/* Tells releases apart, whatever their names and namespaces. */}}
{{- define "tv-agent.release" -}}
{{- include "tv-agent.clusterName" . | sha256sum | trunc 16 -}}
{{- end -}}

{{- define "tv-agent.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tv-agent.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tv-agent.labels" -}}
{{ include "tv-agent.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: node-agent
app.kubernetes.io/part-of: tv-agent
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Of every object: name, namespace, labels, annotations. The argument: context, and more labels or annotations. */}}
{{- define "tv-agent.metadata" -}}
{{- $ := .context -}}
name: {{ default (include "tv-agent.fullname" $) .name }}
{{- if not .cluster }}
namespace: {{ include "tv-agent.namespace" $ }}
{{- end }}
labels:
  {{- include "tv-agent.labels" $ | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default (dict) .annotations) $.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "tv-agent.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* What takes effect when the agent starts. The rest of the configuration is reloaded by the running one. */}}
{{- define "tv-agent.settled" -}}
listen:
  port: {{ .Values.listenPort }}
  drain_seconds: {{ .Values.drainSeconds }}
admin:
  socket: /run/tv-agent/admin.sock
  metrics: {{ printf "%s:%d" (ternary "0.0.0.0" "127.0.0.1" .Values.metrics.exposed) (int .Values.metrics.port) }}
ca:
  dir: /var/lib/tv-agent/ca
{{- end -}}

{{- define "tv-agent.securityContext" -}}
runAsUser: 0
runAsGroup: 0
readOnlyRootFilesystem: true
{{- if .Values.privileged }}
privileged: true
{{- else }}
privileged: false
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
  add:
    {{- toYaml .Values.capabilities | nindent 4 }}
seccompProfile:
  {{- toYaml .Values.seccompProfile | nindent 2 }}
appArmorProfile:
  {{- toYaml .Values.appArmorProfile | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "tv-agent.environment" -}}
env:
  - name: NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  {{- with .Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "tv-agent.secretMounts" -}}
{{- range .Values.secrets }}
- { name: secret-{{ .name }}, mountPath: /run/secrets/tv-agent/{{ .name }}, readOnly: true }
{{- end }}
{{- end -}}

{{/* Answered by whoever serves on the node: while one agent takes over from another, by the old one. */}}
{{- define "tv-agent.probe" -}}
httpGet:
  host: 127.0.0.1
  port: {{ .context.Values.metrics.port }}
  path: /healthz/{{ .path }}
{{- end -}}

{{- define "tv-agent.webhookName" -}}
{{- printf "%s-webhook" (include "tv-agent.fullname" . | trunc 55 | trimSuffix "-") -}}
{{- end -}}

{{/* In every enrolled namespace, beside those of other releases. */}}
{{- define "tv-agent.webhookConfigMap" -}}
{{- default (printf "%s-ca" (include "tv-agent.clusterName" .)) .Values.webhook.configMap -}}
{{- end -}}

{{/* Not those of the nodes' agents, which the Service of their metrics selects. */}}
{{- define "tv-agent.webhookSelectorLabels" -}}
app.kubernetes.io/name: {{ printf "%s-webhook" (include "tv-agent.name" . | trunc 55 | trimSuffix "-") }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tv-agent.webhookLabels" -}}
{{ include "tv-agent.webhookSelectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: webhook
app.kubernetes.io/part-of: tv-agent
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Of the webhook's objects: name, namespace, labels, annotations. The argument: context, and what differs. */}}
{{- define "tv-agent.webhookMetadata" -}}
{{- $ := .context -}}
name: {{ default (include "tv-agent.webhookName" $) .name }}
{{- if not .cluster }}
namespace: {{ include "tv-agent.namespace" $ }}
{{- end }}
labels:
  {{- include "tv-agent.webhookLabels" $ | nindent 2 }}
{{- with merge (dict) (default (dict) .annotations) $.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The webhook's configuration (docs/webhook.md). */}}
{{- define "tv-agent.webhookConfig" -}}
{{- $webhook := .Values.webhook -}}
listen: "0.0.0.0:{{ $webhook.port }}"
admin:
  metrics: "0.0.0.0:{{ $webhook.metricsPort }}"
tls:
  certificate: /run/secrets/tv-agent-webhook/tls.crt
  key: /run/secrets/tv-agent-webhook/tls.key
roots: [/etc/tv-agent-roots]
{{- if $webhook.publicRoots.configMap }}
public_roots: /etc/tv-agent-public/{{ $webhook.publicRoots.key }}
{{- end }}
kubernetes:
  prefix: {{ .Values.kubernetes.prefix }}
  enrol: {{ .Values.kubernetes.enrol }}
  exclude_containers:
    {{- toYaml .Values.kubernetes.excludeContainers | nindent 4 }}
config_map: {{ include "tv-agent.webhookConfigMap" . }}
mount_path: {{ $webhook.mountPath }}
variables:
  {{- toYaml $webhook.variables | nindent 2 }}
drain_seconds: {{ $webhook.drainSeconds }}
{{- end -}}
