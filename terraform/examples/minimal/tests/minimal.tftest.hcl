mock_provider "aws" {
  source = "../../tests/mocks"
}

mock_provider "helm" {}

variables {
  admin_role_arns = ["arn:aws:iam::123456789012:role/admin"]
  my_cidrs        = ["203.0.113.7/32"]
}

run "costs_little_and_can_be_removed" {
  command = plan

  assert {
    condition     = keys(module.tomoray.groups) == ["cpu-spot", "system"]
    error_message = "No GPUs."
  }
}

run "refuses_to_start_without_ones_own_address" {
  command = plan

  variables {
    my_cidrs = []
  }

  expect_failures = [var.my_cidrs]
}
