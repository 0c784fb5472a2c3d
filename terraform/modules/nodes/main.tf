# Managed node groups. With Karpenter only `system` is one, for Karpenter itself and what must not move; the others
# become node pools (karpenter.tf).

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  partition  = data.aws_partition.current.partition
  account_id = data.aws_caller_identity.current.account_id
  managed    = { for name, group in var.groups : name => group if var.autoscaler != "karpenter" || name == "system" }

  labels = { for name, group in var.groups : name => merge(
    {
      "tomoray.io/pool"     = name
      "tomoray.io/capacity" = group.capacity == "spot" ? "spot" : "on-demand"
    },
    group.gpu ? { "nvidia.com/gpu.present" = "true" } : {},
  ) }

  ami_types = { for name, group in var.groups : name => group.gpu ? "AL2023_x86_64_NVIDIA" : "AL2023_x86_64_STANDARD" }

  # The machine's own disks as one, for containers and their scratch space.
  node_config = yamlencode({
    apiVersion = "node.eks.aws/v1alpha1"
    kind       = "NodeConfig"
    spec       = { instance = { localStorage = { strategy = "RAID0" } } }
  })

  user_data = join("\n", [
    "MIME-Version: 1.0",
    "Content-Type: multipart/mixed; boundary=\"//\"",
    "",
    "--//",
    "Content-Type: application/node.eks.aws",
    "",
    local.node_config,
    "--//--",
  ])
}

resource "aws_iam_role" "node" {
  name = "${var.cluster_name}-node"
  tags = var.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

# Nodes themselves read no bucket: pods have roles of their own. Systems Manager stands in for SSH.
resource "aws_iam_role_policy_attachment" "node" {
  for_each = toset([
    "AmazonEC2ContainerRegistryPullOnly", "AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy", "AmazonSSMManagedInstanceCore",
  ])

  role       = aws_iam_role.node.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.key}"
}

resource "aws_launch_template" "this" {
  for_each = local.managed

  name                   = "${var.cluster_name}-${each.key}"
  update_default_version = true
  user_data              = each.value.local_disk ? base64encode(local.user_data) : null
  tags                   = var.tags

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_type           = "gp3"
      volume_size           = each.value.disk_gb
      encrypted             = true
      kms_key_id            = var.volumes_key_arn
      delete_on_termination = true
    }
  }

  # Pods do not reach the node's credentials: one hop ends at the node.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  monitoring {
    enabled = true
  }

  tag_specifications {
    resource_type = "instance"
    tags          = merge(var.tags, { Name = "${var.cluster_name}-${each.key}" })
  }

  tag_specifications {
    resource_type = "volume"
    tags          = merge(var.tags, { Name = "${var.cluster_name}-${each.key}" })
  }
}

resource "aws_eks_node_group" "this" {
  for_each = local.managed

  cluster_name    = var.cluster_name
  node_group_name = each.key
  version         = var.kubernetes_version
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = var.subnet_ids
  ami_type        = local.ami_types[each.key]
  capacity_type   = each.value.capacity == "spot" ? "SPOT" : "ON_DEMAND"
  instance_types  = each.value.instance_types
  labels          = local.labels[each.key]
  tags            = var.tags

  launch_template {
    id      = aws_launch_template.this[each.key].id
    version = aws_launch_template.this[each.key].latest_version
  }

  scaling_config {
    min_size     = each.value.min
    max_size     = each.value.max
    desired_size = each.value.min
  }

  update_config {
    max_unavailable_percentage = 33
  }

  node_repair_config {
    enabled = true
  }

  dynamic "taint" {
    for_each = each.value.gpu ? ["nvidia.com/gpu"] : []

    content {
      key    = taint.value
      value  = "true"
      effect = "NO_SCHEDULE"
    }
  }

  # How many nodes there are is the autoscaler's to say.
  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_iam_role_policy_attachment.node]
}
