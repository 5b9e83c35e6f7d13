"""How often a node's process says that it runs, and how long that holds."""

KEEPALIVE_INTERVAL = 0.15
"""Seconds between two keep-alives of a node."""

KEEPALIVE_TTL = 0.5
"""Seconds of silence after which a node counts as dead: three intervals."""
