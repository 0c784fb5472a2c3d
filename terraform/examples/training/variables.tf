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

variable "my_cidrs" {
  description = "Your own addresses, as [\"203.0.113.7/32\"]: the cluster's API answers them alone."
  type        = list(string)

  validation {
    condition     = length(var.my_cidrs) > 0
    error_message = "my_cidrs must name an address; else the API is reached from within the VPC alone, and helm does not reach it."
  }
}

variable "github" {
  description = "Repository and refs whose workflows push images; null: none."
  type        = object({ repository = string, refs = optional(list(string), ["refs/heads/main"]) })
  default     = null
}
