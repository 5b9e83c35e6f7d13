"""A node's state, and why it gets no work."""

from enum import StrEnum


class NodeState(StrEnum):
    LOADING = "loading"
    """Registered, and not heard yet."""
    SERVING = "serving"
    COOLING_DOWN = "cooling_down"
    """It failed a generation a moment ago, and gets no new one for a while."""
    UNHEALTHY = "unhealthy"
    """Heard, but off the routes: it says so."""
    SILENT = "silent"
    """Not heard for longer than the platform waits, or it has left."""
