# What Karpenter needs in AWS. Its node pools are the groups but `system`; ../../charts/node-pools writes them.

locals {
  karpenter  = var.autoscaler == "karpenter"
  region     = data.aws_region.current.region
  ec2        = "arn:${local.partition}:ec2:${local.region}"
  queue_name = "${var.cluster_name}-interruptions"
  owned      = { StringEquals = { "aws:ResourceTag/kubernetes.io/cluster/${var.cluster_name}" = "owned" } }
  owning     = { StringEquals = { "aws:RequestTag/kubernetes.io/cluster/${var.cluster_name}" = "owned" } }

  events = {
    interruption = { source = "aws.ec2", kind = "EC2 Spot Instance Interruption Warning" }
    rebalance    = { source = "aws.ec2", kind = "EC2 Instance Rebalance Recommendation" }
    state        = { source = "aws.ec2", kind = "EC2 Instance State-change Notification" }
    health       = { source = "aws.health", kind = "AWS Health Event" }
  }
}

resource "aws_eks_access_entry" "node" {
  count = local.karpenter ? 1 : 0

  cluster_name  = var.cluster_name
  principal_arn = aws_iam_role.node.arn
  type          = "EC2_LINUX"
  tags          = var.tags
}

resource "aws_iam_instance_profile" "node" {
  count = local.karpenter ? 1 : 0

  name = aws_iam_role.node.name
  role = aws_iam_role.node.name
  tags = var.tags
}

# Two minutes before a spot machine goes, a message arrives here; Karpenter then drains the node.
resource "aws_sqs_queue" "interruptions" {
  count = local.karpenter ? 1 : 0

  name                      = local.queue_name
  message_retention_seconds = 300
  sqs_managed_sse_enabled   = true
  tags                      = var.tags
}

resource "aws_sqs_queue_policy" "interruptions" {
  count = local.karpenter ? 1 : 0

  queue_url = aws_sqs_queue.interruptions[0].url

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "EventsArrive"
        Effect    = "Allow"
        Principal = { Service = "events.amazonaws.com" }
        Action    = "sqs:SendMessage"
        Resource  = aws_sqs_queue.interruptions[0].arn
        Condition = { StringEquals = { "aws:SourceAccount" = local.account_id } }
      },
      {
        Sid       = "RefusePlainHttp"
        Effect    = "Deny"
        Principal = "*"
        Action    = "sqs:SendMessage"
        Resource  = aws_sqs_queue.interruptions[0].arn
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
    ]
  })
}

resource "aws_cloudwatch_event_rule" "interruptions" {
  for_each = local.karpenter ? local.events : {}

  name          = "${var.cluster_name}-${each.key}"
  description   = each.value.kind
  event_pattern = jsonencode({ source = [each.value.source], "detail-type" = [each.value.kind] })
  tags          = var.tags
}

resource "aws_cloudwatch_event_target" "interruptions" {
  for_each = local.karpenter ? local.events : {}

  rule = aws_cloudwatch_event_rule.interruptions[each.key].name
  arn  = aws_sqs_queue.interruptions[0].arn
}

resource "aws_iam_role" "karpenter" {
  count = local.karpenter ? 1 : 0

  name = "${var.cluster_name}-karpenter"
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

resource "aws_iam_role_policy" "karpenter" {
  # checkov:skip=CKV_AWS_355: describing calls and prices know no resource
  # checkov:skip=CKV_AWS_290: it starts machines, but only such that carry this cluster's tag
  count = local.karpenter ? 1 : 0

  name = "start-nodes"
  role = aws_iam_role.karpenter[0].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid    = "See"
        Effect = "Allow"
        Action = [
          "ec2:DescribeCapacityReservations", "ec2:DescribeImages", "ec2:DescribeInstanceStatus", "ec2:DescribeInstanceTypeOfferings",
          "ec2:DescribeInstanceTypes", "ec2:DescribeInstances", "ec2:DescribeLaunchTemplates", "ec2:DescribeSecurityGroups",
          "ec2:DescribeSpotPriceHistory", "ec2:DescribeSubnets", "pricing:GetProducts",
        ]
        Resource = "*"
      },
      {
        Sid      = "SeeImages"
        Effect   = "Allow"
        Action   = "ssm:GetParameter"
        Resource = "arn:${local.partition}:ssm:${local.region}::parameter/aws/service/*"
      },
      {
        Sid      = "StartFromWhatIsThere"
        Effect   = "Allow"
        Action   = ["ec2:CreateFleet", "ec2:RunInstances"]
        Resource = ["${local.ec2}::image/*", "${local.ec2}::snapshot/*", "${local.ec2}:*:security-group/*", "${local.ec2}:*:subnet/*", "${local.ec2}:*:capacity-reservation/*"]
      },
      {
        Sid       = "StartFromOwnTemplates"
        Effect    = "Allow"
        Action    = ["ec2:CreateFleet", "ec2:RunInstances"]
        Resource  = "${local.ec2}:*:launch-template/*"
        Condition = local.owned
      },
      {
        Sid       = "StartWhatItOwns"
        Effect    = "Allow"
        Action    = ["ec2:CreateFleet", "ec2:CreateLaunchTemplate", "ec2:RunInstances"]
        Resource  = [for kind in ["fleet", "instance", "launch-template", "network-interface", "spot-instances-request", "volume"] : "${local.ec2}:*:${kind}/*"]
        Condition = local.owning
      },
      {
        Sid      = "TagAtTheStart"
        Effect   = "Allow"
        Action   = "ec2:CreateTags"
        Resource = [for kind in ["fleet", "instance", "launch-template", "network-interface", "spot-instances-request", "volume"] : "${local.ec2}:*:${kind}/*"]
        Condition = { StringEquals = {
          "aws:RequestTag/kubernetes.io/cluster/${var.cluster_name}" = "owned"
          "ec2:CreateAction"                                         = ["CreateFleet", "CreateLaunchTemplate", "RunInstances"]
        } }
      },
      {
        Sid       = "TagWhatItOwns"
        Effect    = "Allow"
        Action    = "ec2:CreateTags"
        Resource  = "${local.ec2}:*:instance/*"
        Condition = local.owned
      },
      {
        Sid       = "EndWhatItOwns"
        Effect    = "Allow"
        Action    = ["ec2:DeleteLaunchTemplate", "ec2:TerminateInstances"]
        Resource  = ["${local.ec2}:*:instance/*", "${local.ec2}:*:launch-template/*"]
        Condition = local.owned
      },
      {
        Sid       = "GiveNodesTheirRole"
        Effect    = "Allow"
        Action    = "iam:PassRole"
        Resource  = aws_iam_role.node.arn
        Condition = { StringEquals = { "iam:PassedToService" = "ec2.amazonaws.com" } }
      },
      {
        Sid      = "SeeInstanceProfiles"
        Effect   = "Allow"
        Action   = ["iam:GetInstanceProfile", "iam:ListInstanceProfiles"]
        Resource = "arn:${local.partition}:iam::${local.account_id}:instance-profile/*"
      },
      {
        Sid      = "HearOfInterruptions"
        Effect   = "Allow"
        Action   = ["sqs:DeleteMessage", "sqs:GetQueueUrl", "sqs:ReceiveMessage"]
        Resource = aws_sqs_queue.interruptions[0].arn
      },
      {
        Sid      = "FindTheCluster"
        Effect   = "Allow"
        Action   = "eks:DescribeCluster"
        Resource = "arn:${local.partition}:eks:${local.region}:${local.account_id}:cluster/${var.cluster_name}"
      },
    ]
  })
}

resource "aws_eks_pod_identity_association" "karpenter" {
  count = local.karpenter ? 1 : 0

  cluster_name    = var.cluster_name
  namespace       = "kube-system"
  service_account = "karpenter"
  role_arn        = aws_iam_role.karpenter[0].arn
  tags            = var.tags
}
