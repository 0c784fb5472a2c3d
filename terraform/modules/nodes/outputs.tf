output "instance_profile" {
  description = "Instance profile of the nodes that Karpenter starts; null without it."
  value       = one(aws_iam_instance_profile.node[*].name)
}

output "groups" {
  description = "What the chart and `tomoray cost` know of each group: capacity, machine types, smallest and largest size."
  value = { for name, group in var.groups : name => {
    capacity       = group.capacity
    instance_types = group.instance_types
    min            = group.min
    max            = group.max
    gpu            = group.gpu
    labels         = local.labels[name]
  } }
}

output "node_pools" {
  description = "Values of charts/node-pools: a pool for each group that Karpenter starts; empty without it."
  value = { for name, group in var.groups : name => {
    capacity      = group.capacity == "spot" ? "spot" : "on-demand"
    instanceTypes = group.instance_types
    max           = group.max
    gpu           = group.gpu
    diskGb        = group.disk_gb
    localDisk     = group.local_disk
    labels        = local.labels[name]
  } if local.karpenter && name != "system" }
}

output "queue_name" {
  description = "The queue of spot interruptions; null without Karpenter."
  value       = local.karpenter ? local.queue_name : null
}
