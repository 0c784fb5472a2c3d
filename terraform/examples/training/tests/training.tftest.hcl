mock_provider "aws" {
  source = "../../tests/mocks"
}

mock_provider "helm" {}

variables {
  admin_role_arns = ["arn:aws:iam::123456789012:role/admin"]
  my_cidrs        = ["203.0.113.7/32"]
  github          = { repository = "org/ct" }
}

run "trains_on_machines_with_four_gpus" {
  command = plan

  assert {
    condition     = alltrue([for type in module.tomoray.groups["gpu-training-spot"].instance_types : endswith(type, ".12xlarge")])
    error_message = "Spot machines with four GPUs each."
  }
}
