"""What runs on a Ray cluster: a module and a config each, `python -m jobs.preprocess CONFIG.yaml`."""
