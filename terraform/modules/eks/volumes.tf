# One key for the disks of nodes and of pods. EC2 Auto Scaling starts nodes in its own name, and so must be let in here:
# without it, instances end at once with Client.InternalError.

module "volumes_key" {
  source = "../key"

  name        = "${var.name}-volumes"
  description = "Disks of the cluster ${var.name}"
  tags        = var.tags

  statements = [
    {
      Sid       = "AutoScalingUses"
      Effect    = "Allow"
      Principal = { AWS = var.autoscaling_role_arn }
      Action    = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
      Resource  = "*"
    },
    {
      Sid       = "AutoScalingHandsOn"
      Effect    = "Allow"
      Principal = { AWS = var.autoscaling_role_arn }
      Action    = "kms:CreateGrant"
      Resource  = "*"
      Condition = { Bool = { "kms:GrantIsForAWSResource" = "true" } }
    },
  ]
}
