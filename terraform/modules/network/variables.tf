variable "name" {
  description = "Prefix of every name."
  type        = string
}

variable "cidr" {
  description = "Addresses of the VPC. Pods take addresses too, so be generous."
  type        = string
  default     = "10.20.0.0/16"

  validation {
    condition     = can(cidrhost(var.cidr, 0)) && try(tonumber(split("/", var.cidr)[1]), 0) >= 16 && try(tonumber(split("/", var.cidr)[1]), 0) <= 20
    error_message = "cidr must be an IPv4 block of /16 to /20, as 10.20.0.0/16."
  }
}

variable "zones" {
  description = "How many availability zones."
  type        = number
  default     = 3

  validation {
    condition     = contains([2, 3], var.zones)
    error_message = "zones must be 2 or 3: EKS wants two, and the address plan has room for three."
  }
}

variable "nat" {
  description = "Ways out to the internet: `none`, `one` for all zones, or `per_zone`."
  type        = string
  default     = "one"

  validation {
    condition     = contains(["none", "one", "per_zone"], var.nat)
    error_message = "nat must be none, one or per_zone."
  }
}

variable "interface_endpoints" {
  description = "AWS services that are reached without the internet, by their short names. Each costs by zone and hour."
  type        = set(string)
  default     = ["ecr.api", "ecr.dkr", "logs", "sts"]
}

variable "readable_buckets" {
  description = "Buckets of other accounts that may be read through the S3 endpoint, as `idc-open-data`."
  type        = set(string)
  default     = []
}

variable "flow_log_days" {
  description = "Days for which flow logs are kept."
  type        = number
  default     = 365

  validation {
    condition     = contains([30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.flow_log_days)
    error_message = "flow_log_days must be one that CloudWatch knows: 30, 60, 90, 180, 365, 731, 2192, ..."
  }
}

variable "log_key_arn" {
  description = "KMS key of the flow logs."
  type        = string
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
