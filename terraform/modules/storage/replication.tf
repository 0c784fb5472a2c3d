# Copies of what cannot be made anew, in another region. Nothing of this exists without `replica_region`.

locals {
  replicated           = var.replica_region == null ? toset([]) : toset(["raw", "models"])
  replica_arns         = { for kind in local.replicated : kind => "${local.arns[kind]}-replica" }
  replication_role     = "${var.prefix}-replication"
  replication_role_arn = "arn:${data.aws_partition.current.partition}:iam::${local.account_id}:role/${local.replication_role}"
}

module "replica_key" {
  source   = "../key"
  for_each = var.encryption == "kms" ? local.replicated : toset([])

  name        = "${var.prefix}-${each.key}-replica"
  description = "Objects of the bucket ${local.names[each.key]}-replica"
  region      = var.replica_region
  tags        = var.tags
}

resource "aws_s3_bucket" "replica" {
  # checkov:skip=CKV_AWS_144: this is the copy
  # checkov:skip=CKV_AWS_145: KMS wherever the originals have it, which is everywhere on AWS
  # checkov:skip=CKV2_AWS_62: nothing waits for events of a copy
  # checkov:skip=CKV_AWS_18: access logs go to a bucket of the same region; reads and writes are in CloudTrail
  for_each = local.replicated

  region        = var.replica_region
  bucket        = "${local.names[each.key]}-replica"
  force_destroy = var.force_destroy
  tags          = merge(var.tags, { Name = "${local.names[each.key]}-replica", Data = each.key })
}

resource "aws_s3_bucket_versioning" "replica" {
  for_each = local.replicated

  region = var.replica_region
  bucket = aws_s3_bucket.replica[each.key].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_public_access_block" "replica" {
  for_each = local.replicated

  region                  = var.replica_region
  bucket                  = aws_s3_bucket.replica[each.key].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "replica" {
  for_each = local.replicated

  region = var.replica_region
  bucket = aws_s3_bucket.replica[each.key].id

  rule {
    bucket_key_enabled = var.encryption == "kms"

    apply_server_side_encryption_by_default {
      sse_algorithm     = var.encryption == "kms" ? "aws:kms" : "AES256"
      kms_master_key_id = try(module.replica_key[each.key].arn, null)
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "replica" {
  for_each = local.replicated

  region = var.replica_region
  bucket = aws_s3_bucket.replica[each.key].id

  rule {
    id     = "old-versions"
    status = "Enabled"
    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_days[each.key]
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = var.abort_multipart_days
    }
  }

  depends_on = [aws_s3_bucket_versioning.replica]
}

resource "aws_s3_bucket_policy" "replica" {
  for_each = local.replicated

  region = var.replica_region
  bucket = aws_s3_bucket.replica[each.key].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "RefusePlainHttp"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [local.replica_arns[each.key], "${local.replica_arns[each.key]}/*"]
      Condition = { BoolIfExists = { "aws:SecureTransport" = "false" } }
    }]
  })

  depends_on = [aws_s3_bucket_public_access_block.replica]
}

resource "aws_iam_role" "replication" {
  count = length(local.replicated) > 0 ? 1 : 0

  name = local.replication_role
  tags = var.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "s3.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = { StringEquals = { "aws:SourceAccount" = local.account_id } }
    }]
  })
}

resource "aws_iam_role_policy" "replication" {
  count = length(local.replicated) > 0 ? 1 : 0

  name = "copy-objects"
  role = aws_iam_role.replication[0].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [for each in [
      {
        Sid      = "SeeWhatIsThere"
        Effect   = "Allow"
        Action   = ["s3:GetReplicationConfiguration", "s3:ListBucket"]
        Resource = [for kind in sort(local.replicated) : local.arns[kind]]
      },
      {
        Sid      = "ReadVersions"
        Effect   = "Allow"
        Action   = ["s3:GetObjectVersionAcl", "s3:GetObjectVersionForReplication", "s3:GetObjectVersionTagging"]
        Resource = [for kind in sort(local.replicated) : "${local.arns[kind]}/*"]
      },
      {
        Sid      = "WriteCopies"
        Effect   = "Allow"
        Action   = ["s3:ReplicateDelete", "s3:ReplicateObject", "s3:ReplicateTags"]
        Resource = [for kind in sort(local.replicated) : "${local.replica_arns[kind]}/*"]
      },
      {
        Sid      = "DecryptOriginals"
        Effect   = "Allow"
        Action   = "kms:Decrypt"
        Resource = [for kind in sort(local.replicated) : local.key_arns[kind]]
      },
      {
        Sid      = "EncryptCopies"
        Effect   = "Allow"
        Action   = "kms:GenerateDataKey"
        Resource = [for key in module.replica_key : key.arn]
      },
    ] : each if var.encryption == "kms" || !contains(["DecryptOriginals", "EncryptCopies"], each.Sid)]
  })
}

resource "aws_s3_bucket_replication_configuration" "this" {
  for_each = local.replicated

  bucket = aws_s3_bucket.this[each.key].id
  role   = aws_iam_role.replication[0].arn

  rule {
    id     = "everything"
    status = "Enabled"
    filter {}

    # A delete here is no delete there: the copy is what remains when somebody removes too much.
    delete_marker_replication {
      status = "Disabled"
    }

    source_selection_criteria {
      sse_kms_encrypted_objects {
        status = "Enabled"
      }
    }

    destination {
      bucket        = aws_s3_bucket.replica[each.key].arn
      storage_class = "GLACIER_IR"

      dynamic "encryption_configuration" {
        for_each = [for key in [try(module.replica_key[each.key].arn, null)] : key if key != null]

        content {
          replica_kms_key_id = encryption_configuration.value
        }
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.this, aws_s3_bucket_versioning.replica]
}
