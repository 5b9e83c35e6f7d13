"""Nodes that are registered and alive."""
