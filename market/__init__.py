"""The operator's domain: one folder a noun, each with its tables, logic and errors.

No HTTP server, no torch.
"""
