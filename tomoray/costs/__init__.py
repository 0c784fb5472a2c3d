"""What it costs: what Terraform provisions, what a workload takes of it, and how a run on spot machines goes."""
