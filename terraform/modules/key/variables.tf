variable "name" {
  description = "Alias of the key, without `alias/`."
  type        = string

  validation {
    condition     = can(regex("^[a-zA-Z0-9/_-]{1,200}$", var.name))
    error_message = "name must be letters, digits, '/', '_' and '-'."
  }
}

variable "description" {
  description = "What the key encrypts."
  type        = string
}

variable "statements" {
  description = "Statements of the key policy beside the account's own, as IAM writes them."
  type        = any
  default     = []
}

variable "deletion_days" {
  description = "Days between the deletion of the key and its end. Data under it is lost then."
  type        = number
  default     = 30

  validation {
    condition     = var.deletion_days >= 7 && var.deletion_days <= 30
    error_message = "deletion_days must be 7 to 30: KMS takes no other."
  }
}

variable "region" {
  description = "Region of the key; null for the provider's own."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of the key."
  type        = map(string)
  default     = {}
}
