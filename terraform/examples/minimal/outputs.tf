output "tomoray" {
  description = "For `tomoray cluster import-terraform`."
  value       = module.tomoray
}
