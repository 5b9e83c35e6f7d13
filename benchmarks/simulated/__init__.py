"""Nodes, devices and money that are simulated."""
