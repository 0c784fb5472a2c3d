{{/* Ray Serve's own config: one application, `serving.app:app`. */}}
{{- define "tomoray.serveConfig" -}}
http_options:
  host: 0.0.0.0
  port: 8000
applications:
  - name: tomoray
    import_path: serving.app:app
    route_prefix: /
    args:
      {{- include "tomoray.serveArgs" . | nindent 6 }}
{{- end }}

{{/* The ServeConfig of the values, with what it does not say of tokens, the queue and the audit log. */}}
{{- define "tomoray.serveArgs" -}}
{{- $config := deepCopy .Values.serving.config -}}
{{- $defaults := dict "audit" (dict "file" "-") -}}
{{- if .Values.serving.tokens.secretName -}}
{{- $_ := set $defaults "auth" (dict "tokens" "/etc/tomoray/tokens/tokens.json") -}}
{{- end -}}
{{- if .Values.redis.enabled -}}
{{- $_ := set $defaults "queue" (dict "url" (printf "redis://%s-redis:6379/1" (include "tomoray.name" .))) -}}
{{- end -}}
{{- $config = merge $config $defaults -}}
{{- if not $config.auth -}}
{{- fail "serving: without auth the server answers nobody but itself. Give serving.tokens.secretName, or serving.config.auth with oidc, or with proxied where a proxy in front knows who asks" -}}
{{- end -}}
{{- $queue := $config.queue | default dict -}}
{{- if not $queue.url -}}
{{- fail "serving: its pods need one queue that all of them reach. Turn on redis.enabled, or give serving.config.queue.url" -}}
{{- end -}}
{{- if not $queue.store -}}
{{- fail "serving: serving.config.queue.store is wanted, an S3 prefix for requests that wait and for their results" -}}
{{- end -}}
{{- toYaml $config -}}
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
