# Who read which patient's bytes, who tried to, what it costs.

locals {
  trail_name = "${var.name}-data"
  trail_arn  = "arn:${local.partition}:cloudtrail:${local.region}:${local.account_id}:trail/${local.trail_name}"
}

module "log_key" {
  source = "./modules/key"

  name        = "${var.name}-logs"
  description = "Log groups, the trail and alarms"
  tags        = local.tags

  statements = [
    {
      Sid       = "LogGroups"
      Effect    = "Allow"
      Principal = { Service = "logs.${local.region}.amazonaws.com" }
      Action    = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
      Resource  = "*"
      Condition = { ArnLike = { "kms:EncryptionContext:aws:logs:arn" = "arn:${local.partition}:logs:${local.region}:${local.account_id}:log-group:*" } }
    },
    {
      Sid       = "Trail"
      Effect    = "Allow"
      Principal = { Service = "cloudtrail.amazonaws.com" }
      Action    = ["kms:DescribeKey", "kms:GenerateDataKey"]
      Resource  = "*"
      Condition = { StringEquals = { "aws:SourceArn" = local.trail_arn } }
    },
    {
      Sid       = "Alarms"
      Effect    = "Allow"
      Principal = { Service = ["budgets.amazonaws.com", "cloudwatch.amazonaws.com", "events.amazonaws.com"] }
      Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
      Resource  = "*"
      Condition = { StringEquals = { "aws:SourceAccount" = local.account_id } }
    },
  ]
}

# ---------------------------------------------------------------- every read and write of patient data

resource "aws_cloudwatch_log_group" "trail" {
  name              = "/tomoray/${var.name}/trail"
  retention_in_days = 365
  kms_key_id        = module.log_key.arn
  tags              = local.tags
}

resource "aws_iam_role" "trail" {
  name = "${var.name}-trail"
  tags = local.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "cloudtrail.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = { StringEquals = { "aws:SourceArn" = local.trail_arn } }
    }]
  })
}

resource "aws_iam_role_policy" "trail" {
  name = "write-trail"
  role = aws_iam_role.trail.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
      Resource = "${aws_cloudwatch_log_group.trail.arn}:*"
    }]
  })
}

resource "aws_cloudtrail" "data" {
  # checkov:skip=CKV_AWS_252: a topic would hear of every file of the trail; the alarms below tell of what matters
  name                          = local.trail_name
  s3_bucket_name                = module.storage.buckets["logs"]
  s3_key_prefix                 = "cloudtrail"
  kms_key_id                    = module.log_key.arn
  enable_log_file_validation    = true
  include_global_service_events = true
  is_multi_region_trail         = true
  cloud_watch_logs_group_arn    = "${aws_cloudwatch_log_group.trail.arn}:*"
  cloud_watch_logs_role_arn     = aws_iam_role.trail.arn
  tags                          = local.tags

  advanced_event_selector {
    name = "Objects of raw, archive and models"

    field_selector {
      field  = "eventCategory"
      equals = ["Data"]
    }

    field_selector {
      field  = "resources.type"
      equals = ["AWS::S3::Object"]
    }

    field_selector {
      field       = "resources.ARN"
      starts_with = [for kind in ["archive", "models", "raw"] : "${module.storage.bucket_arns[kind]}/"]
    }
  }

  advanced_event_selector {
    name = "Changes of roles, keys and buckets"

    field_selector {
      field  = "eventCategory"
      equals = ["Management"]
    }
  }

  depends_on = [module.storage]
}

# ---------------------------------------------------------------- alarms

resource "aws_sns_topic" "alerts" {
  name              = "${var.name}-alerts"
  kms_master_key_id = module.log_key.arn
  tags              = local.tags
}

resource "aws_sns_topic_policy" "alerts" {
  arn = aws_sns_topic.alerts.arn

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "AlarmsArrive"
      Effect    = "Allow"
      Principal = { Service = ["budgets.amazonaws.com", "cloudwatch.amazonaws.com", "events.amazonaws.com"] }
      Action    = "sns:Publish"
      Resource  = aws_sns_topic.alerts.arn
      Condition = { StringEquals = { "aws:SourceAccount" = local.account_id } }
    }]
  })
}

resource "aws_sns_topic_subscription" "mail" {
  for_each = toset(var.alert_emails)

  topic_arn = aws_sns_topic.alerts.arn
  protocol  = "email"
  endpoint  = each.value
}

locals {
  filters = {
    denied-reads = {
      about   = "Somebody was refused objects of raw, archive or models"
      pattern = "{ ($.eventSource = \"s3.amazonaws.com\") && ($.errorCode = \"AccessDenied\") }"
      above   = 10
    }
    break-glass = {
      about   = "The break-glass role was taken"
      pattern = "{ ($.eventName = \"AssumeRole\") && ($.requestParameters.roleArn = \"*:role/${var.name}-break-glass\") }"
      above   = 0
    }
    keys-disabled = {
      about   = "A KMS key was disabled or is to be deleted: data under it would be lost"
      pattern = "{ ($.eventSource = \"kms.amazonaws.com\") && (($.eventName = \"DisableKey\") || ($.eventName = \"ScheduleKeyDeletion\")) }"
      above   = 0
    }
    trail-changed = {
      about   = "The trail was stopped, changed or deleted"
      pattern = "{ ($.eventName = \"StopLogging\") || ($.eventName = \"DeleteTrail\") || ($.eventName = \"UpdateTrail\") }"
      above   = 0
    }
  }
}

resource "aws_cloudwatch_log_metric_filter" "trail" {
  for_each = local.filters

  name           = "${var.name}-${each.key}"
  log_group_name = aws_cloudwatch_log_group.trail.name
  pattern        = each.value.pattern

  metric_transformation {
    name          = each.key
    namespace     = "TomoRay/${var.name}"
    value         = "1"
    default_value = "0"
  }
}

resource "aws_cloudwatch_metric_alarm" "trail" {
  for_each = local.filters

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.about
  namespace           = aws_cloudwatch_log_metric_filter.trail[each.key].metric_transformation[0].namespace
  metric_name         = each.key
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = each.value.above
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alerts.arn]
  tags                = local.tags
}

# Voxels go to S3 through the endpoint; gigabytes through a NAT are images being pulled, or data going where it should not.
resource "aws_cloudwatch_metric_alarm" "nat" {
  for_each = module.network.nat_gateway_ids

  alarm_name          = "${var.name}-nat-${each.key}"
  alarm_description   = "More than 50 GB left through a NAT gateway within an hour"
  namespace           = "AWS/NATGateway"
  metric_name         = "BytesOutToDestination"
  dimensions          = { NatGatewayId = each.value }
  statistic           = "Sum"
  period              = 3600
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 50000000000
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alerts.arn]
  tags                = local.tags
}

# ---------------------------------------------------------------- money

resource "aws_budgets_budget" "monthly" {
  count = var.budget_dollars > 0 ? 1 : 0

  name         = "${var.name}-monthly"
  budget_type  = "COST"
  limit_amount = tostring(var.budget_dollars)
  limit_unit   = "USD"
  time_unit    = "MONTHLY"

  notification {
    comparison_operator        = "GREATER_THAN"
    threshold                  = 80
    threshold_type             = "PERCENTAGE"
    notification_type          = "ACTUAL"
    subscriber_email_addresses = var.alert_emails
    subscriber_sns_topic_arns  = [aws_sns_topic.alerts.arn]
  }

  notification {
    comparison_operator        = "GREATER_THAN"
    threshold                  = 100
    threshold_type             = "PERCENTAGE"
    notification_type          = "FORECASTED"
    subscriber_email_addresses = var.alert_emails
    subscriber_sns_topic_arns  = [aws_sns_topic.alerts.arn]
  }

  tags = local.tags
}
