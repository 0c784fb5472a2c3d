variable "name" {
  description = "Name of the cluster."
  type        = string

  validation {
    condition     = can(regex("^[a-zA-Z0-9][a-zA-Z0-9-]{0,60}$", var.name))
    error_message = "name must be letters, digits and '-', 61 at most."
  }
}

variable "kubernetes_version" {
  description = "Minor version of Kubernetes."
  type        = string
  default     = "1.34"

  validation {
    condition     = can(regex("^1\\.(3[1-9]|[4-9][0-9])$", var.kubernetes_version))
    error_message = "kubernetes_version must be 1.31 or newer, as \"1.34\": older ones lack what pod identity and the operator want."
  }
}

variable "vpc_id" {
  description = "The VPC."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets in two zones or more."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "subnet_ids must name subnets in two zones or more."
  }
}

variable "public_access_cidrs" {
  description = "Addresses that reach the cluster's API from the internet; empty: there is no public endpoint."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.public_access_cidrs : can(cidrhost(cidr, 0))])
    error_message = "public_access_cidrs must be IPv4 blocks, as 203.0.113.7/32."
  }

  validation {
    condition     = alltrue([for cidr in var.public_access_cidrs : try(tonumber(split("/", cidr)[1]) >= 16, false)])
    error_message = "public_access_cidrs must be /16 or narrower: the API is not for the whole internet."
  }
}

variable "api_client_cidrs" {
  description = "Private addresses that reach the cluster's API, as those of a VPN or of the hospital."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.api_client_cidrs : can(regex("^(10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.)", cidr))])
    error_message = "api_client_cidrs must be private (RFC 1918)."
  }
}

variable "admin_role_arns" {
  description = "Roles or users that administer the cluster. The one that Terraform runs as must be among them."
  type        = list(string)

  validation {
    condition     = length(var.admin_role_arns) > 0
    error_message = "admin_role_arns must name at least the role that Terraform runs as: else nobody could enter the cluster."
  }
}

variable "archive_bucket_arn" {
  description = "Bucket that pods may mount through the S3 CSI driver, to read."
  type        = string
}

variable "archive_key_arn" {
  description = "Its KMS key."
  type        = string
}

variable "autoscaling_role_arn" {
  description = "The service-linked role of EC2 Auto Scaling, which attaches encrypted volumes."
  type        = string
}

variable "log_key_arn" {
  description = "KMS key of the control plane's logs."
  type        = string
}

variable "log_days" {
  description = "Days for which the control plane's logs are kept."
  type        = number
  default     = 365
}

variable "deletion_protection" {
  description = "Refuse to delete the cluster."
  type        = bool
  default     = true
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
