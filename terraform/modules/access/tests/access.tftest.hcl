mock_provider "aws" {
  source = "../../tests/mocks"
}

variables {
  name            = "ct"
  cluster_name    = "ct"
  bucket_arns     = { raw = "arn:aws:s3:::ct-raw", archive = "arn:aws:s3:::ct-archive", models = "arn:aws:s3:::ct-models" }
  repository_arns = ["arn:aws:ecr:us-east-1:123456789012:repository/ct"]

  key_arns = {
    raw     = "arn:aws:kms:us-east-1:123456789012:key/raw"
    archive = "arn:aws:kms:us-east-1:123456789012:key/archive"
    models  = "arn:aws:kms:us-east-1:123456789012:key/models"
  }
}

run "no_action_has_a_wildcard" {
  command = plan

  assert {
    condition     = !anytrue([for policy in values(output.policies) : anytrue([for statement in jsondecode(policy).Statement : anytrue([for action in flatten([statement.Action]) : strcontains(action, "*")])])])
    error_message = "Every action is named."
  }

  assert {
    condition     = !anytrue([for policy in values(output.policies) : anytrue([for statement in jsondecode(policy).Statement : contains(flatten([statement.Resource]), "*")])])
    error_message = "Every resource is named."
  }
}

run "preprocessing_writes_to_the_archive_alone" {
  command = plan

  assert {
    condition     = [for statement in jsondecode(output.policies["preprocess"]).Statement : statement.Resource if statement.Sid == "Write"] == ["arn:aws:s3:::ct-archive/*"]
    error_message = "Raw DICOM stays as it came."
  }
}

run "training_writes_models_and_sees_no_raw_dicom" {
  command = plan

  assert {
    condition     = [for statement in jsondecode(output.policies["train"]).Statement : statement.Resource if statement.Sid == "Write"] == ["arn:aws:s3:::ct-models/*"]
    error_message = "Training writes models."
  }

  assert {
    condition     = !strcontains(output.policies["train"], "ct-raw") && !strcontains(output.policies["train"], "key/raw")
    error_message = "Training reads no raw DICOM, and has no key of it."
  }
}

run "serving_writes_nothing" {
  command = plan

  assert {
    condition     = toset(flatten([for statement in jsondecode(output.policies["serving"]).Statement : statement.Action])) == toset(["s3:GetBucketLocation", "s3:ListBucket", "s3:GetObject", "kms:Decrypt"])
    error_message = "Serving reads models."
  }
}

run "roles_are_for_one_service_account_of_one_cluster" {
  command = plan

  assert {
    condition = alltrue([for job, role in aws_iam_role.job : jsondecode(role.assume_role_policy).Statement[0].Condition.StringEquals == {
      "aws:SourceAccount"                         = "123456789012"
      "aws:RequestTag/eks-cluster-arn"            = "arn:aws:eks:us-east-1:123456789012:cluster/ct"
      "aws:RequestTag/kubernetes-namespace"       = "tomoray"
      "aws:RequestTag/kubernetes-service-account" = "tomoray-${job}"
    }])
    error_message = "Another service account, namespace or cluster must not take the role."
  }
}

run "neither_github_nor_break_glass_by_default" {
  command = plan

  assert {
    condition     = length(aws_iam_role.github) + length(aws_iam_openid_connect_provider.github) + length(aws_iam_role.break_glass) == 0
    error_message = "Both are switches."
  }
}

run "github_is_one_repository_at_one_ref" {
  command = apply

  variables {
    github = { repository = "org/ct" }
  }

  assert {
    condition     = jsondecode(aws_iam_role.github[0].assume_role_policy).Statement[0].Condition.StringEquals["token.actions.githubusercontent.com:sub"] == ["repo:org/ct:ref:refs/heads/main"]
    error_message = "A fork or a branch must not push images."
  }
}

run "break_glass_wants_mfa_and_lasts_an_hour" {
  command = plan

  variables {
    break_glass_principals = ["arn:aws:iam::123456789012:user/oncall"]
  }

  assert {
    condition     = jsondecode(aws_iam_role.break_glass[0].assume_role_policy).Statement[0].Condition.Bool["aws:MultiFactorAuthPresent"] == "true" && aws_iam_role.break_glass[0].max_session_duration == 3600
    error_message = "MFA, and an hour."
  }

  assert {
    condition     = !strcontains(aws_iam_role_policy.break_glass[0].policy, "Put") && !strcontains(aws_iam_role_policy.break_glass[0].policy, "Delete")
    error_message = "It reads."
  }
}

run "refuses_to_give_break_glass_to_an_account" {
  command = plan

  variables {
    break_glass_principals = ["arn:aws:iam::123456789012:root"]
  }

  expect_failures = [var.break_glass_principals]
}

run "refuses_any_branch_of_github" {
  command = plan

  variables {
    github = { repository = "org/ct", refs = ["refs/heads/*"] }
  }

  expect_failures = [var.github]
}
