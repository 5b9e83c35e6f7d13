"""Options of TCP sockets by which the kernel notices that the other side is gone without a word."""

import socket

PROBE_AFTER = 5
"""Seconds without a byte after which the kernel asks whether the other side is there."""

PROBE_INTERVAL = 2
"""Seconds between two of its questions."""

PROBES = 3
"""Questions without an answer after which the connection is closed: after 11 s of silence."""

UNACKNOWLEDGED_MS = 10_000
"""Milliseconds that sent bytes may stay unacknowledged; by default a quarter of an hour."""

_VALUES = {
    "TCP_KEEPIDLE": PROBE_AFTER,
    "TCP_KEEPINTVL": PROBE_INTERVAL,
    "TCP_KEEPCNT": PROBES,
    "TCP_USER_TIMEOUT": UNACKNOWLEDGED_MS,
}

TCP_OPTIONS: dict[int, int] = {
    getattr(socket, name): value for name, value in _VALUES.items() if hasattr(socket, name)
}
"""Options of IPPROTO_TCP and their values; those that this system has."""
