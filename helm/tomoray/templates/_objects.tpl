{{/* Objects that every component has one of: (list ROOT COMPONENT). */}}

{{- define "tomoray.serviceAccountObject" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values.serviceAccounts (index . 1) -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "tomoray.role" . }}
  labels:
    {{- include "tomoray.labels" . | nindent 4 }}
  {{- with $values.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}

{{- define "tomoray.priorityClassObject" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.priorityClasses.enabled -}}
{{- $values := index $root.Values.priorityClasses (index . 1) -}}
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata:
  name: {{ include "tomoray.role" . }}
  labels:
    {{- include "tomoray.labels" . | nindent 4 }}
value: {{ $values.value }}
preemptionPolicy: {{ $values.preempts | ternary "PreemptLowerPriority" "Never" }}
description: TomoRay, {{ index . 1 }}
{{- end -}}
{{- end }}
