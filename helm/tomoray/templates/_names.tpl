{{/* What names begin with: the release's name, unless fullnameOverride says otherwise. */}}
{{- define "tomoray.name" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 30 | trimSuffix "-" -}}
{{- end }}

{{/* The image of every pod of ours: a digest wins over a tag. */}}
{{- define "tomoray.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
Labels that select pods: (list ROOT COMPONENT). They never change while a release lives, so that an upgrade of the chart
alone restarts no Ray cluster.
*/}}
{{- define "tomoray.podLabels" -}}
app.kubernetes.io/name: tomoray
app.kubernetes.io/part-of: tomoray
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of objects: (list ROOT) or (list ROOT COMPONENT). */}}
{{- define "tomoray.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: tomoray
app.kubernetes.io/part-of: tomoray
{{- if gt (len .) 1 }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Whose ServiceAccount and priority a component has: interactive clusters do what training does. */}}
{{- define "tomoray.role" -}}
{{- $component := index . 1 -}}
{{ include "tomoray.name" (index . 0) }}-{{ eq $component "interactive" | ternary "train" $component }}
{{- end }}

{{/* The Service that Ray Serve answers at, whichever way it is deployed. */}}
{{- define "tomoray.servingService" -}}
{{ include "tomoray.name" . }}-serving{{ eq .Values.serving.kind "RayService" | ternary "-serve-svc" "" }}
{{- end }}
