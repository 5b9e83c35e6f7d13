"""The live record of a generation: which epoch may write now, and on which route."""

from dataclasses import astuple, dataclass

import msgpack

from mesh.wire.limits import MAX_LAYERS

EPOCH = "epoch"
"""Field of the hash: the epoch that may write, or :data:`SEALED`."""

ROUTE = "route"
"""Field of the hash: a packed :class:`RouteRecord`."""

CANCELLED = "cancelled"
"""Field of the hash, if the user does not want the generation any more: no epoch begins."""

SEALED = b"sealed"
"""In the place of an epoch, once nobody may write any more."""


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
        """The value of the field :data:`ROUTE`."""
        packed: bytes = msgpack.packb(astuple(self))
        return packed

    @classmethod
    def unpack(cls, packed: bytes | None) -> "RouteRecord | None":
        """The route; none if the record has no route, or one that another version wrote."""
        try:
            width, capacity, nodes = msgpack.unpackb(packed or b"", max_array_len=MAX_LAYERS)
        except (ValueError, TypeError):
            return None
        return cls(width, capacity, nodes)

    @property
    def edge_node(self) -> str:
        return self.nodes[0]

    def stage_of(self, node_id: str) -> int | None:
        """A node's stage, counted from 0; none if it is not on the route."""
        return self.nodes.index(node_id) if node_id in self.nodes else None

    def next_node(self, stage: int) -> str:
        """To whom a stage sends its output; the last stage sends it to the edge."""
        return self.nodes[(stage + 1) % len(self.nodes)]

    def previous_node(self, stage: int) -> str:
        """Who sends a stage its steps; the edge gets them from the last stage."""
        return self.nodes[stage - 1]


def epoch_of(written: bytes | None) -> int | None:
    """The epoch that may write; none if the record is gone or sealed."""
    return None if written in (None, SEALED) else int(written)
