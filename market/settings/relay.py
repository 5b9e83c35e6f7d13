"""Settings of the relay: throughput, connections, inboxes."""

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
    kept_for_routes: float = Field(0.25, ge=0, lt=1)
    """Share of the connections that only nodes on routes may take: anybody can register more nodes
    than one process serves."""
    max_connections_per_wallet: int = Field(200, ge=1)
    """WebSockets, and long polls under way, of a wallet's nodes at one process."""
    max_inbox_bytes: int = Field(2**30, ge=2**20)
    """Unread messages of one node that Redis keeps. Then they are dropped, and their generations
    routed anew: a node that does not read may not fill Redis."""
    max_inboxes_bytes: int = Field(2**32, ge=2**20)
    """Unread messages of all nodes together that Redis keeps; well below its own limit. Above it
    the longest inbox is emptied."""
