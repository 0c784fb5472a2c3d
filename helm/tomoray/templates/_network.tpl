{{/* All pods of a namespace, as a peer in a policy. */}}
{{- define "tomoray.fromNamespace" -}}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ . }}
{{- end }}

{{/* Heads keep their state in Redis; the operator's job that clears it has their labels but for one. */}}
{{- define "tomoray.redisClients" -}}
[{key: app.kubernetes.io/part-of, operator: In, values: [tomoray]}, {key: ray.io/node-type, operator: In, values: [head, redis-cleanup]}]
{{- end }}
