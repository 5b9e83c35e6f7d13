"""Finds a generation its route, and knows whom to leave out for a while."""

import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

from mesh import registry, routing, tiers
from mesh.catalog import Model
from mesh.db import InferenceSession
from mesh.distance import Coordinates
from mesh.registry import Node
from workers.services import Services


class Hop(NamedTuple):
    """A node and the span that it serves for a generation: a node that has moved is another hop."""

    node_id: str
    start_layer: int
    end_layer: int

    @classmethod
    def of(cls, node: Node) -> "Hop":
        return cls(node.node_id, node.start_layer, node.end_layer)


class Routes:
    """The routes of one generation."""

    def __init__(self, services: Services, model: Model, job: InferenceSession) -> None:
        self._redis = services.redis
        self._model = model
        self._positions = job.prompt_tokens + job.max_tokens
        self._admits = tiers.admits(job.tier)
        self._near = (
            None
            if job.near_latitude is None or job.near_longitude is None
            else Coordinates(job.near_latitude, job.near_longitude)
        )
        self._avoid: dict[str, float] = {}

    def avoid(self, node_id: str, seconds: float) -> None:
        """Leave a node out for so long."""
        self._avoid[node_id] = time.monotonic() + seconds

    async def find(self, serving: Collection[Hop]) -> list[Node] | None:
        """The cheapest route now, none if there is none. ``serving``: the hops that the generation
        has, which cost nothing where they still serve the same span."""
        nodes = await registry.active(self._redis, self._model.id)
        if len(nodes) < self._model.min_nodes:
            return None
        rooms = await registry.rooms(self._redis, [node.node_id for node in nodes])
        now = time.monotonic()
        return routing.choose(
            nodes,
            self._model.layers,
            avoid=[node_id for node_id, until in self._avoid.items() if until > now],
            prefer=[node.node_id for node in nodes if Hop.of(node) in serving],
            admits=self._admits,
            positions=self._positions,
            rooms=rooms,
            near=self._near,
        )

    async def reserve(self, route: Sequence[Node], serving: Collection[Hop]) -> bool:
        """Nodes that serve the generation already have its room."""
        new = [node.node_id for node in route if Hop.of(node) not in serving]
        return await registry.reserve(self._redis, new, self._positions)
