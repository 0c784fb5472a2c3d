# Charts, each from its own home or all from `chart_registry`. TomoRay's own comes from this repository.

locals {
  charts = {
    cluster-autoscaler   = { repository = "https://kubernetes.github.io/autoscaler", version = "9.52.1" }
    karpenter            = { repository = "oci://public.ecr.aws/karpenter", version = "1.8.1" }
    nvidia-device-plugin = { repository = "https://nvidia.github.io/k8s-device-plugin", version = "0.18.0" }
    kuberay-operator     = { repository = "https://ray-project.github.io/kuberay-helm", version = "1.7.0" }
    kueue                = { repository = "oci://registry.k8s.io/kueue/charts", version = "0.19.2" }
  }

  repositories = { for name, chart in local.charts : name => coalesce(var.chart_registry, chart.repository) }
  versions     = { for name, chart in local.charts : name => lookup(var.chart_versions, name, chart.version) }
  more_values  = { for name in concat(keys(local.charts), ["tomoray", "node-pools"]) : name => compact([lookup(var.chart_values, name, "")]) }

  on_system_nodes = { nodeSelector = { "tomoray.io/pool" = "system" } }
  image           = coalesce(var.image, "${aws_ecr_repository.tomoray.repository_url}:latest-release")

  # repository:tag or repository@digest; a registry may have a port, so the last colon counts.
  image_digest     = try(split("@", local.image)[1], "")
  image_tag        = local.image_digest == "" ? reverse(split(":", local.image))[0] : ""
  image_repository = local.image_digest == "" ? trimsuffix(local.image, ":${local.image_tag}") : split("@", local.image)[0]

  # What the chart knows of this place; values.yaml of helm/tomoray says what each means.
  tomoray_values = {
    image = { repository = local.image_repository, tag = local.image_tag, digest = local.image_digest }
    pods  = { env = [{ name = "AWS_REGION", value = local.region }] }
    scheduling = {
      spot     = { nodeSelector = { "tomoray.io/capacity" = "spot" } }
      onDemand = { nodeSelector = { "tomoray.io/capacity" = "on-demand" } }
    }
  }
}

resource "helm_release" "cluster_autoscaler" {
  count = var.addons && var.autoscaler == "cluster-autoscaler" ? 1 : 0

  name       = "cluster-autoscaler"
  namespace  = "kube-system"
  repository = local.repositories["cluster-autoscaler"]
  chart      = "cluster-autoscaler"
  version    = local.versions["cluster-autoscaler"]

  values = concat([yamlencode(merge(local.on_system_nodes, {
    awsRegion     = local.region
    autoDiscovery = { clusterName = module.eks.name }
    rbac          = { serviceAccount = { name = "cluster-autoscaler" } }
    extraArgs = {
      balance-similar-node-groups   = true
      expander                      = "least-waste"
      scale-down-unneeded-time      = "5m"
      skip-nodes-with-local-storage = false
    }
  }))], local.more_values["cluster-autoscaler"])

  depends_on = [module.nodes]
}

resource "helm_release" "karpenter" {
  count = var.addons && var.autoscaler == "karpenter" ? 1 : 0

  name       = "karpenter"
  namespace  = "kube-system"
  repository = local.repositories["karpenter"]
  chart      = "karpenter"
  version    = local.versions["karpenter"]

  values = concat([yamlencode(merge(local.on_system_nodes, {
    settings = {
      clusterName       = module.eks.name
      clusterEndpoint   = module.eks.endpoint
      interruptionQueue = module.nodes.queue_name
    }
  }))], local.more_values["karpenter"])

  depends_on = [module.nodes]
}

resource "helm_release" "node_pools" {
  count = var.addons && var.autoscaler == "karpenter" ? 1 : 0

  name      = "node-pools"
  namespace = "kube-system"
  chart     = "${path.module}/charts/node-pools"

  values = concat([yamlencode({
    cluster         = module.eks.name
    instanceProfile = module.nodes.instance_profile
    volumesKey      = module.eks.volumes_key_arn
    securityGroup   = module.eks.security_group_id
    tags            = local.tags
    pools           = module.nodes.node_pools
  })], local.more_values["node-pools"])

  depends_on = [helm_release.karpenter]
}

resource "helm_release" "nvidia_device_plugin" {
  count = var.addons && anytrue([for group in values(module.nodes.groups) : group.gpu]) ? 1 : 0

  name       = "nvidia-device-plugin"
  namespace  = "kube-system"
  repository = local.repositories["nvidia-device-plugin"]
  chart      = "nvidia-device-plugin"
  version    = local.versions["nvidia-device-plugin"]

  values = concat([yamlencode({
    nodeSelector = { "nvidia.com/gpu.present" = "true" }
    affinity     = null
  })], local.more_values["nvidia-device-plugin"])

  depends_on = [module.nodes]
}

resource "helm_release" "kuberay_operator" {
  count = var.addons ? 1 : 0

  name             = "kuberay-operator"
  namespace        = "kuberay-system"
  create_namespace = true
  repository       = local.repositories["kuberay-operator"]
  chart            = "kuberay-operator"
  version          = local.versions["kuberay-operator"]
  values = concat([yamlencode(merge(local.on_system_nodes, {
    featureGates = [{ name = "RayCronJob", enabled = true }] # the chart's nightly preprocessing
  }))], local.more_values["kuberay-operator"])

  depends_on = [module.nodes]
}

resource "helm_release" "kueue" {
  count = var.addons ? 1 : 0

  name             = "kueue"
  namespace        = "kueue-system"
  create_namespace = true
  repository       = local.repositories["kueue"]
  chart            = "kueue"
  version          = local.versions["kueue"]
  values           = concat([yamlencode({ controllerManager = local.on_system_nodes })], local.more_values["kueue"])

  depends_on = [module.nodes]
}

resource "helm_release" "tomoray" {
  count = var.addons ? 1 : 0

  name             = "tomoray"
  namespace        = "tomoray"
  create_namespace = true
  chart            = "${path.module}/../helm/tomoray"
  values           = concat([yamlencode(local.tomoray_values)], local.more_values["tomoray"])

  depends_on = [helm_release.kuberay_operator, helm_release.kueue, module.access]
}
