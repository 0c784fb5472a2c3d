mock_provider "aws" {
  source = "../../tests/mocks"
}

variables {
  prefix    = "ct-123456789012"
  trail_arn = "arn:aws:cloudtrail:us-east-1:123456789012:trail/ct-data"
}

run "every_bucket_is_encrypted" {
  command = apply

  assert {
    condition = {
      for kind, each in aws_s3_bucket_server_side_encryption_configuration.this :
      kind => one(one(each.rule).apply_server_side_encryption_by_default).sse_algorithm
    } == { archive = "aws:kms", logs = "AES256", models = "aws:kms", raw = "aws:kms" }
    error_message = "KMS for data, S3's own encryption for logs."
  }

  assert {
    condition     = toset(keys(module.key)) == toset(["raw", "archive", "models"])
    error_message = "A key for each."
  }
}

run "every_bucket_has_versions_and_no_public_access" {
  command = plan

  assert {
    condition     = length(aws_s3_bucket.this) == 4 && alltrue([for kind in keys(aws_s3_bucket.this) : one(aws_s3_bucket_versioning.this[kind].versioning_configuration).status == "Enabled"])
    error_message = "Versions everywhere."
  }

  assert {
    condition = alltrue([for kind in keys(aws_s3_bucket.this) : alltrue([
      aws_s3_bucket_public_access_block.this[kind].block_public_acls, aws_s3_bucket_public_access_block.this[kind].block_public_policy,
      aws_s3_bucket_public_access_block.this[kind].ignore_public_acls, aws_s3_bucket_public_access_block.this[kind].restrict_public_buckets,
      one(aws_s3_bucket_ownership_controls.this[kind].rule).object_ownership == "BucketOwnerEnforced",
    ])])
    error_message = "Nothing public, no ACLs."
  }
}

run "plain_http_and_other_encryption_are_refused" {
  command = apply

  assert {
    condition = alltrue([
      for kind, policy in output.policies :
      contains([for statement in jsondecode(policy).Statement : statement.Sid if statement.Effect == "Deny"], "RefusePlainHttp")
    ])
    error_message = "Every bucket refuses plain HTTP."
  }

  assert {
    condition = alltrue([
      for kind in ["raw", "archive", "models"] :
      length(setintersection(["RefuseOtherEncryption", "RefuseOtherKeys", "RefuseKeysOfTheCaller"], jsondecode(output.policies[kind]).Statement[*].Sid)) == 3
    ])
    error_message = "Every bucket of data refuses another encryption, another key and keys of the caller."
  }
}

run "bucket_policies_allow_nobody" {
  command = apply

  assert {
    condition     = alltrue([for kind in ["raw", "archive", "models"] : alltrue([for statement in jsondecode(output.policies[kind]).Statement : statement.Effect == "Deny"])])
    error_message = "Access is granted by roles alone."
  }

  assert {
    condition     = toset([for statement in jsondecode(output.policies["logs"]).Statement : statement.Principal.Service if statement.Effect == "Allow"]) == toset(["logging.s3.amazonaws.com", "cloudtrail.amazonaws.com"])
    error_message = "Logs are written by the two services that write logs."
  }
}

run "uploads_that_never_end_are_removed" {
  command = plan

  assert {
    condition = alltrue([
      for each in aws_s3_bucket_lifecycle_configuration.this :
      anytrue([for rule in each.rule : try(one(rule.abort_incomplete_multipart_upload).days_after_initiation == 7, false) && rule.status == "Enabled"])
    ])
    error_message = "In every bucket, after a week."
  }
}

run "data_tiers_by_itself_and_logs_end" {
  command = plan

  assert {
    condition = {
      for kind, each in aws_s3_bucket_lifecycle_configuration.this :
      kind => one(flatten([for rule in each.rule : [for transition in rule.transition : transition.storage_class]]))
    } == { archive = "INTELLIGENT_TIERING", logs = "GLACIER_IR", models = "INTELLIGENT_TIERING", raw = "INTELLIGENT_TIERING" }
    error_message = "Cheaper classes for what is not read."
  }

  assert {
    condition     = toset([for kind, each in aws_s3_bucket_lifecycle_configuration.this : kind if anytrue([for rule in each.rule : length(rule.expiration) > 0])]) == toset(["logs"])
    error_message = "Logs end after years; data never ends by itself."
  }
}

run "requests_are_logged" {
  command = plan

  assert {
    condition     = toset(keys(aws_s3_bucket_logging.this)) == toset(["raw", "archive", "models"])
    error_message = "Each bucket of data logs into `logs`."
  }
}

run "lock_and_replica_are_off_by_default" {
  command = plan

  assert {
    condition     = length(aws_s3_bucket_object_lock_configuration.this) + length(aws_s3_bucket.replica) + length(aws_iam_role.replication) == 0
    error_message = "Both are switches."
  }
}

run "object_lock_holds_raw_and_logs" {
  command = plan

  variables {
    object_lock_days = 365
  }

  assert {
    condition     = { for kind, bucket in aws_s3_bucket.this : kind => bucket.object_lock_enabled } == { archive = false, logs = true, models = false, raw = true }
    error_message = "What came in and what was noted cannot be removed; what is made of it can."
  }
}

run "replica_is_in_another_region_and_encrypted" {
  command = apply

  variables {
    replica_region = "eu-central-1"
  }

  assert {
    condition     = { for kind, bucket in aws_s3_bucket.replica : kind => bucket.region } == { models = "eu-central-1", raw = "eu-central-1" }
    error_message = "Copies of what cannot be made anew."
  }

  assert {
    condition     = alltrue([for each in aws_s3_bucket_server_side_encryption_configuration.replica : one(one(each.rule).apply_server_side_encryption_by_default).sse_algorithm == "aws:kms"])
    error_message = "Copies are encrypted too."
  }
}

run "perimeter_leaves_one_way_in" {
  command = apply

  variables {
    only_from_endpoints = ["vpce-1"]
    exempt_role_arns    = ["arn:aws:iam::123456789012:role/ct-break-glass"]
  }

  assert {
    condition = alltrue([
      for kind in ["raw", "archive", "models"] : anytrue([
        for statement in jsondecode(output.policies[kind]).Statement :
        try(statement.Condition.StringNotEquals["aws:SourceVpce"] == ["vpce-1"] && contains(statement.Condition.ArnNotLike["aws:PrincipalArn"], "arn:aws:iam::123456789012:role/ct-break-glass"), false)
      ])
    ])
    error_message = "From the endpoint, or with broken glass."
  }
}

run "refuses_storage_in_clear" {
  command = plan

  variables {
    encryption = "none"
  }

  expect_failures = [var.encryption]
}

run "refuses_names_that_s3_would_refuse" {
  command = plan

  variables {
    prefix = "Hospital_A"
  }

  expect_failures = [var.prefix]
}
