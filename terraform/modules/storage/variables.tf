variable "prefix" {
  description = "Prefix of every bucket's name. Names of buckets are shared by everybody, so put your account in it."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{2,54}$", var.prefix))
    error_message = "prefix must be 3 to 55 lower-case letters, digits and '-', and begin with a letter or digit."
  }
}

variable "encryption" {
  description = "`kms`: a key for each bucket. `s3`: the server's own (AES256), for servers without KMS."
  type        = string
  default     = "kms"

  validation {
    condition     = contains(["kms", "s3"], var.encryption)
    error_message = "encryption must be kms or s3: nothing is stored in clear."
  }
}

variable "require_encryption_header" {
  description = "Refuse writes that do not name their encryption. S3 encrypts them anyway; other servers may not."
  type        = bool
  default     = false
}

variable "tls_only" {
  description = "Refuse requests over plain HTTP. Only a server without certificates is a reason against it."
  type        = bool
  default     = true
}

variable "tls_version" {
  description = "Refuse older TLS than this; null where the server does not know the condition."
  type        = string
  default     = "1.2"
}

variable "only_from_endpoints" {
  description = "VPC endpoints that objects of raw, archive and models may be read and written from; empty: from anywhere."
  type        = list(string)
  default     = []
}

variable "exempt_role_arns" {
  description = "Roles for which `only_from_endpoints` does not hold, as the one of break glass."
  type        = list(string)
  default     = []
}

variable "tiering" {
  description = "Move objects to cheaper classes of storage by themselves. S3-compatible servers have none."
  type        = bool
  default     = true
}

variable "public_access_block" {
  description = "Block public access to the buckets. Off only for servers that do not know it."
  type        = bool
  default     = true
}

variable "access_logs" {
  description = "Write a log line for each request into the bucket `logs`."
  type        = bool
  default     = true
}

variable "abort_multipart_days" {
  description = "Days after which an upload that never ended is removed."
  type        = number
  default     = 7

  validation {
    condition     = var.abort_multipart_days >= 1 && floor(var.abort_multipart_days) == var.abort_multipart_days
    error_message = "abort_multipart_days must be a whole number, 1 or more."
  }
}

variable "noncurrent_days" {
  description = "Days for which a version that was replaced or deleted is kept, by bucket."
  type        = object({ raw = optional(number, 365), archive = optional(number, 30), models = optional(number, 90) })
  default     = {}

  validation {
    condition     = alltrue([for days in values(var.noncurrent_days) : days >= 1])
    error_message = "noncurrent_days must be 1 or more for every bucket."
  }
}

variable "log_days" {
  description = "Days for which logs are kept. HIPAA's documentation rule is six years."
  type        = number
  default     = 2192

  validation {
    condition     = var.log_days >= 180
    error_message = "log_days must be 180 or more: logs leave Glacier Instant Retrieval no sooner without a fee."
  }
}

variable "object_lock_days" {
  description = "Days for which no version of raw DICOM or of a log can be removed (governance mode); 0: no lock. Only for new buckets."
  type        = number
  default     = 0

  validation {
    condition     = var.object_lock_days >= 0 && floor(var.object_lock_days) == var.object_lock_days
    error_message = "object_lock_days must be a whole number, 0 or more."
  }
}

variable "replica_region" {
  description = "Another region for copies of raw DICOM and models; null: none. The archive can be made anew."
  type        = string
  default     = null

  validation {
    condition     = var.replica_region == null || can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.replica_region))
    error_message = "replica_region must be a region, as eu-central-1."
  }
}

variable "trail_arn" {
  description = "The CloudTrail trail that may write to `logs`; null: none."
  type        = string
  default     = null
}

variable "force_destroy" {
  description = "Let `terraform destroy` remove buckets that hold objects."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
