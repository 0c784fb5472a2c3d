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
Where a container with a read-only root may write, and the key that makes pseudonyms: (list ROOT COMPONENT). Without
the key preprocessing must not begin; others may have no use for it.
*/}}
{{- define "tomoray.volumes" -}}
{{- with index . 0 -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.pods.tmpSize }}
- name: home
  emptyDir:
    sizeLimit: {{ .Values.pods.homeSize }}
- name: pseudonym-key
  secret:
    secretName: {{ .Values.pseudonymKey.secretName }}
    optional: {{ ne (index $ 1) "preprocess" }}
    defaultMode: 0440
    items:
      - key: {{ .Values.pseudonymKey.key }}
        path: pseudonym.key
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

{{- define "tomoray.env" -}}
- name: TOMORAY_KEY_FILE
  value: /etc/tomoray/key/pseudonym.key
- name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
  value: {{ .Values.ray.drainSeconds | quote }}
- name: RAY_USAGE_STATS_ENABLED
  value: {{ .Values.ray.usageStats | ternary "1" "0" | quote }}
{{- with .Values.pods.env }}
{{ toYaml . }}
{{- end }}
{{- end }}
