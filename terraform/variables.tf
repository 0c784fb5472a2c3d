# ---------------------------------------------------------------- who and where

variable "name" {
  description = "Name of the cluster, and prefix of every other name."
  type        = string
  default     = "tomoray"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}[a-z0-9]$", var.name))
    error_message = "name must be 3 to 22 lower-case letters, digits and '-', and begin with a letter."
  }
}

variable "admin_role_arns" {
  description = "Roles or users that administer the cluster. The one that Terraform runs as must be among them."
  type        = list(string)

  validation {
    condition     = alltrue([for arn in var.admin_role_arns : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(role|user)/", arn))])
    error_message = "admin_role_arns must be ARNs of IAM roles or users, as arn:aws:iam::123456789012:role/admin."
  }
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}

# ---------------------------------------------------------------- network

variable "vpc_cidr" {
  description = "Addresses of the VPC, /16 to /20."
  type        = string
  default     = "10.20.0.0/16"
}

variable "zones" {
  description = "How many availability zones, 2 or 3."
  type        = number
  default     = 3
}

variable "nat" {
  description = "Ways out to the internet: none, one, or per_zone."
  type        = string
  default     = "one"
}

variable "interface_endpoints" {
  description = "AWS services reached without the internet. With `nat = \"none\"` those that nodes cannot do without are added."
  type        = set(string)
  default     = ["ecr.api", "ecr.dkr", "logs", "sts"]
}

variable "readable_buckets" {
  description = "Buckets of other accounts that jobs read, as the Imaging Data Commons' `idc-open-data`."
  type        = set(string)
  default     = ["idc-open-data"]
}

# ---------------------------------------------------------------- cluster

variable "kubernetes_version" {
  description = "Minor version of Kubernetes."
  type        = string
  default     = "1.34"
}

variable "public_access_cidrs" {
  description = "Addresses that reach the cluster's API from the internet; empty: only from within the network."
  type        = list(string)
  default     = []
}

variable "api_client_cidrs" {
  description = "Private addresses, as of a VPN, that reach the cluster's API."
  type        = list(string)
  default     = []
}

variable "deletion_protection" {
  description = "Refuse to delete the cluster, and buckets that hold objects."
  type        = bool
  default     = true
}

variable "service_linked_roles" {
  description = "Roles of AWS's own to make. A new account wants both values; elsewhere they are there and this stays empty."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for service in var.service_linked_roles : contains(["autoscaling.amazonaws.com", "spot.amazonaws.com"], service)])
    error_message = "service_linked_roles may be autoscaling.amazonaws.com and spot.amazonaws.com."
  }
}

variable "autoscaler" {
  description = "Who starts nodes: cluster-autoscaler or karpenter."
  type        = string
  default     = "cluster-autoscaler"
}

variable "groups" {
  description = "Node groups to add to the ready ones of nodes.tf or to put in their place, by name; null takes one away."

  type = map(object({
    capacity       = string
    instance_types = list(string)
    min            = optional(number, 0)
    max            = number
    gpu            = optional(bool, false)
    gpus_each      = optional(number, 1)
    disk_gb        = optional(number, 100)
    local_disk     = optional(bool, false)
  }))

  default = {}
}

# ---------------------------------------------------------------- storage

variable "tls_only" {
  description = "Refuse requests to buckets over plain HTTP."
  type        = bool
  default     = true

  validation {
    condition     = var.tls_only
    error_message = "tls_only must stay true on AWS: S3 has certificates."
  }
}

variable "require_encryption_header" {
  description = "Refuse writes to buckets that do not name their encryption, although S3 would encrypt them."
  type        = bool
  default     = false
}

variable "only_from_network" {
  description = "Objects of raw, archive and models are read and written from the VPC and by break glass alone."
  type        = bool
  default     = false
}

variable "object_lock_days" {
  description = "Days for which raw DICOM and logs cannot be removed; 0: no lock. Only for new buckets."
  type        = number
  default     = 0
}

variable "replica_region" {
  description = "Another region for copies of raw DICOM and models; null: none."
  type        = string
  default     = null
}

variable "log_days" {
  description = "Days for which logs are kept in S3."
  type        = number
  default     = 2192
}

variable "cache" {
  description = "A file system that all nodes share, for scans that are read again and again: none, efs or fsx."
  type        = string
  default     = "none"

  validation {
    condition     = contains(["none", "efs", "fsx"], var.cache)
    error_message = "cache must be none, efs or fsx."
  }
}

variable "cache_gb" {
  description = "Size of the FSx cache: 1200, 2400 or a multiple of 2400. EFS grows by itself."
  type        = number
  default     = 1200

  validation {
    condition     = var.cache_gb == 1200 || (var.cache_gb > 0 && var.cache_gb % 2400 == 0)
    error_message = "cache_gb must be 1200, or a multiple of 2400: FSx for Lustre has no other sizes."
  }
}

# ---------------------------------------------------------------- access

variable "github" {
  description = "Repository and refs whose workflows push images: {repository = \"org/name\", refs = [\"refs/heads/main\"]}; null: none."
  type        = object({ repository = string, refs = optional(list(string), ["refs/heads/main"]) })
  default     = null
}

variable "break_glass_principals" {
  description = "Who may take the break-glass role, with MFA; empty: there is none."
  type        = list(string)
  default     = []
}

variable "permissions_boundary_arn" {
  description = "Permissions boundary of the roles of jobs and people; null: none."
  type        = string
  default     = null
}

# ---------------------------------------------------------------- what runs in the cluster

variable "addons" {
  description = "Install charts into the cluster. False for the first apply where Terraform does not reach its API yet."
  type        = bool
  default     = true
}

variable "chart_registry" {
  description = "An OCI registry with copies of all charts, as oci://ACCOUNT.dkr.ecr.REGION.amazonaws.com/charts; null: their own homes."
  type        = string
  default     = null

  validation {
    condition     = var.chart_registry == null || can(regex("^oci://[^/]+", var.chart_registry))
    error_message = "chart_registry must begin with oci://."
  }
}

variable "chart_versions" {
  description = "Versions of charts, to put in place of those in addons.tf."
  type        = map(string)
  default     = {}
}

variable "chart_values" {
  description = "More values for a chart, as YAML, by release: image registries without internet, say."
  type        = map(string)
  default     = {}
}

variable "image" {
  description = "TomoRay's image with tag or digest; null: that of this repository in ECR, with the tag `latest-release`."
  type        = string
  default     = null

  validation {
    condition     = var.image == null || can(regex("[:@]", coalesce(var.image, ":")))
    error_message = "image must name a tag or a digest."
  }
}

# ---------------------------------------------------------------- money and alarms

variable "budget_dollars" {
  description = "Budget a month; mail at 80 % spent and at 100 % foreseen. 0: no budget."
  type        = number
  default     = 1000

  validation {
    condition     = var.budget_dollars >= 0
    error_message = "budget_dollars must be 0 or more."
  }
}

variable "alert_emails" {
  description = "Who hears of budgets and alarms."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for email in var.alert_emails : can(regex("^[^@\\s]+@[^@\\s]+$", email))])
    error_message = "alert_emails must be mail addresses."
  }
}
