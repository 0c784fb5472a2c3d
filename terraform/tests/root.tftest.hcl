mock_provider "aws" {
  source = "./tests/mocks"
}

mock_provider "helm" {}

variables {
  admin_role_arns = ["arn:aws:iam::123456789012:role/admin"]
}

run "as_it_comes" {
  command = plan

  assert {
    condition     = { for name, group in output.groups : name => group.min } == { cpu-spot = 0, gpu-serving = 0, gpu-training = 0, gpu-training-spot = 0, system = 2 }
    error_message = "All but `system` from zero."
  }

  assert {
    condition     = toset([for name, group in output.groups : name if group.capacity == "spot"]) == toset(["cpu-spot", "gpu-training-spot"])
    error_message = "Spot for preprocessing and for training."
  }

  assert {
    condition     = length(helm_release.cluster_autoscaler) + length(helm_release.nvidia_device_plugin) + length(helm_release.kuberay_operator) + length(helm_release.kueue) + length(helm_release.tomoray) == 5 && length(helm_release.karpenter) == 0
    error_message = "Autoscaler, device plugin, operator, queues and TomoRay."
  }

  assert {
    condition = anytrue([
      for selector in aws_cloudtrail.data.advanced_event_selector : anytrue([
        for field in selector.field_selector :
        toset(field.starts_with == null ? [] : field.starts_with) == toset([for kind in ["raw", "archive", "models"] : "${module.storage.bucket_arns[kind]}/"])
      ])
    ])
    error_message = "Data events of raw, archive and models."
  }

  assert {
    condition     = aws_cloudtrail.data.enable_log_file_validation && aws_cloudtrail.data.is_multi_region_trail
    error_message = "The trail is signed, and no region is left out."
  }

  assert {
    condition     = aws_ecr_repository.tomoray.image_tag_mutability == "IMMUTABLE" && aws_ecr_repository.tomoray.image_scanning_configuration[0].scan_on_push
    error_message = "A tag means the same image for ever."
  }

  assert {
    condition     = length(aws_efs_file_system.cache) + length(aws_fsx_lustre_file_system.cache) + length(aws_security_group.cache) == 0
    error_message = "The cache is a switch."
  }
}

run "karpenter_by_a_switch" {
  command = plan

  variables {
    autoscaler = "karpenter"
  }

  assert {
    condition     = length(helm_release.karpenter) + length(helm_release.node_pools) == 2 && length(helm_release.cluster_autoscaler) == 0
    error_message = "One autoscaler, not two."
  }

  assert {
    condition     = keys(module.nodes.node_pools) == ["cpu-spot", "gpu-serving", "gpu-training", "gpu-training-spot"]
    error_message = "A pool for each group but `system`."
  }
}

run "no_charts_where_the_api_is_not_reached" {
  command = plan

  variables {
    addons = false
  }

  assert {
    condition     = length(helm_release.tomoray) + length(helm_release.kuberay_operator) == 0
    error_message = "Nothing that needs the cluster's API."
  }
}

run "charts_come_from_one_registry" {
  command = plan

  variables {
    chart_registry = "oci://123456789012.dkr.ecr.us-east-1.amazonaws.com/charts"
    chart_versions = { kueue = "0.15.0" }
  }

  assert {
    condition     = helm_release.kueue[0].repository == var.chart_registry && helm_release.kuberay_operator[0].repository == var.chart_registry && helm_release.kueue[0].version == "0.15.0"
    error_message = "No chart from the internet."
  }
}

run "without_nat_nodes_find_aws_in_the_network" {
  command = plan

  variables {
    nat = "none"
  }

  assert {
    condition     = length(setsubtract(["ec2", "ecr.api", "ecr.dkr", "eks", "eks-auth", "sts"], local.needed_endpoints)) == 0
    error_message = "What a node asks for before it is ready."
  }
}

run "a_group_can_be_taken_away_and_replaced" {
  command = plan

  variables {
    groups = {
      gpu-serving = null
      cpu-spot    = { capacity = "spot", instance_types = ["c7i.4xlarge", "c6i.4xlarge", "c5.4xlarge"], max = 200 }
    }
  }

  assert {
    condition     = !contains(keys(output.groups), "gpu-serving") && output.groups["cpu-spot"].max == 200
    error_message = "null takes a group away."
  }
}

run "alarms_tell_of_what_should_not_happen" {
  command = plan

  variables {
    alert_emails = ["oncall@example.org"]
  }

  assert {
    condition     = keys(aws_cloudwatch_metric_alarm.trail) == ["break-glass", "denied-reads", "keys-disabled", "trail-changed"] && length(aws_sns_topic_subscription.mail) == 1
    error_message = "Four alarms, and somebody who hears of them."
  }

  assert {
    condition     = aws_budgets_budget.monthly[0].limit_amount == "1000"
    error_message = "A budget by default."
  }
}

run "efs_cache" {
  command = plan

  variables {
    cache = "efs"
  }

  assert {
    condition     = aws_efs_file_system.cache[0].encrypted && length(aws_efs_mount_target.cache) == 3 && keys(aws_vpc_security_group_ingress_rule.cache) == ["nfs"]
    error_message = "Encrypted, in every zone, NFS alone."
  }
}

run "fsx_cache_shows_the_archive" {
  command = plan

  variables {
    cache    = "fsx"
    cache_gb = 2400
  }

  assert {
    condition     = aws_fsx_data_repository_association.archive[0].data_repository_path == "s3://tomoray-123456789012-archive" && length(aws_fsx_data_repository_association.archive[0].s3[0].auto_export_policy) == 0
    error_message = "The archive to be read, and nothing written back."
  }
}

run "refuses_a_size_that_fsx_lacks" {
  command = plan

  variables {
    cache    = "fsx"
    cache_gb = 1000
  }

  expect_failures = [var.cache_gb]
}

run "refuses_a_name_with_capitals" {
  command = plan

  variables {
    name = "TomoRay"
  }

  expect_failures = [var.name]
}

run "refuses_an_image_without_a_tag" {
  command = plan

  variables {
    image = "registry.example/tomoray"
  }

  expect_failures = [var.image]
}
