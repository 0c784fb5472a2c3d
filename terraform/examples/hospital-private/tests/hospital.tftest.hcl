mock_provider "aws" {
  source = "../../tests/mocks"
}

mock_provider "helm" {}

variables {
  admin_role_arns        = ["arn:aws:iam::123456789012:role/admin"]
  hospital_cidrs         = ["10.200.0.0/16"]
  replica_region         = "us-west-2"
  break_glass_principals = ["arn:aws:iam::123456789012:user/oncall"]
  chart_registry         = "oci://123456789012.dkr.ecr.us-east-1.amazonaws.com/charts"
  image                  = "123456789012.dkr.ecr.us-east-1.amazonaws.com/tomoray@sha256:0000000000000000000000000000000000000000000000000000000000000000"
}

run "is_whole_without_the_internet" {
  command = plan

  assert {
    condition     = module.tomoray.groups["gpu-serving"].max == 8
    error_message = "GPUs to serve from."
  }
}
