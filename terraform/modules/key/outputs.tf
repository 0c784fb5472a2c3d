output "arn" {
  description = "ARN of the key. It waits for the key's policy."
  value       = aws_kms_key.this.arn
}

output "policy" {
  description = "The key's policy, as JSON."
  value       = aws_kms_key.this.policy
}
