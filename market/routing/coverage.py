"""Can the live nodes serve a model for a price: what they lack, and for how long a generation."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from redis.asyncio import Redis

from market.catalog.models import Model
from market.nodes import live_lookup
from market.nodes.live_lookup import LiveNode
from market.nodes.node import Node
from market.routing.eligibility import ineligibility
from market.routing.request import RouteRequest
from market.routing.route_search import cheapest_route
from market.routing.skip_counts import SkipCounter
from market.routing.skip_reasons import explain_skips


@dataclass(frozen=True, slots=True)
class Coverage:
    """How the live nodes cover a model for its price of a generated token. ``route``: the cheapest
    route for any generation, however short; none if there is no route."""

    model: Model
    live: Sequence[LiveNode]
    route: Sequence[Node] | None

    @property
    def nodes(self) -> list[Node]:
        """The nodes that routes may use."""
        return [each.node for each in self.live if each.available]

    @property
    def missing(self) -> str | None:
        """What the nodes lack to serve the model, for people; none if nothing."""
        model = self.model
        if self.route is None:
            return f"Not every layer of {model.id} has a healthy node for its price right now."
        if not enough_nodes(model, self.live):
            return (
                f"{model.id} is served by no fewer than {model.min_nodes} healthy nodes, and has "
                f"{len(self.nodes)} right now."
            )
        return None

    @property
    def longest_servable(self) -> int:
        """Positions of the longest generation for which there is a route."""
        return longest_servable(self.live, _request(self.model))

    def route_for(self, positions: int) -> Sequence[Node] | None:
        """The cheapest route whose whole KV caches hold a generation of ``positions``; none if
        there is none."""
        return cheapest_route(self.live, _request(self.model, positions))

    def serving(self, positions: int) -> list[Node]:
        """The nodes that may serve a generation of ``positions``, each in a span of the model."""
        request = _request(self.model, positions)
        return [each.node for each in self.live if ineligibility(each, request) is None]

    async def count_skips(self, skips: SkipCounter) -> None:
        """Count for each live node why there is no route with it, as often as
        :class:`SkipCounter` allows."""
        if skips.due:
            await skips.count(explain_skips(self.live, _request(self.model), []))


async def coverage_of(redis: Redis, model: Model) -> Coverage:
    """How the nodes that are live now cover a model, for its price of a generated token."""
    live = await live_lookup.live_nodes(redis, model.id)
    return Coverage(model, live, cheapest_route(live, _request(model)))


def enough_nodes(model: Model, live: Sequence[LiveNode]) -> bool:
    """Whether as many nodes are available as the model asks for at least."""
    return sum(each.available for each in live) >= model.min_nodes


def longest_servable(live: Sequence[LiveNode], request: RouteRequest) -> int:
    """Positions of the longest generation for which the nodes make a route; 0 if there is none.

    The longer it is, the fewer nodes may serve it, so that bisection finds it in few searches.
    """
    capacities = sorted({each.node.kv_positions for each in live if each.available})

    def has_no_route(positions: int) -> bool:
        return cheapest_route(live, replace(request, positions=positions)) is None

    servable = bisect_left(capacities, True, key=has_no_route)
    return capacities[servable - 1] if servable else 0


def _request(model: Model, positions: int = 0) -> RouteRequest:
    return RouteRequest(model.layers, positions=positions, price=model.prices.token)
