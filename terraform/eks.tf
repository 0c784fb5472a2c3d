module "eks" {
  source = "./modules/eks"

  name                 = var.name
  kubernetes_version   = var.kubernetes_version
  vpc_id               = module.network.vpc_id
  subnet_ids           = values(module.network.private_subnet_ids)
  public_access_cidrs  = var.public_access_cidrs
  api_client_cidrs     = var.api_client_cidrs
  admin_role_arns      = var.admin_role_arns
  archive_bucket_arn   = module.storage.bucket_arns["archive"]
  archive_key_arn      = module.storage.key_arns["archive"]
  autoscaling_role_arn = local.autoscaling_role_arn
  log_key_arn          = module.log_key.arn
  deletion_protection  = var.deletion_protection
  tags                 = local.tags
}

# Roles that AWS makes by itself when a service is first used. A new account lacks them, and the disks' key names one.
resource "aws_iam_service_linked_role" "this" {
  for_each = var.service_linked_roles

  aws_service_name = each.key
}

locals {
  autoscaling_role_arn = try(
    aws_iam_service_linked_role.this["autoscaling.amazonaws.com"].arn,
    "arn:${local.partition}:iam::${local.account_id}:role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling",
  )
}

# Helm asks AWS for a token each time; no kubeconfig is read or written.
provider "helm" {
  kubernetes = {
    host                   = module.eks.endpoint
    cluster_ca_certificate = module.eks.certificate_authority

    exec = {
      api_version = "client.authentication.k8s.io/v1"
      command     = "aws"
      args        = ["eks", "get-token", "--cluster-name", module.eks.name, "--region", local.region]
    }
  }
}
