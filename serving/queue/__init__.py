"""The queue of accepted jobs: what was promised with a 202 outlives every process that serves."""
