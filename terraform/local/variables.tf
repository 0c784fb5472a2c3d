variable "endpoint" {
  description = "URL of the server."
  type        = string

  validation {
    condition     = can(regex("^https?://[^/]+$", var.endpoint))
    error_message = "endpoint must be http://HOST:PORT or https://HOST, without a path."
  }

  validation {
    condition     = startswith(var.endpoint, "https://") || can(regex("^http://(127\\.|10\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|192\\.168\\.|localhost|[a-z0-9.-]+\\.local)", var.endpoint))
    error_message = "endpoint may be plain http only on a private network: give the server a certificate."
  }
}

variable "region" {
  description = "What the server calls its region."
  type        = string
  default     = "us-east-1"
}

variable "access_key_id" {
  description = "Access key of an account that may make buckets."
  type        = string
  sensitive   = true
}

variable "secret_access_key" {
  description = "Its secret; better in TF_VAR_secret_access_key than in a file."
  type        = string
  sensitive   = true
}

variable "prefix" {
  description = "Prefix of the buckets' names."
  type        = string
  default     = "tomoray"
}

variable "require_encryption_header" {
  description = "Refuse writes that do not name their encryption. For servers that do not encrypt by themselves, and clients that name it."
  type        = bool
  default     = false
}

variable "public_access_block" {
  description = "Block public access. Ceph knows it; MinIO does not."
  type        = bool
  default     = true
}

variable "object_lock_days" {
  description = "Days for which raw DICOM and logs cannot be removed; 0: no lock."
  type        = number
  default     = 0
}
