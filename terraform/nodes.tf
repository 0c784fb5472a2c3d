# The groups that a project needs from day one. All but `system` cost nothing while nobody works.

locals {
  ready_groups = {
    # Operators, Ray heads and the gateway: what must not go away while a job runs.
    system = {
      capacity       = "on_demand"
      instance_types = ["m7i.xlarge"]
      min            = 2
      max            = 6
    }
    # Preprocessing: a lost machine costs one series each task, done again elsewhere.
    cpu-spot = {
      capacity       = "spot"
      instance_types = ["m7i.4xlarge", "m6i.4xlarge", "m7a.4xlarge", "m6a.4xlarge", "m5.4xlarge"]
      max            = 50
    }
    gpu-training = {
      capacity       = "on_demand"
      instance_types = ["g6e.4xlarge"]
      max            = 4
      gpu            = true
      disk_gb        = 200
      local_disk     = true
    }
    # A notice comes two minutes ahead, and training needs eight seconds to save its step.
    gpu-training-spot = {
      capacity       = "spot"
      instance_types = ["g6e.4xlarge", "g6.4xlarge", "g5.4xlarge"]
      max            = 8
      gpu            = true
      disk_gb        = 200
      local_disk     = true
    }
    gpu-serving = {
      capacity       = "on_demand"
      instance_types = ["g6.xlarge", "g5.xlarge"]
      max            = 4
      gpu            = true
    }
  }

  groups = { for name, group in merge(local.ready_groups, var.groups) : name => group if group != null }
}

module "nodes" {
  source = "./modules/nodes"

  cluster_name       = module.eks.name
  kubernetes_version = var.kubernetes_version
  subnet_ids         = values(module.network.private_subnet_ids)
  volumes_key_arn    = module.eks.volumes_key_arn
  autoscaler         = var.autoscaler
  groups             = local.groups
  tags               = local.tags
}
