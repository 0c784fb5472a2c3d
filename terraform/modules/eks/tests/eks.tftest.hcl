mock_provider "aws" {
  source = "../../tests/mocks"
}

variables {
  name                 = "ct"
  vpc_id               = "vpc-1"
  subnet_ids           = ["subnet-1", "subnet-2"]
  admin_role_arns      = ["arn:aws:iam::123456789012:role/admin"]
  archive_bucket_arn   = "arn:aws:s3:::ct-archive"
  archive_key_arn      = "arn:aws:kms:us-east-1:123456789012:key/archive"
  autoscaling_role_arn = "arn:aws:iam::123456789012:role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"
  log_key_arn          = "arn:aws:kms:us-east-1:123456789012:key/logs"
}

run "no_public_endpoint_by_default" {
  command = plan

  assert {
    condition     = !aws_eks_cluster.this.vpc_config[0].endpoint_public_access && aws_eks_cluster.this.vpc_config[0].endpoint_private_access
    error_message = "The API must be private unless somebody opens it."
  }
}

run "public_endpoint_answers_the_named_addresses_alone" {
  command = plan

  variables {
    public_access_cidrs = ["203.0.113.7/32"]
  }

  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_public_access && aws_eks_cluster.this.vpc_config[0].public_access_cidrs == toset(["203.0.113.7/32"])
    error_message = "Open to what was named."
  }
}

run "secrets_are_encrypted_and_everything_is_logged" {
  command = apply

  assert {
    condition     = aws_eks_cluster.this.encryption_config[0].resources == toset(["secrets"]) && aws_eks_cluster.this.encryption_config[0].provider[0].key_arn == module.secrets_key.arn
    error_message = "Secrets under a key of their own."
  }

  assert {
    condition     = contains(aws_eks_cluster.this.enabled_cluster_log_types, "audit") && length(aws_eks_cluster.this.enabled_cluster_log_types) == 5
    error_message = "All five logs, the audit log above all."
  }
}

run "access_entries_and_no_hidden_administrator" {
  command = plan

  assert {
    condition     = aws_eks_cluster.this.access_config[0].authentication_mode == "API" && !aws_eks_cluster.this.access_config[0].bootstrap_cluster_creator_admin_permissions
    error_message = "Access entries alone."
  }

  assert {
    condition     = keys(aws_eks_access_entry.admin) == ["arn:aws:iam::123456789012:role/admin"]
    error_message = "Those administer who were named."
  }
}

run "disks_key_lets_auto_scaling_in" {
  command = apply

  assert {
    condition     = contains(flatten([for statement in jsondecode(module.volumes_key.policy).Statement : values(statement.Principal)]), var.autoscaling_role_arn)
    error_message = "Without the grant no node with an encrypted disk starts."
  }
}

run "mounting_buckets_is_reading" {
  command = plan

  assert {
    condition = alltrue([
      for action in flatten([for statement in jsondecode(aws_iam_role_policy.s3_csi.policy).Statement : statement.Action]) :
      contains(["s3:ListBucket", "s3:GetObject", "kms:Decrypt"], action)
    ])
    error_message = "The S3 driver must not write."
  }
}

run "addons_that_need_aws_have_their_own_role" {
  command = plan

  assert {
    condition = toset([for name, addon in aws_eks_addon.late : name if length(addon.pod_identity_association) > 0]) == toset([
      "aws-ebs-csi-driver", "aws-mountpoint-s3-csi-driver",
    ])
    error_message = "Disks and buckets by pod identity, not by the node's role."
  }
}

run "refuses_the_whole_internet" {
  command = plan

  variables {
    public_access_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.public_access_cidrs]
}

run "refuses_public_addresses_as_private_clients" {
  command = plan

  variables {
    api_client_cidrs = ["8.8.8.0/24"]
  }

  expect_failures = [var.api_client_cidrs]
}

run "refuses_a_cluster_that_nobody_can_enter" {
  command = plan

  variables {
    admin_role_arns = []
  }

  expect_failures = [var.admin_role_arns]
}

run "refuses_an_old_kubernetes" {
  command = plan

  variables {
    kubernetes_version = "1.27"
  }

  expect_failures = [var.kubernetes_version]
}
