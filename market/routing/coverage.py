"""Can the nodes that are there serve a model for a price: what they lack, how far they reach."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from redis.asyncio import Redis

from market.catalog.models import Model
from market.nodes import live_lookup
from market.nodes.live_lookup import LiveNode
from market.nodes.node import Node
from market.routing import route_search, tiers
from market.routing.skip_counts import SkipCounter
from market.routing.skip_reasons import explain_skips


@dataclass(frozen=True, slots=True)
class Coverage:
    """A model's nodes now, and the cheapest route among them, whatever a generation needs; none if
    there is no route."""

    model: Model
    price: Decimal
    live: Sequence[LiveNode]
    route: Sequence[Node] | None

    @property
    def nodes(self) -> list[Node]:
        """Those that routes may use."""
        return [each.node for each in self.live if each.available]

    @property
    def missing(self) -> str | None:
        """What the nodes lack to serve the model, for people; none if nothing."""
        model = self.model
        if self.route is None:
            return f"Not every layer of {model.id} has a healthy node for its price right now."
        if len(self.nodes) < model.min_nodes:
            return (
                f"{model.id} is served by no fewer than {model.min_nodes} healthy nodes, and has "
                f"{len(self.nodes)} right now."
            )
        return None

    @property
    def longest_servable(self) -> int:
        """Positions of the longest generation for which there is a route."""
        rule = tiers.price_rule(self.price)
        return route_search.longest_servable(self.nodes, self.model.layers, admits=rule)

    def has_kv_for(self, positions: int) -> bool:
        """Whether some route's whole KV caches hold a generation of so many positions."""
        rule = tiers.price_rule(self.price)
        layers = self.model.layers
        route = route_search.cheapest_route(self.nodes, layers, admits=rule, positions=positions)
        return route is not None

    async def count_skips(self, skips: SkipCounter) -> None:
        """Tell the nodes that are there why they do not serve; not every time."""
        if skips.due:
            rule = tiers.price_rule(self.price)
            await skips.count(explain_skips(self.live, self.model.layers, [], fair=rule))


async def coverage_of(redis: Redis, model: Model, price: Decimal) -> Coverage:
    """How the nodes that are there now cover a model, for ``price`` FAR a generated token."""
    live = await live_lookup.live_nodes(redis, model.id)
    nodes = [each.node for each in live if each.available]
    route = route_search.cheapest_route(nodes, model.layers, admits=tiers.price_rule(price))
    return Coverage(model, price, live, route)
