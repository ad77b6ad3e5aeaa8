{{- define "hawse-relay.selector" -}}
app.kubernetes.io/name: hawse-relay
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "hawse-relay.common" -}}
app.kubernetes.io/component: relay
app.kubernetes.io/part-of: hawse
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end }}

{{/* Labels of pods: without the chart's version, which would restart them for a change of the chart alone. */}}
{{- define "hawse-relay.podLabels" -}}
{{ include "hawse-relay.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "hawse-relay.common" . }}
{{- end }}

{{- define "hawse-relay.chart" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") | quote }}
{{- end }}

{{/* Of a list: the root, and the object's name. */}}
{{- define "hawse-relay.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 | quote }}
namespace: {{ $root.Release.Namespace | quote }}
labels:
  {{- include "hawse-relay.podLabels" $root | nindent 2 }}
  {{ include "hawse-relay.chart" $root }}
{{- end }}

{{/* Objects outside of namespaces have no instance: their names are the same for every release. */}}
{{- define "hawse-relay.clusterMetadata" -}}
name: hawse-relay-impersonation
labels:
  app.kubernetes.io/name: hawse-relay
  {{- include "hawse-relay.common" . | nindent 2 }}
  {{ include "hawse-relay.chart" . }}
{{- end }}

{{- define "hawse-relay.image" -}}
{{- $image := .Values.image -}}
{{- $tag := $image.tag | default (ternary .Chart.AppVersion "" (empty $image.digest)) -}}
{{- $image.repository }}{{ with $tag }}:{{ . }}{{ end }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* The memory limit in MiB. The schema allows whole Mi and Gi only. */}}
{{- define "hawse-relay.limitMib" -}}
{{- $limit := .Values.resources.limits.memory -}}
{{- $number := regexFind "^[0-9]+" $limit | int -}}
{{- ternary (mul 1024 $number) $number (hasSuffix "Gi" $limit) -}}
{{- end }}

{{/* The rest of the limit is for the process itself, and for memory that is counted late or not at all. */}}
{{- define "hawse-relay.checkMemory" -}}
{{- $needed := add .Values.memoryMib 190 -}}
{{- if lt (include "hawse-relay.limitMib" . | int) ($needed | int) -}}
{{- fail (printf "resources.limits.memory is %s: memoryMib %d needs %dMi or more (memoryMib + 190); raise the limit, or lower memoryMib" .Values.resources.limits.memory (.Values.memoryMib | int) ($needed | int)) -}}
{{- end -}}
{{- end }}
