variable "cluster_name" {
  description = "The EKS cluster."
  type        = string
}

variable "kubernetes_version" {
  description = "Minor version of the nodes."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets for nodes."
  type        = list(string)
}

variable "volumes_key_arn" {
  description = "KMS key of the nodes' disks."
  type        = string
}

variable "autoscaler" {
  description = "Who starts nodes: `karpenter` from node pools, or `cluster-autoscaler` by the size of node groups."
  type        = string
  default     = "cluster-autoscaler"

  validation {
    condition     = contains(["karpenter", "cluster-autoscaler"], var.autoscaler)
    error_message = "autoscaler must be karpenter or cluster-autoscaler."
  }
}

variable "groups" {
  # capacity: on_demand or spot. gpu: with NVIDIA GPUs, kept free of other pods by a taint. local_disk: the machine's
  # own NVMe disks as the node's scratch space, for the block cache.
  description = "Node groups by name: capacity (on_demand or spot), machine types, sizes, and whether they have GPUs."

  type = map(object({
    capacity       = string
    instance_types = list(string)
    min            = optional(number, 0)
    max            = number
    gpu            = optional(bool, false)
    gpus_each      = optional(number, 1)
    disk_gb        = optional(number, 100)
    local_disk     = optional(bool, false)
  }))

  validation {
    condition     = alltrue([for group in values(var.groups) : contains(["on_demand", "spot"], group.capacity)])
    error_message = "groups: capacity must be on_demand or spot."
  }

  validation {
    condition     = alltrue([for group in values(var.groups) : length(group.instance_types) >= (group.capacity == "spot" ? 3 : 1)])
    error_message = "groups: a spot group must name three instance types or more, so that one that runs out does not stop it; any other at least one."
  }

  validation {
    condition     = alltrue([for group in values(var.groups) : group.min >= 0 && group.max >= max(group.min, 1)])
    error_message = "groups: min must be 0 or more, and max at least min and 1."
  }

  validation {
    condition     = alltrue([for group in values(var.groups) : !group.gpu || group.min == 0])
    error_message = "groups: a GPU group must have min = 0: idle GPUs are the dearest thing in the account."
  }

  validation {
    condition     = contains(keys(var.groups), "system") && try(var.groups["system"].capacity == "on_demand" && var.groups["system"].min >= 1, false)
    error_message = "groups: there must be a group `system`, on_demand, with min = 1 or more, for operators and Ray heads."
  }
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
