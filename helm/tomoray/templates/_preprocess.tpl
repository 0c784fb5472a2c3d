{{/*
One run of preprocessing. A run that is started again decodes nothing that is stored, so it may fail and be repeated
as often as backoffLimit says.
*/}}
{{- define "tomoray.preprocessJob" -}}
{{- with .Values.preprocess -}}
entrypoint: python -m jobs.preprocess /etc/tomoray/config/preprocess.yaml
submissionMode: K8sJobMode
shutdownAfterJobFinishes: true
ttlSecondsAfterFinished: {{ .ttlSeconds }}
backoffLimit: {{ .retries }}
{{- with .deadlineSeconds }}
activeDeadlineSeconds: {{ . }}
{{- end }}
submitterPodTemplate:
  metadata:
    labels:
      {{- include "tomoray.podLabels" (list $ "preprocess") | nindent 6 }}
  spec:
    serviceAccountName: {{ include "tomoray.role" (list $ "preprocess") }}
    automountServiceAccountToken: false
    enableServiceLinks: false
    restartPolicy: Never
    securityContext:
      {{- include "tomoray.podSecurityContext" $ | nindent 6 }}
    {{- include "tomoray.imagePull" $ | nindent 4 }}
    containers:
      - name: ray-job-submitter
        image: {{ include "tomoray.image" $ }}
        imagePullPolicy: {{ $.Values.image.pullPolicy }}
        resources:
          {{- toYaml .submitter.resources | nindent 10 }}
        securityContext:
          {{- include "tomoray.containerSecurityContext" $ | nindent 10 }}
        volumeMounts:
          - name: tmp
            mountPath: /tmp
          - name: home
            mountPath: /home/tomoray
    volumes:
      - name: tmp
        emptyDir:
          sizeLimit: 1Gi
      - name: home
        emptyDir:
          sizeLimit: 1Gi
    {{- with $.Values.scheduling.onDemand.nodeSelector }}
    nodeSelector:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $.Values.scheduling.onDemand.tolerations }}
    tolerations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
rayClusterSpec:
  {{- include "tomoray.rayCluster" (dict "root" $ "component" "preprocess" "cluster" .) | nindent 2 }}
{{- end }}
{{- end }}
