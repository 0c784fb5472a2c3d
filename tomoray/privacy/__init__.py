"""What leaves the hospital, and what is known to name nobody."""
