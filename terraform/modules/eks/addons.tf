# EKS's own add-ons, in versions that fit the cluster. What needs AWS has a role of its own by pod identity.

locals {
  pod_identity_trust = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "pods.eks.amazonaws.com" }
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Condition = { StringEquals = {
        "aws:SourceAccount"              = local.account_id
        "aws:RequestTag/eks-cluster-arn" = local.cluster_arn
      } }
    }]
  })

  # Before the first node: without the network plugin no node becomes ready.
  early_addons = {
    vpc-cni                = { enableNetworkPolicy = "true" }
    kube-proxy             = {}
    eks-pod-identity-agent = {}
  }

  late_addons = {
    coredns        = { settings = {}, service_account = null }
    metrics-server = { settings = {}, service_account = null }
    aws-ebs-csi-driver = {
      settings        = { defaultStorageClass = { enabled = true } }
      service_account = "ebs-csi-controller-sa"
    }
    aws-mountpoint-s3-csi-driver = { settings = {}, service_account = "s3-csi-driver-sa" }
  }

  addon_roles = {
    aws-ebs-csi-driver           = aws_iam_role.ebs_csi.arn
    aws-mountpoint-s3-csi-driver = aws_iam_role.s3_csi.arn
  }
}

data "aws_eks_addon_version" "this" {
  for_each = toset(concat(keys(local.early_addons), keys(local.late_addons)))

  addon_name         = each.key
  kubernetes_version = var.kubernetes_version
}

resource "aws_eks_addon" "early" {
  for_each = local.early_addons

  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.key
  addon_version               = data.aws_eks_addon_version.this[each.key].version
  configuration_values        = length(each.value) > 0 ? jsonencode(each.value) : null
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "OVERWRITE"
  tags                        = var.tags
}

resource "aws_eks_addon" "late" {
  for_each = local.late_addons

  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.key
  addon_version               = data.aws_eks_addon_version.this[each.key].version
  configuration_values        = length(each.value.settings) > 0 ? jsonencode(each.value.settings) : null
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "OVERWRITE"
  tags                        = var.tags

  dynamic "pod_identity_association" {
    for_each = each.value.service_account == null ? [] : [each.value.service_account]

    content {
      service_account = pod_identity_association.value
      role_arn        = local.addon_roles[each.key]
    }
  }

  depends_on = [aws_eks_addon.early]

  # These run on nodes, which are made at the same time.
  timeouts {
    create = "30m"
  }
}

resource "aws_iam_role" "ebs_csi" {
  name               = "${var.name}-ebs-csi"
  assume_role_policy = local.pod_identity_trust
  tags               = var.tags
}

resource "aws_iam_role_policy_attachment" "ebs_csi" {
  role       = aws_iam_role.ebs_csi.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/service-role/AmazonEBSCSIDriverPolicy"
}

resource "aws_iam_role" "s3_csi" {
  name               = "${var.name}-s3-csi"
  assume_role_policy = local.pod_identity_trust
  tags               = var.tags
}

resource "aws_iam_role_policy" "s3_csi" {
  name = "read-archive"
  role = aws_iam_role.s3_csi.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      { Effect = "Allow", Action = "s3:ListBucket", Resource = var.archive_bucket_arn },
      { Effect = "Allow", Action = "s3:GetObject", Resource = "${var.archive_bucket_arn}/*" },
      { Effect = "Allow", Action = "kms:Decrypt", Resource = var.archive_key_arn },
    ]
  })
}
