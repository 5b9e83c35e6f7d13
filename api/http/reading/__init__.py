"""Reads that anybody may ask for: what is kept of them, and how many are under way at once."""
