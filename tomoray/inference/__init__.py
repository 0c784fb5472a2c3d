"""Trained networks at work: scans in pieces, windows of many requests together, and what makes them fast."""
