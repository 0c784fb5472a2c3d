{{/* Ray Serve's own config: one application, `serving.app:app`, with the ServeConfig of the values. */}}
{{- define "tomoray.serveConfig" -}}
http_options:
  host: 0.0.0.0
  port: 8000
{{- with .Values.serving }}
applications:
  - name: tomoray
    import_path: serving.app:app
    route_prefix: /
    args:
      {{- toYaml .config | nindent 6 }}
{{- end }}
{{- end }}

{{/* Pods that answer when nobody asks. */}}
{{- define "tomoray.servingPods" -}}
{{- with .Values.serving -}}
{{- if eq .kind "Deployment" -}}
{{ ternary .deployment.autoscaling.minReplicas .deployment.replicas .deployment.autoscaling.enabled }}
{{- else -}}
{{- $pods := 0 -}}
{{- range .workers }}{{ if . }}{{ $pods = add $pods (.minReplicas | default 0) }}{{ end }}{{ end -}}
{{ $pods }}
{{- end -}}
{{- end -}}
{{- end }}
