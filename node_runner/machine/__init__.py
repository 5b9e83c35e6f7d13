"""This machine: devices, folders, keys."""
