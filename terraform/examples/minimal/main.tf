# The least that works: one NAT, two zones, no GPUs, everything removable. For a first look, with public data alone.

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

  name                 = "tomoray-minimal"
  admin_role_arns      = var.admin_role_arns
  public_access_cidrs  = var.my_cidrs
  service_linked_roles = var.service_linked_roles
  zones                = 2
  interface_endpoints  = []
  deletion_protection  = false
  log_days             = 180
  budget_dollars       = 300
  alert_emails         = var.alert_emails

  groups = {
    system            = { capacity = "on_demand", instance_types = ["m7i.large"], min = 2, max = 3 }
    cpu-spot          = { capacity = "spot", instance_types = ["m7i.2xlarge", "m6i.2xlarge", "m5.2xlarge"], max = 5 }
    gpu-training      = null
    gpu-training-spot = null
    gpu-serving       = null
  }
}
