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
