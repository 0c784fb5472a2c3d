module "access" {
  source = "./modules/access"

  name         = var.name
  cluster_name = module.eks.name

  bucket_arns = {
    raw     = module.storage.bucket_arns["raw"]
    archive = module.storage.bucket_arns["archive"]
    models  = module.storage.bucket_arns["models"]
  }

  key_arns = {
    raw     = module.storage.key_arns["raw"]
    archive = module.storage.key_arns["archive"]
    models  = module.storage.key_arns["models"]
  }

  source_bucket_arns       = [for bucket in sort(var.readable_buckets) : "arn:${local.partition}:s3:::${bucket}"]
  github                   = var.github
  repository_arns          = [aws_ecr_repository.tomoray.arn]
  break_glass_principals   = var.break_glass_principals
  permissions_boundary_arn = var.permissions_boundary_arn
  tags                     = local.tags
}

resource "aws_eks_access_entry" "break_glass" {
  count = length(var.break_glass_principals) > 0 ? 1 : 0

  cluster_name  = module.eks.name
  principal_arn = module.access.break_glass_role_arn
  tags          = local.tags
}

resource "aws_eks_access_policy_association" "break_glass" {
  count = length(var.break_glass_principals) > 0 ? 1 : 0

  cluster_name  = module.eks.name
  principal_arn = aws_eks_access_entry.break_glass[0].principal_arn
  policy_arn    = "arn:${local.partition}:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"

  access_scope {
    type = "cluster"
  }
}
