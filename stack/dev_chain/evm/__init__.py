"""Blocks, and what runs in them, by py-evm."""
