# Written with jsonencode, so that a plan shows every statement and a test can read it.
#
# Two traps. A condition with Not holds where its key is missing from the request: most writes name no encryption and get
# the bucket's own, so the statements that refuse another encryption ask first whether one was named ("?*"). And Ceph says
# nothing of transport where it is plain HTTP, hence IfExists.

locals {
  encrypted_as = { for kind in local.kinds : kind => contains(keys(module.key), kind) ? "aws:kms" : "AES256" }

  # Each statement with whether it is wanted.
  statements = { for kind in local.kinds : kind => [
    {
      wanted = var.tls_only
      statement = {
        Sid       = "RefusePlainHttp"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [local.arns[kind], "${local.arns[kind]}/*"]
        Condition = { BoolIfExists = { "aws:SecureTransport" = "false" } }
      }
    },
    {
      wanted = var.tls_version != null
      statement = {
        Sid       = "RefuseOldTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [local.arns[kind], "${local.arns[kind]}/*"]
        Condition = { NumericLessThan = { "s3:TlsVersion" = var.tls_version } }
      }
    },
    {
      wanted = kind != "logs"
      statement = {
        Sid       = "RefuseOtherEncryption"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:PutObject"
        Resource  = "${local.arns[kind]}/*"
        Condition = {
          StringNotEquals = { "s3:x-amz-server-side-encryption" = local.encrypted_as[kind] }
          StringLike      = { "s3:x-amz-server-side-encryption" = "?*" }
        }
      }
    },
    {
      wanted = kind != "logs"
      statement = {
        Sid       = "RefuseKeysOfTheCaller"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:PutObject"
        Resource  = "${local.arns[kind]}/*"
        Condition = { StringLike = { "s3:x-amz-server-side-encryption-customer-algorithm" = "?*" } }
      }
    },
    {
      wanted = contains(keys(module.key), kind)
      statement = {
        Sid       = "RefuseOtherKeys"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:PutObject"
        Resource  = "${local.arns[kind]}/*"
        Condition = {
          StringNotEquals = { "s3:x-amz-server-side-encryption-aws-kms-key-id" = try(local.key_arns[kind], "") }
          StringLike      = { "s3:x-amz-server-side-encryption-aws-kms-key-id" = "?*" }
        }
      }
    },
    {
      wanted = var.require_encryption_header && kind != "logs"
      statement = {
        Sid       = "RefuseUnencrypted"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:PutObject"
        Resource  = "${local.arns[kind]}/*"
        Condition = { Null = { "s3:x-amz-server-side-encryption" = "true" } }
      }
    },
    {
      # AWS's own services, as the one that copies to another region, work from elsewhere.
      wanted = length(var.only_from_endpoints) > 0 && kind != "logs"
      statement = {
        Sid       = "RefuseOutsideOfTheNetwork"
        Effect    = "Deny"
        Principal = "*"
        Action    = ["s3:DeleteObject", "s3:GetObject", "s3:GetObjectVersion", "s3:PutObject"]
        Resource  = "${local.arns[kind]}/*"
        Condition = {
          StringNotEquals = { "aws:SourceVpce" = var.only_from_endpoints }
          BoolIfExists    = { "aws:PrincipalIsAWSService" = "false" }
          ArnNotLike      = { "aws:PrincipalArn" = concat(var.exempt_role_arns, [local.replication_role_arn]) }
        }
      }
    },
    {
      wanted = var.access_logs && kind == "logs"
      statement = {
        Sid       = "S3DeliversAccessLogs"
        Effect    = "Allow"
        Principal = { Service = "logging.s3.amazonaws.com" }
        Action    = "s3:PutObject"
        Resource  = "${local.arns[kind]}/access/*"
        Condition = {
          ArnLike      = { "aws:SourceArn" = [for source in sort(local.data) : local.arns[source]] }
          StringEquals = { "aws:SourceAccount" = local.account_id }
        }
      }
    },
    {
      wanted = var.trail_arn != null && kind == "logs"
      statement = {
        Sid       = "CloudTrailLooks"
        Effect    = "Allow"
        Principal = { Service = "cloudtrail.amazonaws.com" }
        Action    = "s3:GetBucketAcl"
        Resource  = local.arns[kind]
        Condition = { StringEquals = { "aws:SourceArn" = var.trail_arn } }
      }
    },
    {
      wanted = var.trail_arn != null && kind == "logs"
      statement = {
        Sid       = "CloudTrailDelivers"
        Effect    = "Allow"
        Principal = { Service = "cloudtrail.amazonaws.com" }
        Action    = "s3:PutObject"
        Resource  = "${local.arns[kind]}/cloudtrail/AWSLogs/${local.account_id}/*"
        Condition = { StringEquals = { "aws:SourceArn" = var.trail_arn } }
      }
    },
  ] }

  policies = { for kind in local.kinds : kind => jsonencode({
    Version   = "2012-10-17"
    Statement = [for each in local.statements[kind] : each.statement if each.wanted]
  }) }
}

# A policy without statements is none.
resource "aws_s3_bucket_policy" "this" {
  for_each = { for kind in local.kinds : kind => local.names[kind] if anytrue([for each in local.statements[kind] : each.wanted]) }

  bucket = aws_s3_bucket.this[each.key].id
  policy = local.policies[each.key]

  depends_on = [aws_s3_bucket_public_access_block.this]
}
