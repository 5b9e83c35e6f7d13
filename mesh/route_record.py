"""The live record of a generation: which epoch may write now, and on which route."""

from dataclasses import astuple, dataclass

import msgpack

EPOCH = "epoch"
ROUTE = "route"
"""Fields of the hash."""

SEALED = b"sealed"
"""In the place of an epoch: nobody writes any more."""

MAX_NODES = 1024
"""More than any model has layers; bounds what a damaged record can ask for."""


@dataclass(frozen=True, slots=True)
class RouteRecord:
    """What has to be known of a route to check what its nodes send.

    ``width``: values of a hidden state; ``capacity``: positions of the generation, prompt and new
    tokens; ``nodes``: ids in the order of the layers, the edge's first.
    """

    width: int
    capacity: int
    nodes: list[str]

    def pack(self) -> bytes:
        """As a field of the record."""
        packed: bytes = msgpack.packb(astuple(self))
        return packed

    @classmethod
    def unpack(cls, packed: bytes | None) -> "RouteRecord | None":
        """The route; none if the record has none, or another version's."""
        try:
            width, capacity, nodes = msgpack.unpackb(packed or b"", max_array_len=MAX_NODES)
        except (ValueError, TypeError):
            return None
        return cls(width, capacity, nodes)

    @property
    def edge(self) -> str:
        return self.nodes[0]

    def stage_of(self, node_id: str) -> int | None:
        """Where a node stands; none if it is not on the route."""
        return self.nodes.index(node_id) if node_id in self.nodes else None

    def after(self, stage: int) -> str:
        """The next hop, from the last stage the edge."""
        return self.nodes[(stage + 1) % len(self.nodes)]

    def before(self, stage: int) -> str:
        """Who sends this stage its steps."""
        return self.nodes[stage - 1]


def epoch_of(written: bytes | None) -> int | None:
    """The epoch that may write; none if the record is gone or sealed."""
    return None if written in (None, SEALED) else int(written)
