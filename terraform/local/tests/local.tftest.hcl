mock_provider "aws" {
  source = "../tests/mocks"
}

variables {
  endpoint          = "https://s3.hospital.local"
  access_key_id     = "key"
  secret_access_key = "secret"
}

run "same_buckets_without_aws" {
  command = apply

  assert {
    condition     = output.buckets == { archive = "tomoray-archive", logs = "tomoray-logs", models = "tomoray-models", raw = "tomoray-raw" }
    error_message = "The four buckets."
  }
}

run "https_refuses_plain_http" {
  command = apply

  assert {
    condition     = contains(jsondecode(module.storage.policies["raw"]).Statement[*].Sid, "RefusePlainHttp")
    error_message = "A server with a certificate refuses requests without."
  }
}

run "plain_http_on_a_private_network_alone" {
  command = apply

  variables {
    endpoint = "http://10.0.0.5:8080"
  }

  assert {
    condition     = !contains(jsondecode(module.storage.policies["raw"]).Statement[*].Sid, "RefusePlainHttp")
    error_message = "A server without a certificate must answer."
  }
}

run "refuses_plain_http_over_the_internet" {
  command = plan

  variables {
    endpoint = "http://s3.example.com"
  }

  expect_failures = [var.endpoint]
}
