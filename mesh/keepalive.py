"""How often a node's process says that it runs, and how long that holds."""

KEEPALIVE_INTERVAL = 0.15
"""Seconds between two keep-alives of a node beside Redis."""

KEEPALIVE_TTL = 0.5
"""Seconds of silence after which a node beside Redis counts as gone: three keep-alives."""

RELAY_KEEPALIVE_INTERVAL = 0.25
"""Seconds between two keep-alives of a node that the relay serves: each crosses the internet."""

MIN_RELAY_KEEPALIVE_TTL = 1.0
"""Seconds: four keep-alives. One lost packet is sent again within half a second on most links."""

MAX_RELAY_KEEPALIVE_TTL = 3.0
"""Seconds of silence after which a node counts as gone, whatever its link is like."""

POLLING_KEEPALIVE_TTL = 2.0
"""Seconds, over long polls, where each keep-alive is a request of its own."""
