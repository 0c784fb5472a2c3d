output "buckets" {
  description = "Names of the buckets raw, archive, models and logs. They wait for the buckets."
  value       = { for kind, bucket in aws_s3_bucket.this : kind => bucket.bucket }
}

output "bucket_arns" {
  description = "ARNs of the same, known before anything exists."
  value       = local.arns
}

output "key_arns" {
  description = "KMS keys of raw, archive and models; empty without KMS."
  value       = local.key_arns
}

output "policies" {
  description = "The policy of each bucket, as JSON."
  value       = local.policies
}
