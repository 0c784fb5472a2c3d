{{/* Labels that the dashboards select by; `ray_io_cluster` is what Ray's own dashboards call it. */}}
{{- define "tomoray.relabelings" -}}
- sourceLabels: [__meta_kubernetes_pod_label_ray_io_cluster]
  targetLabel: ray_io_cluster
- sourceLabels: [__meta_kubernetes_pod_label_ray_io_group]
  targetLabel: ray_io_group
- sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_component]
  targetLabel: component
{{- end }}
