"""Slices to one regular grid, or a refusal that says what was found."""
