"""What the scans of an archive are like, and what follows for training."""
