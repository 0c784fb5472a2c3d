mock_provider "aws" {
  source = "../../tests/mocks"
}

variables {
  name        = "ours"
  description = "Something of ours"
}

run "key_rotates_and_ends_slowly" {
  command = plan

  assert {
    condition     = aws_kms_key.this.enable_key_rotation && aws_kms_key.this.deletion_window_in_days == 30
    error_message = "A key must rotate, and must not vanish at once."
  }
}

run "policy_grants_nobody_but_the_account" {
  command = plan

  assert {
    condition     = jsondecode(aws_kms_key.this.policy).Statement[*].Principal == [{ AWS = "arn:aws:iam::123456789012:root" }]
    error_message = "Without statements the account alone grants the key."
  }
}

run "refuses_a_deletion_that_kms_would_refuse" {
  command = plan

  variables {
    deletion_days = 1
  }

  expect_failures = [var.deletion_days]
}
