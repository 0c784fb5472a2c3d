{{/* What every pod has: nobody's user, no new rights, the runtime's own seccomp profile ("restricted"). */}}
{{- define "tomoray.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ .Values.pods.runAsUser }}
runAsGroup: {{ .Values.pods.runAsUser }}
fsGroup: {{ .Values.pods.runAsUser }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* And every container: nothing to write to but the volumes of "tomoray.volumes". */}}
{{- define "tomoray.containerSecurityContext" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: {{ .Values.pods.runAsUser }}
{{- end }}

{{- define "tomoray.imagePull" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/*
Where a container with a read-only root may write, and the secrets of a component: (list ROOT COMPONENT). Without the
key of the pseudonyms preprocessing must not begin; others may have no use for it.
*/}}
{{- define "tomoray.volumes" -}}
{{- $component := index . 1 -}}
{{- with (index . 0).Values -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .pods.tmpSize }}
- name: home
  emptyDir:
    sizeLimit: {{ .pods.homeSize }}
- name: pseudonym-key
  secret:
    secretName: {{ .pseudonymKey.secretName }}
    optional: {{ ne $component "preprocess" }}
    defaultMode: 0440
    items:
      - key: {{ .pseudonymKey.key }}
        path: pseudonym.key
{{- if and (eq $component "serving") .serving.tokens.secretName }}
- name: tokens
  secret:
    secretName: {{ .serving.tokens.secretName }}
    defaultMode: 0440
    items:
      - key: {{ .serving.tokens.key }}
        path: tokens.json
{{- end }}
{{- end }}
{{- end }}

{{- define "tomoray.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
- name: home
  mountPath: /home/tomoray
- name: pseudonym-key
  mountPath: /etc/tomoray/key
  readOnly: true
{{- if and (eq (index . 1) "serving") (index . 0).Values.serving.tokens.secretName }}
- name: tokens
  mountPath: /etc/tomoray/tokens
  readOnly: true
{{- end }}
{{- end }}

{{/* A disk of a worker, for blocks of archives that were read once. */}}
{{- define "tomoray.cacheVolume" -}}
- name: cache
  {{- with .Values.cache }}
  {{- if .storageClass }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        storageClassName: {{ .storageClass }}
        resources:
          requests:
            storage: {{ .size }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .size }}
  {{- end }}
  {{- end }}
{{- end }}

{{/* Variables of a component: (list ROOT COMPONENT). */}}
{{- define "tomoray.env" -}}
{{- $component := index . 1 -}}
{{- with (index . 0).Values -}}
- name: TOMORAY_KEY_FILE
  value: /etc/tomoray/key/pseudonym.key
- name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
  value: {{ .ray.drainSeconds | quote }}
- name: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH
  value: serving.again.middlewares
- name: RAY_USAGE_STATS_ENABLED
  value: {{ .ray.usageStats | ternary "1" "0" | quote }}
{{- if and (eq $component "serving") .redis.enabled }}
- name: TOMORAY_REDIS_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ .redis.passwordSecret.name }}
      key: {{ .redis.passwordSecret.key }}
{{- end }}
{{- with .pods.env }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}
