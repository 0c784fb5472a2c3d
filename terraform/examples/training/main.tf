# A research group: public CT preprocessed on spot machines, networks trained on spot GPUs with some on demand.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
    helm = {
      source  = "hashicorp/helm"
      version = "~> 3.0"
    }
  }
}

provider "aws" {
  region = var.region
}

module "tomoray" {
  source = "../.."

  name                 = "tomoray-training"
  admin_role_arns      = var.admin_role_arns
  public_access_cidrs  = var.my_cidrs
  service_linked_roles = var.service_linked_roles
  autoscaler           = "karpenter"
  readable_buckets     = ["idc-open-data"]
  github               = var.github
  budget_dollars       = 5000
  alert_emails         = var.alert_emails

  groups = {
    gpu-training-spot = {
      capacity       = "spot"
      instance_types = ["g6e.12xlarge", "g6.12xlarge", "g5.12xlarge"]
      max            = 8
      gpu            = true
      gpus_each      = 4
      disk_gb        = 300
      local_disk     = true
    }
  }
}
