"""Keeping nodes running."""
