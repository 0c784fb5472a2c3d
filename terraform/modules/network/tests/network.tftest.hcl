mock_provider "aws" {
  source = "../../tests/mocks"
}

variables {
  name        = "ct"
  log_key_arn = "arn:aws:kms:us-east-1:123456789012:key/logs"
}

run "subnets_are_private_and_apart" {
  command = plan

  assert {
    condition     = values(aws_subnet.private)[*].cidr_block == ["10.20.0.0/18", "10.20.64.0/18", "10.20.128.0/18"]
    error_message = "Three private subnets, a quarter of the VPC each."
  }

  assert {
    condition     = !anytrue(concat(values(aws_subnet.private)[*].map_public_ip_on_launch, values(aws_subnet.public)[*].map_public_ip_on_launch))
    error_message = "No subnet hands out public addresses."
  }

  assert {
    condition     = length(distinct(concat(values(aws_subnet.private)[*].cidr_block, values(aws_subnet.public)[*].cidr_block))) == 6
    error_message = "Subnets must not overlap."
  }
}

run "one_nat_serves_all_zones" {
  command = plan

  assert {
    condition     = length(aws_nat_gateway.this) == 1 && length(aws_route.nat) == 3
    error_message = "One NAT, and a route to it from each zone."
  }
}

run "nat_per_zone" {
  command = plan

  variables {
    nat = "per_zone"
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 3
    error_message = "A NAT in each zone."
  }
}

run "without_nat_there_is_no_way_out" {
  command = plan

  variables {
    nat = "none"
  }

  assert {
    condition     = length(aws_internet_gateway.this) + length(aws_nat_gateway.this) + length(aws_eip.nat) + length(aws_subnet.public) + length(aws_route.nat) == 0
    error_message = "Neither gateway nor public subnet nor route."
  }
}

run "s3_endpoint_writes_to_this_account_alone" {
  command = plan

  variables {
    readable_buckets = ["idc-open-data"]
  }

  assert {
    condition = alltrue([
      for statement in jsondecode(aws_vpc_endpoint.s3.policy).Statement :
      try(statement.Condition.StringEquals["aws:ResourceAccount"], "") == "123456789012"
      if contains(flatten([statement.Action]), "s3:PutObject")
    ])
    error_message = "Every statement that lets objects be written must name this account."
  }

  assert {
    condition     = contains(jsondecode(aws_vpc_endpoint.s3.policy).Statement[1].Resource, "arn:aws:s3:::idc-open-data/*")
    error_message = "Public sources can be read."
  }
}

run "interface_endpoints_are_private_names_behind_https" {
  command = plan

  assert {
    condition     = toset(keys(aws_vpc_endpoint.interface)) == toset(["ecr.api", "ecr.dkr", "logs", "sts"]) && alltrue(values(aws_vpc_endpoint.interface)[*].private_dns_enabled)
    error_message = "ECR, logs and STS under their own names."
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.endpoints[0].from_port == 443 && aws_vpc_security_group_ingress_rule.endpoints[0].cidr_ipv4 == "10.20.0.0/16"
    error_message = "HTTPS from the VPC and nothing else."
  }
}

run "all_traffic_is_logged_encrypted" {
  command = plan

  assert {
    condition     = aws_flow_log.this.traffic_type == "ALL" && aws_cloudwatch_log_group.flow.kms_key_id == var.log_key_arn && aws_cloudwatch_log_group.flow.retention_in_days == 365
    error_message = "Flow logs of all traffic, for a year, under a key."
  }
}

run "refuses_a_vpc_without_room" {
  command = plan

  variables {
    cidr = "10.0.0.0/24"
  }

  expect_failures = [var.cidr]
}

run "refuses_an_unknown_nat" {
  command = plan

  variables {
    nat = "two"
  }

  expect_failures = [var.nat]
}

run "refuses_one_zone" {
  command = plan

  variables {
    zones = 1
  }

  expect_failures = [var.zones]
}
