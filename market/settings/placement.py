"""Settings of placement: when a rebalance pays."""

from pydantic import BaseModel, Field


class PlacementSettings(BaseModel):
    """Which layers nodes serve that leave it to the platform."""

    enabled: bool = True
    """Begin moves of nodes; one that is under way goes on. Without it nodes still get a span when
    they register."""
    interval: int = Field(30, ge=1)
    """Seconds between looks whether a move pays: the heartbeats' interval, since nothing new is
    known in between."""
    threshold: float = Field(0.1, ge=0.01)
    """Share of the throughput that a move has to gain: what measured speeds wobble by, at least."""
    horizon: float = Field(3600, gt=0)
    """Seconds within which a move has to win back what loading costs: as long as nodes stay."""
    positions: int = Field(16384, ge=0)
    """KV room that each layer is to have, over all generations: eight of 2,048 positions."""
    half_life: float = Field(300, gt=0)
    """Seconds after which a measurement counts half: ten heartbeats, so that one slow minute is no
    reason to move."""
    pause: float = Field(300, ge=0)
    """Seconds between the end of a move and the next: until what it changed has been measured."""
    move_limit: float = Field(1800, gt=0)
    """Seconds that the nodes of a move get to load, and more while bytes come: 70 GB from a hub, by
    40 MB a second."""
    retry: float = Field(3600, ge=0)
    """Seconds for which nodes stay where they are for which a move came to nothing, and all others
    of their wallets."""
    loading_stall: float = Field(300, gt=0)
    """Seconds without a byte of weights after which a node that loads may be late: reading a span
    into memory, and checking its hash, bring none. A download that is still moving is not late."""
    loading_limit: float = Field(900, gt=0)
    """Seconds for which a node that has registered and loads counts as serving its span, and longer
    while bytes come."""
