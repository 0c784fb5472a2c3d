# Groups at zero have no node to look at. The autoscaler then believes these tags of the group.

locals {
  scaled = var.autoscaler == "cluster-autoscaler" ? local.managed : {}

  template_tags = merge([for name, group in local.scaled : merge(
    { for label, value in local.labels[name] : "${name} label/${label}" => { group = name, key = "label/${label}", value = value } },
    group.gpu ? {
      "${name} resources/nvidia.com/gpu" = { group = name, key = "resources/nvidia.com/gpu", value = tostring(group.gpus_each) }
      "${name} taint/nvidia.com/gpu"     = { group = name, key = "taint/nvidia.com/gpu", value = "true:NoSchedule" }
    } : {},
  )]...)

  pod_identity_condition = {
    "aws:SourceAccount"              = local.account_id
    "aws:RequestTag/eks-cluster-arn" = "arn:${local.partition}:eks:${data.aws_region.current.region}:${local.account_id}:cluster/${var.cluster_name}"
  }
}

resource "aws_autoscaling_group_tag" "template" {
  for_each = local.template_tags

  autoscaling_group_name = aws_eks_node_group.this[each.value.group].resources[0].autoscaling_groups[0].name

  tag {
    key                 = "k8s.io/cluster-autoscaler/node-template/${each.value.key}"
    value               = each.value.value
    propagate_at_launch = false
  }
}

resource "aws_iam_role" "cluster_autoscaler" {
  count = var.autoscaler == "cluster-autoscaler" ? 1 : 0

  name = "${var.cluster_name}-cluster-autoscaler"
  tags = var.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Condition = { StringEquals = local.pod_identity_condition }
    }]
  })
}

resource "aws_iam_role_policy" "cluster_autoscaler" {
  # checkov:skip=CKV_AWS_355: these calls describe; AWS knows no resource for them
  count = var.autoscaler == "cluster-autoscaler" ? 1 : 0

  name = "scale-groups"
  role = aws_iam_role.cluster_autoscaler[0].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid    = "See"
        Effect = "Allow"
        Action = [
          "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeAutoScalingInstances",
          "autoscaling:DescribeLaunchConfigurations", "autoscaling:DescribeScalingActivities", "autoscaling:DescribeTags",
          "ec2:DescribeImages", "ec2:DescribeInstanceTypes", "ec2:DescribeLaunchTemplateVersions",
          "ec2:GetInstanceTypesFromInstanceRequirements",
        ]
        Resource = "*"
      },
      {
        Sid      = "SeeGroups"
        Effect   = "Allow"
        Action   = "eks:DescribeNodegroup"
        Resource = "arn:${local.partition}:eks:${data.aws_region.current.region}:${local.account_id}:nodegroup/${var.cluster_name}/*"
      },
      {
        Sid       = "Scale"
        Effect    = "Allow"
        Action    = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
        Resource  = "arn:${local.partition}:autoscaling:${data.aws_region.current.region}:${local.account_id}:autoScalingGroup:*"
        Condition = { StringEquals = { "aws:ResourceTag/eks:cluster-name" = var.cluster_name } }
      },
    ]
  })
}

resource "aws_eks_pod_identity_association" "cluster_autoscaler" {
  count = var.autoscaler == "cluster-autoscaler" ? 1 : 0

  cluster_name    = var.cluster_name
  namespace       = "kube-system"
  service_account = "cluster-autoscaler"
  role_arn        = aws_iam_role.cluster_autoscaler[0].arn
  tags            = var.tags
}
