output "buckets" {
  description = "Buckets raw, archive, models and logs, by name."
  value       = module.storage.buckets
}

output "endpoint" {
  description = "For AWS_ENDPOINT_URL."
  value       = var.endpoint
}
