locals {
  lifecycle = {
    raw     = { noncurrent_days = var.noncurrent_days.raw, tier = "INTELLIGENT_TIERING", after_days = 0, expires_days = null }
    archive = { noncurrent_days = var.noncurrent_days.archive, tier = "INTELLIGENT_TIERING", after_days = 30, expires_days = null }
    models  = { noncurrent_days = var.noncurrent_days.models, tier = "INTELLIGENT_TIERING", after_days = 30, expires_days = null }
    logs    = { noncurrent_days = var.log_days, tier = "GLACIER_IR", after_days = 90, expires_days = var.log_days }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  # checkov:skip=CKV_AWS_300: the rule unfinished-uploads does it; checkov does not read it beside dynamic rules
  for_each = local.lifecycle

  bucket = aws_s3_bucket.this[each.key].id

  rule {
    id     = "unfinished-uploads"
    status = "Enabled"
    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = var.abort_multipart_days
    }
  }

  rule {
    id     = "old-versions"
    status = "Enabled"
    filter {}

    noncurrent_version_expiration {
      noncurrent_days = each.value.noncurrent_days
    }
  }

  dynamic "rule" {
    for_each = var.tiering ? [each.value] : []

    content {
      id     = "cheaper-storage"
      status = "Enabled"
      filter {}

      transition {
        days          = rule.value.after_days
        storage_class = rule.value.tier
      }
    }
  }

  dynamic "rule" {
    for_each = each.value.expires_days == null ? [] : [each.value.expires_days]

    content {
      id     = "end"
      status = "Enabled"
      filter {}

      expiration {
        days = rule.value
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}
