variable "name" {
  description = "Prefix of every role's name."
  type        = string
}

variable "cluster_name" {
  description = "The EKS cluster whose pods take the roles."
  type        = string
}

variable "namespace" {
  description = "Namespace of the service accounts."
  type        = string
  default     = "tomoray"
}

variable "bucket_arns" {
  description = "ARNs of the buckets raw, archive and models."
  type        = object({ raw = string, archive = string, models = string })
}

variable "key_arns" {
  description = "ARNs of their KMS keys."
  type        = object({ raw = string, archive = string, models = string })
}

variable "source_bucket_arns" {
  description = "More buckets that preprocessing reads, as arn:aws:s3:::idc-open-data."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.source_bucket_arns : can(regex("^arn:[a-z-]+:s3:::[a-z0-9.-]+$", arn))])
    error_message = "source_bucket_arns must be ARNs of buckets, as arn:aws:s3:::idc-open-data."
  }
}

variable "github" {
  description = "The repository whose workflows push images, and the refs that may, as {repository = \"org/name\", refs = [\"refs/heads/main\"]}; null: none."
  type        = object({ repository = string, refs = optional(list(string), ["refs/heads/main"]) })
  default     = null

  validation {
    condition     = var.github == null || can(regex("^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$", var.github.repository))
    error_message = "github.repository must be owner/name."
  }

  validation {
    condition     = var.github == null || try(length(var.github.refs) > 0 && alltrue([for ref in var.github.refs : startswith(ref, "refs/") && !strcontains(ref, "*")]), false)
    error_message = "github.refs must name at least one ref in full, without '*', as refs/heads/main."
  }
}

variable "repository_arns" {
  description = "ECR repositories that the workflows push to."
  type        = list(string)
  default     = []
}

variable "break_glass_principals" {
  description = "Who may take the break-glass role, with MFA: ARNs of users or roles. Empty: there is no such role."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.break_glass_principals : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(user|role)/", arn))])
    error_message = "break_glass_principals must be ARNs of users or roles: neither a whole account nor '*'."
  }
}

variable "permissions_boundary_arn" {
  description = "Permissions boundary of every role; null: none."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
