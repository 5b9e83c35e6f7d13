"""Simulated nodes, devices and movements of money."""
