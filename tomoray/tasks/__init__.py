"""What may be learned from scans, one module each; `task.py` says what they have in common."""
