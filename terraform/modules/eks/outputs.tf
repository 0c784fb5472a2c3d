output "name" {
  description = "Name of the cluster. It waits for the add-ons without which no node becomes ready."
  value       = aws_eks_cluster.this.name
  depends_on  = [aws_eks_addon.early]
}

output "arn" {
  description = "ARN of the cluster."
  value       = aws_eks_cluster.this.arn
}

output "endpoint" {
  description = "URL of the cluster's API."
  value       = aws_eks_cluster.this.endpoint
}

output "certificate_authority" {
  description = "Certificate of the cluster's API, as PEM."
  value       = base64decode(aws_eks_cluster.this.certificate_authority[0].data)
}

output "security_group_id" {
  description = "The group of the control plane and of all nodes."
  value       = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
}

output "volumes_key_arn" {
  description = "KMS key of the nodes' disks."
  value       = module.volumes_key.arn
}
