module "key" {
  source   = "../key"
  for_each = var.encryption == "kms" ? local.data : toset([])

  name        = "${var.prefix}-${each.key}"
  description = "Objects of the bucket ${local.names[each.key]}"
  tags        = var.tags
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  for_each = local.names

  bucket = aws_s3_bucket.this[each.key].id

  rule {
    # One call of KMS for many objects instead of one for each: shards are many.
    bucket_key_enabled = contains(keys(module.key), each.key)

    apply_server_side_encryption_by_default {
      sse_algorithm     = contains(keys(module.key), each.key) ? "aws:kms" : "AES256"
      kms_master_key_id = try(local.key_arns[each.key], null)
    }
  }
}
