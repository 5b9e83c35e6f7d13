"""Engines without processes, and checkpoints for them."""
