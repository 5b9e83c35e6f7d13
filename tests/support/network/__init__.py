"""Servers and links on loopback that fail when told."""
