# For `tomoray cluster import-terraform`.

output "cluster" {
  description = "The cluster: its name, region, and how kubectl comes to know it."
  value       = module.tomoray.cluster
}

output "namespace" {
  description = "Namespace of TomoRay."
  value       = module.tomoray.namespace
}

output "buckets" {
  description = "Buckets raw, archive, models and logs."
  value       = module.tomoray.buckets
}

output "service_accounts" {
  description = "Service account and role of each kind of job."
  value       = module.tomoray.service_accounts
}

output "groups" {
  description = "Node groups."
  value       = module.tomoray.groups
}

output "image" {
  description = "The image that pods run."
  value       = module.tomoray.image
}

output "image_repository" {
  description = "Where images are pushed."
  value       = module.tomoray.image_repository
}

output "cache" {
  description = "The shared cache."
  value       = module.tomoray.cache
}
