# For the day on which the ordinary ways fail: reads the data, for an hour, with MFA, and an alarm tells that it was taken.

resource "aws_iam_role" "break_glass" {
  count = length(var.break_glass_principals) > 0 ? 1 : 0

  name                 = "${var.name}-break-glass"
  description          = "Emergency access to the data; taking it raises an alarm"
  max_session_duration = 3600
  permissions_boundary = var.permissions_boundary_arn
  tags                 = var.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { AWS = var.break_glass_principals }
      Action    = "sts:AssumeRole"
      Condition = {
        Bool            = { "aws:MultiFactorAuthPresent" = "true" }
        NumericLessThan = { "aws:MultiFactorAuthAge" = "900" }
      }
    }]
  })
}

resource "aws_iam_role_policy" "break_glass" {
  count = length(var.break_glass_principals) > 0 ? 1 : 0

  name = "read-data"
  role = aws_iam_role.break_glass[0].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "List"
        Effect   = "Allow"
        Action   = ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketVersions"]
        Resource = values(var.bucket_arns)
      },
      {
        Sid      = "Read"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:GetObjectVersion"]
        Resource = [for arn in values(var.bucket_arns) : "${arn}/*"]
      },
      {
        Sid      = "Decrypt"
        Effect   = "Allow"
        Action   = "kms:Decrypt"
        Resource = values(var.key_arns)
      },
      {
        Sid      = "FindTheCluster"
        Effect   = "Allow"
        Action   = "eks:DescribeCluster"
        Resource = local.cluster_arn
      },
    ]
  })
}
