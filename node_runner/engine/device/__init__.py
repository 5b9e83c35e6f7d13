"""Tensors on a device, and memory."""
