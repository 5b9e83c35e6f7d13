"""RouteRequest: layers, positions, price, tier, place, whom to avoid or prefer."""

from collections.abc import Callable

from market.nodes.node import Node

NEAR_KM = 1000.0
"""How far away nodes may be at first."""


NodeRule = Callable[[Node], bool]
"""Whether a node may serve: what a tier asks of it, for example."""
