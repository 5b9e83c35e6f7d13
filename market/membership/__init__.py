"""A node joins, and stays."""
