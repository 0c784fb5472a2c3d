{{/* All pods of a namespace, as a peer in a policy. */}}
{{- define "tomoray.fromNamespace" -}}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ . }}
{{- end }}

{{/* Selectors of those who talk to Redis: heads, the operator's job that clears up after them, and the endpoint. */}}
{{- define "tomoray.redisClients" -}}
- matchExpressions:
    - {key: app.kubernetes.io/part-of, operator: In, values: [tomoray]}
    - {key: ray.io/node-type, operator: In, values: [head, redis-cleanup]}
- matchLabels:
    {{- include "tomoray.podLabels" (list . "serving") | nindent 4 }}
{{- end }}
