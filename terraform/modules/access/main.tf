# One role for each kind of job. What a job reads and writes stands in `jobs`; the policies follow from it.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account_id  = data.aws_caller_identity.current.account_id
  cluster_arn = "arn:${data.aws_partition.current.partition}:eks:${data.aws_region.current.region}:${local.account_id}:cluster/${var.cluster_name}"

  jobs = {
    preprocess = { reads = ["raw"], writes = ["archive"], sources = var.source_bucket_arns }
    train      = { reads = ["archive"], writes = ["models"], sources = [] }
    serving    = { reads = ["models"], writes = [], sources = [] }
  }

  policies = { for job, use in local.jobs : job => jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [
        {
          Sid      = "List"
          Effect   = "Allow"
          Action   = ["s3:GetBucketLocation", "s3:ListBucket"]
          Resource = concat([for kind in concat(use.reads, use.writes) : var.bucket_arns[kind]], use.sources)
        },
        {
          Sid      = "Read"
          Effect   = "Allow"
          Action   = "s3:GetObject"
          Resource = [for arn in concat([for kind in concat(use.reads, use.writes) : var.bucket_arns[kind]], use.sources) : "${arn}/*"]
        },
        {
          Sid      = "Decrypt"
          Effect   = "Allow"
          Action   = "kms:Decrypt"
          Resource = [for kind in concat(use.reads, use.writes) : var.key_arns[kind]]
        },
      ],
      [for kind in use.writes : {
        Sid      = "Write"
        Effect   = "Allow"
        Action   = ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:ListMultipartUploadParts", "s3:PutObject"]
        Resource = "${var.bucket_arns[kind]}/*"
      }],
      [for kind in use.writes : {
        Sid      = "Encrypt"
        Effect   = "Allow"
        Action   = "kms:GenerateDataKey"
        Resource = var.key_arns[kind]
      }],
    )
  }) }
}

# Pods of one service account in one namespace of one cluster; nobody else, not even by another association.
resource "aws_iam_role" "job" {
  for_each = local.jobs

  name                 = "${var.name}-${each.key}"
  description          = "Pods of the service account tomoray-${each.key}"
  max_session_duration = 43200
  permissions_boundary = var.permissions_boundary_arn
  tags                 = var.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Condition = { StringEquals = {
        "aws:SourceAccount"                         = local.account_id
        "aws:RequestTag/eks-cluster-arn"            = local.cluster_arn
        "aws:RequestTag/kubernetes-namespace"       = var.namespace
        "aws:RequestTag/kubernetes-service-account" = "tomoray-${each.key}"
      } }
    }]
  })
}

resource "aws_iam_role_policy" "job" {
  for_each = local.jobs

  name   = "buckets"
  role   = aws_iam_role.job[each.key].id
  policy = local.policies[each.key]
}

resource "aws_eks_pod_identity_association" "job" {
  for_each = local.jobs

  cluster_name    = var.cluster_name
  namespace       = var.namespace
  service_account = "tomoray-${each.key}"
  role_arn        = aws_iam_role.job[each.key].arn
  tags            = var.tags
}
