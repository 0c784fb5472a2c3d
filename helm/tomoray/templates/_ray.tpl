{{/*
The spec of a Ray cluster: (dict "root" $ "component" "serving" "cluster" .Values.serving). A component's values have
`head` and `workers`; nothing else of them is read here.
*/}}
{{- define "tomoray.rayCluster" -}}
{{- $root := .root -}}
{{- $ray := $root.Values.ray -}}
rayVersion: {{ $ray.version | quote }}
{{- if $ray.auth.enabled }}
authOptions:
  mode: token
  {{- with $ray.auth.secretName }}
  secretName: {{ . }}
  {{- end }}
{{- else }}
authOptions:
  mode: disabled
{{- end }}
{{- if $ray.tls.enabled }}
tlsOptions:
  enabled: true
{{- end }}
{{- include "tomoray.faultTolerance" . }}
enableInTreeAutoscaling: {{ $ray.autoscaling.enabled }}
{{- if $ray.autoscaling.enabled }}
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ $ray.autoscaling.idleSeconds }}
  upscalingMode: {{ $ray.autoscaling.upscaling }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  resources:
    {{- toYaml $ray.autoscaling.resources | nindent 4 }}
  securityContext:
    {{- include "tomoray.containerSecurityContext" $root | nindent 4 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
    - name: home
      mountPath: /home/tomoray
{{- end }}
headGroupSpec:
  rayStartParams:
    dashboard-host: 0.0.0.0
    num-cpus: "0"
  template:
    {{- include "tomoray.rayPod" (dict "root" $root "component" .component "node" .cluster.head "head" true) | nindent 4 }}
workerGroupSpecs:
  {{- range $name, $group := .cluster.workers }}
  {{- if $group }}
  - groupName: {{ $name }}
    replicas: {{ $group.replicas | default $group.minReplicas | default 0 }}
    minReplicas: {{ $group.minReplicas | default 0 }}
    maxReplicas: {{ $group.maxReplicas }}
    {{- if $ray.autoscaling.enabled }}
    {{- with $group.priority }}
    priority: {{ . }}
    {{- end }}
    {{- if hasKey $group "idleSeconds" }}
    idleTimeoutSeconds: {{ $group.idleSeconds }}
    {{- end }}
    {{- end }}
    rayStartParams: {}
    template:
      {{- include "tomoray.rayPod" (dict "root" $root "component" $.component "node" $group "head" false) | nindent 6 }}
  {{- end }}
  {{- else }}
  []
  {{- end }}
{{- end }}

{{/* How a head that is lost finds its cluster again. */}}
{{- define "tomoray.faultTolerance" -}}
{{- $root := .root -}}
{{- with $root.Values.ray.faultTolerance }}
{{- if eq .backend "redis" }}
{{- if not (or .redisAddress $root.Values.redis.enabled) }}
{{- fail "ray.faultTolerance.backend is redis and there is none: turn on redis.enabled, or give ray.faultTolerance.redisAddress" }}
{{- end }}
gcsFaultToleranceOptions:
  redisAddress: {{ .redisAddress | default (printf "redis://%s-redis:6379" (include "tomoray.name" $root)) }}
  redisPassword:
    valueFrom:
      secretKeyRef:
        name: {{ $root.Values.redis.passwordSecret.name }}
        key: {{ $root.Values.redis.passwordSecret.key }}
{{- else if eq .backend "rocksdb" }}
gcsFaultToleranceOptions:
  backend: rocksdb
  storage:
    size: {{ .rocksdb.size }}
    {{- with .rocksdb.storageClass }}
    storageClassName: {{ . }}
    {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A pod of a Ray cluster, head and workers alike: (dict "root" $ "component" C "node" VALUES "head" BOOL). */}}
{{- define "tomoray.rayPod" -}}
{{- $root := .root -}}
{{- $node := .node -}}
{{- $place := ternary $root.Values.scheduling.spot $root.Values.scheduling.onDemand ($node.spot | default false) -}}
metadata:
  labels:
    {{- include "tomoray.podLabels" (list $root .component) | nindent 4 }}
  {{- $annotations := $root.Values.pods.annotations }}
  {{- if .head }}
  {{- $annotations = merge (dict "karpenter.sh/do-not-disrupt" "true" "cluster-autoscaler.kubernetes.io/safe-to-evict" "false") $annotations }}
  {{- end }}
  {{- with $annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "tomoray.role" (list $root .component) }}
  automountServiceAccountToken: {{ and .head $root.Values.ray.autoscaling.enabled }}
  enableServiceLinks: false
  restartPolicy: {{ $root.Values.ray.autoscaling.enabled | ternary "Never" "Always" }}
  terminationGracePeriodSeconds: {{ include "tomoray.graceSeconds" $root }}
  {{- if $root.Values.priorityClasses.enabled }}
  priorityClassName: {{ include "tomoray.role" (list $root .component) }}
  {{- end }}
  securityContext:
    {{- include "tomoray.podSecurityContext" $root | nindent 4 }}
  {{- include "tomoray.imagePull" $root | nindent 2 }}
  containers:
    - name: ray-{{ .head | ternary "head" "worker" }}
      image: {{ include "tomoray.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      env:
        {{- include "tomoray.env" (list $root .component) | nindent 8 }}
        {{- if not $root.Values.ray.auth.enabled }}
        - name: RAY_AUTH_MODE
          value: disabled
        {{- end }}
        {{- with $node.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $root.Values.pods.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        {{- if .head }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
        - {name: as-metrics, containerPort: 44217}
        - {name: dash-metrics, containerPort: 44227}
        {{- end }}
        - {name: metrics, containerPort: 8080}
        {{- if eq .component "serving" }}
        - {name: serve, containerPort: 8000}
        {{- end }}
        {{- if and .head (eq .component "preprocess") }}
        - {name: driver, containerPort: 9100}
        {{- end }}
      resources:
        {{- toYaml $node.resources | nindent 8 }}
      securityContext:
        {{- include "tomoray.containerSecurityContext" $root | nindent 8 }}
      volumeMounts:
        {{- include "tomoray.volumeMounts" (list $root .component) | nindent 8 }}
        {{- if not .head }}
        - name: cache
          mountPath: /cache
        {{- end }}
        {{- if eq .component "preprocess" }}
        - name: config
          mountPath: /etc/tomoray/config
          readOnly: true
        {{- end }}
  volumes:
    {{- include "tomoray.volumes" (list $root .component) | nindent 4 }}
    {{- if not .head }}
    {{- include "tomoray.cacheVolume" $root | nindent 4 }}
    {{- end }}
    {{- if eq .component "preprocess" }}
    - name: config
      configMap:
        name: {{ include "tomoray.name" $root }}-preprocess
    {{- end }}
  {{- with merge (dict) ($node.nodeSelector | default dict) $place.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with concat $place.tolerations ($node.tolerations | default list) }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $node.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $node.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Seconds that a pod has to go: more than Ray takes to drain a node, or the kubelet ends it half way. */}}
{{- define "tomoray.graceSeconds" -}}
{{- with .Values.ray -}}
{{- if le (int .terminationGraceSeconds) (int .drainSeconds) -}}
{{- fail (printf "ray.terminationGraceSeconds is %d, which is no longer than ray.drainSeconds (%d): pods would be killed while they drain" (int .terminationGraceSeconds) (int .drainSeconds)) -}}
{{- end -}}
{{ .terminationGraceSeconds }}
{{- end -}}
{{- end }}
