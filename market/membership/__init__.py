"""A node joins, stays, and is sent away."""
