output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.this.id
}

output "private_subnet_ids" {
  description = "A private subnet for each zone, by zone."
  value       = { for zone, subnet in aws_subnet.private : zone => subnet.id }
}

output "cidr" {
  description = "Addresses of the VPC."
  value       = var.cidr
}

output "s3_endpoint_id" {
  description = "The gateway endpoint of S3, for bucket policies."
  value       = aws_vpc_endpoint.s3.id
}

output "nat_gateway_ids" {
  description = "NAT gateways, by zone."
  value       = { for zone, gateway in aws_nat_gateway.this : zone => gateway.id }
}
