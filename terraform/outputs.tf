# `tomoray cluster import-terraform` reads these: `terraform output -json > outputs.json`.

output "cluster" {
  description = "The cluster: its name, region, and how kubectl comes to know it."
  value = {
    name       = module.eks.name
    arn        = module.eks.arn
    region     = local.region
    endpoint   = module.eks.endpoint
    kubeconfig = "aws eks update-kubeconfig --region ${local.region} --name ${module.eks.name}"
  }
}

output "namespace" {
  description = "Namespace of TomoRay."
  value       = "tomoray"
}

output "buckets" {
  description = "Buckets raw, archive, models and logs, by name."
  value       = module.storage.buckets
}

output "service_accounts" {
  description = "Service account and role of each kind of job."
  value = { for job, account in module.access.service_accounts : job => {
    name     = account
    role_arn = module.access.job_role_arns[job]
  } }
}

output "groups" {
  description = "Node groups with capacity, machine types, sizes and labels."
  value       = module.nodes.groups
}

output "image" {
  description = "The image that pods run."
  value       = local.image
}

output "image_repository" {
  description = "Where images are pushed."
  value       = aws_ecr_repository.tomoray.repository_url
}

output "cache" {
  description = "The shared cache: its kind, and what to mount."
  value = {
    kind       = var.cache
    efs_id     = one(aws_efs_file_system.cache[*].id)
    fsx_dns    = one(aws_fsx_lustre_file_system.cache[*].dns_name)
    mount_name = one(aws_fsx_lustre_file_system.cache[*].mount_name)
  }
}

output "github_role_arn" {
  description = "Role of GitHub's workflows; null without `github`."
  value       = module.access.github_role_arn
}

output "break_glass_role_arn" {
  description = "Break-glass role; null without principals."
  value       = module.access.break_glass_role_arn
}
