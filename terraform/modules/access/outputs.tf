output "job_role_arns" {
  description = "The role of each kind of job, by kind."
  value       = { for job, role in aws_iam_role.job : job => role.arn }
}

output "service_accounts" {
  description = "The service account of each kind of job."
  value       = { for job, association in aws_eks_pod_identity_association.job : job => association.service_account }
}

output "policies" {
  description = "The policy of each job's role, as JSON."
  value       = local.policies
}

output "github_role_arn" {
  description = "The role of GitHub's workflows; null without `github`."
  value       = one(aws_iam_role.github[*].arn)
}

output "break_glass_role_arn" {
  description = "The break-glass role; null without principals."
  value       = one(aws_iam_role.break_glass[*].arn)
}
