module "storage" {
  source = "./modules/storage"

  prefix                    = "${var.name}-${local.account_id}"
  tls_only                  = var.tls_only
  require_encryption_header = var.require_encryption_header
  only_from_endpoints       = var.only_from_network ? [module.network.s3_endpoint_id] : []
  exempt_role_arns          = ["arn:${local.partition}:iam::${local.account_id}:role/${var.name}-break-glass"]
  object_lock_days          = var.object_lock_days
  replica_region            = var.replica_region
  log_days                  = var.log_days
  trail_arn                 = local.trail_arn
  force_destroy             = !var.deletion_protection
  tags                      = local.tags
}

# ---------------------------------------------------------------- images

resource "aws_ecr_repository" "tomoray" {
  name                 = var.name
  image_tag_mutability = "IMMUTABLE"
  force_delete         = !var.deletion_protection
  tags                 = local.tags

  image_scanning_configuration {
    scan_on_push = true
  }

  encryption_configuration {
    encryption_type = "KMS"
    kms_key         = module.image_key.arn
  }
}

resource "aws_ecr_lifecycle_policy" "tomoray" {
  repository = aws_ecr_repository.tomoray.name

  policy = jsonencode({ rules = [
    {
      rulePriority = 1
      description  = "Images that no tag names go after a week"
      selection    = { tagStatus = "untagged", countType = "sinceImagePushed", countUnit = "days", countNumber = 7 }
      action       = { type = "expire" }
    },
    {
      rulePriority = 2
      description  = "The newest fifty stay"
      selection    = { tagStatus = "any", countType = "imageCountMoreThan", countNumber = 50 }
      action       = { type = "expire" }
    },
  ] })
}

module "image_key" {
  source = "./modules/key"

  name        = "${var.name}-images"
  description = "Images in ECR"
  tags        = local.tags
}

# ---------------------------------------------------------------- a cache that nodes share

module "cache_key" {
  source = "./modules/key"
  count  = var.cache == "none" ? 0 : 1

  name        = "${var.name}-cache"
  description = "The shared cache of scans"
  tags        = local.tags
}

resource "aws_security_group" "cache" {
  count = var.cache == "none" ? 0 : 1

  name        = "${var.name}-cache"
  description = "Nodes to the shared cache"
  vpc_id      = module.network.vpc_id
  tags        = merge(local.tags, { Name = "${var.name}-cache" })
}

# NFS for EFS; Lustre's two ports for FSx, which its servers use among themselves too.
resource "aws_vpc_security_group_ingress_rule" "cache" {
  for_each = { none = {}, efs = { "nfs" = [2049, 2049] }, fsx = { "lustre" = [988, 988], "lustre-more" = [1018, 1023] } }[var.cache]

  security_group_id = aws_security_group.cache[0].id
  description       = "${each.key} from the VPC"
  cidr_ipv4         = module.network.cidr
  from_port         = each.value[0]
  to_port           = each.value[1]
  ip_protocol       = "tcp"
}

resource "aws_vpc_security_group_egress_rule" "cache" {
  count = var.cache == "fsx" ? 1 : 0

  security_group_id = aws_security_group.cache[0].id
  description       = "Lustre servers to one another and back to nodes"
  cidr_ipv4         = module.network.cidr
  ip_protocol       = "-1"
}

resource "aws_efs_file_system" "cache" {
  count = var.cache == "efs" ? 1 : 0

  encrypted       = true
  kms_key_id      = module.cache_key[0].arn
  throughput_mode = "elastic"
  tags            = merge(local.tags, { Name = "${var.name}-cache" })

  lifecycle_policy {
    transition_to_ia = "AFTER_7_DAYS"
  }
}

resource "aws_efs_mount_target" "cache" {
  for_each = var.cache == "efs" ? module.network.private_subnet_ids : {}

  file_system_id  = aws_efs_file_system.cache[0].id
  subnet_id       = each.value
  security_groups = [aws_security_group.cache[0].id]
}

resource "aws_fsx_lustre_file_system" "cache" {
  count = var.cache == "fsx" ? 1 : 0

  deployment_type             = "PERSISTENT_2"
  per_unit_storage_throughput = 250
  storage_type                = "SSD"
  storage_capacity            = var.cache_gb
  data_compression_type       = "NONE" # the archive is compressed already
  kms_key_id                  = module.cache_key[0].arn
  subnet_ids                  = [values(module.network.private_subnet_ids)[0]]
  security_group_ids          = [aws_security_group.cache[0].id]
  tags                        = merge(local.tags, { Name = "${var.name}-cache" })
}

# The archive appears as files, read when they are first opened. Nothing is written back.
resource "aws_fsx_data_repository_association" "archive" {
  count = var.cache == "fsx" ? 1 : 0

  file_system_id                   = aws_fsx_lustre_file_system.cache[0].id
  data_repository_path             = "s3://${module.storage.buckets["archive"]}"
  file_system_path                 = "/archive"
  batch_import_meta_data_on_create = true
  tags                             = local.tags

  s3 {
    auto_import_policy {
      events = ["NEW", "CHANGED", "DELETED"]
    }
  }
}
