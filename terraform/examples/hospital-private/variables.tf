variable "region" {
  description = "Region of everything."
  type        = string
  default     = "us-east-1"

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region must be one of AWS's, as us-east-1."
  }
}

variable "admin_role_arns" {
  description = "Roles or users that administer the cluster, the one that Terraform runs as among them."
  type        = list(string)
}

variable "service_linked_roles" {
  description = "In a new account: [\"autoscaling.amazonaws.com\", \"spot.amazonaws.com\"]; else empty."
  type        = set(string)
  default     = []
}

variable "alert_emails" {
  description = "Who hears of budgets and alarms."
  type        = list(string)
  default     = []
}

variable "hospital_cidrs" {
  description = "Private addresses of the hospital from which the cluster's API is reached."
  type        = list(string)
}

variable "replica_region" {
  description = "Region of the copies."
  type        = string
}

variable "break_glass_principals" {
  description = "Who may take the break-glass role, with MFA."
  type        = list(string)
}

variable "permissions_boundary_arn" {
  description = "The account's permissions boundary; null: none."
  type        = string
  default     = null
}

variable "chart_registry" {
  description = "OCI registry with copies of the charts."
  type        = string
}

variable "chart_values" {
  description = "Values that name copies of the charts' images, as YAML, by release."
  type        = map(string)
  default     = {}
}

variable "image" {
  description = "TomoRay's image, with a digest."
  type        = string
}
