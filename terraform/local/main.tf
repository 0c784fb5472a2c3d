# The same buckets on a server of one's own: Ceph, MinIO or any other that speaks S3. Nothing of AWS is asked.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

provider "aws" {
  region                      = var.region
  access_key                  = var.access_key_id
  secret_key                  = var.secret_access_key
  s3_use_path_style           = true
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_region_validation      = true
  skip_requesting_account_id  = true

  endpoints {
    s3 = var.endpoint
  }
}

module "storage" {
  source = "../modules/storage"

  prefix                    = var.prefix
  encryption                = "s3"
  require_encryption_header = var.require_encryption_header
  tls_only                  = startswith(var.endpoint, "https://")
  tls_version               = null
  tiering                   = false
  access_logs               = false
  public_access_block       = var.public_access_block
  object_lock_days          = var.object_lock_days
}
