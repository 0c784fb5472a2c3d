# Four buckets: `raw` DICOM as it came, the `archive` made of it, `models` that were trained, and `logs` of it all.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

locals {
  account_id = data.aws_caller_identity.current.account_id
  data       = toset(["raw", "archive", "models"])
  kinds      = setunion(local.data, ["logs"])
  names      = { for kind in local.kinds : kind => "${var.prefix}-${kind}" }
  arns       = { for kind, name in local.names : kind => "arn:${data.aws_partition.current.partition}:s3:::${name}" }
  locked     = var.object_lock_days > 0 ? toset(["raw", "logs"]) : toset([])
  key_arns   = { for kind, key in module.key : kind => key.arn }
}

resource "aws_s3_bucket" "this" {
  # checkov:skip=CKV_AWS_144: raw and models are copied to another region with replica_region; the archive can be made anew
  # checkov:skip=CKV2_AWS_62: nothing waits for events of these buckets; reads and writes are in CloudTrail
  # checkov:skip=CKV_AWS_145: raw, archive and models use KMS; S3 delivers access logs only to buckets without it
  # checkov:skip=CKV_AWS_18: all log into `logs`, which does not log into itself
  # checkov:skip=CKV_AWS_19: encryption.tf encrypts each; checkov does not follow it through for_each
  # checkov:skip=CKV2_AWS_61: lifecycle.tf has rules for each; checkov does not follow them through for_each
  for_each = local.names

  bucket              = each.value
  force_destroy       = var.force_destroy
  object_lock_enabled = contains(local.locked, each.key)
  tags                = merge(var.tags, { Name = each.value, Data = each.key })
}

resource "aws_s3_bucket_versioning" "this" {
  for_each = local.names

  bucket = aws_s3_bucket.this[each.key].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_ownership_controls" "this" {
  for_each = local.names

  bucket = aws_s3_bucket.this[each.key].id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  for_each = var.public_access_block ? local.names : {}

  bucket                  = aws_s3_bucket.this[each.key].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_object_lock_configuration" "this" {
  for_each = local.locked

  bucket = aws_s3_bucket.this[each.key].id

  rule {
    default_retention {
      mode = "GOVERNANCE"
      days = var.object_lock_days
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}

resource "aws_s3_bucket_logging" "this" {
  for_each = var.access_logs ? local.data : toset([])

  bucket        = aws_s3_bucket.this[each.key].id
  target_bucket = aws_s3_bucket.this["logs"].id
  target_prefix = "access/${each.key}/"

  depends_on = [aws_s3_bucket_policy.this]
}
