# A hospital: no way to the internet at all, patients' data that cannot be removed for a year nor read from outside.
# Charts and images come from a registry in the account; administrators come through the hospital's network.

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

  name                     = "tomoray-hospital"
  admin_role_arns          = var.admin_role_arns
  service_linked_roles     = var.service_linked_roles
  nat                      = "none"
  api_client_cidrs         = var.hospital_cidrs
  readable_buckets         = []
  only_from_network        = true
  object_lock_days         = 365
  replica_region           = var.replica_region
  break_glass_principals   = var.break_glass_principals
  permissions_boundary_arn = var.permissions_boundary_arn
  chart_registry           = var.chart_registry
  chart_values             = var.chart_values
  image                    = var.image
  budget_dollars           = 10000
  alert_emails             = var.alert_emails

  groups = {
    gpu-serving = { capacity = "on_demand", instance_types = ["g6.xlarge", "g5.xlarge"], max = 8, gpu = true }
  }
}
