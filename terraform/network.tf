locals {
  # What a node asks for before it is ready; without a NAT it finds them here or nowhere.
  needed_endpoints = var.nat != "none" ? [] : [
    "autoscaling", "ec2", "ecr.api", "ecr.dkr", "eks", "eks-auth", "elasticfilesystem", "kms", "logs", "sqs", "ssm",
    "ssmmessages", "sts",
  ]
}

module "network" {
  source = "./modules/network"

  name                = var.name
  cidr                = var.vpc_cidr
  zones               = var.zones
  nat                 = var.nat
  interface_endpoints = setunion(var.interface_endpoints, local.needed_endpoints)
  readable_buckets    = var.readable_buckets
  log_key_arn         = module.log_key.arn
  tags                = local.tags
}
