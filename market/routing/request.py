"""RouteRequest: what one generation asks of its route."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import inf

from market.geo.distance import MAX_DISTANCE_KM, Coordinates, distance_km
from market.nodes.node import Node

NEAR_KM = 1000.0
"""Radius of the first circle around the user in which nodes are looked for."""

NodeRule = Callable[[Node], bool]
"""Whether a node may serve: what a tier asks of it, for example."""


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What one generation asks of its route. Only ``layers`` is always asked.

    ``layers``: decoder layers of the model: the route covers ``[0, layers)``. ``positions``: KV
    positions that each node of the route has to hold, prompt and answer together. ``price``: FAR a
    token that the user pays; none if nodes of any price may serve. ``tier_rule``: which nodes the
    user's tier admits; none for all. ``free_kv``: free positions in each node's KV cache now, by
    node, without the nodes whose process does not run; none to go by the size of the whole KV cache
    instead. ``avoid``: ids of nodes that are not to serve. ``prefer``: ids of nodes that have
    computed a part of this generation already: they cost nothing, and have its KV cache. ``near``:
    where the user is; none if nodes anywhere are as good. ``within_km``: radius of the first circle
    around ``near``.
    """

    layers: int
    positions: int = 0
    price: Decimal | None = None
    tier_rule: NodeRule | None = None
    free_kv: Mapping[str, int] | None = None
    avoid: Collection[str] = ()
    prefer: Collection[str] = ()
    near: Coordinates | None = None
    within_km: float = NEAR_KM

    @property
    def radii(self) -> Iterator[float]:
        """Radii in kilometres around the user within which a route is looked for, one after the
        other: each twice the one before, and at last infinite, for nodes anywhere and those whose
        place is unknown. Infinite at once if the user's place is not known."""
        radius = inf if self.near is None else self.within_km
        while radius < MAX_DISTANCE_KM:
            yield radius
            radius *= 2
        yield inf

    def distance_km(self, node: Node) -> float:
        """Kilometres from the user to a node; infinite if either place is unknown."""
        if self.near is None or node.coordinates is None:
            return inf
        return distance_km(self.near, node.coordinates)
