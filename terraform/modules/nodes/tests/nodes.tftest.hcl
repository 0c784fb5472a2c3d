mock_provider "aws" {
  source = "../../tests/mocks"
}

variables {
  cluster_name       = "ct"
  kubernetes_version = "1.34"
  subnet_ids         = ["subnet-1", "subnet-2"]
  volumes_key_arn    = "arn:aws:kms:us-east-1:123456789012:key/volumes"

  groups = {
    system   = { capacity = "on_demand", instance_types = ["m7i.xlarge"], min = 2, max = 6 }
    cpu-spot = { capacity = "spot", instance_types = ["m7i.4xlarge", "m6i.4xlarge", "m5.4xlarge"], max = 50 }
    gpu      = { capacity = "spot", instance_types = ["g6.4xlarge", "g5.4xlarge", "g6e.4xlarge"], max = 8, gpu = true, local_disk = true }
  }
}

run "all_but_system_start_at_zero" {
  command = plan

  assert {
    condition     = { for name, group in aws_eks_node_group.this : name => group.scaling_config[0].min_size } == { cpu-spot = 0, gpu = 0, system = 2 }
    error_message = "Only `system` may have nodes while nobody works."
  }

  assert {
    condition     = alltrue([for group in aws_eks_node_group.this : group.scaling_config[0].desired_size == group.scaling_config[0].min_size])
    error_message = "A new group starts with its smallest size."
  }
}

run "spot_has_several_machine_types" {
  command = plan

  assert {
    condition     = alltrue([for group in aws_eks_node_group.this : length(group.instance_types) >= 3 if group.capacity_type == "SPOT"])
    error_message = "One type that runs out must not stop a spot group."
  }
}

run "gpu_nodes_are_kept_for_gpus" {
  command = plan

  assert {
    condition     = one(aws_eks_node_group.this["gpu"].taint).key == "nvidia.com/gpu" && one(aws_eks_node_group.this["gpu"].taint).effect == "NO_SCHEDULE"
    error_message = "Pods without GPUs stay away."
  }

  assert {
    condition     = aws_eks_node_group.this["gpu"].ami_type == "AL2023_x86_64_NVIDIA" && length(aws_eks_node_group.this["cpu-spot"].taint) == 0
    error_message = "The driver is on GPU nodes, the taint nowhere else."
  }
}

run "autoscaler_knows_groups_that_have_no_node" {
  command = apply

  assert {
    condition = {
      for key, each in aws_autoscaling_group_tag.template : key => one(each.tag).value if startswith(key, "gpu ")
      } == {
      "gpu label/nvidia.com/gpu.present" = "true"
      "gpu label/tomoray.io/capacity"    = "spot"
      "gpu label/tomoray.io/pool"        = "gpu"
      "gpu resources/nvidia.com/gpu"     = "1"
      "gpu taint/nvidia.com/gpu"         = "true:NoSchedule"
    }
    error_message = "Labels, GPUs and taint of a node that is not there yet."
  }
}

run "autoscaler_scales_this_cluster_alone" {
  command = plan

  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.cluster_autoscaler[0].policy).Statement :
      try(statement.Condition.StringEquals["aws:ResourceTag/eks:cluster-name"], "") == "ct"
      if contains(flatten([statement.Action]), "autoscaling:SetDesiredCapacity")
    ])
    error_message = "Other groups of the account are not its business."
  }
}

run "disks_are_encrypted_and_metadata_asks_for_tokens" {
  command = plan

  assert {
    condition     = alltrue([for template in aws_launch_template.this : template.block_device_mappings[0].ebs[0].encrypted == "true" && template.block_device_mappings[0].ebs[0].kms_key_id == var.volumes_key_arn])
    error_message = "Every disk under the cluster's key."
  }

  assert {
    condition     = alltrue([for template in aws_launch_template.this : template.metadata_options[0].http_tokens == "required" && template.metadata_options[0].http_put_response_hop_limit == 1])
    error_message = "A pod must not reach the node's credentials."
  }
}

run "local_disks_become_scratch_space" {
  command = plan

  assert {
    condition     = strcontains(base64decode(aws_launch_template.this["gpu"].user_data), "\"strategy\": \"RAID0\"") && aws_launch_template.this["cpu-spot"].user_data == null
    error_message = "Where local_disk is set, and only there."
  }
}

run "karpenter_takes_all_groups_but_system" {
  command = apply

  variables {
    autoscaler = "karpenter"
  }

  assert {
    condition     = keys(aws_eks_node_group.this) == ["system"] && keys(output.node_pools) == ["cpu-spot", "gpu"] && length(aws_autoscaling_group_tag.template) == 0
    error_message = "One managed group, and a pool for each other."
  }

  assert {
    condition     = length(aws_cloudwatch_event_rule.interruptions) == 4 && aws_eks_access_entry.node[0].type == "EC2_LINUX"
    error_message = "Interruptions are heard of, and its nodes may join."
  }
}

run "karpenter_ends_what_it_owns_alone" {
  command = apply

  variables {
    autoscaler = "karpenter"
  }

  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.karpenter[0].policy).Statement :
      try(statement.Condition.StringEquals["aws:ResourceTag/kubernetes.io/cluster/ct"], "") == "owned"
      if contains(flatten([statement.Action]), "ec2:TerminateInstances")
    ])
    error_message = "It must not end machines of others."
  }
}

run "refuses_spot_of_one_type" {
  command = plan

  variables {
    groups = {
      system   = { capacity = "on_demand", instance_types = ["m7i.xlarge"], min = 2, max = 6 }
      cpu-spot = { capacity = "spot", instance_types = ["m7i.4xlarge"], max = 50 }
    }
  }

  expect_failures = [var.groups]
}

run "refuses_gpus_that_idle" {
  command = plan

  variables {
    groups = {
      system = { capacity = "on_demand", instance_types = ["m7i.xlarge"], min = 2, max = 6 }
      gpu    = { capacity = "on_demand", instance_types = ["g6.xlarge"], min = 1, max = 2, gpu = true }
    }
  }

  expect_failures = [var.groups]
}

run "refuses_a_cluster_without_system" {
  command = plan

  variables {
    groups = { cpu = { capacity = "on_demand", instance_types = ["m7i.xlarge"], max = 6 } }
  }

  expect_failures = [var.groups]
}
