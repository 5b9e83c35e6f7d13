"""Settings of the relay: throughput and connections."""

from pydantic import BaseModel, Field


class RelaySettings(BaseModel):
    messages_per_second: float = Field(2000, gt=0)
    """Of one node, above which it is slowed down: ten times what a busy GPU sends."""
    bytes_per_second: float = Field(64 * 2**20, gt=0)
    """Of one node, above which it is slowed down: half a gigabit."""
    idle: float = Field(15, gt=0)
    """Seconds without a pulse, or a whole piece of a long frame, after which a connection is half
    open, and closed."""
    max_connections: int = Field(2000, ge=1)
    """WebSockets, and long polls under way, of all nodes at one process: each holds a connection to
    Redis. Above it nodes go elsewhere."""
    max_inbox_bytes: int = Field(2**30, ge=2**20)
    """Unread messages of one node that Redis keeps. Then they are dropped, and their generations
    routed anew: a node that does not read may not fill Redis."""
