"""The routes of one generation, and the nodes that it avoids for a while."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from market.catalog.models import Model
from market.geo.distance import Coordinates
from market.jobs.tables import Job
from market.nodes import kv_reservations, live_lookup
from market.nodes.live_lookup import LiveNode
from market.nodes.node import Node
from market.resources import Resources
from market.routing import route_search, tiers
from market.routing.skip_reasons import explain_skips


class Hop(NamedTuple):
    """A node and the span that it serves for a generation: with another span it is another hop."""

    node_id: str
    start_layer: int
    end_layer: int

    @classmethod
    def of(cls, node: Node) -> "Hop":
        return cls(node.node_id, node.start_layer, node.end_layer)


@dataclass(frozen=True, slots=True)
class _Choice:
    """A route, empty if there was none, and what it was chosen from and by."""

    live: Sequence[LiveNode]
    route: Sequence[Node]
    avoid: Collection[str]
    prefer: Collection[str]
    free_kv: Mapping[str, int]


class RouteFinder:
    """The routes of one generation."""

    def __init__(self, resources: Resources, model: Model, job: Job) -> None:
        self._redis = resources.redis
        self._model = model
        self._positions = job.prompt_tokens + job.max_tokens
        self._admits = tiers.tier_rule(job.tier)
        self._fair = tiers.price_rule(job.price_per_token_far)
        self._skips = resources.skips
        self._chosen: _Choice | None = None
        self._near = (
            None
            if job.near_latitude is None or job.near_longitude is None
            else Coordinates(job.near_latitude, job.near_longitude)
        )
        self._avoid: dict[str, float] = {}

    def avoid(self, node_id: str, seconds: float) -> None:
        """Leave a node out of this generation's routes for so many seconds."""
        self._avoid[node_id] = time.monotonic() + seconds

    async def find(self, serving: Collection[Hop]) -> list[Node] | None:
        """The cheapest route now; none if there is none.

        Args:
            serving: Hops of the generation's current route. A node that still serves such a hop's
                span costs nothing.
        """
        live = await live_lookup.live_nodes(self._redis, self._model.id)
        nodes = [live_node.node for live_node in live if live_node.available]
        free_kv = await kv_reservations.free_kv_of(self._redis, [node.node_id for node in nodes])
        now = time.monotonic()
        avoid = [node_id for node_id, until in self._avoid.items() if until > now]
        prefer = [node.node_id for node in nodes if Hop.of(node) in serving]
        route = None
        if len(nodes) >= self._model.min_nodes:
            route = route_search.cheapest_route(
                nodes,
                self._model.layers,
                avoid=avoid,
                prefer=prefer,
                admits=lambda node: self._fair(node) and self._admits(node),
                positions=self._positions,
                rooms=free_kv,
                near=self._near,
            )
        self._chosen = _Choice(live, route or [], avoid, prefer, free_kv)
        return route

    async def count_skips(self) -> None:
        """Count why the other nodes are not on the route that was found last, or why there was no
        route; but not every time, as :class:`SkipCounter` limits it."""
        choice, self._chosen = self._chosen, None
        if choice is None or not self._skips.due:
            return
        reasons = explain_skips(
            choice.live,
            self._model.layers,
            choice.route,
            avoid=choice.avoid,
            prefer=choice.prefer,
            admits=self._admits,
            fair=self._fair,
            positions=self._positions,
            rooms=choice.free_kv,
            near=self._near,
        )
        await self._skips.count(reasons)

    async def reserve(self, route: Sequence[Node], serving: Collection[Hop]) -> bool:
        """Reserve KV cache for the generation on a route's nodes, without the hops of ``serving``,
        which have it; false if a node has too little."""
        new = [node.node_id for node in route if Hop.of(node) not in serving]
        return await kv_reservations.reserve_kv(self._redis, new, self._positions)
